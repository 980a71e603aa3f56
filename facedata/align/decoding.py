"""Encoded images to pixels: what `cv2.imread` would give, or a failure that says why; never half a picture.

OpenCV hands on damaged pictures. Measured with OpenCV 4.8.0, 4.11.0, 4.14.0 and 5.0.0, ``cv2.imdecode``:

===============================================  ======================================================================
JPEG that ends early                             4.8: a picture whose last rows are wrong, without a word;
                                                 later: None; ``cv2.imread``: a picture with grey rows in all of them
the same, filled up with zeros to its old size   a picture with grey or odd rows in all of them, without a word
JPEG with bytes missing, or bits turned          a picture; mostly libjpeg says something on the standard error output
PNG, BMP, WebP that end early                    None
PNG with bytes missing, or bits turned           None: there are checksums
WebP, BMP with bits turned, or filled up         a picture, without a word
TIFF that ends early                             None, or a picture where its channels lie in planes
===============================================  ======================================================================

So a JPEG must have its end marker, and what the decoders write to file descriptor 2 is read: it is the failure's
reason, and no user sees lines there that nobody can place. A JPEG that lacks its end marker and nothing else is given
one, and passes where libjpeg then has nothing to say; this is possible only where all pixels are in one scan. A WebP
that ends in zeros is taken for cut. Damage within a file that leaves no trace in the coding cannot be noticed: of 300
turned bits each, 73 % in a JPEG of 30 KB, 92 to 97 % in a WebP and all in a BMP became a picture, none in a PNG.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FaceError
from facedata.images import image_extension, image_size, import_opencv

__all__ = ["MAX_PIXELS", "decode_image"]

MAX_PIXELS = 100_000_000
"""Pixels; decoded they are 300 MB, and OpenCV takes two or three times that for a while."""

_END = b"\xff\xd9"
_SCAN, _BASELINE = 0xDA, frozenset([0xC0, 0xC1])
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LONGEST_REASON = 200
_MOST_SEGMENTS = 1024
_ZEROS = 64
_PNG_CHUNK = struct.Struct(">I4s")
_MOST_CHUNKS = 1 << 20
_ANIMATION = frozenset([b"acTL", b"fcTL", b"fdAT"])
# Warnings of libjpeg and libpng that leave the pixels alone: odd versions, colour profiles, text chunks.
_DAMAGE = re.compile(
    r"Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG|Inconsistent progression|libpng error|TIFF_Error"
)
_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_WARNING = re.compile(r"\[ *WARN|libpng warning")
_LOG_PREFIX = re.compile(r"^\[ *\w+:\d+@[\d.]+\] global \S+ (?:TIFF_)?\w+ ")  # has a time in it, and a build's paths
_THROWN = re.compile(r"error: \(-?\d+:([^)]*)\) *(.*?) *in function", re.DOTALL)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image as ``cv2.imread(path, cv2.IMREAD_COLOR)`` does.

    EXIF orientation is honoured (of WebP by OpenCV 4.14 and 5, not by 4.11). Grey, palettes, 16 bits and CMYK become 3
    channels of 8 bits. An alpha channel is dropped: what is transparent shows the colours stored beneath. Of several
    frames or pages the first is taken, of an animated PNG the still picture. GIF needs an OpenCV built with it: 4.14
    and 5 are, 4.11 is not. No floats.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, WebP, BMP, GIF or TIFF, the whole of it.
    max_pixels : int
        The most pixels, height times width, that are decoded. The header tells them, before memory is taken.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        BGR, C-contiguous.

    Raises
    ------
    FaceError
        "undecodable" where the data is no image, cut short or damaged; "too large" above `max_pixels`.

    Notes
    -----
    File descriptor 2 is redirected while OpenCV decodes. What other threads write there meanwhile is lost; calls from
    several threads wait for each other.
    """
    kind = image_extension(data)
    if kind is None:
        raise FaceError("undecodable", f"not an image: {_beginning(data)}")
    height, width = _checked_size(data, kind, max_pixels)
    if kind == "webp" and _ends_in_zeros(data):
        raise FaceError("undecodable", "cut short: the WebP ends in zeros")
    whole, strict = _mended(data, kind)
    image, said = _decoded(whole)
    problem = _damage(whole, said, strict)
    if image is None or problem:
        raise FaceError("undecodable", problem or _reason(said) or _unexplained(kind))
    if image.shape[:2] not in ((height, width), (width, height)):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise FaceError("undecodable", f"its header says {width} x {height} pixels, it holds {found}")
    return np.ascontiguousarray(image)


def _beginning(data: bytes) -> str:
    return f"its bytes begin {data[:8].hex(' ')}" if data else "it is empty"


def _checked_size(data: bytes, kind: str, max_pixels: int) -> tuple[int, int]:
    size = image_size(data)
    if size is None:
        raise FaceError("undecodable", f"cut short or damaged: the header of this {kind} tells no size")
    height, width, _ = size
    if height * width > max_pixels:
        raise FaceError(
            "too large",
            f"{width:,} x {height:,} pixels: more than --max-pixels {max_pixels:,}; "
            f"with {height * width:,} it would be read, and take {9 * height * width / 1e9:.1f} GB of memory",
        )
    return height, width


def _mended(data: bytes, kind: str) -> tuple[bytes, bool]:
    """What OpenCV is given, and whether it may have nothing to say of it, as an end marker was put there by us."""
    if kind == "jpg":
        whole = _with_end(data)
        return whole, whole is not data
    return (_still_picture(data) if kind == "png" else data), False


