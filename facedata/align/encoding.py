r"""Crops to files: JPEG, PNG or WebP, with every setting that decides the bytes fixed and recorded.

The defaults come from ``benchmarks/jpeg_quality.py``: 112 x 112 crops of drawn faces, of the astronaut's face and of
pieces of photographs, OpenCV 5.0. Loss is against the crop itself: PSNR in dB, and the worst error of any channel.

===================  ===========  ===========  ===========  ============  ============
encoding             drawn faces  the face     photographs  us to encode  us to decode
===================  ===========  ===========  ===========  ============  ============
JPEG 95, 4:2:0       37.2, 58     39.2, 24     38.9, 58     44            60
\                    5.7 KB       6.9 KB       5.9 KB
JPEG 98, 4:2:0       38.5, 52     41.9, 22     40.7, 59     52            75
\                    8.1 KB       9.5 KB       8.2 KB
JPEG 100, 4:2:0      39.0, 54     43.3, 23     41.6, 59     62            95
\                    11.0 KB      12.6 KB      11.2 KB
JPEG 92, 4:4:4       39.2, 30     38.9, 25     39.9, 33     58            70
\                    5.5 KB       6.5 KB       5.8 KB
**JPEG 95, 4:4:4**   41.4, 22     40.8, 16     41.9, 21     65            80
\                    7.1 KB       8.3 KB       7.4 KB
WebP 95              37.9, 59     40.7, 24     39.6, 67     1400          240
\                    3.9 KB       5.5 KB       4.4 KB
WebP, lossless       none         none         none         8000          250
\                    12.4 KB      18.0 KB      15.8 KB
PNG                  none         none         none         600           310
\                    18.3 KB      24.1 KB      20.9 KB
===================  ===========  ===========  ===========  ============  ============

JPEG: quality 95 without chroma subsampling. Subsampling sets a loss that no quality mends: 4:2:0 at 100 still errs by
54 levels, at lips, eyes and the edge of the hair, in files half as large again as 4:4:4 at 95, which errs by 22. What
OpenCV and so InsightFace's and FaceX-Zoo's scripts write, 95 at 4:2:0, makes files a fifth smaller that lose 1.6 to 4.2
dB more. Optimised tables save 8 % and triple the time to encode; progressive files save 9 % at six times the time and
take twice as long to decode: neither is used.

PNG: zlib's level 1 with run-length matching. Level 6 saves 3 % on drawn faces and nothing on photographs, at three
times the time; what OpenCV does by default is a third faster and 6 to 10 % larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from facedata.errors import OptionError
from facedata.images import import_opencv

__all__ = ["DEFAULT_QUALITY", "FORMATS", "Encoding"]

FORMATS: Final = ("jpg", "png", "webp")
DEFAULT_QUALITY: Final = {"jpg": 95, "webp": 95}
"""Where none is asked for; PNG has no quality."""

_LOSSLESS: Final = 100  # OpenCV takes WebP qualities above 100 for lossless; at 100 itself it would err by 55 levels
# Bytes per pixel of the 112 x 112 crops of the astronaut's face, by quality
_BYTES: Final = {
    "jpg": ((1, 50, 75, 90, 95, 98, 100), (0.09, 0.21, 0.29, 0.47, 0.66, 1.0, 1.6)),
    "webp": ((1, 50, 75, 90, 95, 99, 100), (0.04, 0.12, 0.16, 0.31, 0.44, 0.57, 1.44)),
}
_PNG_BYTES: Final = 1.9


@dataclass(frozen=True)
class Encoding:
    """A format, and how well it keeps the pixels.

    Attributes
    ----------
    format : str
        ``"jpg"``, ``"png"`` or ``"webp"``.
    quality : int, optional
        From 1 to 100, for JPEG and WebP; `DEFAULT_QUALITY` where None is given. A WebP of 100 is lossless. PNG, which
        is so always, has none.

    Raises
    ------
    OptionError
        For another format, a quality outside that range, or a PNG with one.
    """

    format: str = "jpg"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise OptionError(f"format {self.format!r}: expected one of {', '.join(FORMATS)}")
        if self.format == "png" and self.quality is not None:
            raise OptionError(f"quality {self.quality}: PNG has none, it loses nothing; leave it out or choose jpg")
        if self.quality is None:
            object.__setattr__(self, "quality", DEFAULT_QUALITY.get(self.format))
        elif not 1 <= self.quality <= 100:
            raise OptionError(f"quality {self.quality}: expected 1 to 100")

    @property
    def extension(self) -> str:
        """Of file names, without a dot."""
        return self.format

    @property
    def expected_bytes_per_pixel(self) -> float:
        """About what a 112 x 112 crop of a photograph takes; larger crops are smoother, and take less."""
        if self.quality is None:
            return _PNG_BYTES
        qualities, sizes = _BYTES[self.format]
        return float(np.interp(self.quality, qualities, sizes))

    def identity(self) -> dict[str, Any]:
        """All that decides the bytes, but for the version of OpenCV, as JSON values."""
        if self.format == "jpg":
            chosen = {"chroma_subsampling": "4:4:4", "optimized": False, "progressive": False}
        elif self.format == "png":
            chosen = {"compression": 1, "strategy": "rle"}
        else:
            chosen = {"lossless": self.quality == _LOSSLESS}
        return {"format": self.format, "quality": self.quality, **chosen}

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        """Encode an image.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR.

        Raises
        ------
        OptionError
            Where the format takes no image of that size: a WebP has at most 16,383 pixels a side, a JPEG 65,500.
        """
        cv2 = import_opencv()

        try:
            done, encoded = cv2.imencode(f".{self.format}", image, self._options)
        except cv2.error:
            done = False
        if not done:
            height, width = image.shape[:2]
            raise OptionError(f"{width} x {height} pixels: too large for {self.format}; choose png or a smaller size")
        data: bytes = encoded.tobytes()
        return data

    @cached_property
    def _options(self) -> tuple[int, ...]:
        cv2 = import_opencv()

        quality = self.quality or 0
        if self.format == "jpg":
            sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
            plain = (cv2.IMWRITE_JPEG_OPTIMIZE, 0, cv2.IMWRITE_JPEG_PROGRESSIVE, 0)
            return (cv2.IMWRITE_JPEG_QUALITY, quality, *sampling, *plain)
        if self.format == "png":  # the strategy stands last: setting the level resets it
            return (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
        return (cv2.IMWRITE_WEBP_QUALITY, quality if quality != _LOSSLESS else _LOSSLESS + 1)
