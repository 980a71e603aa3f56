"""Landmark layouts: which five points of many, told by their numbers and by where drawn faces have their features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from facedata.align.layouts import LAYOUTS, five_points
from facedata.errors import FaceError
from facedata.synthetic.faces import View, draw_face, identity_from_seed, view_from_seed

NUMBERS: dict[int, list[float]] = {
    5: [0, 1, 2, 3, 4],
    25: [0, 1, 7, 10, 11],
    68: [(36 + 41) / 2, (42 + 47) / 2, 30, 48, 54],
    98: [96, 97, 54, 76, 82],
    106: [104, 105, 54, 84, 90],
}


def numbered(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Point n, counted from 0, lies at (n, 1000 - n)."""
    return np.stack([np.arange(count), 1000.0 - np.arange(count)], axis=1)


@pytest.mark.parametrize("count", LAYOUTS)
def test_the_five_are_the_right_ones(count: int) -> None:
    expected = np.stack([NUMBERS[count], 1000.0 - np.array(NUMBERS[count])], axis=1)
    five = five_points(numbered(count))
    assert five.dtype == np.float64
    np.testing.assert_array_equal(five, expected)


@pytest.mark.parametrize("count", LAYOUTS)
def test_many_faces_at_once_are_the_same(count: int) -> None:
    landmarks = np.random.default_rng(count).uniform(0.0, 250.0, (6, count, 2))
    together = five_points(landmarks)
    assert together.shape == (6, 5, 2)
    np.testing.assert_array_equal(together, [five_points(one) for one in landmarks])
    assert five_points(landmarks[:0]).shape == (0, 5, 2)


def test_what_was_given_is_not_changed_nor_shared() -> None:
    landmarks = numbered(5)
    five_points(landmarks)[:] = 0.0
    np.testing.assert_array_equal(landmarks, numbered(5))


@pytest.mark.parametrize("number", range(5))
def test_drawn_faces_have_their_features_there(number: int) -> None:
    face = draw_face(identity_from_seed(3, number), view_from_seed(3, number, 0), 224)
    np.testing.assert_allclose(five_points(face.landmarks68), face.landmarks5, atol=1e-3)


def test_the_eye_on_the_images_left_comes_first() -> None:
    left, right, nose, mouth_left, mouth_right = five_points(draw_face(identity_from_seed(1, 0), View()).landmarks68)
    assert left[0] < nose[0] < right[0]
    assert mouth_left[0] < nose[0] < mouth_right[0]
    assert left[1] < nose[1] < mouth_left[1]


@pytest.mark.parametrize("count", [0, 1, 4, 6, 67, 105, 107, 212])
def test_another_number_of_points_is_refused(count: int) -> None:
    with pytest.raises(FaceError, match=f"bad landmarks: found {count} points; known layouts: 5, 25, 68, 98, 106"):
        five_points(np.zeros((count, 2)))


@pytest.mark.parametrize("shape", [(), (10,), (5, 3), (2, 68, 3), (1, 1, 5, 2)])
def test_what_is_no_list_of_points_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FaceError, match="bad landmarks: expected x and y of each point"):
        five_points(np.zeros(shape))


def test_only_the_five_need_be_numbers() -> None:
    landmarks = numbered(68)
    landmarks[[0, 16, 60]] = np.nan
    assert np.isfinite(five_points(landmarks)).all()
    landmarks[36], landmarks[37] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(five_points(landmarks)[0]).all()
