"""Landmark layouts: 5, 25, 68, 98 or 106 points, reduced to the five that faces are aligned by.

Which points the five are: FaceX-Zoo's own map for 25 and 106, the latter in JD's order, whose last two points are the
pupils (InsightFace's 106 points are in another order); iBUG's order for 68, where an eye is the mean of its six points;
WFLW's for 98, whose last two are the pupils.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FaceError

__all__ = ["LAYOUTS", "five_points"]

_Groups = tuple[tuple[int, ...], ...]

LAYOUTS: Mapping[int, str] = {
    5: "eye on the image's left, eye on its right, nose tip, mouth corner left, mouth corner right",
    25: "FaceX-Zoo",
    68: "iBUG 300-W",
    98: "WFLW",
    106: "JD, FaceX-Zoo",
}
"""The known layouts: how many points, and whose order they are in."""

# For each of the five, the points that it is the mean of, counted from 0.
_FIVE: Mapping[int, _Groups] = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    25: ((0,), (1,), (7,), (10,), (11,)),
    68: (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,)),
    98: ((96,), (97,), (54,), (76,), (82,)),
    106: ((104,), (105,), (54,), (84,), (90,)),
}


def five_points(landmarks: NDArray[Any]) -> NDArray[np.float64]:
    """Reduce landmarks to five points.

    Parameters
    ----------
    landmarks : array of shape (P, 2) or (N, P, 2)
        x then y; P is one of `LAYOUTS`.

    Returns
    -------
    ndarray of shape (5, 2) or (N, 5, 2), float64
        The eye on the image's left, the eye on its right, nose tip, mouth corner on the left, on the right. What is
        not finite among the other points does no harm.

    Raises
    ------
    FaceError
        "bad landmarks", if the shape is another.
    """
    points = np.asarray(landmarks, np.float64)
    if points.ndim not in (2, 3) or points.shape[-1] != 2:
        raise FaceError("bad landmarks", f"expected x and y of each point, found an array of shape {points.shape}")
    groups = _FIVE.get(points.shape[-2])
    if groups is None:
        known = ", ".join(map(str, LAYOUTS))
        raise FaceError("bad landmarks", f"found {points.shape[-2]} points; known layouts: {known}")
    five = np.empty((*points.shape[:-2], 5, 2))
    for place, group in enumerate(groups):
        five[..., place, :] = _mean(points, group)
    return five


def _mean(points: NDArray[np.float64], group: tuple[int, ...]) -> NDArray[np.float64]:
    total = points[..., group[0], :]
    with np.errstate(all="ignore"):  # infinite points are a matter for whoever uses the five
        for index in group[1:]:
            total = total + points[..., index, :]
        return total / len(group)
