"""Scaling an image to the size that a network takes, and its points back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.images import import_opencv

__all__ = ["FittedImage", "fit_image"]


@dataclass(frozen=True, eq=False)
class FittedImage:
    """A scaled image.

    Attributes
    ----------
    image : ndarray of shape (h, w, 3), uint8
    scale : ndarray of shape (2,), float64
        The factors of x and y. They differ by less than a pixel of the scaled image's shorter side.
    """

    image: NDArray[np.uint8]
    scale: NDArray[np.float64]

    def to_original(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn pixel coordinates of the scaled image into those of the original one.

        As in ``cv2.resize``, the outer edges of the images coincide; in both, the centre of the top left pixel is
        (0, 0).

        Parameters
        ----------
        points : ndarray of shape (..., 2), float64
            x, then y.
        """
        return (points + 0.5) / self.scale - 0.5


def fit_image(
    image: NDArray[np.uint8], side: int, *, enlarge: bool = False, multiple: int = 1, square: bool = False
) -> FittedImage:
    """Scale an image so that its longer side is at most `side`.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
    side : int
        In pixels.
    enlarge : bool
        Scale smaller images up, so that the longer side is always `side`.
    multiple : int
        Add black rows and columns at the bottom and the right until both sides are multiples of this.
    square : bool
        Add black ones until both sides are `side`.
    """
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1.0 and not enlarge:
        factor = 1.0
    new_height, new_width = (max(1, round(length * factor)) for length in (height, width))
    if (new_height, new_width) != (height, width):
        cv2 = import_opencv()
        interpolation = cv2.INTER_AREA if new_height * new_width < height * width else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (new_width, new_height), interpolation=interpolation), np.uint8)
    bottom, right = ((side if square else -(-length // multiple) * multiple) for length in (new_height, new_width))
    if (bottom, right) != (new_height, new_width):
        padded = np.zeros((bottom, right, 3), np.uint8)
        padded[:new_height, :new_width] = image
        image = padded
    return FittedImage(image, np.array([new_width / width, new_height / height]))
