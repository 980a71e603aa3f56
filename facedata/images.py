"""The kind and the size of encoded images, read from their headers alone; and the import of OpenCV."""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

from facedata.errors import MissingLibraryError

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "gif", "tif", "tiff", "heic", "heif", "avif", "jp2", "j2k"}
    | {"pgm", "ppm"}
)
"""Extensions of image files, in lower case."""

_NETPBM = {b"P2": "pgm", b"P3": "ppm", b"P5": "pgm", b"P6": "ppm"}
LARGEST_IMAGE = 1 << 28
"""The most bytes of an image: 256 MiB; anything larger is damaged or an attack."""

_MOST_SEGMENTS = 1024  # before the frame header of a JPEG; a colour profile may take 255
_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}  # these three are tables, or reserved
_SEGMENTS = frozenset([0xFFC4, 0xFFC8, 0xFFCC, *range(0xFFDB, 0xFFFF)])
_BARE = frozenset([0xFF01, *range(0xFFD0, 0xFFD9)])  # markers without a length
_SEGMENT = struct.Struct(">HH")
_JPEG_FRAME = struct.Struct(">HHB")
_PNG_HEADER = struct.Struct(">IIBB")
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}
_LARGEST_SIDE = (1 << 31) - 1
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TIFF_TYPES = {3: "H", 4: "I"}
_TIFF_TAGS = {256: "width", 257: "height", 262: "colours", 277: "samples", 322: "tile width", 323: "tile height"}
_TIFF_TAGS |= {273: "offsets", 279: "lengths", 324: "offsets", 325: "lengths"}  # of strips, of tiles
_TIFF_PALETTE = 3
_MOST_STRIPS = 1 << 16  # that are checked
_AVIF = frozenset([b"avif", b"avis"])  # brands of the ISO base media format
_HEIF = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])
_LARGEST_TILE = 1 << 24  # pixels; a tile may be larger than the image, and a decoder allocates all of it


def stem_of_key(key: str, extensions: Container[str] = IMAGE_EXTENSIONS) -> str:
    """A key without the file extension of an image."""
    stem, _, extension = key.rpartition(".")
    return stem if stem and extension.lower() in extensions else key


def import_opencv() -> Any:
    """Import OpenCV, which takes a quarter of a second.

    Raises
    ------
    MissingLibraryError
        If it is not installed, or needs a system library that is missing; the message says what to install.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingLibraryError(
            f"OpenCV cannot be imported ({error}); on a server without a display, replace opencv-python by "
            "opencv-python-headless: pip uninstall opencv-python && pip install opencv-python-headless"
        ) from error
    return cv2


def opencv_identity() -> dict[str, Any]:
    """What decides the pixels that OpenCV computes, as JSON values: its version, and the code that it chose here.

    OpenCV and the library IPP in it have code for several kinds of processors, with other last bits.
    """
    cv2 = import_opencv()
    features = [word[1:] for word in cv2.getCPUFeaturesLine().split() if word[0] == "*" and word[-1] != "?"]
    ipp = getattr(cv2, "ipp", None)
    used = {"IPP": ipp.getIppVersion()} if ipp is not None and ipp.useIPP() else {}
    return {"OpenCV": cv2.__version__, "processor features in OpenCV": {**dict.fromkeys(features, "yes"), **used}}


@contextmanager
def opencv_in_one_thread() -> Iterator[None]:
    """Run OpenCV without threads of its own, in a process that forks workers and in the workers.

    A forked process assumes that it has the threads of its parent, and would wait for them for ever.
    """
    cv2 = import_opencv()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def image_extension(data: bytes) -> str | None:
    """The file extension for an encoded image, from its signature.

    Returns
    -------
    str or None
        ``"jpg"``, ``"png"``, ``"bmp"``, ``"webp"``, ``"gif"``, ``"tif"``, ``"heic"``, ``"avif"``, ``"jp2"``,
        ``"j2k"``, ``"pgm"`` or ``"ppm"``; None if the bytes begin like none of them.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and len(data) >= 26:  # a file header of 14 bytes and at least a core header of 12
        return "bmp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[4:8] == b"ftyp":
        return _media_extension(data)
    if data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":
        return "jp2"
    if data[:4] == b"\xff\x4f\xff\x51":
        return "j2k"
    if data[:2] in _NETPBM and data[2:3].isspace() and (data[3:4].isdigit() or data[3:4] == b"#"):
        return _NETPBM[data[:2]]
    return "tif" if data[:4] in _TIFF_ORDERS else None


