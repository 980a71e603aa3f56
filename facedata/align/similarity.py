"""The least-squares similarity transform from landmarks to a template: rotation, one scale and shift, no reflection.

The solution is that of S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
IEEE PAMI 13(4), 1991, as InsightFace and FaceX-Zoo use it. In two dimensions it needs no singular value decomposition:
with the landmarks (x, y) and the template (u, v) relative to their means, the matrix is ``[[a, -b], [b, a]]``, where
``a = sum(x*u + y*v) / sum(x*x + y*y)`` and ``b = sum(x*v - y*u) / sum(x*x + y*y)``.

Every face is computed with the same order of additions, so its transform does not depend, to the last bit, on the faces
that it is computed with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FaceError, OptionError

__all__ = [
    "ALL_EQUAL",
    "COLLINEAR",
    "FINE",
    "FLATTEST",
    "LARGEST_COORDINATE",
    "NOT_FINITE",
    "UNMATCHED",
    "Transforms",
    "apply_transforms",
    "defect_error",
    "fits_mirrored",
    "similarity_transforms",
]

Floats = NDArray[np.float64]

FINE, NOT_FINITE, ALL_EQUAL, COLLINEAR, UNMATCHED = range(5)
"""There is a transform, or why there is none.

A coordinate is not a number, infinite, or beyond `LARGEST_COORDINATE`; all five points are at one place; all are on a
line, or nearly: see `FLATTEST`; no rotation fits the template better than another.
"""

FLATTEST = 0.1
"""The smallest spread across their main axis that landmarks may have, as a share of the spread along it.

The ArcFace template has 0.80, FaceX-Zoo's profiles 0.45, with 2 px of noise (standard deviation, at 112) at least 0.23.
Points of a line that is 16 px long have at most 0.097 when rounded to whole pixels.
"""

LARGEST_COORDINATE = 1e12
"""Pixels. No image is near it, and the squares of smaller numbers can be summed."""

_SAME_PLACE = 1e-9  # pixels
_SAME_SHARE = 1e-12  # of the distance from the origin: what rounding in float64 leaves between equal points
_COLLAPSED = 1e-12  # crop pixels, squared
_CLEARLY = 0.25  # of a sum of squared distances: half the distance


class Transforms(NamedTuple):
    """The transforms of N faces.

    Attributes
    ----------
    matrices : ndarray of shape (N, 2, 3), float64
        ``[[a, -b, c], [b, a, d]]``, from image pixels to crop pixels; NaN if there is none.
    poses, errors : ndarrays of shape (N,), int64 and float64
        The pose of the template that fits best, the first of equal ones; and its error, the sum of the five distances
        between moved landmark and template in crop pixels, NaN if there is no transform.
    defects : ndarray of shape (N,), int8
        `FINE`, or why there is no transform.
    """

    matrices: Floats
    poses: NDArray[np.int64]
    errors: Floats
    defects: NDArray[np.int8]


def _sum_of_five(values: Floats) -> Floats:
    """The sum over the first of at least two axes, in order; NumPy keeps the order on any axis but the last."""
    return np.asarray(np.add.reduce(values, axis=0))


class _Centred(NamedTuple):
    """Landmarks relative to their means; the axis of the faces is the last, since it is the long one."""

    points: Floats  # (5, 2, 2, N): (x, y), and rotated by 90 degrees, (-y, x)
    means: Floats  # (2, 2, N): the same of the means
    spread: Floats  # (N,): the sum of the squared distances from the mean
    defects: NDArray[np.int8]  # (N,)


def similarity_transforms(landmarks: NDArray[Any], template: NDArray[Any]) -> Transforms:
    """Find the similarity transforms that bring landmarks nearest to a template.

    Landmarks have the shape (N, 5, 2), image pixels, x then y; templates (5, 2) or (T, 5, 2), crop pixels. Of several
    poses the one with the smallest sum of the five distances is taken, FaceX-Zoo's rule. Raises an `OptionError` for
    other shapes.
    """
    points, targets = _checked_shapes(landmarks, template)
    with np.errstate(all="ignore"):  # values that are not finite end in a defect
        faces = _centre(points)
        best = _fit(faces, targets[0])
        poses = np.zeros(best.shape[1], np.int64)
        for pose in range(1, len(targets)):
            fit = _fit(faces, targets[pose])
            nearer = fit[4] < best[4]
            best = np.where(nearer, fit, best)
            poses[nearer] = pose
        a, b, right, down, errors = best
        defects = faces.defects
        defects[(defects == FINE) & ((a * a + b * b) * faces.spread <= _COLLAPSED)] = UNMATCHED
    matrices = np.empty((len(a), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = a
    matrices[:, 0, 1], matrices[:, 1, 0] = -b, b
    matrices[:, 0, 2], matrices[:, 1, 2] = right, down
    bad = defects != FINE
    if bad.any():
        matrices[bad], poses[bad], errors[bad] = np.nan, 0, np.nan
    return Transforms(matrices, poses, errors, defects)


def _centre(landmarks: Floats) -> _Centred:
    points = landmarks.transpose(1, 2, 0).copy()
    largest = np.abs(points).max(axis=(0, 1))
    wild = ~(largest <= LARGEST_COORDINATE)  # true for NaN as well
    if wild.any():
        points[:, :, wild] = 0.0
    first = points[0].copy()
    points -= first  # exact if all are equal, and far from the origin more of the digits are kept
    apart = np.abs(points).max(axis=(0, 1))
    middle = _sum_of_five(points) / 5.0
    points -= middle
    # twice the eigenvalues of the scatter matrix are its trace plus and minus this root
    (x_squared, mixed), (_, y_squared) = _sum_of_five(points[:, :, None] * points[:, None])
    spread, difference = x_squared + y_squared, x_squared - y_squared
    root = np.sqrt(difference * difference + 4.0 * mixed * mixed)
    defects = np.zeros(len(spread), np.int8)
    defects[spread - root <= FLATTEST**2 * (spread + root)] = COLLINEAR
    defects[apart <= np.maximum(_SAME_PLACE, _SAME_SHARE * largest)] = ALL_EQUAL
    defects[wild] = NOT_FINITE
    return _Centred(_with_rotated(points), _with_rotated(first + middle), spread, defects)


def _checked_shapes(landmarks: NDArray[Any], template: NDArray[Any]) -> tuple[Floats, Floats]:
    points, targets = np.asarray(landmarks, np.float64), np.asarray(template, np.float64)
    targets = targets[None] if targets.ndim == 2 else targets
    if points.ndim != 3 or points.shape[1:] != (5, 2):
        raise OptionError(f"landmarks: expected shape (N, 5, 2), found {points.shape}")
    if targets.ndim != 3 or targets.shape[1:] != (5, 2) or not len(targets):
        raise OptionError(f"template: expected shape (5, 2) or (T, 5, 2), found {np.shape(template)}")
    return points, targets


def _with_rotated(points: Floats) -> Floats:
    """Points of shape (..., 2, N), and the same rotated by 90 degrees: (..., 2, 2, N)."""
    both = np.empty((*points.shape[:-2], 2, *points.shape[-2:]))
    both[..., 0, :, :] = points
    np.negative(points[..., 1, :], out=both[..., 1, 0, :])
    both[..., 1, 1, :] = points[..., 0, :]
    return both


def _products(faces: _Centred, target: Floats) -> tuple[Floats, Floats, Floats]:
    """The sums of x*u and y*v, and of -y*u and x*v, shape (2, 2, N); the target's mean, and its points from there."""
    middle = (_sum_of_five(target) / 5.0)[:, None]
    offsets = target[:, :, None] - middle
    return _sum_of_five(faces.points * offsets[:, None]), middle, offsets


