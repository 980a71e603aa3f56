"""Encodings: what they lose, what they promise, and what they refuse."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from facedata.align.codec import FORMATS, Encoding
from facedata.errors import OptionError
from facedata.images import image_extension
from facedata.synthetic.faces import draw_face, identity_from_seed

FACE = draw_face(identity_from_seed(0, 2)).image


def decoded(data: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


def worst_error(encoding: Encoding) -> int:
    return int(np.abs(decoded(encoding.encode(FACE)).astype(int) - FACE).max())


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_writes_what_it_is_called(name: str) -> None:
    encoding = Encoding(name)
    data = encoding.encode(FACE)
    assert image_extension(data) == encoding.format == name
    assert decoded(data).shape == FACE.shape
    assert data == Encoding(name).encode(FACE.copy())


@pytest.mark.parametrize("encoding", [Encoding("png"), Encoding("webp", 100)])
def test_png_and_webp_of_100_lose_nothing(encoding: Encoding) -> None:
    assert worst_error(encoding) == 0


def test_a_jpeg_of_the_default_keeps_the_edges_of_colours() -> None:
    """The loss that made it the default: OpenCV's own setting halves the colours' resolution."""
    halved = decoded(bytes(cv2.imencode(".jpg", FACE)[1]))
    assert worst_error(Encoding()) <= 25
    assert np.abs(halved.astype(int) - FACE).max() > 1.5 * worst_error(Encoding())


def test_a_jpeg_is_baseline_with_whole_colours_and_no_orientation() -> None:
    pillow = pytest.importorskip("PIL.Image")
    sampling = pytest.importorskip("PIL.JpegImagePlugin").get_sampling
    with pillow.open(io.BytesIO(Encoding().encode(FACE))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (112, 112))
        assert sampling(image) == 0  # 4:4:4
        assert not image.info.get("progressive")
        assert not image.getexif()


def test_a_higher_quality_loses_less_and_weighs_more() -> None:
    for name in ("jpg", "webp"):
        sizes = [len(Encoding(name, quality).encode(FACE)) for quality in (1, 30, 60, 90, 100)]
        assert sizes == sorted(sizes)
        assert worst_error(Encoding(name, 95)) < worst_error(Encoding(name, 20))


@pytest.mark.parametrize(
    ("name", "quality", "words"),
    [
        ("jpeg", None, "jpg, png, webp"),
        ("gif", None, "jpg, png, webp"),
        ("", 95, "jpg, png, webp"),
        ("png", 95, "PNG is lossless and has no quality"),
        ("jpg", 0, "1 to 100"),
        ("jpg", 101, "1 to 100"),
        ("webp", 101, "1 to 100"),
        ("webp", -1, "1 to 100"),
    ],
)
def test_what_is_refused(name: str, quality: int | None, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Encoding(name, quality)


def test_the_identity_is_json_and_tells_encodings_apart() -> None:
    tried = [Encoding(), Encoding("jpg", 90), Encoding("png"), Encoding("webp"), Encoding("webp", 100)]
    texts = [json.dumps(encoding.identity(), sort_keys=True) for encoding in tried]
    assert len(set(texts)) == len(tried)
    assert Encoding().identity()["chroma_subsampling"] == "4:4:4"
    assert Encoding("webp", 100).identity()["lossless"] is True


@pytest.mark.parametrize("encoding", [Encoding("jpg", 50), Encoding(), Encoding("png"), Encoding("webp")])
def test_the_expected_size_is_about_right(encoding: Encoding) -> None:
    size = len(encoding.encode(FACE)) / (112 * 112)
    assert size / 2 < encoding.expected_bytes_per_pixel < 2 * size


@pytest.mark.parametrize(("name", "side"), [("webp", 16_384), ("jpg", 65_501)])
def test_an_image_that_the_format_cannot_hold_is_refused(
    name: str, side: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match=f"{side} x 1 pixels: too large for {name}"):
        Encoding(name).encode(np.zeros((1, side, 3), np.uint8))


def test_crops_of_one_pixel_and_of_part_of_an_array() -> None:
    for name in FORMATS:
        assert decoded(Encoding(name).encode(FACE[50:51, 50:51])).shape == (1, 1, 3)
        assert Encoding(name).encode(FACE[:60]) == Encoding(name).encode(FACE[:60].copy())
