"""The similarity transform: scikit-image's to the last digits, never a reflection, and every defect by name."""

from __future__ import annotations

import re

import numpy as np
import pytest
from align_support import similarity
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
    fits_mirrored,
    similarity_transforms,
)
from facedata.align.templates import load_template
from facedata.errors import OptionError

Floats = NDArray[np.float64]

ARCFACE = load_template("arcface", 112).points[0]
FIVE_POSES = load_template("facexzoo-5pose", 112).points
LEFT_PROFILE, LEFT, FRONTAL, RIGHT, RIGHT_PROFILE = FIVE_POSES
PERSONS_LEFT_FIRST = [1, 0, 2, 4, 3]


def faces(count: int, *, noise: float = 4.0) -> Floats:
    """Plausible faces: the template turned, scaled, shifted and with noise."""
    random = np.random.default_rng(1)
    points = ARCFACE + random.normal(0.0, noise, (count, 5, 2))
    places = random.uniform([-180, 0.3, 0, 0], [180, 4, 500, 500], (count, 4))
    moves = [similarity(turn, scale, (x, y)) for turn, scale, x, y in places]
    return apply_transforms(np.array(moves), points)


def defect_of(points: object) -> int:
    return int(similarity_transforms(np.array([points], np.float64), ARCFACE).defects[0])


@pytest.mark.parametrize("template", [ARCFACE[None], FIVE_POSES])
def test_transform_and_pose_are_those_of_scikit_image_and_facex_zoo(template: Floats) -> None:
    """FaceX-Zoo takes the pose with the least sum of the distances between the points."""
    turned = apply_transforms(np.stack([similarity(30, 2.5, (70, -20))] * len(template)), template)
    scattered = np.random.default_rng(2).uniform(-100.0, 600.0, (200, 5, 2))  # some fit better mirrored
    landmarks = np.concatenate([turned, faces(200, noise=8.0), faces(50, noise=0.0), scattered])
    found = similarity_transforms(landmarks, template)
    fine = np.flatnonzero(found.defects == FINE)
    assert len(fine) > 0.9 * len(landmarks)
    assert found.poses[: len(template)].tolist() == list(range(len(template)))
    assert (np.linalg.det(found.matrices[fine, :, :2]) > 0.0).all()  # no reflection
    for face in fine:
        points = landmarks[face]
        matrices = np.array([SimilarityTransform.from_estimate(points, pose).params[:2] for pose in template])
        moved = apply_transforms(matrices, np.stack([points] * len(template)))
        errors = np.linalg.norm(moved - template, axis=2).sum(axis=1)
        assert found.poses[face] == errors.argmin()
        assert found.errors[face] == pytest.approx(errors.min(), abs=1e-8)
        assert np.abs(found.matrices[face] - matrices[errors.argmin()]).max() < 1e-8


def test_a_transform_does_not_depend_on_the_other_faces() -> None:
    landmarks = faces(40)
    together = similarity_transforms(landmarks, FIVE_POSES)
    for size in (1, 2, 3, 7):
        for first in range(0, 40 - size, size):
            some = similarity_transforms(landmarks[first : first + size], FIVE_POSES)
            assert np.array_equal(some.matrices, together.matrices[first : first + size])
            assert np.array_equal(some.errors, together.errors[first : first + size])
    none = similarity_transforms(np.empty((0, 5, 2)), FIVE_POSES)
    assert [part.shape for part in none] == [(0, 2, 3), (0,), (0,), (0,)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("landmarks", (5, 2)), ("landmarks", (1, 5, 3)), ("template", (0, 5, 2)), ("template", (4, 2))],
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    arguments = {"landmarks": faces(1), "template": ARCFACE, name: np.zeros(shape)}
    with pytest.raises(OptionError, match=rf"{name}: expected shape .*5, 2\), found {re.escape(str(shape))}"):
        similarity_transforms(**arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e13, 1e200, -1e308])
