"""Decoding: what cv2.imread gives for a good image, a named failure for any other, and nothing on the terminal."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.align.codec import decode_image
from facedata.errors import FaceError
from facedata.synthetic.faces import draw_face, identity_from_seed

Image = pytest.importorskip("PIL.Image", reason="Pillow is the other reader")
ImageOps = pytest.importorskip("PIL.ImageOps")

FACE = draw_face(identity_from_seed(0, 1), size=120).image[:, :90].copy()
RGB = Image.fromarray(FACE[..., ::-1])
END = b"\xff\xd9"


def encoded(extension: str, *options: int, image: NDArray[Any] = FACE) -> bytes:
    return bytes(cv2.imencode(f".{extension}", image, options)[1])


def saved(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen_by_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]


def failure(data: bytes, *limit: int) -> FaceError:
    with pytest.raises(FaceError) as caught:
        decode_image(data, *limit)
    return caught.value


def picture_or_failure(data: bytes, *limit: int) -> NDArray[np.uint8] | FaceError:
    try:
        return decode_image(data, *limit)
    except FaceError as error:
        return error


JPEG = encoded("jpg")
PROGRESSIVE = encoded("jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = encoded("jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
GREY_JPEG = encoded("jpg", image=FACE[..., 1].copy())
PNG, BMP, TIFF = encoded("png"), encoded("bmp"), encoded("tif")
WEBP, LOSSLESS_WEBP = encoded("webp", cv2.IMWRITE_WEBP_QUALITY, 90), encoded("webp", cv2.IMWRITE_WEBP_QUALITY, 101)
WHOLE = {
    "jpg": JPEG, "progressive jpg": PROGRESSIVE, "jpg with restarts": RESTARTS, "grey jpg": GREY_JPEG, "png": PNG,
    "webp": WEBP, "lossless webp": LOSSLESS_WEBP, "bmp": BMP, "tif": TIFF,
}  # fmt: skip


# Good images


@pytest.mark.parametrize("name", WHOLE)
def test_a_good_image_is_what_imread_gives(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{name.split()[-1]}"
    path.write_bytes(WHOLE[name])
    image = decode_image(WHOLE[name])
    np.testing.assert_array_equal(image, cv2.imread(str(path), cv2.IMREAD_COLOR))
    assert (str(image.dtype), image.shape, image.flags.c_contiguous) == ("uint8", FACE.shape, True)


def with_alpha() -> Any:
    image = RGB.convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (120, 1))))
    return image


PALETTE, GREY = RGB.quantize(64), RGB.convert("L")
UNUSUAL = {
    "grey JPEG": (saved(GREY, "JPEG"), 1),
    "CMYK JPEG": (saved(RGB.convert("CMYK"), "JPEG", quality=95), 2),
    "JPEG of halved colours": (saved(RGB, "JPEG", subsampling=2), 2),
    "PNG with a palette": (saved(PALETTE, "PNG"), 0),
    "PNG with a palette and a transparent colour": (saved(PALETTE, "PNG", transparency=3), 0),
    "PNG of one bit": (saved(RGB.convert("1"), "PNG"), 0),
    "grey PNG": (saved(GREY, "PNG"), 0),
    "grey PNG with alpha": (saved(RGB.convert("LA"), "PNG"), 0),
    "PNG with alpha": (saved(with_alpha(), "PNG"), 0),
    "WebP with alpha": (saved(with_alpha(), "WEBP", lossless=True, exact=True), 0),
    "BMP with a palette": (saved(PALETTE, "BMP"), 0),
    "TIFF": (saved(RGB, "TIFF"), 0),
    "TIFF, packed": (saved(RGB, "TIFF", compression="tiff_adobe_deflate"), 0),
    "TIFF with a palette": (saved(PALETTE, "TIFF"), 0),
    "TIFF of inks": (saved(RGB.convert("CMYK"), "TIFF"), 2),
    "grey TIFF": (saved(GREY, "TIFF"), 0),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_kind_of_pixels_becomes_three_channels(name: str) -> None:
    data, tolerance = UNUSUAL[name]
    image = decode_image(data)
    assert (image.shape, str(image.dtype)) == (FACE.shape, "uint8")
    assert np.abs(image.astype(int) - seen_by_pillow(data)).max() <= tolerance


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_become_eight(extension: str, channels: int) -> None:
    deep = np.random.default_rng(3).integers(0, 1 << 16, (20, 30, channels), np.uint16)
    image = decode_image(encoded(extension, image=deep))
    assert str(image.dtype) == "uint8"
    colours = deep[..., :3] if channels > 1 else np.repeat(deep, 3, axis=2)
    assert np.abs(image - colours / 257.0).max() <= 1


def test_what_is_transparent_shows_the_colours_stored_beneath() -> None:
    image = np.dstack([FACE, np.zeros(FACE.shape[:2], np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded("png", image=image)), FACE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = saved(RGB, kind, exif=exif.tobytes())
    image = decode_image(data)
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - seen_by_pillow(data)).max() <= 2


def test_an_image_of_one_pixel() -> None:
    for extension in ("jpg", "png", "webp", "bmp", "tif"):
        data = encoded(extension, image=np.full((1, 1, 3), 77, np.uint8))
        assert decode_image(data).tolist() == [[[77, 77, 77]]]


# Too large


def png_of_zeros(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    """20,000 x 20,000 pixels; the file ends early, for nothing behind its header is looked at."""
    bomb = png_of_zeros(20_000, 3).replace(struct.pack(">II", 20_000, 3), struct.pack(">II", 20_000, 20_000))
    error = failure(bomb)
    assert error.cause == "too large"
    assert "20,000 x 20,000 pixels" in error.detail
    assert "--max-pixels 100,000,000" in error.detail


@pytest.mark.parametrize("name", WHOLE)
def test_the_limit_is_one_on_the_pixels(name: str) -> None:
    pixels = FACE.shape[0] * FACE.shape[1]
    assert decode_image(WHOLE[name], pixels).shape == FACE.shape
    error = failure(WHOLE[name], pixels - 1)
    assert (error.cause, "90 x 120 pixels" in error.detail) == ("too large", True)


# Damage


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_image_fails_by_name_wherever_it_is_cut(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = WHOLE[name]
    for end in {*range(0, len(data), 1 + len(data) // 150), *range(len(data) - 40, len(data))}:
        image = picture_or_failure(data[:end])
        if isinstance(image, FaceError):
            assert (image.cause, bool(image.detail)) == ("undecodable", True)
        else:  # the end marker of a JPEG may be gone, its pixels not
            assert end >= len(data) - 2
            np.testing.assert_array_equal(image, decode_image(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"iCCP", b"eXIf"])
def test_a_png_chunk_takes_no_more_memory_than_the_file_has(kind: bytes) -> None:
    """Given to OpenCV it would take 3 GB."""
    place = PNG.index(b"IDAT") - 4
    error = failure(PNG[:place] + struct.pack(">I", 3_000_000_000) + kind + PNG[place + 8 :])
    assert error.detail.startswith("cut short or damaged: a PNG chunk of 3,000,000,000 bytes")


def animated(**options: Any) -> bytes:
    face = RGB.resize((360, 480))
    return saved(face, "PNG", save_all=True, append_images=[face.rotate(90)], **options)


@pytest.mark.parametrize("default_image", [False, True])
def test_of_an_animated_png_the_still_picture_is_taken(default_image: bool) -> None:
    data = animated(default_image=default_image)
    np.testing.assert_array_equal(decode_image(data), seen_by_pillow(data))


@pytest.mark.parametrize("place", range(1000, 11_000, 2000))
def test_damage_in_an_animation_neither_crashes_the_decoder_nor_matters(place: int) -> None:
    """OpenCV 5.0 ends with a segmentation fault at most such places, and its worker with it."""
    whole = animated()
    data = bytearray(whole.replace(b"fcTL", b"fpTL", 1))
    data[data.index(b"fdAT") + place] = 6
    np.testing.assert_array_equal(decode_image(bytes(data)), decode_image(whole))


def test_damage_in_the_still_picture_of_an_animation_is_noticed() -> None:
    """OpenCV 5.0 hands on the picture."""
    data = bytearray(animated())
    data[data.index(b"IDAT") + 3000] ^= 1
    assert failure(bytes(data)).cause == "undecodable"


@pytest.mark.parametrize("name", ["jpg", "progressive jpg", "jpg with restarts", "grey jpg", "webp", "lossless webp"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_image_that_was_filled_up_with_zeros_fails(name: str, part: float) -> None:
    data = WHOLE[name]
    end = int(len(data) * part)
    assert failure(data[:end] + bytes(len(data) - end)).cause == "undecodable"
    assert failure(data[:end] + bytes(20 * len(data))).cause == "undecodable"
    if "jpg" in name:
        assert failure(data[:end] + JPEG).cause == "undecodable"


@pytest.mark.parametrize("name", ["jpg", "jpg with restarts", "grey jpg"])
def test_a_jpeg_that_lacks_only_its_end_marker_passes(name: str) -> None:
    data = WHOLE[name]
    for bare in (data[:-1], data[:-2]):
        np.testing.assert_array_equal(decode_image(bare), decode_image(data))


def test_a_progressive_jpeg_without_its_last_scans_fails() -> None:
    """With an end marker it would be a blurred picture, and nobody would say so."""
    assert "no end marker" in failure(PROGRESSIVE[: PROGRESSIVE.rfind(b"\xff\xc4")]).detail


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("rest", [b"\0", bytes(3000), bytes(range(256)), b"</html>\r\n", END])
def test_what_follows_an_image_does_no_harm(name: str, rest: bytes) -> None:
    np.testing.assert_array_equal(decode_image(WHOLE[name] + rest), decode_image(WHOLE[name]))


@pytest.mark.parametrize("filling", [bytes(1), bytes(4), bytes(500), b"\xff" * 7])
def test_filling_before_the_end_marker_does_no_harm(filling: bytes) -> None:
    np.testing.assert_array_equal(decode_image(JPEG[:-2] + filling + END), decode_image(JPEG))


def test_bytes_missing_within_are_named_with_what_libjpeg_said(capfd: pytest.CaptureFixture[str]) -> None:
    half = len(JPEG) // 2
    assert failure(JPEG[:half] + JPEG[half + 400 :]).detail.startswith("Corrupt JPEG data: ")
    assert "extraneous bytes" in failure(JPEG[:-2] + b"\x07" * 300 + END).detail
    assert failure(PNG[:-40] + bytes(4) + PNG[-36:]).detail.startswith("libpng error: IDAT: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("side", [10, 60, 200, 3000])
def test_a_jpeg_whose_header_lies_fails(side: int) -> None:
    place = JPEG.index(b"\xff\xc0") + 5
    assert failure(JPEG[:place] + struct.pack(">HH", side, side) + JPEG[place + 4 :]).cause == "undecodable"


@pytest.mark.parametrize("size", [(9, 9), (4000, 4000)])
def test_a_png_whose_header_lies_fails(size: tuple[int, int]) -> None:
    header = b"IHDR" + struct.pack(">II", *size) + PNG[24:29]
    lie = PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]
    if size > FACE.shape[:2]:
        assert failure(lie).cause == "undecodable"
    else:  # libpng takes what it needs
        assert decode_image(lie).shape == (*size, 3)


NO_IMAGES = {
    "nothing": b"",
    "text": b"hello world\n" * 10,
    "zeros": bytes(1000),
    "a web page": b"<!DOCTYPE html><p>",
    "a JPEG's signature": b"\xff\xd8\xff",
    "a PNG's signature": b"\x89PNG\r\n\x1a\n",
    "a JPEG without a scan": JPEG[: JPEG.index(b"\xff\xda")],
    "a JPEG without a scan, with an end": JPEG[: JPEG.index(b"\xff\xda")] + END,
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_says_so(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    error = failure(NO_IMAGES[name])
    assert (error.cause, bool(error.detail)) == ("undecodable", True)
    assert ("it is empty" in error.detail, "its bytes begin" in error.detail) == (
        name == "nothing",
        name in ("text", "zeros", "a web page"),
    )
    assert capfd.readouterr() == ("", "")


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_turned_bytes_give_a_whole_picture_or_a_failure(name: str, data: st.DataObject) -> None:
    spoilt = bytearray(WHOLE[name])
    for place in data.draw(st.lists(st.integers(0, len(spoilt) - 1), min_size=1, max_size=6)):
        spoilt[place] = data.draw(st.integers(0, 255))
    image = picture_or_failure(bytes(spoilt), 1_000_000)
    if isinstance(image, FaceError):
        assert image.cause in ("undecodable", "too large")
        assert 0 < len(image.detail) < 300
        assert "/io/" not in image.detail
        assert "@" not in image.detail
    else:
        assert (image.ndim, image.shape[2], str(image.dtype)) == (3, 3, "uint8")


# What decoders write


def test_reasons_are_the_same_each_time() -> None:
    """They have no times in them, nor the place of OpenCV's source on the machine that built it."""
    cut = BMP[:-100]
    assert failure(cut).detail == failure(cut).detail
    assert "end of input" in failure(cut).detail


