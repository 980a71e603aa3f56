"""Crops to files: JPEG, PNG or WebP, with every setting that decides the bytes fixed and recorded.

docs/explanation/choices.md has the measurements behind the defaults: what each encoding loses, weighs and takes.
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
"""The quality if none is given; PNG has none."""

_LOSSLESS: Final = 100  # OpenCV takes WebP qualities above 100 for lossless; at 100 itself it would err by 55 levels
# Bytes per pixel of the 112 x 112 crops of a photographed face, by quality
_BYTES: Final = {
    "jpg": ((1, 50, 75, 90, 95, 98, 100), (0.09, 0.21, 0.29, 0.47, 0.66, 1.0, 1.6)),
    "webp": ((1, 50, 75, 90, 95, 99, 100), (0.04, 0.12, 0.16, 0.31, 0.44, 0.57, 1.44)),
}
_PNG_BYTES: Final = 1.9


@dataclass(frozen=True)
class Encoding:
    """An image format and its quality.

    Attributes
    ----------
    format : str
        ``"jpg"``, ``"png"`` or ``"webp"``.
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
    def extension(self) -> str:
        """The extension of file names, without a dot."""
        return self.format

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
        """Encode an image.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR.

        Raises
        ------
        OptionError
            If the format cannot hold an image of that size: a WebP has at most 16,383 pixels a side, a JPEG 65,500.
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
        if self.format == "png":  # the strategy comes last: setting the level resets it
            return (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
        return (cv2.IMWRITE_WEBP_QUALITY, quality if quality != _LOSSLESS else _LOSSLESS + 1)
