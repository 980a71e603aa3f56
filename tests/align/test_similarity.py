"""The similarity transform: scikit-image's to the last digits, never a reflection, and every defect by name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import SimilarityTransform

from facedata.align.similarity import (
    ALL_EQUAL,
    COLLINEAR,
    FINE,
    NOT_FINITE,
    UNMATCHED,
    apply_transforms,
    crop_sides,
    defect_error,
    fits_mirrored,
    similarity_transforms,
)
from facedata.align.templates import load_template
from facedata.errors import FaceError, OptionError

Floats = NDArray[np.float64]

ARCFACE = load_template("arcface", 112).points[0]
FIVE_POSES = load_template("facexzoo-5pose", 112).points
LEFT_PROFILE, LEFT, FRONTAL, RIGHT, RIGHT_PROFILE = FIVE_POSES
PERSONS_LEFT_FIRST = [1, 0, 2, 4, 3]

angles = st.floats(-180.0, 180.0)
scales = st.floats(0.01, 100.0)
shifts = st.floats(-5000.0, 5000.0)
noises = st.integers(0, 2**32 - 1)


def matrix(degrees: float, scale: float, right: float, down: float) -> Floats:
    a, b = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[a, -b, right], [b, a, down]])


def faces(count: int, *, noise: float = 4.0, seed: int = 1) -> Floats:
    """Plausible faces: the template turned, scaled, shifted and shaken."""
    random = np.random.default_rng(seed)
    shaken = ARCFACE + random.normal(0.0, noise, (count, 5, 2))
    moves = [matrix(*row) for row in random.uniform([-180, 0.3, 0, 0], [180, 4, 500, 500], (count, 4))]
    return apply_transforms(np.array(moves), shaken)


def scikit_image(landmarks: Floats, template: Floats) -> Floats:
    found = SimilarityTransform.from_estimate(landmarks, template)
    return np.asarray(found.params[:2], np.float64)


def defect_of(points: object) -> int:
    return int(similarity_transforms(np.array([points], np.float64), ARCFACE).defects[0])


# --- what it computes --------------------------------------------------------------------------------------------


def test_the_matrices_are_those_of_scikit_image() -> None:
    random = np.random.default_rng(2)
    scattered = random.uniform(-100.0, 600.0, (300, 5, 2))  # some fit better mirrored: there Umeyama's rule decides
    for landmarks in (faces(300), faces(50, noise=0.0), scattered):
        found = similarity_transforms(landmarks, ARCFACE)
        fine = found.defects == FINE
        expected = np.array([scikit_image(one, ARCFACE) for one in landmarks])
        assert fine.mean() > 0.9
        assert np.abs(found.matrices - expected)[fine].max() < 1e-8


@settings(deadline=None, max_examples=30)
@given(angles, scales, shifts, shifts)
def test_a_known_move_is_found_again(degrees: float, scale: float, right: float, down: float) -> None:
    moved = apply_transforms(matrix(degrees, scale, right, down)[None], ARCFACE[None])
    found = similarity_transforms(moved, ARCFACE)
    assert found.defects.tolist() == [FINE]
    assert np.abs(apply_transforms(found.matrices, moved) - ARCFACE).max() < 1e-6
    assert np.hypot(*found.matrices[0, :, 0]) == pytest.approx(1.0 / scale, rel=1e-9)
    assert found.errors[0] < 1e-6


@settings(deadline=None, max_examples=30)
@given(noises, angles, scales, shifts, shifts)
def test_moving_the_landmarks_moves_nothing_in_the_crop(
    seed: int, degrees: float, scale: float, right: float, down: float
) -> None:
    landmarks = faces(1, seed=seed, noise=3.0)
    moved = apply_transforms(matrix(degrees, scale, right, down)[None], landmarks)
    before, after = (similarity_transforms(one, FIVE_POSES) for one in (landmarks, moved))
    assert after.defects.tolist() == before.defects.tolist() == [FINE]
    assert after.errors == pytest.approx(before.errors, abs=1e-6)
    crops = [apply_transforms(one.matrices, points) for one, points in ((before, landmarks), (after, moved))]
    if before.poses == after.poses:
        assert np.abs(crops[0] - crops[1]).max() < 1e-6


@settings(deadline=None, max_examples=30)
@given(noises)
def test_it_never_reflects(seed: int) -> None:
    random = np.random.default_rng(seed)
    landmarks = random.uniform(-1000.0, 1000.0, (20, 5, 2))
    found = similarity_transforms(landmarks, FIVE_POSES)
    linear = found.matrices[found.defects == FINE][:, :, :2]
    assert (np.linalg.det(linear) > 0.0).all()
    assert np.array_equal(linear[:, 0, 0], linear[:, 1, 1])
    assert np.array_equal(linear[:, 0, 1], -linear[:, 1, 0])


@given(noises)
@settings(max_examples=25)
def test_no_transform_near_it_fits_better(seed: int) -> None:
    landmarks = faces(1, seed=seed)
    best = similarity_transforms(landmarks, ARCFACE).matrices[0]
    squares = np.sum((apply_transforms(best[None], landmarks) - ARCFACE) ** 2)
    turn = 1e-3
    for other in (matrix(turn, 1, 0, 0), matrix(-turn, 1, 0, 0), matrix(0, 1 + turn, 0, 0), matrix(0, 1, turn, -turn)):
        moved = apply_transforms(other[None], apply_transforms(best[None], landmarks))
        assert np.sum((moved - ARCFACE) ** 2) >= squares


def test_a_face_is_moved_alike_alone_and_among_others() -> None:
    landmarks = faces(40)
    together = similarity_transforms(landmarks, FIVE_POSES)
    for size in (1, 2, 3, 7):
        for first in range(0, 40 - size, size):
            some = similarity_transforms(landmarks[first : first + size], FIVE_POSES)
            assert np.array_equal(some.matrices, together.matrices[first : first + size])
            assert np.array_equal(some.errors, together.errors[first : first + size])


def test_nothing_is_asked_and_nothing_answered() -> None:
    found = similarity_transforms(np.empty((0, 5, 2)), FIVE_POSES)
    assert [part.shape for part in found] == [(0, 2, 3), (0,), (0,), (0,)]
    assert fits_mirrored(np.empty((0, 5, 2)), ARCFACE).shape == (0,)


def test_what_was_given_is_not_changed() -> None:
    landmarks = np.array([ARCFACE, np.full((5, 2), np.nan)])
    given_landmarks, given_template = landmarks.copy(), FIVE_POSES.copy()
    similarity_transforms(landmarks, given_template)
    fits_mirrored(landmarks, given_template)
    np.testing.assert_array_equal(landmarks, given_landmarks)
    np.testing.assert_array_equal(given_template, FIVE_POSES)


@pytest.mark.parametrize("shape", [(5, 2), (1, 4, 2), (1, 5, 3), (1, 10), (0,)])
def test_landmarks_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"landmarks: expected shape \(N, 5, 2\)"):
        similarity_transforms(np.zeros(shape), ARCFACE)


@pytest.mark.parametrize("shape", [(4, 2), (0, 5, 2), (2, 68, 2), (1, 1, 5, 2)])
def test_templates_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="template: expected shape"):
        similarity_transforms(faces(1), np.zeros(shape))


# --- poses -------------------------------------------------------------------------------------------------------


def test_each_pose_is_best_for_itself() -> None:
    turned = apply_transforms(np.stack([matrix(30, 2.5, 70, -20)] * 5), FIVE_POSES)
    found = similarity_transforms(turned, FIVE_POSES)
    assert found.poses.tolist() == [0, 1, 2, 3, 4]
    assert found.errors.max() < 1e-9


def test_the_pose_is_the_one_of_facex_zoo() -> None:
    """Its rule, with scikit-image's transforms: the least sum of the distances between the points."""
    landmarks = faces(100, noise=8.0)
    found = similarity_transforms(landmarks, FIVE_POSES)
    for face, one in enumerate(landmarks):
        matrices = np.array([scikit_image(one, pose) for pose in FIVE_POSES])
        moved = apply_transforms(matrices, np.stack([one] * 5))
        errors = np.linalg.norm(moved - FIVE_POSES, axis=2).sum(axis=1)
        assert found.poses[face] == errors.argmin()
        assert found.errors[face] == pytest.approx(errors.min(), abs=1e-8)
        assert np.abs(found.matrices[face] - matrices[errors.argmin()]).max() < 1e-8
    assert len(set(found.poses.tolist())) > 2


