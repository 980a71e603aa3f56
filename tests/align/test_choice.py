"""Which of several faces is aligned, and which lies outside the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.align.choice import FACE_RULES, check_inside, choose_faces, face_box
from facedata.align.faces import Face
from facedata.errors import FaceError, OptionError

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


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(OptionError, match="expected one of largest, central, all, one, found 'biggest'"):
        choose_faces([SMALL_IN_THE_MIDDLE], "biggest", SIZE)


def points(inside: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
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
