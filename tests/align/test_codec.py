"""Decoding gives what cv2.imread gives for a good image and an error for any other; encoding keeps its promises."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.align.codec import Encoding, decode_image
from facedata.errors import FaceError, OptionError
from facedata.images import image_extension
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


def largest_difference(first: NDArray[Any], second: NDArray[Any]) -> int:
    return int(np.abs(first.astype(int) - second).max())


def picture_or_failure(data: bytes, *limit: int) -> NDArray[np.uint8] | FaceError:
    try:
        return decode_image(data, *limit)
    except FaceError as error:
        return error


def failure(data: bytes, *limit: int) -> str:
    with pytest.raises(FaceError) as raised:
        decode_image(data, *limit)
    return str(raised.value)


JPEG, PNG, BMP = encoded("jpg"), encoded("png"), encoded("bmp")
DAMAGED = JPEG[: len(JPEG) // 2] + JPEG[len(JPEG) // 2 + 400 :]
PROGRESSIVE = encoded("jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
WHOLE = {
    "jpg": JPEG,
    "progressive jpg": PROGRESSIVE,
    "jpg with restarts": encoded("jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "grey jpg": encoded("jpg", image=FACE[..., 1].copy()),
    "png": PNG,
    "webp": encoded("webp", cv2.IMWRITE_WEBP_QUALITY, 90),
    "lossless webp": encoded("webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "bmp": BMP,
    "tif": encoded("tif"),
}
WITH_ALPHA = RGB.convert("RGBA")
WITH_ALPHA.putalpha(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (120, 1))))
PALETTE, GREY = RGB.quantize(64), RGB.convert("L")
UNUSUAL = {
    "CMYK JPEG": (saved(RGB.convert("CMYK"), "JPEG", quality=95), 2),
    "JPEG with halved colours": (saved(RGB, "JPEG", subsampling=2), 2),
    "PNG with a palette": (saved(PALETTE, "PNG"), 0),
    "PNG with a palette and a transparent colour": (saved(PALETTE, "PNG", transparency=3), 0),
    "PNG of one bit": (saved(RGB.convert("1"), "PNG"), 0),
    "grey PNG": (saved(GREY, "PNG"), 0),
    "PNG with alpha": (saved(WITH_ALPHA, "PNG"), 0),
    "WebP with alpha": (saved(WITH_ALPHA, "WEBP", lossless=True, exact=True), 0),
    "BMP with a palette": (saved(PALETTE, "BMP"), 0),
    "TIFF": (saved(RGB, "TIFF"), 0),
    "TIFF of inks": (saved(RGB.convert("CMYK"), "TIFF"), 2),
}
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x112] = orientation
    UNUSUAL[f"JPEG with orientation {orientation}"] = (saved(RGB, "JPEG", exif=exif.tobytes()), 2)
    UNUSUAL[f"PNG with orientation {orientation}"] = (saved(RGB, "PNG", exif=exif.tobytes()), 0)


@pytest.mark.parametrize("name", WHOLE)
def test_a_good_image_is_what_imread_gives(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{name.split()[-1]}"
    path.write_bytes(WHOLE[name])
    image = decode_image(WHOLE[name])
    np.testing.assert_array_equal(image, cv2.imread(str(path), cv2.IMREAD_COLOR))
    assert (str(image.dtype), image.shape, image.flags.c_contiguous) == ("uint8", FACE.shape, True)
    for rest in (b"\0", bytes(3000), bytes(range(256)), b"</html>\r\n", END):
        np.testing.assert_array_equal(decode_image(WHOLE[name] + rest), image)


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_kind_of_pixels_becomes_three_channels_the_right_way_up(name: str) -> None:
    data, tolerance = UNUSUAL[name]
    image, expected = decode_image(data), seen_by_pillow(data)
    assert (image.shape, str(image.dtype), image.flags.c_contiguous) == (expected.shape, "uint8", True)
    assert largest_difference(image, expected) <= tolerance


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_become_eight(extension: str, channels: int) -> None:
    deep = np.random.default_rng(3).integers(0, 1 << 16, (20, 30, channels), np.uint16)
    image = decode_image(encoded(extension, image=deep))
    assert str(image.dtype) == "uint8"
    assert np.abs(image - (deep[..., :3] if channels > 1 else deep) / 257.0).max() <= 1


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header))


def test_an_image_with_too_many_pixels_is_refused_after_its_header() -> None:
    expected = "too large: 20,000 x 20,000 pixels: more than --max-pixels 100,000,000"
    assert failure(png_header(20_000, 20_000)).startswith(expected)
    pixels = FACE.shape[0] * FACE.shape[1]
    for data in WHOLE.values():
        assert decode_image(data, pixels).shape == FACE.shape
        assert failure(data, pixels - 1).startswith("too large: 90 x 120 pixels")


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_image_is_refused_wherever_it_is_cut(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = WHOLE[name]
    for end in {*range(0, len(data), 1 + len(data) // 60), *range(len(data) - 40, len(data))}:
        image = picture_or_failure(data[:end])
        if isinstance(image, FaceError):
            assert str(image).startswith("undecodable: ")
        else:  # the end marker of a JPEG may be gone, its pixels not
            assert end >= len(data) - 2
            np.testing.assert_array_equal(image, decode_image(data))
    if "jpg" in name:
        filled = [data[:-2] + filling + END for filling in (bytes(1), bytes(500), b"\xff" * 7)]  # as by cameras
        bare = [data[:-1], data[:-2]] if name != "progressive jpg" else []
        for whole in (*filled, *bare):
            np.testing.assert_array_equal(decode_image(whole), decode_image(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["jpg", "progressive jpg", "jpg with restarts", "grey jpg", "webp", "lossless webp"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_image_that_was_filled_up_is_refused(name: str, part: float) -> None:
    data = WHOLE[name]
    end = int(len(data) * part)
    for rest in (bytes(len(data) - end), bytes(20 * len(data)), JPEG if "jpg" in name else bytes(100)):
        assert failure(data[:end] + rest).startswith("undecodable: ")


def animated(**options: Any) -> bytes:
    face = RGB.resize((360, 480))
    return saved(face, "PNG", save_all=True, append_images=[face.rotate(90)], **options)


def test_only_the_still_picture_of_an_animated_png_counts() -> None:
    """OpenCV 5.0 ends with a segmentation fault at most places of damage in an animation, and its worker with it."""
    whole = animated()
    for data in (whole, animated(default_image=True)):
        np.testing.assert_array_equal(decode_image(data), seen_by_pillow(data))
    for place in range(1000, 11_000, 2000):
        damaged = bytearray(whole.replace(b"fcTL", b"fpTL", 1))
        damaged[damaged.index(b"fdAT") + place] = 6
        np.testing.assert_array_equal(decode_image(bytes(damaged)), decode_image(whole))
    damaged = bytearray(whole)
    damaged[damaged.index(b"IDAT") + 3000] ^= 1
    assert failure(bytes(damaged)).startswith("undecodable: ")


def changed(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


THREE_GB, FOUND = struct.pack(">I", 3_000_000_000), "damaged: a PNG chunk of 3,000,000,000 bytes"
SIZE, CHUNK = JPEG.index(b"\xff\xc0") + 5, PNG.index(b"IDAT") - 4


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        pytest.param(b"", "not an image: it is empty", id="nothing"),
        pytest.param(b"hello world\n" * 10, "not an image: its bytes begin", id="text"),
        pytest.param(b"\xff\xd8\xff", "the header of this jpg has no size", id="a JPEG's signature"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "the header of this png has no size", id="a PNG's signature"),
        pytest.param(JPEG[: JPEG.index(b"\xff\xda")], "no end marker", id="a JPEG without a scan"),
        pytest.param(PROGRESSIVE[: PROGRESSIVE.rfind(b"\xff\xc4")], "no end marker", id="without its last scans"),
        pytest.param(DAMAGED, "Corrupt JPEG data: ", id="a JPEG with missing bytes"),
        pytest.param(JPEG[:-2] + b"\x07" * 300 + END, "extraneous bytes", id="a JPEG with surplus bytes"),
        pytest.param(changed(JPEG, SIZE, struct.pack(">HH", 60, 60)), "", id="a JPEG with a smaller size"),
        pytest.param(changed(JPEG, SIZE, struct.pack(">HH", 3000, 3000)), "", id="a JPEG with a larger size"),
        pytest.param(changed(PNG, len(PNG) - 40, bytes(4)), "libpng error: IDAT: ", id="a PNG with other bytes"),
        pytest.param(png_header(4000, 4000) + PNG[33:], "", id="a PNG with a larger size in its header"),
        pytest.param(changed(PNG, CHUNK, THREE_GB + b"IDAT"), FOUND, id="a PNG with pixels that OpenCV would allocate"),
        pytest.param(changed(PNG, CHUNK, THREE_GB + b"iCCP"), FOUND, id="a PNG with a profile of 3 GB"),
        pytest.param(BMP[:-100], "end of input", id="a cut BMP"),
    ],
)
def test_the_reason_is_given_and_not_printed(data: bytes, detail: str, capfd: pytest.CaptureFixture[str]) -> None:
    error = failure(data)
    assert error.startswith("undecodable: ")
    assert detail in error
    assert failure(data) == error  # it contains no time
    os.write(2, b"from a program\n")
    assert capfd.readouterr() == ("", "from a program\n")


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_bytes_give_a_whole_picture_or_an_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[name])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    image = picture_or_failure(bytes(damaged), 1_000_000)
    if isinstance(image, FaceError):
        assert image.cause in ("undecodable", "too large")
        assert 0 < len(image.detail) < 300
        assert re.search("/io/|@", image.detail) is None  # no places in OpenCV's source
    else:
        assert (image.ndim, image.shape[2], str(image.dtype)) == (3, 3, "uint8")


def test_threads_do_not_read_what_the_decoders_of_others_write() -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(picture_or_failure, [JPEG, DAMAGED] * 40))
    assert [isinstance(image, FaceError) for image in found] == [False, True] * 40


PROCESSES = """
import os
from facedata.align.codec import decode_image
from facedata.errors import FaceError
good, bad = open("good", "rb").read(), open("bad", "rb").read()
decode_image(good)
child, failures = os.fork(), 0
for _ in range(200):
    try:
        decode_image(good if child else bad)
    except FaceError:
        failures += 1
