"""What kind of image some encoded bytes are, and how large, told from their headers alone; and the way to OpenCV."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from facedata.errors import MissingLibraryError, RefusedSampleError

__all__ = [
    "IMAGE_EXTENSIONS",
    "LARGEST_IMAGE",
    "image_extension",
    "image_size",
    "import_opencv",
    "known_extension",
    "opencv_in_one_thread",
]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "bmp", "webp"})
"""Endings of the names of image files, in lower case."""

LARGEST_IMAGE = 1 << 28
"""Bytes; what is larger than 256 MiB is taken for damage or an attack, not for a face."""

_MOST_SEGMENTS = 1024  # of a JPEG before its frame header; a colour profile may take 255
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # the others there are tables, or reserved
_SEGMENTS = frozenset([0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFFF)])
_BARE = frozenset([0xFF01, *range(0xFFD0, 0xFFD9)])  # markers that no length follows
_SEGMENT = struct.Struct(">HH")
_JPEG_FRAME = struct.Struct(">HHB")
_PNG_HEADER = struct.Struct(">IIBB")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}
_LARGEST_SIDE = (1 << 31) - 1
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_TYPES = {3: "H", 4: "I"}  # a size is of one of these
_TIFF_TAGS = {256: "width", 257: "height", 262: "colours", 277: "samples", 322: "across", 323: "down"}
_TIFF_TAGS |= {273: "places", 279: "lengths", 324: "places", 325: "lengths"}  # of strips, of tiles
_TIFF_PALETTE = 3
_MOST_STRIPS = 1 << 16  # that are looked at
_LARGEST_TILE = 1 << 24  # pixels; tiles may be larger than their image, and a decoder takes memory for a whole one


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


@contextmanager
def opencv_in_one_thread() -> Iterator[None]:
    """Let OpenCV do without threads of its own for a while: in a process that forks workers, and in the workers.

    A forked process believes that it has the threads of its parent, and waits for them for ever.
    """
    cv2 = import_opencv()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


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


def image_size(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of an encoded image, read from its header.

    Nothing is decoded: that a header is right says nothing about the pixels behind it.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, BMP, WebP, GIF or TIFF (of a BigTIFF nothing is known), the whole of it.

    Returns
    -------
    tuple of int or None
        Height and width in pixels, and the channels that OpenCV delivers where it is to change nothing: 1 of grey, 3
        of colour (of CMYK and of palettes too), 4 of what has an alpha channel. None of any other format, and where
        the header is not whole or makes no sense. Of a TIFF, also where the pixels do not lie within `data`.
    """
    reader = _HEADERS.get(data[:2])
    try:
        size = reader(data) if reader is not None else None
    except (struct.error, IndexError):  # the header is cut off
        return None
    if size is None or not (0 < size[0] <= _LARGEST_SIDE and 0 < size[1] <= _LARGEST_SIDE):
        return None
    return size


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    place = 2
    for _ in range(_MOST_SEGMENTS):
        marker, length = _SEGMENT.unpack_from(data, place)
        if marker in _SEGMENTS:
            place += 2 + length
        elif marker in _FRAMES:
            height, width, components = _JPEG_FRAME.unpack_from(data, place + 5)
            return (height, width, 1 if components == 1 else 3) if 1 <= components <= 4 else None
        elif marker == 0xFFFF:  # markers may be padded
            place += 1
        elif marker in _BARE:
            place += 2
        else:  # no marker, or the image data, without a frame before it
            return None
    return None


def _png_size(data: bytes) -> tuple[int, int, int] | None:
    if data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    width, height, _, colour = _PNG_HEADER.unpack_from(data, 16)
    channels = _PNG_CHANNELS.get(colour)
    return None if channels is None else (height, width, channels)


def _bmp_size(data: bytes) -> tuple[int, int, int] | None:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return height, width, 1 if bits <= 8 and _is_grey(data, 26, 3 << bits, 3) else 3
    if not 40 <= header <= 124:
        return None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if bits <= 8:
        colours = min(struct.unpack_from("<I", data, 46)[0] or 1 << bits, 1 << bits)
        channels = 1 if _is_grey(data, 14 + header, 4 * colours, 4) else 3
    else:
        alpha = bits == 32 and compression == 3 and header >= 56 and any(data[66:70])
        channels = 4 if alpha else 3
    return abs(height), width, channels  # a negative height says that the rows go from top to bottom


def _is_grey(data: bytes, place: int, size: int, step: int) -> bool:
    """Whether the palette of `size` bytes at `place` has nothing but greys."""
    palette = data[place : place + size]
    return palette[0::step] == palette[1::step] == palette[2::step]


def _webp_size(data: bytes) -> tuple[int, int, int] | None:
    if data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        (width, height) = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
        return (height, width, 4 if data[20] & 0x10 else 3) if len(data) >= 30 else None
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 4 if bits >> 28 & 1 else 3
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF, 3
    return None


def _gif_size(data: bytes) -> tuple[int, int, int] | None:
    if data[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width, 3


def _tiff_size(data: bytes) -> tuple[int, int, int] | None:
    order = _TIFF_ORDERS.get(data[:4])
    if order is None:
        return None
    entries = _tiff_entries(data, order)
    width, height = (entries.get(name, (0,))[0] for name in ("width", "height"))
    samples, across, down, colours = (entries.get(name, (1,))[0] for name in ("samples", "across", "down", "colours"))
    ends = map(sum, zip(entries.get("places", ()), entries.get("lengths", ()), strict=False))
    if not 1 <= samples <= 4 or across * down > max(_LARGEST_TILE, width * height) or max(ends, default=0) > len(data):
        return None
    return height, width, 3 if colours == _TIFF_PALETTE else samples


def _tiff_entries(data: bytes, order: str) -> dict[str, tuple[int, ...]]:
    """What the first directory says of the size, and of where the strips or tiles of pixels lie."""
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    entries: dict[str, tuple[int, ...]] = {}
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, place)
        name = _TIFF_TAGS.get(tag)
        if name is None or kind not in _TIFF_TYPES or name in entries or not length:
            continue
        values = f"{order}{min(length, _MOST_STRIPS)}{_TIFF_TYPES[kind]}"
        inline = length * struct.calcsize(_TIFF_TYPES[kind]) <= 4
        (start,) = (place + 8,) if inline else struct.unpack_from(f"{order}I", data, place + 8)
        entries[name] = struct.unpack_from(values, data, start)
    return entries


_HEADERS: dict[bytes, Callable[[bytes], tuple[int, int, int] | None]] = {
    b"\xff\xd8": _jpeg_size,
    b"\x89P": _png_size,
    b"BM": _bmp_size,
    b"RI": _webp_size,
    b"GI": _gif_size,
    b"II": _tiff_size,
    b"MM": _tiff_size,
}
