"""What kind of image some encoded bytes are, told from their signature alone."""

from __future__ import annotations

__all__ = ["image_extension"]


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
