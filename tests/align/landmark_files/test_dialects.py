"""Each dialect, as its own project writes it; and what `--write-landmarks` writes is read back to the last bit."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import file_of

from facedata.align.faces import Face
from facedata.align.landmark_files import in_pixels, landmark_header, landmark_line, open_landmarks
from facedata.align.landmark_files.keys import plain_key
from facedata.errors import FaceError, FormatError

# The first numbers of FaceX-Zoo's facescrub_face_info.txt are whole pixels too.
KEYS = ["Ann/Ann_0001.jpg", "Bob/Bob_0001.jpg"]
FIVE = np.array(
    [[[30.5, 40.25], [70, 41], [50.125, 60], [35, 80], [66, 81.75]], [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1]]]
)
FRACTIONS = np.array([[[0.34, 0.46], [0.65, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 1.02]], FIVE[1] / 10])


def points(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).integers(0, 250, (count, 2)).astype(np.float64)


def read(path: Path, keys: Sequence[str] = KEYS) -> list[list[Face] | FaceError]:
    matched = open_landmarks(path).match(keys, len(keys))
    return list(pickle.loads(pickle.dumps(matched)).read())  # noqa: S301


def only_faces(found: list[list[Face] | FaceError]) -> list[Face]:
    """The only face of each image."""
    faces = []
    for image in found:
        assert isinstance(image, list)
        (face,) = image
        faces.append(face)
    return faces


def landmarks(found: list[list[Face] | FaceError]) -> list[list[list[float]]]:
    return [face.landmarks.tolist() for face in only_faces(found)]


def commas(values: NDArray[np.float64]) -> str:
    return ",".join(f"{value:g}" for value in values.ravel())


def write_cvlface(path: Path, rows: NDArray[Any], keys: Sequence[object]) -> Path:
    header = "idx," + ",".join(f"ldmk_{column}" for column in range(rows[0].size))
    path.write_text("\n".join([header, *(f"{key},{commas(row)}" for key, row in zip(keys, rows, strict=True))]) + "\n")
    return path


def test_facexzoo_image_info(tmp_path: Path) -> None:
    path = tmp_path / "lfw_face_info.txt"
    keys = ["Ann Lee/my photo 1.jpg", "Bob/Bob_0001.jpg"]  # a path may contain spaces
    path.write_text("".join(f"{key} 1,2,30,40 {commas(points(106, i))}\r\n" for i, key in enumerate(keys)))
    file, found = open_landmarks(path), read(path, keys)
    assert (file.format, len(file)) == ("FaceX-Zoo image info file", 2)
    assert landmarks(found) == [points(106, 0).tolist(), points(106, 1).tolist()]
    assert [(np.asarray(face.box).tolist(), face.score) for face in only_faces(found)] == [([1, 2, 30, 40], None)] * 2


def test_facexzoo_landmark_file_is_matched_by_position(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.txt"
    rows = [" ".join(f"{int(value)}" for value in points(106, i).ravel()) for i in range(3)]
    for end in ("", " \n\n \n"):
        path.write_text(" \n".join(rows) + end)  # FaceX-Zoo leaves a blank at the end, and no newline
        assert landmarks(read(path, ["1", "2", "3"])) == [points(106, i).tolist() for i in range(3)]
    with pytest.raises(FormatError, match="has 3 lines without image names, but the dataset has 2 images"):
        read(path)
    for keys in (["a/1.jpg", "a/2.jpg", "a/10.jpg"], ["1", "2", "\N{SUPERSCRIPT TWO}"]):
        with pytest.raises(FormatError, match=r"by their position in a record set.*such as .* landmark file for each"):
            read(path, keys)


@pytest.mark.parametrize("third", [False, True])
def test_cvlface_counts_the_images_of_a_record_set_and_has_fractions(tmp_path: Path, third: bool) -> None:
    columns = np.concatenate([FRACTIONS, np.ones((2, 5, 1))], axis=2) if third else FRACTIONS
    path = write_cvlface(tmp_path / "ldmk_5points.csv", columns, range(2))
    matched = open_landmarks(path).match(["1", "2"], 2)  # InsightFace's record sets begin at 1
    assert matched.relative
    for face, expected in zip(only_faces(list(matched.read())), FRACTIONS, strict=True):
        np.testing.assert_allclose(in_pixels(face, 112, 100).landmarks, expected * [112, 100])
    with pytest.raises(FormatError, match=r"by their position in a record set.*'Ann/Ann_0001.jpg'"):
        read(path)
    with pytest.raises(FormatError, match="1 of its 2 entries"):
        read(path, ["1"])
    assert open_landmarks(path).match(["1", "2", "3"], 3).missing == 1  # its writer may leave images out


@pytest.mark.parametrize("scale", [1.0, 112.0])
def test_a_wild_number_does_not_decide_about_fractions(tmp_path: Path, scale: float) -> None:
    faces = scale * FRACTIONS[0] + np.zeros((7, 5, 2))
    faces[1] += 3.0
    faces[2], faces[3], faces[4] = 0.0, np.nan, 0.25
    path = write_cvlface(tmp_path / "ldmk_5points.csv", faces, range(7))
    assert open_landmarks(path).match(list("1234567"), 7).relative == (scale == 1.0)
    paths = write_cvlface(tmp_path / "paths.csv", FIVE, KEYS)
    assert (open_landmarks(paths).match(KEYS, 2).relative, landmarks(read(paths))) == (False, FIVE.tolist())
    ours = tmp_path / "points.csv"
    rows = "".join(path.read_text().splitlines(keepends=True)[1:])
    ours.write_text("key," + ",".join(f"x{i},y{i}" for i in range(1, 6)) + "\n" + rows)
    if scale == 1.0:
        with pytest.raises(FormatError, match="most coordinates are between about 0 and 1"):
            open_landmarks(ours)
    else:
        assert len(open_landmarks(ours)) == 7


def test_insightface_list_has_all_x_before_all_y(tmp_path: Path) -> None:
    path = tmp_path / "faces.lst"
    numbers = "\t".join(f"{value:.3f}" for value in FIVE[0].T.ravel())
    lines = [f"0\t/data/Ann/Ann_0001.jpg\t0\t10\t20\t90\t100\t{numbers}", "1\t/data/Bob/Bob_0001.jpg\t1"]
    lines += ["0\t/data/Cy/Cy_0001.jpg\t2\t1\t2\t3\t4"]
    path.write_text("".join(line + "\n" for line in lines))
    first, second, third = read(path, [*KEYS, "Cy/Cy_0001.jpg"])
    assert second == third == []
    (face,) = only_faces([first])
    assert (face.landmarks.tolist(), np.asarray(face.box).tolist()) == (FIVE[0].tolist(), [10, 20, 90, 100])


def test_our_csv_finds_its_columns_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    header = "score,y1,x1,x2,y2,x3,y3,label,x4,y4,x5,y5,path,left,top,right,bottom"
    path.write_bytes(
        b"\xef\xbb\xbf"  # as spreadsheets write it
        + f'{header}\r\n0.5,2,1,3,4,5,6,a label,7,8,9,1,"Bob/Bob_0001.jpg",1,2,3,4\r\n'.encode()
        + b",40.25,30.5,70,41,50.125,60,,35,80,66,81.75,Ann/Ann_0001.jpg,,,,\r\n"
    )
    found = read(path)
    assert landmarks(found) == FIVE.tolist()
    ann, bob = only_faces(found)
    assert (ann.box, ann.score, np.asarray(bob.box).tolist(), bob.score) == (None, None, [1, 2, 3, 4], 0.5)


@pytest.mark.parametrize("count", [5, 25, 68, 98, 106])
def test_every_layout_in_csv_and_json_lines(tmp_path: Path, count: int) -> None:
    faces = [points(count, place) for place in range(len(KEYS))]
    pairs = list(zip(KEYS, faces, strict=True))
    path = tmp_path / "points.csv"
    header = "key," + ",".join(f"x{point},y{point}" for point in range(1, count + 1))
    path.write_text("\n".join([header, *(f"{key},{commas(face)}" for key, face in pairs)]) + "\n")
    assert landmarks(read(path)) == [face.tolist() for face in faces]
    path.write_bytes(b"".join(landmark_line("points.jsonl", key, Face(face)) for key, face in pairs))
    assert landmarks(read(path)) == [face.tolist() for face in faces]


def test_json_lines_of_faces_and_of_images_without(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    rows = [
        {"landmarks": FIVE[0].tolist(), "key": "Ann/Ann_0001.jpg", "box": [1, 2, 3.5, 4], "score": 1},
        {"key": "Bob/Bob_0001.jpg", "landmarks": None},
        {"key": "Ann/Ann_0001.jpg", "landmarks5": FIVE[1].tolist(), "box": None},  # as make-sample writes it
        {"key": "Cy/Cy_0001.jpg"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ann, bob = read(path)
    assert isinstance(ann, list)
    assert bob == []
    np.testing.assert_array_equal([face.landmarks for face in ann], FIVE)
    assert (np.asarray(ann[0].box).tolist(), ann[0].score, ann[1].box) == ([1, 2, 3.5, 4], 1.0, None)


# Writing

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.floats(allow_nan=True)
ANY_KEY = st.text(min_size=1, max_size=20) | st.binary(min_size=1, max_size=20).map(
    lambda name: name.decode("utf-8", "surrogateescape")
)


@st.composite
def faces(draw: st.DrawFn) -> Face:
    # a first number in pixels: a file of nothing but fractions is refused
    numbers = [117.5, *draw(st.lists(NUMBERS, min_size=9, max_size=9))]
    box = draw(st.none() | st.lists(NUMBERS, min_size=4, max_size=4).map(lambda values: np.array(values, np.float64)))
    return Face(np.array(numbers, np.float64).reshape(-1, 2), box, draw(st.none() | st.floats(0, 1)))


def values(face: Face) -> list[Any]:
    """What can be compared, NaN included."""
    return [None if part is None else repr(np.asarray(part, np.float64).tolist()) for part in face]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(ANY_KEY, faces()), min_size=1, max_size=4), st.sampled_from(["a.jsonl", "a.CSV", "a"]))
def test_written_landmarks_are_read_to_the_last_bit(written: list[tuple[str, Face]], name: str) -> None:
    assume(name != "a.CSV" or not any(set("\n\r") & set(key) for key, _ in written))
    content = landmark_header(name) + b"".join(landmark_line(name, key, face) for key, face in written)
    keys = list(dict.fromkeys(key for key, _ in written))
    with file_of(content, name) as path:
        found = read(path, keys)
    for key, got in zip(keys, found, strict=True):
        assert isinstance(got, list)
        expected = [face for other, face in written if plain_key(other) == plain_key(key)]
        assert list(map(values, got)) == list(map(values, expected))


def test_other_programs_read_it_too() -> None:
    face = Face(FIVE[0], np.array([1.0, 2, 3, 4]), 0.75)
    value = json.loads(landmark_line("a.jsonl", 'k"\n,é', face))
    assert value == {"key": 'k"\n,é', "landmarks": FIVE[0].tolist(), "box": [1, 2, 3, 4], "score": 0.75}
    (row,) = csv.DictReader(io.StringIO((landmark_header("a.csv") + landmark_line("a.csv", 'k",é', face)).decode()))
    coordinates = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]
    assert list(row) == ["key", *coordinates, "left", "top", "right", "bottom", "score"]
    assert (row["key"], row["x1"], row["y5"], row["left"], row["score"]) == ('k",é', "30.5", "81.75", "1.0", "0.75")


@pytest.mark.parametrize(
    ("name", "key", "points", "message"),
    [
        ("points.csv", "a\rb", 5, "a CSV cannot hold a line break in a key"),
        ("points.csv", "", 5, "cannot hold this key, which has 0 characters"),
        ("points.csv", "a", 106, "found 106 points, but the file has columns for 5"),
        ("points.jsonl", "a" * 70_000, 5, "cannot hold this key, which has 70000 characters"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(name: str, key: str, points: int, message: str) -> None:
    with pytest.raises(FaceError, match=message):
        landmark_line(name, key, Face(np.ones((points, 2))))
