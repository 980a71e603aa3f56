"""Drawn faces: deterministic, distinct, and with landmarks where the features are."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from align_support import similarity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.align.templates import load_template
from facedata.errors import OptionError
from facedata.synthetic.faces import Identity, View, draw_face, face_landmarks, identity_from_seed, view_from_seed
from facedata.synthetic.people import HAIR_STYLES

ARCFACE = load_template("arcface", 112).points[0]
PLAIN = Identity(hair_style="bald")


def pixels(image: NDArray[np.uint8], point: Any, towards: Any, *distances: float) -> list[NDArray[np.int64]]:
    """The pixels at distances from a point, on the line towards another."""
    direction = (towards - point) / np.linalg.norm(towards - point)
    places = (np.rint(point + distance * direction).astype(int) for distance in distances)
    return [image[y, x].astype(np.int64) for x, y in places]


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(np.int64) - second.astype(np.int64)).mean())


def digest_of_a_few_faces() -> str:
    faces = [draw_face(identity_from_seed(5, n), view_from_seed(5, n, image)) for n in range(4) for image in range(3)]
    return hashlib.sha256(b"".join(face.image.tobytes() + face.landmarks68.tobytes() for face in faces)).hexdigest()


def test_the_same_seed_gives_the_same_pixels_in_another_process_and_another_order() -> None:
    code = "from synthetic.test_faces import digest_of_a_few_faces as digest; print(digest())"
    tests = Path(__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", code], cwd=tests, check=True, capture_output=True, text=True)
    draw_face(identity_from_seed(5, 3), view_from_seed(5, 3, 2), 64)
    assert answer.stdout.strip() == digest_of_a_few_faces()


def test_people_differ_and_so_do_their_views() -> None:
    people = [identity_from_seed(seed, number) for seed in range(3) for number in range(200)]
    assert len(set(people)) == len(people)
    assert {person.hair_style for person in people[:12]} == set(HAIR_STYLES)
    neighbours = [draw_face(person).image for person in people[:12]]
    assert min(difference(a, b) for a, b in itertools.combinations(neighbours, 2)) > 4.0
    views = [draw_face(people[0], view_from_seed(0, 0, image)).image for image in range(8)]
    assert min(difference(a, b) for a, b in itertools.combinations(views, 2)) > 2.0


def test_landmarks_are_in_the_order_of_ibug() -> None:
    person, view = identity_from_seed(1, 0), view_from_seed(1, 0, 1)
    face = draw_face(person, view, 160)
    assert (face.image.shape, str(face.landmarks68.dtype)) == ((160, 160, 3), "float32")
    for points, same in zip(face_landmarks(person, view, 160), (face.landmarks5, face.landmarks68), strict=True):
        np.testing.assert_array_equal(points, same)
    points = draw_face(PLAIN).landmarks68
    assert (np.diff(points[:17, 0]) > 0).all()  # the jaw runs from the image's left to its right
    assert points[:17, 1].argmax() == 8
    assert (np.diff(points[17:27, 0]) > 0).all()
    assert (np.diff(points[27:31, 1]) > 0).all()
    assert (points[[37, 43, 51], 1] < points[[41, 47, 57], 1]).all()  # the upper lids and the upper lip
    mirrored = [39, 38, 37, 36, 41, 40]
    np.testing.assert_allclose(points[42:48, 0] + points[mirrored, 0], 112.0, atol=1e-3)


def test_faces_are_roughly_aligned_crops() -> None:
    for number in range(60):
        landmarks5, landmarks68 = face_landmarks(identity_from_seed(7, number), View())
        assert np.abs(landmarks5 - ARCFACE).max() < 5.0
        assert 0.0 <= landmarks68.min() <= landmarks68.max() <= 111.0
    for image in range(200):
        landmarks5, landmarks68 = face_landmarks(PLAIN, view_from_seed(7, 0, image))
        assert np.abs(landmarks5 - ARCFACE).max() < 16.0
        assert 0.0 < landmarks68[17:].min() < landmarks68[17:].max() < 111.0


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.0), (45.0, 2.5), (-60.0, 4.0)])
def test_eye_points_are_the_middles_of_the_irises(degrees: float, scale: float) -> None:
    person = dataclasses.replace(PLAIN, eye_colour=(255.0, 0.0, 0.0))
    wide_open = View(eyes_open=1.6, backdrop=(200.0, 200.0, 200.0))
    face = draw_face(person, wide_open, matrix=similarity(degrees, scale, (450.3, 440.7)), canvas=(900, 900))
    blue = face.image[..., 0] > face.image[..., 1:].max(axis=2).astype(np.int64) + 60
    places = np.argwhere(blue)[:, ::-1]
    for eye in face.landmarks5[:2]:
        iris = places[np.hypot(*(places - eye).T) < 8.0 * scale]
        np.testing.assert_allclose((iris.min(axis=0) + iris.max(axis=0)) / 2.0, eye, atol=0.8)


@pytest.mark.parametrize("number", range(4))
def test_mouth_corners_are_at_the_edge_of_the_mouth(number: int) -> None:
    face = draw_face(identity_from_seed(4, number), View(roll=-6.0), 448)
    for corner, other in (face.landmarks5[3:], face.landmarks5[:2:-1]):
        skin, just_outside, mouth = pixels(face.image, corner, other, -6.0, -3.0, 8.0)
        assert np.abs(just_outside - skin).sum() < 0.5 * np.abs(just_outside - mouth).sum()


def test_jaw_points_are_at_the_edge_of_the_skin() -> None:
    face = draw_face(PLAIN, View(light=(0.0, 0.0), backdrop=(255.0, 0.0, 0.0)), 448)
    for point in face.landmarks68[3:6]:
        outside, inside = pixels(face.image, point, face.landmarks68[30], -4.0, 4.0)
        assert outside[2] < 90 < 120 < inside[2]


def test_the_view_moves_the_features_and_the_light() -> None:
    views = View(smile=0.0), View(smile=0.0, mouth_open=1.0), View(smile=1.0), View(yaw=20.0), View(pitch=10.0)
    rest, opened, smiling, right, up = (draw_face(PLAIN, view).landmarks68 for view in views)
    assert opened[66, 1] - opened[62, 1] > rest[66, 1] - rest[62, 1] + 5.0
    assert smiling[48, 1] < rest[48, 1] - 1.0
    assert smiling[54, 0] - smiling[48, 0] > rest[54, 0] - rest[48, 0]
    assert right[30, 0] - right[27, 0] > rest[30, 0] - rest[27, 0] + 2.0
    assert up[30, 1] - up[27, 1] < rest[30, 1] - rest[27, 1]
    from_left, from_right = (draw_face(PLAIN, View(light=(x, 0.0))).image[60:90] for x in (-0.9, 0.9))
    assert from_left[:, 24:36].mean() > from_left[:, 76:88].mean()
    assert from_right[:, 24:36].mean() < from_right[:, 76:88].mean()


@settings(deadline=None, max_examples=20)
@given(st.floats(-60.0, 60.0), st.floats(0.3, 4.0), st.floats(-500.0, 500.0), st.floats(-500.0, 500.0))
def test_a_matrix_moves_landmarks_exactly(degrees: float, scale: float, x: float, y: float) -> None:
    matrix = similarity(degrees, scale, (x, y))
    view = view_from_seed(0, 1, 2)
    canonical = draw_face(PLAIN, view).landmarks68.astype(np.float64)
    moved = draw_face(PLAIN, view, matrix=matrix, canvas=(60, 80)).landmarks68
    np.testing.assert_allclose(moved, canonical @ matrix[:, :2].T + matrix[:, 2], atol=2e-3)


@pytest.mark.parametrize("size", [16, 48, 112])
def test_a_small_face_looks_like_the_big_one_made_small(size: int) -> None:
    person = identity_from_seed(0, 3)
    big, small = draw_face(person, size=448), draw_face(person, size=size)
    shrunk = cv2.resize(big.image, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8)
    assert difference(small.image, shrunk) < 9.0
    # outer pixel edges come to lie on outer pixel edges
    np.testing.assert_allclose(big.landmarks68 + 0.5, 448 / size * (small.landmarks68 + 0.5), atol=1e-3)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12, -1e6])
def test_a_face_off_the_canvas_leaves_the_backdrop(far: float) -> None:
    face = draw_face(PLAIN, matrix=similarity(30, 2, (far, far)), canvas=(40, 50))
    assert (face.image == face.image[:, :1]).all()
    assert np.abs(face.landmarks5).min() > 500.0


def test_unknown_looks_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="hair_style 'mullet': expected one of side parting"):
        Identity(hair_style="mullet")
    with pytest.raises(OptionError, match="scale"):
        View(scale=0.0)
