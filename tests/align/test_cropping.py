"""The crop: the same pixels as scikit-image and OpenCV give, and what was marked lies where the template says."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.align.cropping import crop_face, upper_rows
from facedata.align.similarity import similarity_transforms
from facedata.align.templates import load_template
from facedata.errors import FaceError
from facedata.synthetic.faces import View, draw_face, identity_from_seed, view_from_seed

Floats = NDArray[np.float64]
RANDOM = np.random.default_rng(8)
NOISE = RANDOM.integers(0, 256, (160, 200, 3), np.uint8)


def template(size: int) -> Floats:
    return load_template("arcface", size).points.reshape(-1, 2)[:5]


def fitted(landmarks: Floats, size: int) -> Floats:
    return np.asarray(similarity_transforms(landmarks[None], template(size)).matrices[0], np.float64)


def similarity(scale: float, degrees: float, x: float, y: float) -> Floats:
    """Scales and turns about the middle of a 112 x 112 crop, and brings that to (x, y)."""
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    linear = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([linear, np.array([x, y]) - linear @ [55.5, 55.5]])


@pytest.mark.parametrize("size", [112, 224, 128, 256])
def test_crops_are_those_of_scikit_image_and_opencv(size: int) -> None:
    transform = pytest.importorskip("skimage.transform")
    random, worst = np.random.default_rng(size), 0
    for _ in range(500):
        image = random.integers(0, 256, tuple(random.integers(40, 140, 2)) + (3,), np.uint8)
        middle = np.array(image.shape[1::-1]) / 2
        points = similarity(random.uniform(0.2, 4), random.uniform(-180, 180), *middle)
        landmarks = template(112) @ points[:, :2].T + points[:, 2] + random.normal(0, 2, (5, 2))
        theirs = transform.SimilarityTransform.from_estimate(landmarks, template(size)).params[:2]
        expected = cv2.warpAffine(image, theirs, (size, size), borderValue=0.0)
        crop = crop_face(image, fitted(landmarks, size), size)
        worst = max(worst, int(np.abs(crop.astype(int) - expected).max()))
    assert worst <= 1


COLOURS = np.array([(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255), (255, 0, 255)])


def with_blobs(canvas: tuple[int, int], landmarks: Floats, spread: float) -> NDArray[np.uint8]:
    """Black, with a soft blob of its own colour at each landmark, each exactly centred there."""
    rows, columns = np.mgrid[: canvas[0], : canvas[1]]
    image = np.zeros((*canvas, 3))
    for (x, y), colour in zip(landmarks, COLOURS, strict=True):
        image += np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))[..., None] * colour
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def centroids(crop: NDArray[np.uint8], near: Floats, radius: int) -> Floats:
    """Of the light within `radius` of each of the places."""
    found = []
    light = crop.sum(axis=2, dtype=np.float64)
    rows, columns = np.mgrid[: crop.shape[0], : crop.shape[1]]
    for x, y in near:
        weights = light * ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)
        found.append([(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()])
    return np.array(found)


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("degrees", [-60, -25, 0, 10, 60])
@pytest.mark.parametrize("number", [0, 1])
def test_what_is_marked_in_the_source_lies_at_the_template(scale: float, degrees: float, number: int) -> None:
    """Measured on the pixels: blobs at a drawn face's eyes, nose and mouth, and their centroids in the crop.

    For landmarks of the template's own shape the centroids lie at the template. Those of a drawn face lie a little
    beside it even after the best fit, so that fit is what their centroids are held against.
    """
    side = math.ceil(160 * scale) + 20
    matrix = similarity(scale, degrees, side / 2 + 0.3, side / 2 - 0.2)
    face = draw_face(identity_from_seed(0, number), view_from_seed(0, number, 0), matrix=matrix, canvas=(side, side))
    drawn = face.landmarks5.astype(np.float64)
    shaped = template(112) @ matrix[:, :2].T + matrix[:, 2]
    for landmarks in (shaped, drawn):
        crop_matrix = fitted(landmarks, 112)
        crop = crop_face(with_blobs((side, side), landmarks, 2.5 * scale), crop_matrix, 112)
        expected = template(112) if landmarks is shaped else landmarks @ crop_matrix[:, :2].T + crop_matrix[:, 2]
        assert np.hypot(*(centroids(crop, expected, 9) - expected).T).max() < 0.5


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0, 4.0])
@pytest.mark.parametrize("degrees", [-60, 0, 35, 60])
def test_the_eyes_of_a_drawn_face_lie_as_if_drawn_there(scale: float, degrees: float) -> None:
    """The irises are what differs between two people with dark and with bright eyes who are the same otherwise."""
    side, frontal = math.ceil(165 * scale) + 20, View(light=(0.0, 0.0))
    dark = replace(identity_from_seed(0, 4), eye_colour=(20, 20, 20), glasses="none", lashes=False)
    people = (dark, replace(dark, eye_colour=(250, 250, 250)))
    matrix = similarity(scale, degrees, side / 2 + 0.3, side / 2 - 0.2)
    drawn = [draw_face(person, frontal, matrix=matrix, canvas=(side, side)) for person in people]
    aligned = fitted(drawn[0].landmarks5.astype(np.float64), 112)
    crops = [crop_face(face.image, aligned, 112) for face in drawn]
    whole = (np.vstack([aligned, [0, 0, 1]]) @ np.vstack([matrix, [0, 0, 1]]))[:2]
    upright = [draw_face(person, frontal, matrix=whole, canvas=(112, 112)).image for person in people]
    eyes = (drawn[0].landmarks5 @ aligned[:, :2].T + aligned[:, 2])[:2]
    found, expected = (centroids(np.asarray(cv2.absdiff(*pair), np.uint8), eyes, 8) for pair in (crops, upright))
    assert np.hypot(*(found - expected).T).max() < 0.5
    assert np.hypot(*(found - eyes).T).max() < 1.0


def test_outside_the_image_is_black_and_the_edge_is_mixed_with_it() -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    crop = crop_face(white, np.array([[1.0, 0, 10.5], [0, 1, 10.0]]), 112)
    assert (crop[:10] == 0).all()
    assert (crop[10:30, 11:30] == 255).all()
    assert crop[15, 10].tolist() == [128] * 3
    assert (crop[31:] == 0).all()


def test_rows_are_the_upper_part_of_the_whole_crop() -> None:
    matrix = similarity(0.9, 20, 60, 50)
    for size, rows in ((112, 60), (224, 120), (128, 69), (256, 137)):
        assert upper_rows(size) == rows
        upper = crop_face(NOISE, matrix, size, rows)
        assert upper.flags.c_contiguous
        np.testing.assert_array_equal(upper, crop_face(NOISE, matrix, size)[:rows])


def test_the_smallest_crops() -> None:
    assert upper_rows(1) == 1
    assert crop_face(NOISE, similarity(1, 0, 60, 60), 1, 1).shape == (1, 1, 3)
    assert crop_face(NOISE[:1, :1], similarity(1, 0, 0, 0), 112).shape == (112, 112, 3)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("part", [0.0, 0.4, 0.9999])
def test_a_face_in_an_image_of_more_than_32766_pixels_a_side(upright: bool, scale: float, part: float) -> None:
    """OpenCV before 5 refuses such images; the same face in a small piece of the image gives the same crop."""
    length = 50_000
    strip = np.random.default_rng(2).integers(0, 256, (60, length, 3), np.uint8)
    place = round(part * length)
    start = min(max(place - 3000, 0), length - 6000)
    offset = np.array([start, 0])
    piece = strip[:, start : start + 6000].copy()
    if upright:
        strip, piece, offset = strip.transpose(1, 0, 2).copy(), piece.transpose(1, 0, 2).copy(), offset[::-1]
    linear = similarity(scale, 17, 0, 0)[:, :2]
    centre = np.array([30, place] if upright else [place, 30])
    matrix = np.column_stack([linear, np.array([55.5, 55.5]) - linear @ centre])
    expected = crop_face(piece, np.column_stack([linear, matrix[:, 2] + linear @ offset]), 112)
    crop = crop_face(strip, matrix, 112)
    assert crop.any()
    assert np.abs(crop.astype(int) - expected).max() <= 1


def test_a_face_outside_a_large_image_is_black() -> None:
    strip = np.full((4, 40_000, 3), 255, np.uint8)
    for x in (-1e6, 1e6, 1e12):
        assert not crop_face(strip, np.array([[1.0, 0, x], [0, 1, 0]]), 112).any()


def test_a_face_as_large_as_a_large_image_is_refused() -> None:
    strip = np.zeros((4, 40_000, 3), np.uint8)
    with pytest.raises(FaceError, match="too large: the face spans 40,000 x 4 pixels"):
        crop_face(strip, np.array([[0.0025, 0, 0], [0, 0.0025, 0]]), 112)


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((2, 3)), np.array([[1.0, 2, 0], [2, 4, 0]]), np.full((2, 3), np.nan), similarity(1, 0, np.inf, 0)],
    ids=["zeros", "no inverse", "NaN", "infinite"],
)
def test_a_matrix_that_takes_nothing_anywhere_is_refused(matrix: Floats) -> None:
    with pytest.raises(FaceError) as caught:
        crop_face(NOISE, matrix, 112)
    assert caught.value.cause == "degenerate landmarks"


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=6, max_size=6), st.booleans())
def test_any_matrix_gives_a_crop_or_a_named_failure(numbers: list[float], large: bool) -> None:
    image = np.full((2, 33_000, 3), 9, np.uint8) if large else NOISE
    try:
        crop = crop_face(image, np.array(numbers).reshape(2, 3), 16)
    except FaceError as error:
        known = error.cause in ("degenerate landmarks", "too large")
    else:
        known = crop.shape == (16, 16, 3)
    assert known


def test_threads_change_no_pixel() -> None:
    threads = cv2.getNumThreads()
    try:
        crops = []
        for count in (1, 2, 4):
            cv2.setNumThreads(count)
            crops.append(crop_face(NOISE, similarity(2.2, 33, 60, 60), 1000))
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(crops[0], crops[1])
    np.testing.assert_array_equal(crops[0], crops[2])