def test_standard_error_is_itself_again(capfd: pytest.CaptureFixture[str]) -> None:
    failure(PNG[:-100])
    os.write(2, b"from a program\n")
    sys.stderr.write("from Python\n")
    sys.stderr.flush()
    assert capfd.readouterr().err == "from a program\nfrom Python\n"


def test_threads_and_children_hear_only_their_own_decoder() -> None:
    half = len(JPEG) // 2
    spoilt, wrong = JPEG[:half] + JPEG[half + 400 :], []

    def decode() -> None:
        for _ in range(30):
            decode_image(JPEG)
            try:
                decode_image(spoilt)
                wrong.append("passed")
            except FaceError:
                pass

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


CHILDREN = """
import os, sys
from facedata.align.codec import decode_image
from facedata.errors import FaceError
good, bad = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read()
decode_image(good)
child = os.fork()
for _ in range(300):
    if child:
        decode_image(good)
    else:
        try:
            decode_image(bad)
            os._exit(1)
        except FaceError:
            pass
if not child:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_does_not_disturb_its_parent(tmp_path: Path) -> None:
    half = len(JPEG) // 2
    (tmp_path / "good").write_bytes(JPEG)
    (tmp_path / "bad").write_bytes(JPEG[:half] + JPEG[half + 400 :])
    command = [sys.executable, "-c", CHILDREN, "good", "bad"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_standard_error_images_decode_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(JPEG)
    code = "import os\nos.close(2)\nfrom facedata.align.codec import decode_image\n"
    code += "print(decode_image(open('image', 'rb').read()).shape)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "(120, 90, 3)\n"