if not child:
    os._exit(failures != 200)
assert (failures, os.waitpid(child, 0)[1]) == (0, 0)
os.close(2)
print(decode_image(good).shape)
"""


def test_a_forked_child_does_not_disturb_its_parent_and_no_standard_error_is_needed(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(JPEG)
    (tmp_path / "bad").write_bytes(DAMAGED)
    command = [sys.executable, "-c", PROCESSES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "(120, 90, 3)\n")


@pytest.mark.parametrize("encoding", [Encoding("jpg", 50), Encoding(), Encoding("png"), Encoding("webp")])
def test_each_format_writes_what_its_name_says(encoding: Encoding) -> None:
    data = encoding.encode(FACE)
    assert image_extension(data) == encoding.format
    assert data == Encoding(encoding.format, encoding.quality).encode(FACE.copy())
    assert decode_image(encoding.encode(FACE[50:51, 50:51])).shape == (1, 1, 3)
    size = len(encoding.encode(draw_face(identity_from_seed(0, 2)).image)) / (112 * 112)
    assert size / 2 < encoding.expected_bytes_per_pixel < 2 * size


def test_what_the_encodings_lose() -> None:
    for encoding, most in ((Encoding("png"), 0), (Encoding("webp", 100), 0), (Encoding(), 25)):
        assert largest_difference(decode_image(encoding.encode(FACE)), FACE) <= most


def test_a_jpeg_is_baseline_with_whole_colours_and_no_orientation() -> None:
    sampling = pytest.importorskip("PIL.JpegImagePlugin").get_sampling
    with Image.open(io.BytesIO(Encoding().encode(FACE))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (90, 120))
        assert sampling(image) == 0  # 4:4:4
        assert not image.info.get("progressive")
        assert not image.getexif()


@pytest.mark.parametrize(
    ("name", "quality", "side", "words"),
    [
        ("jpeg", None, 1, "expected one of jpg, png, webp"),
        ("png", 95, 1, "PNG is lossless and has no quality"),
        ("jpg", 0, 1, "1 to 100"),
        ("webp", 101, 1, "1 to 100"),
        ("webp", None, 16_384, "16384 x 1 pixels: too large for webp"),
        ("jpg", None, 65_501, "65501 x 1 pixels: too large for jpg"),
    ],
)
def test_wrong_encodings_and_images_that_do_not_fit(name: str, quality: int | None, side: int, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Encoding(name, quality).encode(np.zeros((1, side, 3), np.uint8))


PHOTOS = {"heic": ("HEIF", {"quality": -1}), "avif": ("AVIF", {"quality": 100}), "jp2": ("JPEG2000", {})}
PHOTOS["j2k"] = ("JPEG2000", {"no_jp2": True})


@pytest.mark.parametrize("kind", PHOTOS)
def test_what_opencv_does_not_decode_is_decoded_by_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "heic":
        pytest.importorskip("pillow_heif", reason="of the extra images").register_heif_opener()
    turned = Image.Exif()
    turned[0x112] = 6  # a quarter to the right
    form, options = PHOTOS[kind]
    data = saved(RGB, form, **options)
    assert image_extension(data) == kind
    assert np.abs(decode_image(data).astype(int) - FACE).mean() < 4
    if kind in ("heic", "avif"):
        upright = decode_image(saved(RGB, form, exif=turned.tobytes(), **options))
        assert np.abs(upright.astype(int) - np.rot90(FACE, -1)).mean() < 4
    for end in (20, len(data) // 2, len(data) - 30):
        assert failure(data[:end]).startswith("undecodable: ")
    assert failure(data, 1000).startswith("too large: 90 x 120 pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(data).shape == FACE.shape  # facedata's limit counts, not Pillow's
    monkeypatch.setitem(sys.modules, "pillow_heif" if kind == "heic" else "PIL", None)
    assert failure(data).startswith(f"undecodable: decoding {kind} images needs the extra 'images'")


def test_a_grey_jpeg_2000_of_16_bits_is_not_clipped() -> None:
    grey = (np.arange(40 * 64, dtype=np.uint16) * 25).reshape(40, 64)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(grey), "JPEG2000"))[..., 0], grey >> 8)
