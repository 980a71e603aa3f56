"""Each dialect, as its own project writes it; and what `--write-landmarks` writes is read back to the last bit."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from align_support import only_faces, read_landmarks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files import in_pixels, landmark_header, landmark_line, open_landmarks
from facedata.align.landmark_files.keys import plain_key
from facedata.errors import FaceError, FormatError

KEYS = ["Ann/Ann_0001.jpg", "Bob/Bob_0001.jpg"]
# The first numbers of FaceX-Zoo's facescrub_face_info.txt are whole pixels too.
FIVE = np.array(
    [[[30.5, 40.25], [70, 41], [50.125, 60], [35, 80], [66, 81.75]], [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1]]]
)
FRACTIONS = np.array([[[0.34, 0.46], [0.65, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 1.02]], FIVE[1] / 10])
HEADER = "key," + ",".join(f"x{i},y{i}" for i in range(1, 6))


def points(faces: int, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).integers(0, 250, (faces, count, 2)).astype(np.float64)


def boxes(faces: Iterable[Face]) -> list[list[float] | None]:
    return [None if face.box is None else face.box.tolist() for face in faces]


def landmarks(found: Iterable[list[Face] | FaceError]) -> NDArray[np.float64]:
    return np.stack([face.landmarks for face in only_faces(found)])


def joined(values: NDArray[np.float64], separator: str = ",") -> str:
    return separator.join(f"{value:g}" for value in values.ravel())


def cvlface(rows: NDArray[Any], keys: Iterable[object]) -> str:
    header = "idx," + ",".join(f"ldmk_{column}" for column in range(rows[0].size))
    return "\n".join([header, *(f"{key},{joined(row)}" for key, row in zip(keys, rows, strict=True)), ""])


def test_facexzoo_image_info() -> None:
    faces, keys = points(2, 106), ["Ann Lee/my photo 1.jpg", "Bob/Bob_0001.jpg"]  # a path may contain spaces
    rows = (f"{key} 1,2,30,40 {joined(face)}\r\n" for key, face in zip(keys, faces, strict=True))
    found = only_faces(read_landmarks("".join(rows), keys))
    np.testing.assert_array_equal([face.landmarks for face in found], faces)
    assert (boxes(found), [face.score for face in found]) == ([[1, 2, 30, 40]] * 2, [None] * 2)


def test_facexzoo_landmark_file_is_matched_by_position() -> None:
    faces = points(3, 106)
    text = " \n".join(joined(face, " ") for face in faces)
    for end in ("", " \n\n \n"):  # FaceX-Zoo leaves a blank at the end, and no newline
        np.testing.assert_array_equal(landmarks(read_landmarks(text + end, ["1", "2", "3"])), faces)
    with pytest.raises(FormatError, match="has 3 lines without image names, but the dataset has 2 images"):
        read_landmarks(text, KEYS)
    for keys in (["a/1.jpg", "a/2.jpg", "a/10.jpg"], ["1", "2", "\N{SUPERSCRIPT TWO}"]):
        with pytest.raises(FormatError, match=r"by their position in a record set.*such as .* landmark file for each"):
            read_landmarks(text, keys)


@pytest.mark.parametrize("third", [False, True])
def test_cvlface_counts_the_images_of_a_record_set_and_has_fractions(tmp_path: Path, third: bool) -> None:
    path = tmp_path / "ldmk_5points.csv"
    path.write_text(cvlface(np.concatenate([FRACTIONS, np.ones((2, 5, 1))], axis=2) if third else FRACTIONS, range(2)))
    matched = open_landmarks(path).match(["1", "2"], 2)  # InsightFace's record sets begin at 1
    assert matched.relative
    for face, expected in zip(only_faces(matched.read()), FRACTIONS, strict=True):
        np.testing.assert_allclose(in_pixels(face, 112, 100).landmarks, expected * [112, 100])
    for keys, message in ((KEYS, r"by their position in a record set.*'Ann/Ann_"), (["1"], "1 of its 2 entries")):
        with pytest.raises(FormatError, match=message):
            open_landmarks(path).match(keys, len(keys))
    assert open_landmarks(path).match(["1", "2", "3"], 3).missing == 1  # its writer may leave images out


@pytest.mark.parametrize("scale", [1.0, 112.0])
def test_a_wild_number_does_not_decide_about_fractions(tmp_path: Path, scale: float) -> None:
    faces = scale * FRACTIONS[0] + np.zeros((7, 5, 2))
    faces[1] += 3.0
    faces[2], faces[3], faces[4] = 0.0, np.nan, 0.25
    path, text = tmp_path / "points.csv", cvlface(faces, range(7))
    path.write_text(text)
    assert open_landmarks(path).match(list("1234567"), 7).relative == (scale == 1.0)
    path.write_text(HEADER + text[text.index("\n") :])
    if scale == 1.0:
        with pytest.raises(FormatError, match="most coordinates are between about 0 and 1"):
            open_landmarks(path)
    else:
        assert len(open_landmarks(path)) == 7
    np.testing.assert_array_equal(landmarks(read_landmarks(cvlface(FIVE, KEYS), KEYS)), FIVE)


def test_insightface_list_has_all_x_before_all_y() -> None:
    numbers = joined(FIVE[0].T, "\t")
    lines = [f"0\t/data/Ann/Ann_0001.jpg\t0\t10\t20\t90\t100\t{numbers}", "1\t/data/Bob/Bob_0001.jpg\t1"]
    lines += ["0\t/data/Cy/Cy_0001.jpg\t2\t1\t2\t3\t4", ""]
    first, second, third = read_landmarks("\n".join(lines), [*KEYS, "Cy/Cy_0001.jpg"])
    assert second == third == []
    assert boxes(only_faces([first])) == [[10, 20, 90, 100]]
    np.testing.assert_array_equal(landmarks([first]), FIVE[:1])


def test_our_csv_finds_its_columns_by_their_names() -> None:
    found = read_landmarks(
        "\ufeffscore,y1,x1,x2,y2,x3,y3,label,x4,y4,x5,y5,path,left,top,right,bottom\r\n"  # as spreadsheets write it
        '0.5,2,1,3,4,5,6,a label,7,8,9,1,"Bob/Bob_0001.jpg",1,2,3,4\r\n'
        ",40.25,30.5,70,41,50.125,60,,35,80,66,81.75,Ann/Ann_0001.jpg,,,,\r\n",
        KEYS,
    )
    np.testing.assert_array_equal(landmarks(found), FIVE)
    assert boxes(only_faces(found)) == [None, [1, 2, 3, 4]]
    assert [face.score for face in only_faces(found)] == [None, 0.5]


@pytest.mark.parametrize("count", [5, 25, 68, 98, 106])
def test_every_layout_in_csv_and_json_lines(count: int) -> None:
    faces = points(2, count)
    header = "key," + ",".join(f"x{point},y{point}" for point in range(1, count + 1))
    rows = [f"{key},{joined(face)}" for key, face in zip(KEYS, faces, strict=True)]
    json_rows = [landmark_line("points.jsonl", key, Face(face)) for key, face in zip(KEYS, faces, strict=True)]
    for data in ("\n".join([header, *rows, ""]), b"".join(json_rows)):
        np.testing.assert_array_equal(landmarks(read_landmarks(data, KEYS)), faces)


def test_json_lines_of_faces_and_of_images_without() -> None:
    rows = [
        {"landmarks": FIVE[0].tolist(), "key": "Ann/Ann_0001.jpg", "box": [1, 2, 3.5, 4], "score": 1},
        {"key": "Bob/Bob_0001.jpg", "landmarks": None},
        {"key": "Ann/Ann_0001.jpg", "landmarks5": FIVE[1].tolist(), "box": None},  # as make-sample writes it
        {"key": "Cy/Cy_0001.jpg"},
    ]
    ann, bob = read_landmarks("".join(json.dumps(row) + "\n" for row in rows), KEYS)
    assert isinstance(ann, list)
    assert bob == []
    np.testing.assert_array_equal([face.landmarks for face in ann], FIVE)
    assert (boxes(ann), ann[0].score) == ([[1, 2, 3.5, 4], None], 1.0)


NUMBERS = st.floats(-1e6, 1e6, width=32) | st.floats(allow_nan=True)
ANY_KEY = st.text(min_size=1, max_size=20) | st.binary(min_size=1, max_size=20).map(
    lambda name: name.decode("utf-8", "surrogateescape")
)


@st.composite
def any_face(draw: st.DrawFn) -> Face:
    # a first number in pixels: a file of nothing but fractions is refused
    numbers = [117.5, *draw(st.lists(NUMBERS, min_size=9, max_size=9))]
    box = draw(st.none() | st.lists(NUMBERS, min_size=4, max_size=4).map(lambda values: np.array(values, np.float64)))
    return Face(np.array(numbers, np.float64).reshape(-1, 2), box, draw(st.none() | st.floats(0, 1)))


def values(face: Face) -> list[Any]:
    """What can be compared, NaN included."""
    return [None if part is None else repr(np.asarray(part, np.float64).tolist()) for part in face]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(ANY_KEY, any_face()), min_size=1, max_size=4), st.sampled_from(["a.jsonl", "a.CSV", "a"]))
def test_written_landmarks_are_read_to_the_last_bit(written: list[tuple[str, Face]], name: str) -> None:
    assume(name != "a.CSV" or not any(set("\n\r") & set(key) for key, _ in written))
    content = landmark_header(name) + b"".join(landmark_line(name, key, face) for key, face in written)
    keys = list(dict.fromkeys(key for key, _ in written))
    for key, got in zip(keys, read_landmarks(content, keys, name), strict=True):
        assert isinstance(got, list)
        expected = [face for other, face in written if plain_key(other) == plain_key(key)]
        assert list(map(values, got)) == list(map(values, expected))


def test_other_programs_read_it_too() -> None:
    face = Face(FIVE[0], np.array([1.0, 2, 3, 4]), 0.75)
    value = json.loads(landmark_line("a.jsonl", 'k"\n,é', face))
    assert value == {"key": 'k"\n,é', "landmarks": FIVE[0].tolist(), "box": [1, 2, 3, 4], "score": 0.75}
    (row,) = csv.DictReader(io.StringIO((landmark_header("a.csv") + landmark_line("a.csv", 'k",é', face)).decode()))
    assert list(row) == [*HEADER.split(","), "left", "top", "right", "bottom", "score"]
    assert (row["key"], row["x1"], row["y5"], row["left"], row["score"]) == ('k",é', "30.5", "81.75", "1.0", "0.75")


@pytest.mark.parametrize(
    ("name", "key", "count", "message"),
    [
        ("points.csv", "a\rb", 5, "a CSV cannot hold a line break in a key"),
        ("points.csv", "", 5, "cannot hold this key, which has 0 characters"),
        ("points.csv", "a", 106, "found 106 points, but the file has columns for 5"),
        ("points.jsonl", "a" * 70_000, 5, "cannot hold this key, which has 70000 characters"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(name: str, key: str, count: int, message: str) -> None:
    with pytest.raises(FaceError, match=message):
        landmark_line(name, key, Face(np.ones((count, 2))))
