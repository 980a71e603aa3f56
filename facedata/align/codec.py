"""Encoded images to pixels and back.

Encoding fixes every setting that decides the bytes; docs/explanation/choices.md has the measurements behind the
defaults. Decoding gives what `cv2.imread` would give, or an error, and never part of a picture.

OpenCV returns damaged pictures, as measured with ``cv2.imdecode`` of OpenCV 4.8.0, 4.11.0, 4.14.0 and 5.0.0. A JPEG
that ends early becomes None, or, in 4.8 and with ``cv2.imread``, a picture with wrong rows and no message; padded with
zeros to its old size, such a picture in all of them. With missing bytes or flipped bits it becomes a picture too, but
mostly libjpeg writes something to the standard error output. A WebP or BMP with flipped bits, or padded, and a cut TIFF
with its channels in planes become pictures without a message. A damaged PNG becomes None: it has checksums.

So a JPEG must have its end marker, and what the decoders write to file descriptor 2 is read: it is the reason of the
failure, and users do not see lines there that they cannot place. A JPEG that lacks only its end marker is given one,
and passes if libjpeg then has nothing to report; this is possible only if all pixels are in one scan. A WebP that ends
in zeros is treated as cut. Damage that leaves no trace in the coding cannot be noticed: of 300 flipped bits each, 73 %
in a JPEG of 30 KB, 92 to 97 % in a WebP and all in a BMP became a picture, none in a PNG.
"""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FaceError, MissingExtraError, OptionError
from facedata.identify import not_an_image
from facedata.images import image_extension, image_size, import_opencv

__all__ = ["DEFAULT_QUALITY", "FORMATS", "MAX_PIXELS", "Encoding", "decode_image"]

MAX_PIXELS = 100_000_000
"""Pixels; decoded they are 300 MB, and OpenCV takes two or three times that for a while."""

FORMATS: Final = ("jpg", "png", "webp")
DEFAULT_QUALITY: Final = {"jpg": 95, "webp": 95}
"""The quality if none is given; PNG has none."""

_LOSSLESS: Final = 100  # OpenCV takes WebP qualities above 100 for lossless; at 100 itself it would err by 55 levels
# Bytes per pixel of the 112 x 112 crops of a photographed face, by quality
_BYTES: Final = {
    "jpg": ((1, 50, 75, 90, 95, 98, 100), (0.09, 0.21, 0.29, 0.47, 0.66, 1.0, 1.6)),
    "webp": ((1, 50, 75, 90, 95, 99, 100), (0.04, 0.12, 0.16, 0.31, 0.44, 0.57, 1.44)),
}
_PNG_BYTES: Final = 1.9

