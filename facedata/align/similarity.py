"""The least-squares similarity transform from landmarks to a template: rotation, one scale and shift, no reflection.

The solution is that of S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
IEEE PAMI 13(4), 1991, as InsightFace and FaceX-Zoo use it. In two dimensions it needs no singular value decomposition:
with the landmarks (x, y) and the template (u, v) taken from their means, the matrix is ``[[a, -b], [b, a]]``, where
``a = sum(x*u + y*v) / sum(x*x + y*y)`` and ``b = sum(x*v - y*u) / sum(x*x + y*y)``.

Everything is done face by face in the same order of additions, so a face's transform does not depend, to the last bit,
on which others it is computed with.
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
    "crop_sides",
    "defect_error",
    "fits_mirrored",
    "similarity_transforms",
]

Floats = NDArray[np.float64]

FINE = 0
"""There is a transform."""
NOT_FINITE = 1
"""A coordinate is not a number, infinite, or beyond `LARGEST_COORDINATE`."""
ALL_EQUAL = 2
"""All five points lie at one place."""
COLLINEAR = 3
"""All five points lie on a line, or nearly: see `FLATTEST`."""
UNMATCHED = 4
"""The best transform shrinks them to nothing: no rotation fits the template better than another."""

FLATTEST = 0.1
"""The smallest spread across their main axis that landmarks may have, as a share of that along it.

The ArcFace template has 0.80, FaceX-Zoo's profiles 0.45, with 2 px of noise (standard deviation, at 112) at least 0.23.
Points of a line that is 16 px long have at most 0.097 when rounded to whole pixels.
"""

LARGEST_COORDINATE = 1e12
"""Pixels. No image is near it, and the squares of what is below can be summed."""

_SAME_PLACE = 1e-9  # pixels
_SAME_SHARE = 1e-12  # of the distance from the origin: what the rounding of float64 leaves of points that are equal
_COLLAPSED = 1e-12  # crop pixels, squared
_CLEARLY = 0.25  # of a sum of squared distances: half the distance


class Transforms(NamedTuple):
    """The transforms of N faces.

    Attributes
    ----------
    matrices : ndarray of shape (N, 2, 3), float64
        ``[[a, -b, c], [b, a, d]]``, from image pixels to crop pixels; NaN where there is none.
    poses : ndarray of shape (N,), int64
        Which pose of the template fits best: the least `errors`, of equal ones the first.
    errors : ndarray of shape (N,), float64
        The sum over the five points of the distance from the moved landmark to the template's, in crop pixels; NaN
        where there is no transform.
    defects : ndarray of shape (N,), int8
        `FINE`, or why there is no transform.
    """

    matrices: Floats
    poses: NDArray[np.int64]
    errors: Floats
    defects: NDArray[np.int8]


class _Centred(NamedTuple):
    """Landmarks taken from their means, the axis of the faces last: it is the long one."""

    points: Floats  # (5, 2, 2, N): as they are, (x, y), and turned by a quarter, (-y, x)
    means: Floats  # (2, 2, N): the same of the means
    spread: Floats  # (N,): the sum of the squared distances from the mean
    defects: NDArray[np.int8]  # (N,)


def similarity_transforms(landmarks: NDArray[Any], template: NDArray[Any]) -> Transforms:
    """Find the similarity transforms that bring landmarks nearest to a template.

    Parameters
    ----------
    landmarks : array of shape (N, 5, 2)
        Image pixels, x then y.
    template : array of shape (5, 2) or (T, 5, 2)
        Crop pixels. Of several poses the one is taken to which the sum of the five distances is least, FaceX-Zoo's
        rule.

    Returns
    -------
    Transforms

    Raises
    ------
    OptionError
        If a shape is another.
    """
    targets = _checked_template(template)
    with np.errstate(all="ignore"):  # what is not finite ends in a defect
        faces = _centre(_checked_points(landmarks, 5))
        best = _fit(faces, targets[0])
        poses = np.zeros(best.shape[1], np.int64)
        for pose in range(1, len(targets)):
            fit = _fit(faces, targets[pose])
            nearer = fit[4] < best[4]
            best = np.where(nearer, fit, best)
            poses[nearer] = pose
        return _transforms(faces, best, poses)


def _transforms(faces: _Centred, fit: Floats, poses: NDArray[np.int64]) -> Transforms:
    a, b, right, down, errors = fit
    defects = faces.defects
    defects[(defects == FINE) & ((a * a + b * b) * faces.spread <= _COLLAPSED)] = UNMATCHED
    matrices = np.empty((len(a), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = a
    matrices[:, 0, 1], matrices[:, 1, 0] = -b, b
    matrices[:, 0, 2], matrices[:, 1, 2] = right, down
    if defects.any():
        bad = defects != FINE
        matrices[bad], poses[bad], errors[bad] = np.nan, 0, np.nan
    return Transforms(matrices, poses, errors, defects)


def _centre(landmarks: Floats) -> _Centred:
    points = landmarks.transpose(1, 2, 0).copy()
    largest = np.abs(points).max(axis=(0, 1))
    wild = ~(largest <= LARGEST_COORDINATE)  # so that NaN is wild
    if wild.any():
        points[:, :, wild] = 0.0
    first = points[0].copy()
    points -= first  # exact where all are equal, and far from the origin more of the digits are kept
    apart = np.abs(points).max(axis=(0, 1))
    middle = _sum_of_five(points) / 5.0
    points -= middle
    along, across, spread = _spreads(points)
    defects = np.zeros(len(spread), np.int8)
    defects[across <= FLATTEST**2 * along] = COLLINEAR
    defects[apart <= np.maximum(_SAME_PLACE, _SAME_SHARE * largest)] = ALL_EQUAL
    defects[wild] = NOT_FINITE
    return _Centred(_with_turned(points), _with_turned(first + middle), spread, defects)


def _with_turned(points: Floats) -> Floats:
    """Points of shape (..., 2, N) and, turned by a quarter, once more: (..., 2, 2, N)."""
    both = np.empty((*points.shape[:-2], 2, *points.shape[-2:]))
    both[..., 0, :, :] = points
    np.negative(points[..., 1, :], out=both[..., 1, 0, :])
    both[..., 1, 1, :] = points[..., 0, :]
    return both


def _spreads(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Twice the eigenvalues of the scatter matrix, the larger first, and its trace."""
    (x_squared, mixed), (_, y_squared) = _sum_of_five(points[:, :, None] * points[:, None])
    trace, difference = x_squared + y_squared, x_squared - y_squared
    root = np.sqrt(difference * difference + 4.0 * mixed * mixed)
    return trace + root, trace - root, trace