# --- defects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e13, 1e200, -1e308, 1.8e308])
@pytest.mark.parametrize("place", [(0, 0), (4, 1)])
def test_what_is_not_finite_spoils_its_own_face_only(bad: float, place: tuple[int, int]) -> None:
    landmarks = np.stack([ARCFACE, ARCFACE, ARCFACE])
    landmarks[(1, *place)] = bad
    found = similarity_transforms(landmarks, FIVE_POSES)
    assert found.defects.tolist() == [FINE, NOT_FINITE, FINE]
    assert np.isnan(found.matrices[1]).all()
    assert np.isnan(found.errors[1])
    assert found.poses[1] == 0
    assert np.isfinite(found.matrices[[0, 2]]).all()


@pytest.mark.parametrize("point", [(0.0, 0.0), (33.3, 71.1), (1e11 + 0.1, -7.7), (1e-300, 1e-300)])
def test_equal_points_are_told(point: tuple[float, float]) -> None:
    assert defect_of([point] * 5) == ALL_EQUAL
    shaken = np.array([point] * 5) * (1.0 + 1e-16 * np.arange(10).reshape(5, 2))
    assert defect_of(shaken) == ALL_EQUAL


def test_rounded_points_on_a_line_are_told() -> None:
    random = np.random.default_rng(4)
    for _ in range(300):
        length, turn = random.uniform(16.0, 3000.0), random.uniform(0.0, 2.0 * np.pi)
        along = np.sort(random.uniform(0.0, 1.0, 5))
        along = (along - along[0]) / (along[-1] - along[0]) * length
        points = along[:, None] * [np.cos(turn), np.sin(turn)] + random.uniform(0.0, 1000.0, 2)
        assert defect_of(points) == COLLINEAR
        assert defect_of(np.rint(points)) == COLLINEAR