_END = b"\xff\xd9"
_SCAN, _BASELINE = 0xDA, frozenset([0xC0, 0xC1])
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN_MARKER, _MOST_SCANS = b"\xff\xda", 1000  # of a progressive JPEG, which has ten or so
_LONGEST_REASON = 200
_PILLOW: Final = {"heic": ("HEIF",), "avif": ("AVIF",), "jp2": ("JPEG2000",), "j2k": ("JPEG2000",)}
_MOST_SEGMENTS = 1024
_ZEROS = 64  # that coded pixels of a WebP do not end in
_PNG_CHUNK = struct.Struct(">I4s")
_MOST_CHUNKS = 1 << 20
_ANIMATION = frozenset([b"acTL", b"fcTL", b"fdAT"])
# Other warnings of libjpeg and libpng do not concern the pixels: odd versions, colour profiles, text chunks.
_DAMAGE = re.compile(
    r"Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG|Inconsistent progression|libpng error|TIFF_Error"
)
_PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_WARNING = re.compile(r"\[ *WARN|libpng warning")
_LOG_PREFIX = re.compile(r"^\[ *\w+:\d+@[\d.]+\] global \S+ (?:TIFF_)?\w+ ")  # contains a time and a build's paths
_THROWN = re.compile(r"error: \(-?\d+:([^)]*)\) *(.*?) *in function", re.DOTALL)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image as ``cv2.imread(path, cv2.IMREAD_COLOR)`` does.

    EXIF orientation is honoured (of WebP by OpenCV 4.14 and 5, not by 4.11). Grey, palettes, 16 bits and CMYK become 3
    channels of 8 bits. An alpha channel is dropped: transparent pixels show the colours stored beneath. Of several
    frames or pages the first is taken, of an animated PNG the still picture. GIF needs OpenCV 4.14 or 5.

    File descriptor 2 is redirected while OpenCV decodes. What other threads write there meanwhile is lost; calls from
    several threads wait for each other.

    Parameters
    ----------
    data : bytes
        A whole JPEG, PNG, WebP, BMP, GIF or TIFF; with the extra ``images`` also HEIC, AVIF or JPEG 2000.
    max_pixels : int
        The most pixels, height times width, that are decoded; they are read from the header.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        BGR, C-contiguous.

    Raises
    ------
    FaceError
        "undecodable" if the data is not an image, is cut short or damaged; "too large" above `max_pixels`.
    """
    kind = image_extension(data)
    if kind is None:
        raise FaceError("undecodable", not_an_image(data))
    if kind in _PILLOW:
        return _decode_with_pillow(data, kind, max_pixels)
    size = image_size(data)
    if size is None:
        raise FaceError("undecodable", f"cut short or damaged: the header of this {kind} has no size")
    height, width, _ = size
    _check_pixels(height, width, max_pixels)
    whole = data
    if kind == "jpg":
        if data.count(_SCAN_MARKER) > _MOST_SCANS:
            raise FaceError("undecodable", f"a JPEG of more than {_MOST_SCANS:,} scans, which takes hours to decode")
        whole = _with_end_marker(data)
    elif kind == "png":
        whole = _without_animation(data)
    elif kind == "webp":
        end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
        if data[max(0, end - _ZEROS) : end] == bytes(_ZEROS):
            raise FaceError("undecodable", "cut short: the WebP ends in zeros")
    image, output = _decode(whole)
    problem = _damage(whole, output, end_added=len(whole) > len(data))
    if image is None:
        unknown = f"cut short or damaged: OpenCV cannot decode this {kind}"
        if kind == "gif":
            unknown = f"cut short, damaged, or this OpenCV ({import_opencv().__version__}) was built without GIF"
        problem = problem or _reason(output) or unknown
    if problem:
        raise FaceError("undecodable", problem)
    if image.shape[:2] not in ((height, width), (width, height)):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise FaceError("undecodable", f"its header says {width} x {height} pixels, but it has {found}")
    return np.ascontiguousarray(image)


def _check_pixels(height: int, width: int, most: int) -> None:
    if height * width > most:
        raise FaceError(
            "too large",
            f"{width:,} x {height:,} pixels: more than --max-pixels {most:,}; "
            f"with {height * width:,} it would be read, and take {9 * height * width / 1e9:.1f} GB of memory",
        )


def _decode_with_pillow(data: bytes, kind: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode what OpenCV cannot decode, or only in some of its builds."""
    try:
        from PIL import Image, ImageOps

        if kind == "heic":
            from pillow_heif import register_heif_opener

            register_heif_opener()
    except ImportError:
        raise FaceError("undecodable", str(MissingExtraError(f"decoding {kind} images", "images"))) from None
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # `max_pixels` is checked instead
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=_PILLOW[kind]) as image:
            _check_pixels(image.height, image.width, max_pixels)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[:, :, ::-1])
    except FaceError:
        raise
    except Exception as error:  # Pillow and its plugins raise many kinds, SyntaxError and ValueError among them
        raise FaceError("undecodable", f"cut short or damaged: Pillow cannot decode this {kind}: {error}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _without_animation(data: bytes) -> bytes:
    """A PNG without its animation, since OpenCV 5.0 crashes at a damaged one.

    No chunk may end after the data, for OpenCV allocates as much as a chunk announces: up to 4 GB.
    """
    kept, kept_from, start = [], 0, 8
    for _ in range(_MOST_CHUNKS):
        left = len(data) - start - _PNG_CHUNK.size
        if left < 0:
            break
        length, kind = _PNG_CHUNK.unpack_from(data, start)
        if length > left:
            raise FaceError("undecodable", f"cut short or damaged: a PNG chunk of {length:,} bytes, {left:,} are left")
        end = start + _PNG_CHUNK.size + length + 4
        if kind in _ANIMATION:
            kept.append(data[kept_from:start])
            kept_from = end
        if kind == b"IEND":
            break
        start = end
    else:
        raise FaceError("undecodable", f"damaged: a PNG of more than {_MOST_CHUNKS:,} chunks")
    return b"".join([*kept, data[kept_from:]]) if kept else data


def _with_end_marker(data: bytes) -> bytes:
    """A JPEG as it is if it has an end marker, and with one added if all its pixels are in one scan."""
    if data.endswith(_END):
        return data
    # Find where the pixels of the first scan start, and whether it is the only one, so that no other can be missing.
    scan, single, place, frame, components = len(data), False, 2, 0, 0
    for _ in range(_MOST_SEGMENTS):
        header = data[place : place + 10]
        if len(header) < 10 or header[0] != 0xFF:
            break
        marker, length = header[1], int.from_bytes(header[2:4], "big")
        if marker in _FRAMES:
            frame, components = marker, header[9]
        elif marker == _SCAN:
            scan = place + 2 + length
            single = frame in _BASELINE and header[4] == components and data.find(_SCAN_MARKER, scan) < 0
            break
        place += 1 if marker == 0xFF else 2 + length
    if data.find(_END, scan) >= 0:
        return data
    if not single:
        raise FaceError("undecodable", "cut short: the JPEG has no end marker")
    return data + _END


class _ErrorPipe:
    """A pipe that takes what C libraries write to file descriptor 2, for one thread at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ends: tuple[int, int] | None = None

    def renew_after_fork(self) -> None:
        """A child must not read what its parent's decoder writes, nor wait for a thread that it does not have."""
        for end in self.ends or ():
            os.close(end)
        self.lock, self.ends = threading.Lock(), None


_error_pipe = _ErrorPipe()
os.register_at_fork(after_in_child=_error_pipe.renew_after_fork)


def _decode(data: bytes) -> tuple[Any, str]:
    """The picture or None, and what the decoder wrote or raised; the redirection takes 3 microseconds."""
    cv2 = import_opencv()
    image, thrown, written = None, "", b""
    with _error_pipe.lock:
        if _error_pipe.ends is None:
            _error_pipe.ends = os.pipe()
            for end in _error_pipe.ends:  # a full pipe drops the rest rather than wait
                os.set_blocking(end, False)
        reading, writing = _error_pipe.ends
        try:
            saved = os.dup(2)
        except OSError:  # it was closed
            saved = os.open(os.devnull, os.O_WRONLY)
        os.dup2(writing, 2)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            thrown = str(error)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            with suppress(BlockingIOError):
                while True:
                    written += os.read(reading, 1 << 16)
    output = written.decode("utf-8", "replace") if written else ""
    return image, f"{output}\n{thrown}" if thrown else output


def _damage(data: bytes, output: str, *, end_added: bool) -> str:
    """What is wrong with a picture that was decoded, or nothing."""
    if not output:
        return ""
    if end_added:  # any message then concerns missing pixels
        return f"cut short: {_reason(output)}"
    padding = _PADDING.search(output)
    if padding is None:
        return _reason(output) if _DAMAGE.search(output) else ""
    end = data.rfind(_END)  # cameras write zeros or 0xff before the end marker; anything else is pixels
    return _reason(output) if data[max(0, end - int(padding[1])) : end].strip(b"\0\xff") else ""


def _reason(output: str) -> str:
    """The most informative line, without times and places in OpenCV's own source."""
    thrown = _THROWN.search(output)
    if thrown:
        return " ".join(thrown[2].split())[:_LONGEST_REASON] if thrown[1] != "Assertion failed" else ""
    lines = [line for line in output.splitlines() if line.strip()]
    line = next((line for line in lines if not _WARNING.match(line)), lines[0] if lines else "")
    return _LOG_PREFIX.sub("", line).strip()[:_LONGEST_REASON]


# Encoding


@dataclass(frozen=True)
class Encoding:
    """An image format and its quality.

    Attributes
    ----------
    format : str
        ``"jpg"``, ``"png"`` or ``"webp"``, the file extension too.
    quality : int, optional
        From 1 to 100, for JPEG and WebP; `DEFAULT_QUALITY` if None. A WebP of 100 is lossless. PNG, which is always
        lossless, has no quality.

    Raises
    ------
    OptionError
        For another format, a quality outside that range, or a PNG with a quality.
    """

    format: str = "jpg"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise OptionError(f"format {self.format!r}: expected one of {', '.join(FORMATS)}")
        if self.format == "png" and self.quality is not None:
            raise OptionError(f"quality {self.quality}: PNG is lossless and has no quality; omit it or choose jpg")
        if self.quality is None:
            object.__setattr__(self, "quality", DEFAULT_QUALITY.get(self.format))
        elif not 1 <= self.quality <= 100:
            raise OptionError(f"quality {self.quality}: expected 1 to 100")

    @property
    def expected_bytes_per_pixel(self) -> float:
        """About the size of a 112 x 112 crop of a photograph; larger crops are smoother and take less."""
        if self.quality is None:
            return _PNG_BYTES
        qualities, sizes = _BYTES[self.format]
        return float(np.interp(self.quality, qualities, sizes))

    def identity(self) -> dict[str, Any]:
        """All that decides the bytes, except OpenCV's version, as JSON values."""
        if self.format == "jpg":
            settings = {"chroma_subsampling": "4:4:4", "optimized": False, "progressive": False}
        elif self.format == "png":
            settings = {"compression": 1, "strategy": "rle"}
        else:
            settings = {"lossless": self.quality == _LOSSLESS}
        return {"format": self.format, "quality": self.quality, **settings}

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        """Encode an image of shape (H, W, 3), uint8, BGR.

        Raises
        ------
        OptionError
            If the format cannot hold an image of that size: a WebP has at most 16,383 pixels a side, a JPEG 65,500.
        """
        cv2 = import_opencv()
        quality = self.quality or 0
        if self.format == "jpg":
            sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
            plain = (cv2.IMWRITE_JPEG_OPTIMIZE, 0, cv2.IMWRITE_JPEG_PROGRESSIVE, 0)
            options: tuple[int, ...] = (cv2.IMWRITE_JPEG_QUALITY, quality, *sampling, *plain)
        elif self.format == "png":  # the strategy comes last: setting the level resets it
            options = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
        else:
            options = (cv2.IMWRITE_WEBP_QUALITY, quality if quality != _LOSSLESS else _LOSSLESS + 1)
        try:
            done, encoded = cv2.imencode(f".{self.format}", image, options)
        except cv2.error:
            done = False
        if not done:
            height, width = image.shape[:2]
            raise OptionError(f"{width} x {height} pixels: too large for {self.format}; choose png or a smaller size")
        data: bytes = encoded.tobytes()
        return data