def _media_extension(data: bytes) -> str | None:
    """``"heic"`` or ``"avif"``, from the brands of the file, of which the first is the major one."""
    end = min(int.from_bytes(data[:4], "big"), 64)
    others = {data[place : place + 4] for place in range(16, end, 4)}
    if data[8:12] in _AVIF or (data[8:12] in (b"mif1", b"msf1") and others & _AVIF):
        return "avif"
    return "heic" if data[8:12] in _HEIF else None


def image_size(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of an encoded image, from its header; the pixels are not decoded.

    Parameters
    ----------
    data : bytes
        A complete JPEG, PNG, BMP, WebP, GIF or TIFF (but not a BigTIFF).

    Returns
    -------
    tuple of int or None
        Height and width in pixels, and the channels that OpenCV returns with IMREAD_UNCHANGED: 1 for grey, 3 for
        colour (CMYK and palettes too), 4 with an alpha channel. None for any other format, if the header is
        incomplete or invalid, and for a TIFF whose pixels are not within `data`.
    """
    reader = _READERS.get(data[:2])
    try:
        size = reader(data) if reader is not None else None
    except (struct.error, IndexError):  # the header is truncated
        return None
    if size is None or not (0 < size[0] <= _LARGEST_SIDE and 0 < size[1] <= _LARGEST_SIDE):
        return None
    return size


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    offset = 2
    for _ in range(_MOST_SEGMENTS):
        marker, length = _SEGMENT.unpack_from(data, offset)
        if marker in _SEGMENTS:
            offset += 2 + length
        elif marker in _FRAMES:
            height, width, components = _JPEG_FRAME.unpack_from(data, offset + 5)
            return (height, width, 1 if components == 1 else 3) if 1 <= components <= 4 else None
        elif marker == 0xFFFF:  # markers may be padded
            offset += 1
        elif marker in _BARE:
            offset += 2
        else:  # not a marker, or image data before the frame header
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
    return abs(height), width, channels  # a negative height means that rows go from top to bottom


def _is_grey(data: bytes, offset: int, size: int, step: int) -> bool:
    """Whether the palette of `size` bytes at `offset` contains only greys."""
    palette = data[offset : offset + size]
    return palette[0::step] == palette[1::step] == palette[2::step]


def _webp_size(data: bytes) -> tuple[int, int, int] | None:
    if data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        (width, height) = (int.from_bytes(data[offset : offset + 3], "little") + 1 for offset in (24, 27))
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
    # the entries of the first directory that say how large the image is, and where its pixels are
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    entries: dict[str, tuple[int, ...]] = {}
    for offset in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, offset)
        name = _TIFF_TAGS.get(tag)
        if name is None or kind not in _TIFF_TYPES or name in entries or not length:
            continue
        values = f"{order}{min(length, _MOST_STRIPS)}{_TIFF_TYPES[kind]}"
        inline = length * struct.calcsize(_TIFF_TYPES[kind]) <= 4
        (start,) = (offset + 8,) if inline else struct.unpack_from(f"{order}I", data, offset + 8)
        entries[name] = struct.unpack_from(values, data, start)

    width, height = (entries.get(name, (0,))[0] for name in ("width", "height"))
    samples, colours = (entries.get(name, (1,))[0] for name in ("samples", "colours"))
    tile = entries.get("tile width", (1,))[0] * entries.get("tile height", (1,))[0]
    ends = map(sum, zip(entries.get("offsets", ()), entries.get("lengths", ()), strict=False))
    if not 1 <= samples <= 4 or tile > max(_LARGEST_TILE, width * height) or max(ends, default=0) > len(data):
        return None
    return height, width, 3 if colours == _TIFF_PALETTE else samples


_READERS: dict[bytes, Callable[[bytes], tuple[int, int, int] | None]] = {
    b"\xff\xd8": _jpeg_size,
    b"\x89P": _png_size,
    b"BM": _bmp_size,
    b"RI": _webp_size,
    b"GI": _gif_size,
    b"II": _tiff_size,
    b"MM": _tiff_size,
}
