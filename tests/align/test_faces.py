"""Faces: the five points of each layout, the choice among several faces, and the crop."""

from __future__ import annotations

import numpy as np
import pytest
from align_support import similarity
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facedata.align.faces import (
    FACE_RULES,
    LAYOUTS,
    Face,
    check_inside,
    choose_faces,
    crop_face,
    five_points,
    upper_rows,
)
from facedata.errors import FaceError
from facedata.synthetic.faces import draw_face, identity_from_seed, view_from_seed

FIVE_OF: dict[int, list[float]] = {
    5: [0, 1, 2, 3, 4],
    25: [0, 1, 7, 10, 11],
    68: [(36 + 41) / 2, (42 + 47) / 2, 30, 48, 54],
    98: [96, 97, 54, 76, 82],
    106: [104, 105, 54, 84, 90],
}


@pytest.mark.parametrize("count", LAYOUTS)
def test_the_five_points_of_each_layout(count: int) -> None:
    numbered = np.stack([np.arange(count), 1000 - np.arange(count)], axis=1)
    five = five_points(numbered)
    assert five.dtype == np.float64
    np.testing.assert_array_equal(five, np.stack([FIVE_OF[count], 1000.0 - np.array(FIVE_OF[count])], axis=1))
    landmarks = np.random.default_rng(count).uniform(0.0, 250.0, (6, count, 2))
    np.testing.assert_array_equal(five_points(landmarks), [five_points(points) for points in landmarks])


def test_the_five_points_of_drawn_faces() -> None:
    for number in range(3):
        face = draw_face(identity_from_seed(3, number), view_from_seed(3, number, 0), 224)
        np.testing.assert_allclose(five_points(face.landmarks68), face.landmarks5, atol=1e-3)


@pytest.mark.parametrize("count", [0, 4, 107])
def test_another_number_of_points_is_refused(count: int) -> None:
    with pytest.raises(FaceError, match=f"bad landmarks: found {count} points; known layouts: 5, 25, 68, 98, 106"):
        five_points(np.zeros((count, 2)))


def test_only_the_points_used_need_be_numbers() -> None:
    landmarks = np.ones((68, 2))
    landmarks[[0, 16, 60]] = np.nan
    assert np.isfinite(five_points(landmarks)).all()
    landmarks[36], landmarks[37] = np.inf, -np.inf
    assert np.isnan(five_points(landmarks)[0]).all()


SIZE = (200, 300)  # height, width


def face(left: float, top: float, right: float, bottom: float, *, box: bool = True) -> Face:
    """A face whose landmarks fill its box."""
    landmarks = np.array([(left, top), (right, top), (left, bottom), (right, bottom), (left, top)], np.float64)
    return Face(landmarks, np.array([left, top, right, bottom], np.float64) if box else None)


LARGE, SMALL = (0, 0, 90, 90), (130, 80, 170, 120)  # in the corner, and in the middle
BOXED, BARE = [face(*SMALL), face(*LARGE)], [face(*SMALL, box=False), face(*LARGE, box=False)]


def test_each_rule_takes_its_face() -> None:
    for faces in (BOXED, BARE):
        assert choose_faces(faces, "largest", SIZE)[0] is faces[1]
        assert choose_faces(faces, "central", SIZE)[0] is faces[0]
    equal = [face(*SMALL), face(*SMALL)]
    assert choose_faces(equal, "largest", SIZE)[0] is equal[0]
    assert choose_faces(equal[:1], "one", SIZE)[0] is equal[0]
    for rule in FACE_RULES:
        with pytest.raises(FaceError, match=r"^no face$"):
            choose_faces([], rule, SIZE)
    with pytest.raises(FaceError, match="several faces: expected one, found 2"):
        choose_faces(BOXED, "one", SIZE)


BOXES = st.tuples(st.integers(0, 200), st.integers(0, 150), st.integers(1, 120), st.integers(1, 120))


