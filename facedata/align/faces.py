"""What is known of the faces in an image: their landmarks, and perhaps boxes and scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Face"]


class Face(NamedTuple):
    """One face in an image, in pixels, x then y; the centre of the top left pixel is (0, 0).

    Attributes
    ----------
    landmarks : ndarray of shape (P, 2), float64
        In whatever layout they came: 5, 25, 68, 98 or 106 points.
    box : ndarray of shape (4,), float64, optional
        Left, top, right, bottom.
    score : float, optional
        How sure the detector was, from 0 to 1.
    """

    landmarks: NDArray[np.float64]
    box: NDArray[np.float64] | None = None
    score: float | None = None