@pytest.mark.parametrize("place", [(0, 0), (4, 1)])
def test_a_number_that_is_not_finite_concerns_its_own_face_only(bad: float, place: tuple[int, int]) -> None:
    landmarks = np.stack([ARCFACE, ARCFACE, ARCFACE])
    landmarks[(1, *place)] = bad
    found = similarity_transforms(landmarks, FIVE_POSES)
    assert found.defects.tolist() == [FINE, NOT_FINITE, FINE]
    assert np.isnan(found.matrices[1]).all()
    assert (np.isnan(found.errors[1]), found.poses[1]) == (True, 0)
    assert np.isfinite(found.matrices[[0, 2]]).all()


def test_equal_points_and_rounded_points_on_a_line_are_a_defect() -> None:
    for point in ((0.0, 0.0), (33.3, 71.1), (1e11 + 0.1, -7.7)):
        assert defect_of(np.array([point] * 5) * (1.0 + 1e-16 * np.arange(10).reshape(5, 2))) == ALL_EQUAL
    assert defect_of([(0, 0)] * 4 + [(9, 4)]) == COLLINEAR
    random = np.random.default_rng(4)
    for _ in range(200):
        length, turn = random.uniform(16.0, 3000.0), random.uniform(0.0, 2.0 * np.pi)
        along = np.sort(random.uniform(0.0, 1.0, 5))
        along = (along - along[0]) / (along[-1] - along[0]) * length
        points = along[:, None] * [np.cos(turn), np.sin(turn)] + random.uniform(0.0, 1000.0, 2)
        assert defect_of(points) == COLLINEAR
        assert defect_of(np.rint(points)) == COLLINEAR


@pytest.mark.parametrize("pose", [LEFT_PROFILE, RIGHT_PROFILE, ARCFACE])
def test_real_profiles_are_not_lines(pose: Floats) -> None:
    random = np.random.default_rng(5)
    noisy = pose + random.normal(0.0, 2.0, (2000, 5, 2))
    small = np.rint(pose * 16.0 / 112.0 + random.uniform(0.0, 1.0, (200, 1, 2)))
    for landmarks in (noisy, small):
        assert (similarity_transforms(landmarks, ARCFACE).defects == FINE).all()


def test_points_that_fit_no_way_round_are_a_defect() -> None:
    """A square's corners in an order that any rotation fits as badly as another: the best scale is nothing."""
    square = np.array([(1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)], np.float64)
    found = similarity_transforms(square[None] * [1.0, -1.0], square)
    assert found.defects.tolist() == [UNMATCHED]
    assert np.isnan(found.matrices).all()


@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=5, max_size=5), st.sampled_from([ARCFACE, FIVE_POSES]))
@settings(max_examples=60)
def test_any_points_have_a_transform_or_a_defect(points: list[tuple[float, float]], template: Floats) -> None:
    found = similarity_transforms(np.array([points]), template)
    assert np.isfinite(found.matrices).all() == (found.defects[0] == FINE)
    assert np.isfinite(found.errors).all() == (found.defects[0] == FINE)
    mirrored = fits_mirrored(np.array([points]), template)
    assert not (mirrored[0] and found.defects[0] in (NOT_FINITE, ALL_EQUAL, COLLINEAR))


@pytest.mark.parametrize("template", [ARCFACE, FIVE_POSES])
def test_points_in_the_persons_order_fit_mirrored_and_profiles_do_not(template: Floats) -> None:
    random = np.random.default_rng(7)
    for pose in (ARCFACE, LEFT, FRONTAL, RIGHT):
        landmarks = pose + random.normal(0.0, 1.0, (200, 5, 2))
        assert not fits_mirrored(landmarks, template).any()
        assert fits_mirrored(landmarks[:, PERSONS_LEFT_FIRST], template).all()
        assert fits_mirrored(landmarks * [-1.0, 1.0], template).all()
    for pose in (LEFT_PROFILE, RIGHT_PROFILE):
        assert not fits_mirrored(pose + random.normal(0.0, 2.0, (500, 5, 2)), template).any()
