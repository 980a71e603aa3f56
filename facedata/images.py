"""What kind of image some encoded bytes are, told from their signature alone; and the way to OpenCV."""

from __future__ import annotations

from typing import Any

from facedata.errors import MissingLibraryError, RefusedSampleError

__all__ = ["LARGEST_IMAGE", "image_extension", "import_opencv", "known_extension"]

LARGEST_IMAGE = 1 << 28
"""Bytes; what is larger than 256 MiB is taken for damage or an attack, not for a face."""


def import_opencv() -> Any:
    """OpenCV's module, loaded where it is needed: it takes a quarter of a second.

    Raises
    ------
    MissingLibraryError
        Where it is missing or cannot load a library of the system; says what mends it.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingLibraryError(
            f"OpenCV cannot be loaded ({error}). On a server without a display, opencv-python-headless takes the place "
            "of opencv-python: pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error
    return cv2


def image_extension(data: bytes) -> str | None:
    """The file extension that fits an encoded image.

    Only the signature is read; nothing is decoded.

    Parameters
    ----------
    data : bytes
        An encoded image.

    Returns
    -------
    str or None
        ``"jpg"``, ``"png"``, ``"bmp"``, ``"webp"``, ``"gif"`` or ``"tif"``, or None where the bytes start like
        none of them.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and len(data) >= 26:  # a file header of 14 bytes and at least the core header of 12
        return "bmp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "tif"
    return None


def known_extension(data: bytes) -> str:
    """The file extension that fits an encoded image, as `image_extension` tells it.

    Raises
    ------
    RefusedSampleError
        Where the bytes begin like no image.
    """
    extension = image_extension(data)
    if extension is None:
        raise RefusedSampleError(f"not an image: its bytes begin {data[:8].hex(' ')}")
    return extension
