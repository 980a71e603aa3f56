"""Faces: what is known of a face in an image, the landmark layouts, the choice among several faces, and the crop.

Coordinates are pixels, x then y; the centre of the top left pixel is (0, 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FaceError
from facedata.images import import_opencv

__all__ = [
    "FACE_RULES",
    "LAYOUTS",
    "Face",
    "check_inside",
    "choose_faces",
    "crop_face",
    "five_points",
    "upper_rows",
]

FACE_RULES = ("largest", "central", "all", "one")
"""How to choose among the faces of an image; see `choose_faces`."""

LAYOUTS: Mapping[int, str] = {
    5: "eye on the image's left, eye on its right, nose tip, mouth corner left, mouth corner right",
    25: "FaceX-Zoo",
    68: "iBUG 300-W",
    98: "WFLW",
    106: "JD, FaceX-Zoo",
}
"""The known landmark layouts: the number of points, ascending, and the order that they are in."""

# For each of the five points, the points of the layout whose mean it is, counted from 0. FaceX-Zoo's own map for 25 and
# 106, the latter in JD's order, whose last two points are the pupils (InsightFace's 106 points are in another order);
# iBUG's order for 68, where an eye is the mean of its six points; WFLW's for 98, whose last two are the pupils.
_FIVE: Mapping[int, tuple[tuple[int, ...], ...]] = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    25: ((0,), (1,), (7,), (10,), (11,)),
    68: (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,)),
    98: ((96,), (97,), (54,), (76,), (82,)),
    106: ((104,), (105,), (54,), (84,), (90,)),
}
_FEWEST_INSIDE = 3
_UPPER_ROWS, _TEMPLATE_SIZE = 60, 112
_LARGEST_SIDE = 32_766  # cv2.warpAffine takes sides below SHRT_MAX
_MARGIN = 2  # pixels: bilinear interpolation uses the neighbours


class Face(NamedTuple):
    """A face in an image.

    Attributes
    ----------
    landmarks : ndarray of shape (P, 2), float64
        In the layout in which they came: 5, 25, 68, 98 or 106 points.
    box : ndarray of shape (4,), float64, optional
        Left, top, right, bottom.
    score : float, optional
        How certain the detector was, from 0 to 1.
    """

    landmarks: NDArray[np.float64]
    box: NDArray[np.float64] | None = None
    score: float | None = None


def five_points(landmarks: NDArray[Any]) -> NDArray[np.float64]:
    """Reduce landmarks of any known layout to the five points that faces are aligned by.

    Takes an array of shape (P, 2) or (N, P, 2), x then y; P is one of `LAYOUTS`, or else a "bad landmarks" `FaceError`
    is raised. Returns the eye on the image's left, the eye on its right, nose tip, mouth corner on the left, on the
    right: shape (5, 2) or (N, 5, 2). Values that are not finite have no effect unless they are among the points used.
    """
    points = np.asarray(landmarks, np.float64)
    groups = _FIVE.get(points.shape[-2])
    if groups is None:
        known = ", ".join(map(str, LAYOUTS))
        raise FaceError("bad landmarks", f"found {points.shape[-2]} points; known layouts: {known}")
    five = np.empty((*points.shape[:-2], 5, 2))
    with np.errstate(all="ignore"):  # infinite points are refused when the five are used
        for place, (first, *others) in enumerate(groups):
            total = points[..., first, :]
            for index in others:
                total = total + points[..., index, :]
            five[..., place, :] = total / (1 + len(others))
    return five


# Which faces


def choose_faces(faces: Sequence[Face], rule: str, image_size: tuple[int, int]) -> list[Face]:
    """Choose among the faces of one image, at least one.

    Parameters
    ----------
    faces : sequence of Face
    rule : str
        ``"largest"``: the largest box. ``"central"``: the largest value of the box's area minus twice the squared
        distance of its centre from the image's, InsightFace's rule, which takes the image's centre in whole pixels.
        ``"all"``: all, in the order given. ``"one"``: the only one. A face without a box counts with the bounding box
        of its landmarks, about a third of a detector's box; among equal faces the first is chosen.
    image_size : (int, int)
        Height and width in pixels.

    Raises
    ------
    FaceError
        "no face" if there is none, "several faces" if `rule` is ``"one"`` and there are more.
    """
    if not faces:
        raise FaceError("no face")
    if rule == "one" and len(faces) > 1:
        raise FaceError("several faces", f"expected one, found {len(faces)}")
    if rule in ("all", "one") or len(faces) == 1:
        return list(faces)
    height, width = image_size

    def value(face: Face) -> float:
        if face.box is not None:
            left, top, right, bottom = face.box.tolist()
        elif len(face.landmarks):
            (left, top), (right, bottom) = face.landmarks.min(axis=0).tolist(), face.landmarks.max(axis=0).tolist()
        else:
            return -math.inf
        value = max(right - left, 0.0) * max(bottom - top, 0.0)
        if rule == "central":
            right_by, down_by = (left + right) / 2 - width // 2, (top + bottom) / 2 - height // 2
            value -= 2.0 * (right_by * right_by + down_by * down_by)
        return value if math.isfinite(value) else -math.inf  # a broken box is not a large face

    return [max(faces, key=value)]


def check_inside(landmarks: NDArray[Any], height: int, width: int) -> None:
    """Refuse a face if fewer than three of its five landmarks are inside the image.

    The image reaches half a pixel beyond the centres of its outermost pixels. A face that is cut off by the border
    still counts with three of eyes, nose and mouth corners; with fewer, the crop would be mostly black, and a
    `FaceError`, "outside the image", is raised. A point that is not a number is outside: look at
    `facedata.align.similarity.Transforms.defects` first.
    """
    inside = sum(
        -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
        for x, y in np.asarray(landmarks, np.float64).tolist()  # faster than NumPy for five points
    )
    if inside < _FEWEST_INSIDE:
        raise FaceError(
            "outside the image",
            f"{inside} of the five landmarks are inside the image, which is {width} pixels wide and {height} high; "
            f"expected at least {_FEWEST_INSIDE}",
        )


# The crop, as InsightFace's ``norm_crop`` and FaceX-Zoo's cropper make it


def upper_rows(size: int) -> int:
    """The rows of the upper part of a crop: 60 of 112, as for FaceX-Zoo's model of masked faces, or in proportion."""
    return max(1, round(_UPPER_ROWS * size / _TEMPLATE_SIZE))