@settings(deadline=None, max_examples=50)
@given(st.lists(BOXES, min_size=1, max_size=8), st.integers(1, 400), st.integers(1, 400))
def test_central_is_the_rule_of_insightface(corners: list[tuple[int, ...]], height: int, width: int) -> None:
    faces = [face(x, y, x + w, y + h) for x, y, w, h in corners]
    boxes = np.array([face.box for face in faces])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    offsets = (boxes[:, :2] + boxes[:, 2:]) / 2 - [width // 2, height // 2]
    values = area - 2.0 * (offsets**2).sum(axis=1)
    (kept,) = choose_faces(faces, "central", (height, width))
    assert kept is faces[int(values.argmax())]  # argmax takes the first of equal ones, too


@pytest.mark.parametrize("rule", ["largest", "central"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
def test_a_broken_box_never_wins(rule: str, bad: float) -> None:
    swapped = face(90, 90, 0, 0)
    broken = [face(bad, 0, 10, 10), face(0, -1e308, 10, bad, box=False), swapped, Face(np.empty((0, 2)))]
    small = face(*SMALL)
    assert choose_faces([*broken, small], rule, SIZE)[0] is small
    assert choose_faces(broken[:1], rule, SIZE)[0] is broken[0]  # aligning it gives the reason


@pytest.mark.parametrize(
    ("inside", "points"),
    [
        *((count, [(10.0, 10.0)] * count + [(-40.0, 500.0)] * (5 - count)) for count in range(6)),
        *((5, [point] * 5) for point in [(-0.5, -0.5), (299.5, 199.5), (0.0, 0.0)]),
        *((0, [point] * 5) for point in [(-0.6, 0), (0, -0.6), (299.6, 0), (0, 199.6), (199.0, 299.0)]),
        *((0, [point] * 5) for point in [(np.nan, 0), (np.inf, 0), (1e300, -1e300)]),
    ],
)
def test_three_points_must_be_within_the_outer_border(inside: int, points: list[tuple[float, float]]) -> None:
    if inside >= 3:
        check_inside(np.array(points), *SIZE)
        return
    with pytest.raises(FaceError, match=f"outside the image: {inside} of the five.*300 pixels wide and 200 high"):
        check_inside(np.array(points), *SIZE)


NOISE = np.random.default_rng(8).integers(0, 256, (160, 200, 3), np.uint8)


@pytest.mark.parametrize(("size", "rows"), [(112, 60), (224, 120), (128, 69), (256, 137), (1, 1)])
def test_rows_are_the_upper_part_of_the_whole_crop(size: int, rows: int) -> None:
    matrix = similarity(20, 0.9, (60, 50))
    upper = crop_face(NOISE, matrix, size, rows)
    assert (upper_rows(size), upper.flags.c_contiguous) == (rows, True)
    np.testing.assert_array_equal(upper, crop_face(NOISE, matrix, size)[:rows])


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("start", [0, 16_000, 39_800])
def test_a_face_in_an_image_of_more_than_32766_pixels_a_side(upright: bool, scale: float, start: int) -> None:
    """OpenCV before 5 refuses such images; the same face in a small image gives the same crop."""
    small, large = NOISE, np.zeros((160, 40_000, 3), np.uint8)
    large[:, start : start + 200] = small
    offset = np.array([start, 0])
    if upright:
        small, large, offset = small.transpose(1, 0, 2).copy(), large.transpose(1, 0, 2).copy(), offset[::-1]
    matrix = similarity(17, scale, (60, 60))
    expected = crop_face(small, matrix, 112)
    matrix[:, 2] -= matrix[:, :2] @ offset
    crop = crop_face(large, matrix, 112)
    assert crop.any()
    assert np.abs(crop.astype(int) - expected).max() <= 1


def test_a_face_outside_a_large_image_is_black_and_one_as_large_as_it_is_refused() -> None:
    strip = np.full((4, 40_000, 3), 255, np.uint8)
    for x in (-1e6, 1e6, 1e12):
        assert not crop_face(strip, np.array([[1.0, 0, x], [0, 1, 0]]), 112).any()
    with pytest.raises(FaceError, match="too large: the face spans 40,000 x 4 pixels"):
        crop_face(strip, np.array([[0.0025, 0, 0], [0, 0.0025, 0]]), 112)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(), min_size=6, max_size=6), st.booleans())
@example([0.0] * 6, False)
@example([1.0, 2.0, 0.0, 2.0, 4.0, 0.0], False)  # has no inverse
@example([np.nan] * 6, True)
def test_any_matrix_gives_a_crop_or_an_error(numbers: list[float], large: bool) -> None:
    image = np.full((2, 33_000, 3), 9, np.uint8) if large else NOISE
    matrix = np.array(numbers).reshape(2, 3)
    cause = ""
    try:
        assert crop_face(image, matrix, 16).shape == (16, 16, 3)
    except FaceError as error:
        cause = error.cause
    assert cause in ("", "degenerate landmarks", "too large")
    if not np.isfinite(matrix).all() or numbers in ([0.0] * 6, [1.0, 2.0, 0.0, 2.0, 4.0, 0.0]):
        assert cause == "degenerate landmarks"
