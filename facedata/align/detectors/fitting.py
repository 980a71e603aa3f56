"""An image scaled into what a network takes, and its points brought back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.images import import_opencv

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A scaled image and how it was scaled.

    Attributes
    ----------
    image : ndarray of shape (h, w, 3), uint8
    scale : ndarray of shape (2,), float64
        By which x and y were multiplied. They differ by less than a pixel of the scaled image's shorter side.
    """

    image: NDArray[np.uint8]
    scale: NDArray[np.float64]

    def back(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the scaled image in pixels of the first one.

        Outer edges lie on outer edges, as in ``cv2.resize``, while the centre of the top left pixel is (0, 0) in both.

        Parameters
        ----------
        points : ndarray of shape (..., 2), float64
            x, then y.
        """
        return (points + 0.5) / self.scale - 0.5


def fit(
    image: NDArray[np.uint8], side: int, *, enlarge: bool = False, multiple: int = 1, square: bool = False
) -> Fitted:
    """Scale an image so that its longer side is `side`, or is at most that.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
    side : int
        In pixels.
    enlarge : bool
        Whether a smaller image is scaled up.
    multiple : int
        Black rows and columns are added at the bottom and the right until both sides are multiples of this.
    square : bool
        Black ones are added until both sides are `side`.
    """
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1.0 and not enlarge:
        factor = 1.0
    new_height, new_width = (max(1, round(length * factor)) for length in (height, width))
    scale = np.array([new_width / width, new_height / height])
    bottom, right = ((side if square else -(-length // multiple) * multiple) for length in (new_height, new_width))
    return Fitted(_padded(_resized(image, new_height, new_width), bottom, right), scale)


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    cv2 = import_opencv()
    shrinks = height * width < image.shape[0] * image.shape[1]
    resized: NDArray[np.uint8] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return resized


def _padded(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    padded = np.zeros((height, width, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
