"""Faces: the five points of each layout, the choice among several faces, and the pixels of the crop."""

from __future__ import annotations

import math
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.align.faces import (
    FACE_RULES,
    LAYOUTS,
    Face,
    check_inside,
    choose_faces,
    crop_face,
    face_box,
    five_points,
    upper_rows,
)
from facedata.align.similarity import similarity_transforms
from facedata.align.templates import load_template
from facedata.errors import FaceError
from facedata.synthetic.faces import View, draw_face, identity_from_seed, view_from_seed

Floats = NDArray[np.float64]

# --- layouts -----------------------------------------------------------------------------------------------------

FIVE_OF: dict[int, list[float]] = {
    5: [0, 1, 2, 3, 4],
    25: [0, 1, 7, 10, 11],
    68: [(36 + 41) / 2, (42 + 47) / 2, 30, 48, 54],
    98: [96, 97, 54, 76, 82],
    106: [104, 105, 54, 84, 90],
}


def numbered(count: int) -> Floats:
    """Point n, counted from 0, lies at (n, 1000 - n)."""
    return np.stack([np.arange(count), 1000.0 - np.arange(count)], axis=1)


@pytest.mark.parametrize("count", LAYOUTS)
def test_the_five_are_the_right_ones(count: int) -> None:
    expected = np.stack([FIVE_OF[count], 1000.0 - np.array(FIVE_OF[count])], axis=1)
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


def test_only_the_five_need_be_numbers() -> None:
    landmarks = numbered(68)
    landmarks[[0, 16, 60]] = np.nan
    assert np.isfinite(five_points(landmarks)).all()
    landmarks[36], landmarks[37] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(five_points(landmarks)[0]).all()


# --- which faces -------------------------------------------------------------------------------------------------

SIZE = (200, 300)  # height, width


def face(left: float, top: float, right: float, bottom: float, *, box: bool = True) -> Face:
    """A face whose landmarks fill its box."""
    landmarks = np.array([(left, top), (right, top), (left, bottom), (right, bottom), (left, top)], np.float64)
    return Face(landmarks, np.array([left, top, right, bottom], np.float64) if box else None)


def chosen(faces: list[Face], rule: str) -> list[int]:
    kept = choose_faces(faces, rule, SIZE)
    return [next(place for place, one in enumerate(faces) if one is each) for each in kept]


LARGE_IN_THE_CORNER = face(0, 0, 90, 90)
SMALL_IN_THE_MIDDLE = face(130, 80, 170, 120)


def test_each_rule_takes_its_face() -> None:
    faces = [SMALL_IN_THE_MIDDLE, LARGE_IN_THE_CORNER]
    assert chosen(faces, "largest") == [1]
    assert chosen(faces, "central") == [0]
    assert chosen(faces, "all") == [0, 1]
    assert chosen(faces[:1], "one") == [0]
    with pytest.raises(FaceError, match="several faces: expected one, found 2"):
        choose_faces(faces, "one", SIZE)


def test_width_and_height_are_not_confused() -> None:
    off_by_a_little = face(100, 105, 140, 145)  # 30 to the left, 25 below the middle; the middle of 300 x 200 is not it
    assert chosen([off_by_a_little, face(80, 130, 120, 170)], "central") == [0]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 150), st.integers(1, 120), st.integers(1, 120)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 400),
    st.integers(1, 400),
)
def test_the_central_one_is_insightfaces(corners: list[tuple[int, int, int, int]], height: int, width: int) -> None:
    faces = [face(x, y, x + w, y + h) for x, y, w, h in corners]
    boxes = np.array([one.box for one in faces])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    offsets = (boxes[:, :2] + boxes[:, 2:]) / 2 - [width // 2, height // 2]
    values = area - 2.0 * (offsets**2).sum(axis=1)
    (kept,) = choose_faces(faces, "central", (height, width))
    assert kept is faces[int(values.argmax())]  # argmax takes the first of equal ones, too


@pytest.mark.parametrize("rule", ["largest", "central"])
def test_of_equal_faces_the_first_is_taken(rule: str) -> None:
    assert chosen([face(130, 80, 170, 120), face(130, 80, 170, 120)], rule) == [0]


def test_a_face_without_a_box_has_that_of_its_landmarks() -> None:
    landmarks = np.random.default_rng(0).uniform(0.0, 100.0, (68, 2))
    x, y = landmarks.T
    assert face_box(Face(landmarks)) == (x.min(), y.min(), x.max(), y.max())
    faces = [face(130, 80, 170, 120, box=False), face(0, 0, 90, 90, box=False)]
    assert chosen(faces, "largest") == [1]
    assert chosen(faces, "central") == [0]


@pytest.mark.parametrize("rule", ["largest", "central"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
def test_a_broken_box_never_wins(rule: str, bad: float) -> None:
    broken = [
        face(bad, 0, 10, 10),
        face(0, -1e308, 10, bad, box=False),
        face(90, 90, 0, 0),  # its corners are swapped
        Face(np.empty((0, 2))),
    ]
    assert chosen([*broken, SMALL_IN_THE_MIDDLE], rule) == [4]
    assert chosen(broken[:1], rule) == [0]  # whoever aligns it says what is wrong with it


@pytest.mark.parametrize("rule", FACE_RULES)
def test_none_is_said(rule: str) -> None:
    with pytest.raises(FaceError, match=r"^no face$"):
        choose_faces([], rule, SIZE)


def points(inside: int) -> Floats:
    return np.array([(10.0, 10.0)] * inside + [(-40.0, 500.0)] * (5 - inside))


@pytest.mark.parametrize("inside", range(6))
def test_three_points_in_the_image_are_enough(inside: int) -> None:
    if inside >= 3:
        check_inside(points(inside), *SIZE)
        return
    with pytest.raises(FaceError, match=f"outside the image: {inside} of the five.*300 pixels wide and 200 high"):
        check_inside(points(inside), *SIZE)


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ((-0.5, -0.5), True),
        ((299.5, 199.5), True),
        ((-0.6, 0.0), False),
        ((0.0, -0.6), False),
        ((299.6, 0.0), False),
        ((0.0, 199.6), False),
        ((199.0, 299.0), False),  # y beyond the height, though not beyond the width
        ((np.nan, 0.0), False),
        ((np.inf, 0.0), False),
        ((1e300, -1e300), False),
    ],
)
def test_the_border_is_that_of_the_outermost_pixels(point: tuple[float, float], inside: bool) -> None:
    landmarks = np.array([point] * 5)
    if inside:
        check_inside(landmarks, *SIZE)
    else:
        with pytest.raises(FaceError, match="0 of the five"):
            check_inside(landmarks, *SIZE)


def test_an_image_of_one_pixel() -> None:
    check_inside(np.zeros((5, 2)), 1, 1)
    with pytest.raises(FaceError, match="outside the image"):
        check_inside(points(5), 1, 1)


# --- the crop ----------------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(8).integers(0, 256, (160, 200, 3), np.uint8)


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
    for _ in range(150):
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


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("degrees", "number"), [(-60, 0), (0, 1), (25, 0)])
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


@settings(deadline=None, max_examples=50)
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
