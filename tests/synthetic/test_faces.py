"""Drawn faces: deterministic, distinct, and with landmarks where the features are."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.errors import OptionError
from facedata.synthetic.faces import (
    DrawnFace,
    Identity,
    View,
    draw_face,
    face_landmarks,
    identity_from_seed,
    view_from_seed,
)
from facedata.synthetic.people import HAIR_STYLES

ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
PLAIN = Identity(hair_style="bald")


def similarity(degrees: float, scale: float, x: float, y: float) -> NDArray[np.float64]:
    a, b = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[a, -b, x], [b, a, y]])


def pixel(face: DrawnFace, point: NDArray[Any]) -> NDArray[np.int64]:
    x, y = np.rint(point).astype(int)
    return np.array(face.image[y, x], np.int64)


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(np.int64) - second.astype(np.int64)).mean())


def digest_of_a_few_faces() -> str:
    digest = hashlib.sha256()
    for number, image in itertools.product(range(4), range(3)):
        face = draw_face(identity_from_seed(5, number), view_from_seed(5, number, image))
        digest.update(face.image.tobytes() + face.landmarks68.tobytes())
    return digest.hexdigest()


def test_the_same_seed_gives_the_same_pixels_in_another_process_and_another_order() -> None:
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['digest_of_a_few_faces']())"
    command = [sys.executable, "-c", code, __file__]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    draw_face(identity_from_seed(5, 3), view_from_seed(5, 3, 2), 64)
    assert answer.stdout.strip() == digest_of_a_few_faces()


def test_people_differ_and_so_do_their_views() -> None:
    people = [identity_from_seed(seed, number) for seed in range(3) for number in range(200)]
    assert len(set(people)) == len(people)
    neighbours = [draw_face(person).image for person in people[:12]]
    assert min(difference(a, b) for a, b in itertools.combinations(neighbours, 2)) > 4.0
    views = [draw_face(people[0], view_from_seed(0, 0, image)).image for image in range(8)]
    assert min(difference(a, b) for a, b in itertools.combinations(views, 2)) > 2.0


def test_landmarks() -> None:
    person, view = identity_from_seed(1, 0), view_from_seed(1, 0, 1)
    face = draw_face(person, view, 160)
    arrays = face.image, face.landmarks68, face.landmarks5
    assert [array.shape for array in arrays] == [(160, 160, 3), (68, 2), (5, 2)]
    assert [str(array.dtype) for array in arrays] == ["uint8", "float32", "float32"]
    for points, same in zip(face_landmarks(person, view, 160), (face.landmarks5, face.landmarks68), strict=True):
        np.testing.assert_array_equal(points, same)
    points = face.landmarks68.astype(np.float64)
    eyes = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
    np.testing.assert_allclose(face.landmarks5, [*eyes, points[30], points[48], points[54]], 1e-5)


def test_faces_are_roughly_aligned_crops() -> None:
    for number in range(60):
        landmarks5, landmarks68 = face_landmarks(identity_from_seed(7, number), View())
        assert np.abs(landmarks5 - ARCFACE_TEMPLATE).max() < 5.0
        assert 0.0 <= landmarks68.min() <= landmarks68.max() <= 111.0
    faces = [face_landmarks(PLAIN, view_from_seed(7, 0, image)) for image in range(200)]
    offsets = [np.abs(landmarks5 - ARCFACE_TEMPLATE).max() for landmarks5, _ in faces]
    assert max(offsets) < 16.0
    assert np.mean(offsets) < 8.0
    inner = np.array([landmarks68[17:] for _, landmarks68 in faces])
    assert 0.0 < inner.min() < inner.max() < 111.0


def test_ibug_order() -> None:
    points = draw_face(PLAIN).landmarks68
    assert (np.diff(points[:17, 0]) > 0).all()  # the jaw runs from the image's left to its right
    assert points[:17, 1].argmax() == 8
    assert (np.diff(points[17:27, 0]) > 0).all()
    assert (np.diff(points[27:31, 1]) > 0).all()
    assert points[37, 1] < points[41, 1]  # 37 on the upper lid, 41 below it
    assert points[43, 1] < points[47, 1]
    assert points[51, 1] < points[57, 1]
    mirrored = [39, 38, 37, 36, 41, 40]
    np.testing.assert_allclose(points[42:48, 0] + points[mirrored, 0], 112.0, atol=1e-3)


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.0), (45.0, 2.5), (-60.0, 4.0)])
def test_eye_points_are_the_middles_of_the_irises(degrees: float, scale: float) -> None:
    person = dataclasses.replace(PLAIN, eye_colour=(255.0, 0.0, 0.0))
    matrix = similarity(degrees, scale, 250.3, 200.7)
    wide_open = View(eyes_open=1.6, backdrop=(200.0, 200.0, 200.0))
    face = draw_face(person, wide_open, matrix=matrix, canvas=(900, 900))
    blue = face.image[..., 0] > face.image[..., 1:].max(axis=2).astype(np.int64) + 60
    places = np.argwhere(blue)[:, ::-1]
    for eye in face.landmarks5[:2]:
        iris = places[np.hypot(*(places - eye).T) < 8.0 * scale]
        np.testing.assert_allclose((iris.min(axis=0) + iris.max(axis=0)) / 2.0, eye, atol=0.8)


@pytest.mark.parametrize("number", range(4))
def test_mouth_corners_are_at_the_edge_of_the_mouth(number: int) -> None:
    face = draw_face(identity_from_seed(4, number), View(roll=-6.0), 448)
    left, right = face.landmarks5[3:]
    for corner, other in ((left, right), (right, left)):
        inward = (other - corner) / np.linalg.norm(other - corner)
        skin, mouth = pixel(face, corner - 6.0 * inward), pixel(face, corner + 8.0 * inward)
        just_outside = pixel(face, corner - 3.0 * inward)
        assert np.abs(just_outside - skin).sum() < 0.5 * np.abs(just_outside - mouth).sum()


def test_jaw_points_are_at_the_edge_of_the_skin() -> None:
    view = View(light=(0.0, 0.0), backdrop=(255.0, 0.0, 0.0))
    face = draw_face(PLAIN, view, 448)
    middle = face.landmarks68[30]
    for point in face.landmarks68[3:6]:
        inward = (middle - point) / np.linalg.norm(middle - point)
        assert pixel(face, point + 4.0 * inward)[2] > 120
        assert pixel(face, point - 4.0 * inward)[2] < 90


def test_the_view_moves_the_features() -> None:
    views = View(smile=0.0), View(smile=0.0, mouth_open=1.0), View(smile=1.0), View(yaw=20.0), View(pitch=10.0)
    rest, opened, smiling, right, up = (draw_face(PLAIN, view).landmarks68 for view in views)
    assert opened[66, 1] - opened[62, 1] > rest[66, 1] - rest[62, 1] + 5.0
    assert smiling[48, 1] < rest[48, 1] - 1.0
    assert smiling[54, 0] - smiling[48, 0] > rest[54, 0] - rest[48, 0]
    assert right[30, 0] - right[27, 0] > rest[30, 0] - rest[27, 0] + 2.0
    assert up[30, 1] - up[27, 1] < rest[30, 1] - rest[27, 1]


def test_light_comes_from_its_direction() -> None:
    left, right = (draw_face(PLAIN, View(light=light)).image for light in ((-0.9, 0.0), (0.9, 0.0)))
    cheeks = (slice(60, 90), slice(24, 36)), (slice(60, 90), slice(76, 88))
    assert left[cheeks[0]].mean() > left[cheeks[1]].mean()
    assert right[cheeks[0]].mean() < right[cheeks[1]].mean()


@settings(deadline=None, max_examples=20)
@given(st.floats(-60.0, 60.0), st.floats(0.3, 4.0), st.floats(-500.0, 500.0), st.floats(-500.0, 500.0))
def test_a_matrix_moves_landmarks_exactly(degrees: float, scale: float, x: float, y: float) -> None:
    matrix = similarity(degrees, scale, x, y)
    view = view_from_seed(0, 1, 2)
    canonical = draw_face(PLAIN, view).landmarks68.astype(np.float64)
    moved = draw_face(PLAIN, view, matrix=matrix, canvas=(60, 80)).landmarks68
    np.testing.assert_allclose(moved, canonical @ matrix[:, :2].T + matrix[:, 2], atol=2e-3)


@pytest.mark.parametrize("size", [16, 48, 112])
def test_a_small_face_looks_like_the_big_one_made_small(size: int) -> None:
    person = identity_from_seed(0, 3)
    big = draw_face(person, size=448)
    shrunk = cv2.resize(big.image, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8)
    small = draw_face(person, size=size)
    assert difference(small.image, shrunk) < 9.0
    # outer pixel edges come to lie on outer pixel edges
    np.testing.assert_allclose(big.landmarks68 + 0.5, 448 / size * (small.landmarks68 + 0.5), atol=1e-3)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12, -1e6])
def test_a_face_off_the_canvas_leaves_the_backdrop(far: float) -> None:
    face = draw_face(PLAIN, matrix=similarity(30, 2, far, far), canvas=(40, 50))
    assert (face.image == face.image[:, :1]).all()
    assert np.abs(face.landmarks5).min() > 500.0


def test_unknown_looks_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="hair_style 'mullet': expected one of side parting"):
        Identity(hair_style="mullet")
    with pytest.raises(OptionError, match="scale"):
        View(scale=0.0)


def test_every_look_can_be_drawn() -> None:
    people = [identity_from_seed(2, number) for number in range(len(HAIR_STYLES))]
    assert {person.hair_style for person in people} == set(HAIR_STYLES)
    for number, person in enumerate(people):
        for image in range(3):
            assert draw_face(person, view_from_seed(2, number, image), 48).image.std() > 10.0
