"""Kinds and sizes of images from their headers, also of truncated, unusual and crafted ones."""

from __future__ import annotations

import struct
import time
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.images import image_extension, image_size, import_opencv

SIGNED = {
    "JPEG with JFIF": (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpg"),
    "JPEG without": (b"\xff\xd8\xff\xdb", "jpg"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "png"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8L", "webp"),
    "BMP": (b"BM" + bytes(24), "bmp"),
    "GIF of 1987": (b"GIF87a", "gif"),
    "GIF of 1989": (b"GIF89a", "gif"),
    "TIFF, little-endian": (b"II*\0", "tif"),
    "TIFF, big-endian": (b"MM\0*", "tif"),
    "PPM": (b"P6\n2 2\n255\n" + bytes(12), "ppm"),
    "PGM with a comment": (b"P5\n# made by hand\n2 2\n255\n", "pgm"),
    "words that begin with P6": (b"P6 is a class", None),
    "truncated PPM signature": (b"P6\n", None),
    "nothing": (b"", None),
    "truncated JPEG signature": (b"\xff\xd8", None),
    "PNG corrupted by a text transfer": (b"\x89PNG\n\x1a\n", None),
    "sound in RIFF": (b"RIFF\x24\0\0\0WAVE", None),
    "truncated RIFF": (b"RIFF\x24\0\0\0WEB", None),
    "words that begin with BM": (b"BMW is a car", None),
    "GIF with a wrong year": (b"GIF88a", None),
    "a signature that is not first": (b" \xff\xd8\xff", None),
}


@pytest.mark.parametrize(("data", "extension"), SIGNED.values(), ids=SIGNED)
def test_the_first_bytes_decide_the_extension(data: bytes, extension: str | None) -> None:
    assert image_extension(data) == extension
    assert extension is None or image_extension(data + b"anything") == extension


# Sizes


def encoded(height: int, width: int, channels: int, extension: str, options: tuple[int, ...] = ()) -> bytes:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 255, (height, width, channels), np.uint8)
    return bytes(import_opencv().imencode(f".{extension}", pixels, options)[1])


def decoded_size(data: bytes) -> tuple[int, ...]:
    cv2 = import_opencv()
    height, width, *channels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape
    return height, width, *(channels or [1])


@given(*[st.integers(1, 90)] * 2, st.sampled_from([1, 3, 4]), st.sampled_from(["jpg", "png", "webp", "bmp", "tif"]))
def test_the_size_in_the_header_is_that_of_the_decoded_image(height: int, width: int, channels: int, kind: str) -> None:
    data = encoded(height, width, channels, kind)
    assert image_size(data) == decoded_size(data)


@pytest.mark.parametrize(
    ("option", "value"),
    [("JPEG_PROGRESSIVE", 1), ("JPEG_RST_INTERVAL", 1), ("JPEG_OPTIMIZE", 1), ("WEBP_QUALITY", 80)],
)
def test_other_codings(option: str, value: int) -> None:
    coding = (getattr(import_opencv(), f"IMWRITE_{option}"), value)
    assert image_size(encoded(300, 7, 3, option.partition("_")[0].lower(), coding)) == (300, 7, 3)


def test_an_extended_webp_has_the_size_of_its_canvas() -> None:
    def canvas(flags: int) -> bytes:
        return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + struct.pack("<IHBHB", flags, 111, 0, 69, 1)

    assert image_size(canvas(0x10)) == (65536 + 70, 112, 4)
    assert image_size(canvas(0)) == (65536 + 70, 112, 3)
    assert image_size(canvas(0)[:-1]) is None


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


FRAME = segment(0xC2, struct.pack(">BHHB", 8, 112, 96, 3) + bytes(9))


@pytest.mark.parametrize(
    "before",
    [
        segment(0xE1, b"Exif" + bytes(65000) + b"\xff\xc0\0\x11\x08\0\x01\0\x01\x03"),  # with a thumbnail inside
        b"".join(segment(0xE2, bytes(65000)) for _ in range(255)),
        segment(0xFE, b""),
        b"\xff\xff\xff" + segment(0xC4, bytes(30))[1:],
        b"\xff\x01",
    ],
    ids=["thumbnail", "colour profile", "empty comment", "padding", "bare marker"],
)
def test_segments_before_the_frame_of_a_jpeg_are_skipped(before: bytes) -> None:
    assert image_size(b"\xff\xd8" + before + FRAME) == (112, 96, 3)


DAMAGED = {
    "nothing more": b"\xff",
    "truncated frame": FRAME[:8],
    "length beyond the end": b"\xff\xe0\xff\xff" + FRAME,
    "end before the frame": b"\xff\xd9" + FRAME,
    "scan before the frame": b"\xff\xda\0\x02" + FRAME,
    "unknown marker": b"\xff\0" + FRAME,
    "no 0xff": b"\0" + FRAME,
    "thousands of segments": bytes.fromhex("ffe00000") * 2000 + FRAME,
    "no height": segment(0xC0, struct.pack(">BHHB", 8, 0, 96, 3)),
    "no components": segment(0xC0, struct.pack(">BHHB", 8, 9, 96, 0)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_jpeg_has_no_size(data: bytes) -> None:
    assert image_size(b"\xff\xd8" + data) is None


def png(colour: int, depth: int = 8, width: int = 5, height: int = 3) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = bytes(height * (1 + -(-width * samples * depth // 8)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [(0, 1), (0, 16), (2, 8), (2, 16), (3, 1), (3, 8), (4, 8), (6, 16)])
def test_every_colour_type_of_png_has_its_channels(kind: tuple[int, int]) -> None:
    data = png(*kind)
    assert image_size(data) == decoded_size(data)


@pytest.mark.parametrize(("place", "value"), [(25, b"\x05"), (16, bytes(4)), (16, b"\xff" * 4)])
def test_a_png_with_an_impossible_header_has_no_size(place: int, value: bytes) -> None:
    assert image_size(png(2)[:place] + value + png(2)[place + len(value) :]) is None


def bmp(bits: int, palette: bytes = b"", height: int = 3) -> bytes:
    pixels = bytes(-(-5 * bits // 32) * 4 * abs(height))
    header = struct.pack("<IiiHHIIiiII", 40, 5, height, 1, bits, 0, len(pixels), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette + pixels), 0, 0, 54 + len(palette)) + header + palette + pixels


GREYS = b"".join(bytes([level, level, level, 0]) for level in range(256))
COLOURS = b"".join(bytes([level, level, 7, 0]) for level in range(256))


@pytest.mark.parametrize("palette", [GREYS, COLOURS], ids=["grey", "colour"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmp_with_a_palette_of_greys_is_grey(bits: int, palette: bytes) -> None:
    data = bmp(bits, palette[: 4 << bits])
    assert image_size(data) == decoded_size(data) == (3, 5, 1 if palette is GREYS else 3)


@pytest.mark.parametrize("bits", [16, 24])
def test_a_bmp_without_a_palette_is_coloured_also_upside_down(bits: int) -> None:
    for height in (3, -3):
        assert image_size(bmp(bits, height=height)) == decoded_size(bmp(bits, height=height)) == (3, 5, 3)
    core = b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 5, 3, 1, 24)  # the older header
    assert (image_size(core), image_size(core[:-1])) == ((3, 5, 3), None)


def test_a_gif_has_the_size_of_its_screen() -> None:
    assert image_size(b"GIF89a" + struct.pack("<HH", 5, 3)) == (3, 5, 3)


def tiff(
    samples: int = 3,
    *,
    order: str = "<",
    kind: int = 4,
    first: bool = True,
    strips: int = 3,
    **entries: tuple[int, ...],
) -> bytes:
    """5 x 3 pixels, a row to a strip or all in one; the directory before the pixels or after them."""
    pixels = bytes(range(15 * samples))
    rows = 3 // strips
    names = {"width": 256, "height": 257, "bits": 258, "packing": 259, "colours": 262, "places": 273, "samples": 277}
    names |= {"rows": 278, "lengths": 279, "palette": 320, "across": 322, "down": 323}
    values = {"width": (5,), "height": (3,), "bits": (8,) * samples, "packing": (1,), "samples": (samples,)}
    values |= {"colours": (2 if samples > 2 else 1,), "rows": (rows,), "lengths": (5 * samples * rows,) * strips}
    values |= {"places": (0,) * strips, **entries}
    size = 2 + 12 * len(values) + 4
    lists = sum(struct.calcsize("HI"[kind == 4]) * len(value) for value in values.values() if len(value) > 1)
    directory = 8 if first else 8 + len(pixels) + len(pixels) % 2
    start = 8 + size + lists if first else 8
    values["places"] = tuple(start + index * 5 * samples * rows for index in range(strips))
    letter, packed, beyond = {3: "H", 4: "I"}[kind], b"", b""
    for name in sorted(values, key=names.__getitem__):
        content = struct.pack(f"{order}{len(values[name])}{letter}", *values[name])
        if len(content) > 4:
            beyond, content = beyond + content, struct.pack(f"{order}I", directory + size + len(beyond))
        packed += struct.pack(f"{order}HHI", names[name], kind, len(values[name])) + content.ljust(4, b"\0")
    block = struct.pack(f"{order}H", len(values)) + packed + bytes(4) + beyond
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory)
    return header + (block.ljust(start - 8, b"\0") + pixels if first else pixels.ljust(directory - 8, b"\0") + block)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("strips", [1, 3])
def test_a_tiff_has_its_size_whatever_its_order(samples: int, order: str, kind: int, first: bool, strips: int) -> None:
    data = tiff(samples, order=order, kind=kind, first=first, strips=strips)
    assert image_size(data) == decoded_size(data) == (3, 5, samples)


def test_a_tiff_with_a_palette_is_coloured() -> None:
    data = tiff(1, kind=3, colours=(3,), palette=tuple(range(0, 768 * 80, 80)))
    assert image_size(data) == decoded_size(data) == (3, 5, 3)


@pytest.mark.parametrize("first", [True, False])
def test_a_truncated_tiff_has_no_size(first: bool) -> None:
    data = tiff(first=first, kind=3)
    assert [image_size(data[:end]) for end in range(len(data) - 1)] == [None] * (len(data) - 1)


def test_a_tiff_with_tiles_or_strips_out_of_proportion_has_no_size() -> None:
    assert image_size(tiff(across=(1 << 20,), down=(1 << 20,))) is None
    assert image_size(tiff(across=(256,), down=(256,))) == (3, 5, 3)
    assert image_size(tiff(samples=1, width=(0,))) is None
    data = tiff(strips=3)
    assert image_size(data.replace(struct.pack("<HHI", 279, 4, 3), struct.pack("<HHI", 279, 4, (1 << 32) - 1))) is None


def test_a_tiff_of_65_535_equal_entries_is_read_quickly() -> None:
    entry = struct.pack("<HHII", 273, 4, 60_000, 8)
    begin = time.process_time()
    assert image_size(b"II*\0" + struct.pack("<IH", 8, 65_535) + entry * 65_535) is None
    assert time.process_time() - begin < 5


BEGINNINGS = [data for data, _ in SIGNED.values()] + [encoded(9, 9, 3, kind) for kind in ("jpg", "png", "webp")]
BEGINNINGS += [png(6), bmp(8, COLOURS), tiff(), tiff(first=False, order=">"), b"RIFF\0\0\0\0WEBPVP8X"]


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=40), st.data())
def test_any_bytes_have_a_plausible_size_or_none(beginning: bytes, rest: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(beginning)), min_size=2, max_size=2)))
    for first, end in pairwise([0, *cuts]):
        size = image_size(beginning[first:end] + rest)
        assert size is None or (all(side > 0 for side in size) and size[2] in (1, 3, 4))
