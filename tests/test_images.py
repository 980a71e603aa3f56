"""Telling image types from their signatures: nothing is decoded, nothing short or strange goes wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facedata.images import image_extension

SIGNED = {
    "JPEG with JFIF": (b"\xff\xd8\xff\xe0\0\x10JFIF", "jpg"),
    "JPEG with Exif": (b"\xff\xd8\xff\xe1", "jpg"),
    "JPEG without either": (b"\xff\xd8\xff\xdb", "jpg"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "png"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8L", "webp"),
    "BMP": (b"BM" + bytes(24), "bmp"),
    "GIF of 1987": (b"GIF87a", "gif"),
    "GIF of 1989": (b"GIF89a", "gif"),
    "TIFF, little-endian": (b"II*\0", "tif"),
    "TIFF, big-endian": (b"MM\0*", "tif"),
}
UNSIGNED = {
    "nothing": b"",
    "half a JPEG signature": b"\xff\xd8",
    "PNG spoilt by a text transfer": b"\x89PNG\n\x1a\n",
    "sound in RIFF": b"RIFF\x24\0\0\0WAVE",
    "cut in RIFF": b"RIFF\x24\0\0\0WEB",
    "words that begin with BM": b"BMW is a car",
    "GIF of no year": b"GIF88a",
    "web page": b"<!DOCTYPE html>",
    "zeros": bytes(64),
    "a signature that does not stand first": b" \xff\xd8\xff",
}


@pytest.mark.parametrize(("data", "extension"), SIGNED.values(), ids=SIGNED)
def test_an_image_is_told_by_its_first_bytes(data: bytes, extension: str) -> None:
    assert image_extension(data) == extension
    assert image_extension(data + b"anything") == extension


@pytest.mark.parametrize("data", UNSIGNED.values(), ids=UNSIGNED)
def test_what_begins_like_no_image_has_no_extension(data: bytes) -> None:
    assert image_extension(data) is None


@settings(deadline=None)
@given(st.binary(max_size=40) | st.sampled_from([data[:end] for data, _ in SIGNED.values() for end in range(30)]))
def test_any_bytes_are_an_image_or_not(data: bytes) -> None:
    extension = image_extension(data)
    assert extension in {None, "jpg", "png", "webp", "bmp", "gif", "tif"}
    assert image_extension(data + bytes(8)) == extension or extension is None