@pytest.mark.parametrize("pose", [LEFT_PROFILE, RIGHT_PROFILE, LEFT, FRONTAL, ARCFACE])
def test_real_profiles_are_no_lines(pose: Floats) -> None:
    random = np.random.default_rng(5)
    shaken = pose + random.normal(0.0, 2.0, (2000, 5, 2))
    small = np.rint(pose * 16.0 / 112.0 + random.uniform(0.0, 1.0, (200, 1, 2)))
    for landmarks in (shaken, small):
        assert (similarity_transforms(landmarks, ARCFACE).defects == FINE).all()


def test_four_points_at_one_place_are_a_line() -> None:
    assert defect_of([(0, 0)] * 4 + [(9, 4)]) == COLLINEAR


def test_what_fits_no_way_round_is_told() -> None:
    """A square's corners in an order that any rotation fits as badly as another: the best scale is nothing."""
    square = np.array([(1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)], np.float64)
    found = similarity_transforms(square[None] * [1.0, -1.0], square)
    assert found.defects.tolist() == [UNMATCHED]
    assert np.isnan(found.matrices).all()


@given(
    st.lists(st.tuples(st.floats(width=64), st.floats(width=64)), min_size=5, max_size=5),
    st.sampled_from([ARCFACE, FIVE_POSES]),
)
@settings(max_examples=100)
def test_whatever_comes_is_either_a_transform_or_a_defect(points: list[tuple[float, float]], template: Floats) -> None:
    found = similarity_transforms(np.array([points]), template)
    assert np.isfinite(found.matrices).all() == (found.defects[0] == FINE)
    assert np.isfinite(found.errors).all() == (found.defects[0] == FINE)
    mirrored = fits_mirrored(np.array([points]), template)
    assert not (mirrored[0] and found.defects[0] in (NOT_FINITE, ALL_EQUAL, COLLINEAR))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1, 2), (3, np.nan), (5, 6), (7, 8), (9, 0)], r"not finite.*\(3, nan\)"),
        ([(12, 34)] * 5, r"all five points are at \(12, 34\)"),
        ([(n, 2 * n) for n in range(5)], r"on a line.*\(4, 8\)"),
    ],
)
def test_a_defect_is_said_with_its_points(points: object, message: str) -> None:
    landmarks = np.array(points, np.float64)
    error = defect_error(defect_of(points), landmarks)
    assert isinstance(error, FaceError)
    assert error.cause == "degenerate landmarks"
    with pytest.raises(FaceError, match=message):
        raise error


# --- what is done with a transform -------------------------------------------------------------------------------


def test_points_are_moved_as_scikit_image_moves_them() -> None:
    landmarks = faces(10)
    found = similarity_transforms(landmarks, ARCFACE)
    points = np.random.default_rng(6).uniform(-50.0, 500.0, (10, 68, 2))
    moved = apply_transforms(found.matrices, points)
    for face in range(10):
        expected = SimilarityTransform.from_estimate(landmarks[face], ARCFACE)(points[face])
        assert np.abs(moved[face] - expected).max() < 1e-8


@settings(deadline=None, max_examples=30)
@given(angles, scales)
def test_the_side_of_the_crop_in_the_image(degrees: float, scale: float) -> None:
    moved = apply_transforms(matrix(degrees, scale, 3, 4)[None], ARCFACE[None])
    found = similarity_transforms(moved, ARCFACE)
    assert crop_sides(found.matrices, 112)[0] == pytest.approx(112.0 * scale)


@pytest.mark.parametrize("template", [ARCFACE, FIVE_POSES])
def test_points_in_the_persons_order_are_told(template: Floats) -> None:
    random = np.random.default_rng(7)
    for pose in (ARCFACE, LEFT, FRONTAL, RIGHT):
        landmarks = pose + random.normal(0.0, 1.0, (200, 5, 2))
        assert not fits_mirrored(landmarks, template).any()
        assert fits_mirrored(landmarks[:, PERSONS_LEFT_FIRST], template).all()
        assert fits_mirrored(landmarks * [-1.0, 1.0], template).all()


def test_profiles_are_not_taken_for_mirrored() -> None:
    random = np.random.default_rng(8)
    for pose, template in itertools.product((LEFT_PROFILE, RIGHT_PROFILE), (ARCFACE, FIVE_POSES)):
        assert not fits_mirrored(pose + random.normal(0.0, 2.0, (500, 5, 2)), template).any()