def _fit(faces: _Centred, target: Floats) -> Floats:
    """Each face's a, b, shift right, shift down and error, as an array of shape (5, N)."""
    products, middle, offsets = _products(faces, target)
    fit = np.empty((5, products.shape[-1]))
    a, b = np.divide(products[:, 0] + products[:, 1], faces.spread, out=fit[:2])
    np.subtract(middle, a * faces.means[0] + b * faces.means[1], out=fit[2:4])
    missed = a * faces.points[:, 0] + b * faces.points[:, 1] - offsets
    missed *= missed
    first, second, third, fourth, fifth = np.sqrt(missed[:, 0] + missed[:, 1])
    fit[4] = first + second + third + fourth + fifth
    return fit


def fits_mirrored(landmarks: NDArray[Any], template: NDArray[Any]) -> NDArray[np.bool_]:
    """Find faces whose mirror image fits the template clearly better.

    Most likely their points are in another order, the person's left eye first, or the image was mirrored without
    reordering its landmarks. True profiles, which a frontal template fits badly either way, are not found. Clearly
    better means: at most half the root of the summed squared distances.

    Takes the arguments of `similarity_transforms`; returns an array of shape (N,), false at landmarks with a defect.
    """
    points, targets = _checked_shapes(landmarks, template)
    residuals = []  # the summed squared distances that the best transforms without and with a reflection leave
    with np.errstate(all="ignore"):
        faces = _centre(points)
        for target in targets:
            products, _, offsets = _products(faces, target)
            plain, mirrored = products[:, 0] + products[:, 1], products[:, 0] - products[:, 1]
            reached = np.stack([(plain * plain).sum(axis=0), (mirrored * mirrored).sum(axis=0)])
            residuals.append((offsets * offsets).sum() - reached / faces.spread)
        plain, mirrored = np.min(residuals, axis=0)
        mirrors: NDArray[np.bool_] = (mirrored < _CLEARLY * plain) & (faces.defects == FINE)
        return mirrors


def apply_transforms(matrices: NDArray[Any], points: NDArray[Any]) -> Floats:
    """Move points of shape (N, P, 2), x then y, by matrices of shape (N, 2, 3); NaN if the matrix is."""
    matrices, points = np.asarray(matrices, np.float64), np.asarray(points, np.float64)
    with np.errstate(all="ignore"):
        x, y, shift = points[:, :, :1], points[:, :, 1:], matrices[:, None, :, 2]
        moved: Floats = matrices[:, None, :, 0] * x + matrices[:, None, :, 1] * y + shift
        return moved


def defect_error(defect: int, landmarks: NDArray[Any]) -> FaceError:
    """The error "degenerate landmarks" for a face whose landmarks have one of `Transforms.defects`, to be raised."""
    points = [f"({x:.6g}, {y:.6g})" for x, y in np.asarray(landmarks, np.float64).tolist()]
    found = "the points are " + ", ".join(points)
    details = {
        NOT_FINITE: f"a coordinate is not finite, or is beyond {LARGEST_COORDINATE:g} pixels: {found}",
        ALL_EQUAL: f"all five points are at {points[0]}",
        COLLINEAR: f"the five points are on a line, or nearly: {found}",
        UNMATCHED: f"no rotation brings the five points nearer to the template than another: {found}",
    }
    return FaceError("degenerate landmarks", details[int(defect)])