def _sum_of_five(values: Floats) -> Floats:
    """The sum over the first of at least two axes, one after the other; NumPy does so on any axis but the last."""
    total: Floats = np.add.reduce(values, axis=0)
    return total


def _fit(faces: _Centred, target: Floats) -> Floats:
    """Each face's a, b, shift right, shift down and error, as an array of shape (5, N)."""
    middle, offsets = _centred_target(target)
    products = _products(faces, offsets)
    fit = np.empty((5, products.shape[-1]))
    a, b = np.divide(products[:, 0] + products[:, 1], faces.spread, out=fit[:2])
    np.subtract(middle, a * faces.means[0] + b * faces.means[1], out=fit[2:4])
    missed = a * faces.points[:, 0] + b * faces.points[:, 1] - offsets
    missed *= missed
    first, second, third, fourth, fifth = np.sqrt(missed[:, 0] + missed[:, 1])
    fit[4] = first + second + third + fourth + fifth
    return fit


def _centred_target(target: Floats) -> tuple[Floats, Floats]:
    """The mean, of shape (2, 1), and the points from there, of shape (5, 2, 1)."""
    middle = (_sum_of_five(target) / 5.0)[:, None]
    return middle, target[:, :, None] - middle


def _products(faces: _Centred, offsets: Floats) -> Floats:
    """The sums of x*u and y*v, and of -y*u and x*v, of shape (2, 2, N)."""
    return _sum_of_five(faces.points * offsets[:, None])