def crop_face(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int, rows: int | None = None
) -> NDArray[np.uint8]:
    """Warp an image into a square crop with bilinear interpolation, black outside the image.

    Nothing is smoothed first, as in InsightFace and FaceX-Zoo: a face that is much larger than its crop is sampled, not
    averaged, and fine texture aliases. ``cv2.warpAffine`` may use several threads; the pixels do not depend on it.

    `image` has the shape (H, W, 3) and the type uint8, BGR, like the crop, whose shape is (size or rows, size, 3). The
    matrix, of shape (2, 3), takes the image's pixels to the crop's, x then y. With `rows`, as given by `upper_rows`,
    only so many from the top are kept.

    Raises
    ------
    FaceError
        "degenerate landmarks" if the matrix is not finite or has no inverse; "too large" if the face alone is larger
        than OpenCV can warp: 32,767 pixels a side.
    """
    cv2 = import_opencv()
    a, b, x, c, d, y = matrix.ravel().tolist()
    determinant = a * d - b * c
    if determinant == 0 or not math.isfinite(determinant + x + y):
        raise _degenerate()
    if max(image.shape[:2]) > _LARGEST_SIDE:
        image, matrix = _cut_out(image, matrix, size)
    crop: NDArray[np.uint8] = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return crop if rows is None else crop[:rows]


def _degenerate() -> FaceError:
    return FaceError("degenerate landmarks", "no similarity transform takes them to the template")


def _cut_out(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut the part that the crop shows out of a large image, at whole pixels, and adapt the matrix to it."""
    height, width = image.shape[:2]
    corners = np.array([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1]]) - matrix[:, 2:]
    try:
        points = np.linalg.solve(matrix[:, :2], corners)
    except np.linalg.LinAlgError:  # its determinant is lost in rounding
        raise _degenerate() from None
    if not np.isfinite(points).all():
        raise _degenerate()
    limits = np.array([[width], [height]])
    low = np.clip(np.floor(points.min(axis=1, keepdims=True)) - _MARGIN, 0, limits - 1).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=1, keepdims=True)) + _MARGIN + 1, low + 1, limits).astype(np.int64)
    (left, top), (right, bottom) = low.ravel().tolist(), high.ravel().tolist()
    if max(right - left, bottom - top) > _LARGEST_SIDE:
        found = f"{right - left:,} x {bottom - top:,}"
        raise FaceError("too large", f"the face spans {found} pixels; expected fewer than 32,767")
    moved = np.hstack([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ low])
    return np.ascontiguousarray(image[top:bottom, left:right]), moved
