"""From encoded images to what a network takes; by default as InsightFace prepares them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facedata.align.decoding import decode_image
from facedata.errors import OptionError, RefusedSampleError
from facedata.images import import_opencv

__all__ = ["BGR", "NCHW", "NHWC", "RGB", "Layout", "Preprocessing"]

RGB, BGR = "rgb", "bgr"
Layout = Literal["nchw", "nhwc"]
NCHW: Layout = "nchw"
NHWC: Layout = "nhwc"

_HALF_RANGE = 127.5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the network's input: ``(x - mean) / scale``, x from 0 to 255.

    The defaults are those of InsightFace, whose published ONNX models mostly expect them.

    Attributes
    ----------
    mean, scale : tuple of float
        One number, or one for each channel in the order that the network takes them.
    color : {'rgb', 'bgr'}
        That order.
    resize : bool
        Scale images of another size; otherwise they are refused. Sides are scaled independently: by area where both
        shrink, bilinearly otherwise.

    Raises
    ------
    OptionError
        Where a number makes no sense.
    """

    mean: tuple[float, ...] = (_HALF_RANGE,)
    scale: tuple[float, ...] = (_HALF_RANGE,)
    color: str = RGB
    resize: bool = False

    def __post_init__(self) -> None:
        for option, values in (("mean", self.mean), ("scale", self.scale)):
            if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
                raise OptionError(f"--{option} {_typed(values)}: expected a number, or three with commas between them")
        if not all(self.scale):
            raise OptionError(f"--scale {_typed(self.scale)}: is what values are divided by, and cannot be 0")
        if self.color not in (RGB, BGR):
            raise OptionError(f"--color {self.color}: there are rgb, bgr")

    def identity(self) -> dict[str, Any]:
        """All that decides the pixels, OpenCV's version included, as JSON values."""
        return {
            "mean": list(self.mean),
            "scale": list(self.scale),
            "color": self.color,
            "resize": "area or bilinear" if self.resize else None,
            "OpenCV": import_opencv().__version__,
        }

    def decode(self, data: bytes, height: int, width: int) -> NDArray[np.uint8]:
        """The pixels of an encoded image, shape (height, width, 3), BGR.

        Raises
        ------
        RefusedSampleError
            Where it cannot be decoded, or has another size and may not be scaled.
        """
        image = decode_image(data)
        if image.shape[:2] == (height, width):
            return image
        if not self.resize:
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise RefusedSampleError(f"wrong size: expected {width} x {height} pixels, found {found}; --resize scales")
        cv2 = import_opencv()
        shrinks = image.shape[0] >= height and image.shape[1] >= width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        scaled: NDArray[np.uint8] = cv2.resize(image, (width, height), interpolation=how)
        return scaled

    def fill(self, image: NDArray[np.uint8], layout: Layout, into: Floats) -> None:
        """Write what the network takes for `image` (BGR, shape (H, W, 3)) into an array of its shape."""
        pixels = image if self.color == BGR else image[..., ::-1]
        if layout == NCHW:
            pixels = pixels.transpose(2, 0, 1)
        np.subtract(pixels, _by_channel(self.mean, layout), out=into, dtype=np.float32)
        np.divide(into, _by_channel(self.scale, layout), out=into)


def _by_channel(values: Sequence[float], layout: Layout) -> Floats:
    return np.array(values, np.float32).reshape((-1, 1, 1) if layout == NCHW else (-1,))


def _typed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