def fits_mirrored(landmarks: NDArray[Any], template: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell faces whose mirror image fits the template clearly better.

    Most likely their points are in another order, the person's left eye first, or the image was mirrored and its
    landmarks were not put in order again. Of true profiles, which a frontal template fits badly either way, neither is
    said. Clearly better means: at most half the root of the summed squared distances.

    Parameters
    ----------
    landmarks : array of shape (N, 5, 2)
        Image pixels.
    template : array of shape (5, 2) or (T, 5, 2)
        Crop pixels.

    Returns
    -------
    ndarray of shape (N,), bool
        False where the landmarks have a defect.

    Raises
    ------
    OptionError
        If a shape is another.
    """
    targets = _checked_template(template)
    with np.errstate(all="ignore"):
        faces = _centre(_checked_points(landmarks, 5))
        plain, mirrored = np.moveaxis(np.array([_residuals(faces, target) for target in targets]), 1, 0)
        clearly = mirrored.min(axis=0) < _CLEARLY * plain.min(axis=0)
        mirrors: NDArray[np.bool_] = clearly & (faces.defects == FINE)
        return mirrors


def _residuals(faces: _Centred, target: Floats) -> Floats:
    """The summed squared distances that the best transforms without and with a reflection leave, of shape (2, N)."""
    _, offsets = _centred_target(target)
    products = _products(faces, offsets)
    plain, mirrored = products[:, 0] + products[:, 1], products[:, 0] - products[:, 1]
    reached = np.stack([(plain * plain).sum(axis=0), (mirrored * mirrored).sum(axis=0)])
    residuals: Floats = (offsets * offsets).sum() - reached / faces.spread
    return residuals


def apply_transforms(matrices: NDArray[Any], points: NDArray[Any]) -> Floats:
    """Move points, each face's by its own transform.

    Parameters
    ----------
    matrices : array of shape (N, 2, 3)
    points : array of shape (N, P, 2)
        x then y.

    Returns
    -------
    ndarray of shape (N, P, 2), float64
        NaN where the matrix is.

    Raises
    ------
    OptionError
        If a shape is another.
    """
    points, matrices = _checked_points(points), np.asarray(matrices, np.float64)
    if matrices.shape != (len(points), 2, 3):
        raise OptionError(f"matrices: expected shape ({len(points)}, 2, 3), found {matrices.shape}")
    x, y = points[:, :, 0], points[:, :, 1]
    moved = np.empty(points.shape)
    with np.errstate(all="ignore"):
        for row in range(2):
            across, down, shift = matrices[:, row, :, None].transpose(1, 0, 2)
            moved[:, :, row] = across * x + down * y + shift
    return moved


def crop_sides(matrices: NDArray[Any], size: int) -> Floats:
    """The side of the square that each transform cuts out of the image.

    Parameters
    ----------
    matrices : array of shape (N, 2, 3)
    size : int
        The side of the crop, in its own pixels.

    Returns
    -------
    ndarray of shape (N,), float64
        Image pixels: `size` divided by the scale; NaN where the matrix is.
    """
    matrices = np.asarray(matrices, np.float64)
    with np.errstate(all="ignore"):
        sides: Floats = size / np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
        return sides


def defect_error(defect: int, landmarks: NDArray[Any]) -> FaceError:
    """What is to be said of a face that has no transform.

    Parameters
    ----------
    defect : int
        One of `Transforms.defects`, other than `FINE`.
    landmarks : array of shape (5, 2)
        The landmarks that it was found in, to be shown.

    Returns
    -------
    FaceError
        "degenerate landmarks", to be raised.
    """
    points = [f"({x:.6g}, {y:.6g})" for x, y in np.asarray(landmarks, np.float64).tolist()]
    found = "the points are " + ", ".join(points)
    details = {
        NOT_FINITE: f"a coordinate is not finite, or is beyond {LARGEST_COORDINATE:g} pixels: {found}",
        ALL_EQUAL: f"all five points lie at {points[0]}",
        COLLINEAR: f"the five points lie on a line, or nearly: {found}",
        UNMATCHED: f"no rotation brings the five points nearer to the template than another: {found}",
    }
    return FaceError("degenerate landmarks", details[int(defect)])


def _checked_points(points: NDArray[Any], count: int | None = None) -> Floats:
    checked = np.asarray(points, np.float64)
    if checked.ndim != 3 or checked.shape[2] != 2 or count not in (None, checked.shape[1]):
        raise OptionError(f"landmarks: expected shape (N, {count or 'P'}, 2), found {checked.shape}")
    return checked


def _checked_template(template: NDArray[Any]) -> Floats:
    targets = np.asarray(template, np.float64)
    targets = targets[None] if targets.ndim == 2 else targets
    if targets.ndim != 3 or targets.shape[1:] != (5, 2) or not len(targets):
        raise OptionError(f"template: expected shape (5, 2) or (T, 5, 2), found {np.shape(template)}")
    return targets
