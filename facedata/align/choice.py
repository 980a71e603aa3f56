"""Which faces of an image are aligned, and whether what is known of one lies in the image at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.errors import FaceError, OptionError

__all__ = ["FACE_RULES", "check_inside", "choose_faces", "face_box"]

FACE_RULES = ("largest", "central", "all", "one")

_FEWEST_INSIDE = 3
_Box = tuple[float, float, float, float]


def choose_faces(faces: Sequence[Face], rule: str, image_size: tuple[int, int]) -> list[Face]:
    """Choose among the faces of one image.

    Parameters
    ----------
    faces : sequence of Face
    rule : str
        ``"largest"``: the largest box. ``"central"``: the largest value of the box's area less twice the squared
        distance of its centre from the image's, InsightFace's rule, which counts the image's centre in whole pixels.
        ``"all"``: all, in the order given. ``"one"``: the only one. A face without a box counts with that of
        `face_box`; of equal ones the first is taken.
    image_size : (int, int)
        Height and width in pixels.

    Returns
    -------
    list of Face
        At least one.

    Raises
    ------
    FaceError
        "no face" where there is none, "several faces" where `rule` is ``"one"`` and there are more.
    OptionError
        If there is no such rule.
    """
    if rule not in FACE_RULES:
        raise OptionError(f"faces: expected one of {', '.join(FACE_RULES)}, found {rule!r}")
    if not faces:
        raise FaceError("no face")
    if rule == "one" and len(faces) > 1:
        raise FaceError("several faces", f"expected one, found {len(faces)}")
    value = _VALUES.get(rule)
    if value is None or len(faces) == 1:
        return list(faces)
    return [max(faces, key=lambda face: _comparable(value(face_box(face), image_size)))]


def face_box(face: Face) -> _Box:
    """Left, top, right and bottom of a face.

    Returns
    -------
    tuple of float
        Its box, or where it has none, the bounding box of its landmarks, whatever their layout. That of five points
        covers about a third of the area of a detector's box: enough to compare faces by that have none.
    """
    if face.box is not None:
        left, top, right, bottom = np.asarray(face.box, np.float64).tolist()
        return left, top, right, bottom
    if not len(face.landmarks):
        return math.nan, math.nan, math.nan, math.nan
    (left, top), (right, bottom) = face.landmarks.min(axis=0).tolist(), face.landmarks.max(axis=0).tolist()
    return left, top, right, bottom


def _area(box: _Box, image_size: tuple[int, int]) -> float:
    left, top, right, bottom = box
    return max(right - left, 0.0) * max(bottom - top, 0.0)


def _centrality(box: _Box, image_size: tuple[int, int]) -> float:
    left, top, right, bottom = box
    height, width = image_size
    right_by, down_by = (left + right) / 2 - width // 2, (top + bottom) / 2 - height // 2
    return _area(box, image_size) - 2.0 * (right_by * right_by + down_by * down_by)


def _comparable(value: float) -> float:
    return value if math.isfinite(value) else -math.inf  # a broken box is no large face


_VALUES: Mapping[str, Callable[[_Box, tuple[int, int]], float]] = {"largest": _area, "central": _centrality}


def check_inside(landmarks: NDArray[Any], height: int, width: int) -> None:
    """Refuse a face of whose five landmarks fewer than three lie in the image.

    The image reaches half a pixel beyond the centres of its outermost pixels. A face that is cut off by the border
    still counts with three of eyes, nose and mouth corners; of one with fewer the crop would be mostly black. A point
    that is not a number lies nowhere: look at `facedata.align.similarity.Transforms.defects` first.

    Parameters
    ----------
    landmarks : array of shape (5, 2)
        Pixels, x then y.
    height, width : int
        Of the image, in pixels.

    Raises
    ------
    FaceError
        "outside the image".
    """
    inside = sum(
        -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
        for x, y in np.asarray(landmarks, np.float64).tolist()  # five points are too few for NumPy to be worth it
    )
    if inside < _FEWEST_INSIDE:
        raise FaceError(
            "outside the image",
            f"{inside} of the five landmarks lie in the image, which is {width} pixels wide and {height} high; "
            f"expected at least {_FEWEST_INSIDE}",
        )
