"""The crop: an image warped by a similarity transform, as InsightFace's ``norm_crop`` and FaceX-Zoo's cropper do it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FaceError
from facedata.images import import_opencv

__all__ = ["crop_face", "upper_rows"]

_UPPER, _TEMPLATE_SIZE = 60, 112
_LARGEST_SIDE = 32_766  # cv2.warpAffine takes sides below SHRT_MAX
_MARGIN = 2  # pixels: bilinear interpolation takes the neighbours


def upper_rows(size: int) -> int:
    """Rows of the upper half of a crop: 60 of 112, as FaceX-Zoo's second model takes, and in proportion.

    Parameters
    ----------
    size : int
        Side of the whole crop, in pixels.
    """
    return max(1, round(_UPPER * size / _TEMPLATE_SIZE))


def crop_face(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int, rows: int | None = None
) -> NDArray[np.uint8]:
    """Warp an image into a square crop: bilinear, black where the image ends.

    Nothing is smoothed first, as in InsightFace and FaceX-Zoo: a face that is much larger than its crop is sampled, not
    averaged, and fine texture aliases. ``cv2.warpAffine`` may use several threads; the pixels do not depend on it.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    matrix : ndarray of shape (2, 3), float64
        Takes the image's pixels to the crop's, x then y; the centre of the top left pixel is (0, 0).
    size : int
        Side of the crop, in pixels.
    rows : int, optional
        Keep only so many rows from the top, as `upper_rows` counts them.

    Returns
    -------
    ndarray of shape (size or rows, size, 3), uint8
        BGR, C-contiguous.

    Raises
    ------
    FaceError
        "degenerate landmarks" where the matrix is not finite or has no inverse; "too large" where the face alone is as
        large as OpenCV takes no image: 32,767 pixels a side.
    """
    cv2 = import_opencv()

    _check_invertible(matrix)
    if max(image.shape[:2]) > _LARGEST_SIDE:
        image, matrix = _cut_out(image, matrix, size)
    crop: NDArray[np.uint8] = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return crop if rows is None else crop[:rows]


def _check_invertible(matrix: NDArray[np.float64]) -> None:
    a, b, x, c, d, y = matrix.ravel().tolist()
    determinant = a * d - b * c
    if determinant == 0 or not math.isfinite(determinant + x + y):
        raise FaceError("degenerate landmarks", "no similarity transform takes them to the template")


def _cut_out(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of a large image that its crop shows, and the matrix from there: whole pixels less, so nothing moves."""
    height, width = image.shape[:2]
    corners = np.array([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1]]) - matrix[:, 2:]
    points = np.linalg.solve(matrix[:, :2], corners)
    limits = np.array([[width], [height]])
    low = np.clip(np.floor(points.min(axis=1, keepdims=True)) - _MARGIN, 0, limits - 1).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=1, keepdims=True)) + _MARGIN + 1, low + 1, limits).astype(np.int64)
    (left, top), (right, bottom) = low.ravel().tolist(), high.ravel().tolist()
    if max(right - left, bottom - top) > _LARGEST_SIDE:
        found = f"{right - left:,} x {bottom - top:,}"
        raise FaceError("too large", f"the face spans {found} pixels; expected fewer than 32,767")
    moved = np.hstack([matrix[:, :2], matrix[:, 2:] + matrix[:, :2] @ low])
    return np.ascontiguousarray(image[top:bottom, left:right]), moved
