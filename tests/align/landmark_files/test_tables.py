"""Landmark files as projects write them, with or without a header; and what cannot be told apart is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from facedata.align.landmark_files import open_landmarks
from facedata.errors import FormatError

KEYS = ["Ann Lee/my photo 1.jpg", "Bob/2.jpg"]
FACES: list[list[list[float]]] = [
    [[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]],
    [[169.5, 110], [207, 112.25], [181, 135], [170, 151], [208, 153]],
]
PLANAR = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
NAMED = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
UCCS = "FILE,DETECTION_SCORE,BB_X,BB_Y,BB_WIDTH,BB_HEIGHT,REYE_X,REYE_Y,LEYE_X,LEYE_Y,NOSE_X,NOSE_Y,RMOUTH_X,RMOUTH_Y"
VGGFACE2 = "NAME_ID," + ",".join(f"P{point}{axis}" for point in range(1, 6) for axis in "XY")


def row(
    before: str, separator: str, after: str = "", order: Sequence[int] = range(10)
) -> Callable[[str, list[str]], str]:
    """What writes a line: the key goes into `before`, and the numbers, in an order, between it and `after`."""
    return lambda key, numbers: before % key + separator.join(numbers[place] for place in order) + after


FILES: dict[str, tuple[str, Callable[[str, list[str]], str]]] = {
    "msra_lmk": ("", row("%s 7 ", " ")),
    "float label": ("", row("%s 7.000000 ", " ")),
    "text label": ("", row("%s,Ann,", ",")),
    "LFW, with tabs": ("", row("%s\t", "\t")),
    "IJB-C": ("", row("%s ", " ", " 0.75")),
    "label and score": ("", row('"%s";7;', "; ", ";0.75")),
    "backslashes, and box left, right, top, bottom": (
        "",
        lambda key, numbers: f"lfw\\{key} 50 130 90 170 ".replace("/", "\\") + " ".join(numbers),
    ),
    "as Python prints it": ("# made by hand\n", row("%s: [", ", ", "]")),
    "the person's left first": ("", row("%s ", " ", order=[2, 3, 0, 1, 4, 5, 8, 9, 6, 7])),
    "all x, then all y": ("", row("%s ", " ", order=PLANAR)),
    "a count": ("2\n", row("%s, ", ", ")),
    "CelebA": (f"2\n{NAMED} \n", row("%s   ", "  ")),
    "CelebA of Kaggle": (f"image_id,{NAMED.replace(' ', ',')}\n", row("%s,", ",")),
    "VGGFace2": (f"\ufeff{VGGFACE2}\r\n", lambda key, numbers: f'"{key[:-4]}",{",".join(numbers)}\r'),
    "left and right of the person": (f"{UCCS},LMOUTH_X,LMOUTH_Y\n", row("%s,0.75,50,90,80,80,", ",")),
    "points from 0": ("key;" + ";".join(f"pt_{n}_x;pt_{n}_y" for n in range(5)) + "\n", row("%s;", ";")),
    "named all x, then all y": ("path\tx1\tx2\tx3\tx4\tx5\ty1\ty2\ty3\ty4\ty5\n", row("%s\t", "\t", order=PLANAR)),
    "a box and points": (
        f"x1,y1,x2,y2,{NAMED.replace(' ', ',')},file_name\n",
        lambda key, numbers: ",".join(["1", "2", "3", "4", *numbers, key]),
    ),
    "unknown names": ("photo le_x le_y re_x re_y n_x n_y lm_x lm_y rm_x rm_y\n", row("%s ", " ")),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_many_projects(tmp_path: Path, name: str) -> None:
    header, line = FILES[name]
    path = tmp_path / "landmarks"
    numbers = [[f"{number:g}" for number in np.ravel(face)] for face in FACES]
    path.write_text(
        header + "".join(line(key, face) + "\n" for key, face in zip(KEYS, numbers, strict=True)), newline=""
    )
    found = list(open_landmarks(path).match(KEYS, 2).read())
    for faces, expected in zip(found, FACES, strict=True):
        assert isinstance(faces, list)
        (face,) = faces
        assert face.landmarks.tolist() == expected
        assert face.score == (0.75 if "0.75" in line("", numbers[0]) else None)


BOX = "a.jpg 10 20 30 40\n"
FACE = " ".join(f"{number:g}" for number in np.ravel(FACES[0]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            BOX,
            "line 1: has 4 numbers, as many as a box, not landmarks; name the columns in a first line, such as: key x1",
        ),
        ("1\nimage_id x_1 y_1 width height\n" + BOX, "line 2: names a box"),
        ("NAME_ID,X,Y,W,H\n" + BOX, "as many as a box"),
        ("a.jpg 1 2 30 4 5 6 7 8 9 10\n", "has 10 numbers, and it is not clear which"),
        ("a.jpg 7 8 9 " + FACE, "has 13 numbers"),
        ("a.jpg" + " 0" * 10, "has 10 numbers"),
        (f"0 {FACE}\n1 {FACE}\n", "counts the images from 0"),
        (f"{NAMED} x1 y1 x2 y2 x3 y3 x4 y4 x5 y5\na.jpg {FACE} {FACE}\n", "names several sets of points"),
        ("key " + NAMED.replace("nose_y", "z") + "\n", "has no column for the y of the nose"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, data: str, message: str) -> None:
    path = tmp_path / "landmarks"
    path.write_text(data)
    with pytest.raises(FormatError, match=message):
        open_landmarks(path)