# Cut short


def _ends_in_zeros(data: bytes) -> bool:
    """Whether a WebP was filled up to its size: coded pixels do not end in so many zeros."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    return data[max(0, end - _ZEROS) : end] == bytes(_ZEROS)


def _still_picture(data: bytes) -> bytes:
    """A PNG without its animation: OpenCV 5.0 crashes at one that is damaged."""
    chunks = list(_png_chunks(data))
    animation = [place for place in chunks if data[place[0] + 4 : place[0] + 8] in _ANIMATION]
    if not animation:
        return data
    starts, ends = [0, *(end for _, end in animation)], [*(start for start, _ in animation), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each chunk starts and ends; none ends behind the data, for OpenCV takes the memory it asks for: up to 4 GB.

    Raises
    ------
    FaceError
        "undecodable" where one does.
    """
    start = 8
    for _ in range(_MOST_CHUNKS):
        if len(data) < start + _PNG_CHUNK.size:
            return
        length, kind = _PNG_CHUNK.unpack_from(data, start)
        left = len(data) - start - _PNG_CHUNK.size
        if length > left:
            raise FaceError("undecodable", f"cut short or damaged: a PNG chunk of {length:,} bytes, {left:,} are left")
        end = start + _PNG_CHUNK.size + length + 4
        yield start, end
        if kind == b"IEND":
            return
        start = end
    raise FaceError("undecodable", f"damaged: a PNG of more than {_MOST_CHUNKS:,} chunks")


def _with_end(data: bytes) -> bytes:
    """A JPEG that has its end marker: as it is, without what follows the marker, or with one added."""
    if data.endswith(_END):
        return data
    scan, single = _first_scan(data)
    if data.find(_END, scan) >= 0:
        return data
    if not single:
        raise FaceError("undecodable", "cut short: the JPEG has no end marker")
    return data + _END


def _first_scan(data: bytes) -> tuple[int, bool]:
    """Where the first scan's pixels start, and whether it is the only one, so that none can be missing after it."""
    place, frame, components = 2, 0, 0
    for _ in range(_MOST_SEGMENTS):
        header = data[place : place + 10]
        if len(header) < 10 or header[0] != 0xFF:
            break
        marker, length = header[1], int.from_bytes(header[2:4], "big")
        if marker in _FRAMES:
            frame, components = marker, header[9]
        elif marker == _SCAN:
            start = place + 2 + length
            single = frame in _BASELINE and header[4] == components and data.find(b"\xff\xda", start) < 0
            return start, single
        place += 1 if marker == 0xFF else 2 + length
    return len(data), False


# Decoding, and what was said meanwhile


class _ErrorOutput:
    """Catches what C libraries write to file descriptor 2; costs 3 microseconds a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._ends: tuple[int, int] | None = None
        self._saved = -1

    def close(self) -> None:
        for end in self._ends or ():
            os.close(end)
        self._ends = None

    def begin(self) -> None:
        if self._ends is None:
            self._ends = os.pipe()
            for end in self._ends:  # a full pipe drops the rest rather than wait
                os.set_blocking(end, False)
        try:
            self._saved = os.dup(2)
        except OSError:  # it was closed
            self._saved = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self._ends[1], 2)

    def end(self) -> str:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        said = b""
        with suppress(BlockingIOError):
            while self._ends:
                said += os.read(self._ends[0], 1 << 16)
        return said.decode("utf-8", "replace") if said else ""


_error_output = _ErrorOutput()


def _renew_after_fork() -> None:
    """A child must not read what its parent's decoder says, nor wait for a thread that it does not have."""
    global _error_output
    _error_output.close()
    _error_output = _ErrorOutput()


os.register_at_fork(after_in_child=_renew_after_fork)


def _decoded(data: bytes) -> tuple[Any, str]:
    """The picture or None, and what the decoder said."""
    cv2 = import_opencv()

    image, thrown = None, ""
    with _error_output.lock:
        _error_output.begin()
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            thrown = str(error)
        finally:
            said = _error_output.end()
    return image, f"{said}\n{thrown}" if thrown else said


def _damage(data: bytes, said: str, strict: bool) -> str:
    """What is wrong with a picture that was decoded, or nothing; `strict` where the end marker is ours."""
    if not said:
        return ""
    if strict:
        return f"cut short: {_reason(said)}"
    padding = _PADDING.search(said)
    if padding and not _is_filling(data, int(padding[1])):
        return _reason(said)
    return _reason(said) if not padding and _DAMAGE.search(said) else ""


def _is_filling(data: bytes, length: int) -> bool:
    """Whether the `length` bytes before a JPEG's end marker are filling, as cameras write it, and not pixels astray."""
    end = data.rfind(_END)
    return not data[max(0, end - length) : end].strip(b"\0\xff")


def _reason(said: str) -> str:
    """The one line that tells most, without the times and the places in OpenCV's own source that go with it."""
    thrown = _THROWN.search(said)
    if thrown:
        return " ".join(thrown[2].split())[:_LONGEST_REASON] if thrown[1] != "Assertion failed" else ""
    lines = [line for line in said.splitlines() if line.strip()]
    line = next((line for line in lines if not _WARNING.match(line)), lines[0] if lines else "")
    return _LOG_PREFIX.sub("", line).strip()[:_LONGEST_REASON]


def _unexplained(kind: str) -> str:
    if kind == "gif":
        return f"cut short, damaged, or this OpenCV ({import_opencv().__version__}) was built without GIF"
    return f"cut short or damaged: OpenCV cannot decode this {kind}"
