"""Each dialect, as its own project writes it; and what `--write-landmarks` writes is read back to the last bit."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import file_of

from facedata.align.faces import Face
from facedata.align.landmark_files import in_pixels, landmark_header, landmark_line, open_landmarks
from facedata.align.landmark_files.keys import plain_key
from facedata.errors import FaceError, FormatError
from facedata.synthetic.sample_set import SampleOptions, make_sample

# The first numbers of FaceX-Zoo's facescrub_face_info.txt are whole pixels too.
KEYS = ["Ann/Ann_0001.jpg", "Bob/Bob_0001.jpg"]
FIVE = np.array(
    [[[30.5, 40.25], [70, 41], [50.125, 60], [35, 80], [66, 81.75]], [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1]]]
)


def points(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).integers(0, 250, (count, 2)).astype(np.float64)


def read(path: Path, keys: list[str] = KEYS) -> list[list[Face] | FaceError]:
    matched = open_landmarks(path).match(keys, len(keys))
    return list(pickle.loads(pickle.dumps(matched)).read())  # noqa: S301


def only_face(faces: list[Face] | FaceError) -> Face:
    assert isinstance(faces, list)
    (face,) = faces
    return face


def commas(values: NDArray[np.float64]) -> str:
    return ",".join(f"{value:g}" for value in values.ravel())


def test_facexzoo_image_info(tmp_path: Path) -> None:
    path = tmp_path / "lfw_face_info.txt"
    keys = ["Ann Lee/my photo 1.jpg", "Bob/Bob_0001.jpg"]  # a path may contain spaces
    path.write_text("".join(f"{key} 1,2,30,40 {commas(points(106, i))}\r\n" for i, key in enumerate(keys)))
    file = open_landmarks(path)
    assert (file.format, len(file)) == ("FaceX-Zoo image info file", 2)
    first, second = map(only_face, read(path, keys))
    np.testing.assert_array_equal(first.landmarks, points(106, 0))
    np.testing.assert_array_equal(second.landmarks, points(106, 1))
    assert first.box is not None
    assert first.box.tolist() == [1, 2, 30, 40]
    assert first.score is None


def test_facexzoo_landmark_file_is_told_by_position(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.txt"
    rows = [" ".join(f"{int(value)}" for value in points(106, i).ravel()) for i in range(3)]
    path.write_text(" \n".join(rows))  # FaceX-Zoo leaves a blank at the end, and no newline
    found = read(path, ["1", "2", "3"])
    for place, faces in enumerate(found):
        np.testing.assert_array_equal(only_face(faces).landmarks, points(106, place))
    path.write_text(" \n".join(rows) + " \n\n \n")
    assert len(read(path, ["1", "2", "3"])) == 3
    with pytest.raises(FormatError, match="has 3 lines without image names, but the dataset has 2 images"):
        read(path)


def test_positions_are_of_no_use_where_images_have_names(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.txt"
    path.write_text("".join(" ".join("7" * 212) + "\n" for _ in range(3)))
    for keys in (["a/1.jpg", "a/2.jpg", "a/10.jpg"], ["1", "2", "\N{SUPERSCRIPT TWO}"]):
        with pytest.raises(
            FormatError, match=r"by their position in a record set.*by name, such as .* landmark file for each"
        ):
            open_landmarks(path).match(keys, 3)


@pytest.mark.parametrize("third", [False, True])
def test_cvlface_counts_the_images_of_a_record_set_and_has_fractions(tmp_path: Path, third: bool) -> None:
    path = tmp_path / "ldmk_5points.csv"
    fractions = np.array([[[0.34, 0.46], [0.65, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 1.02]], FIVE[1] / 10])
    columns = np.concatenate([fractions, np.ones((2, 5, 1))], axis=2) if third else fractions
    rows = [f"{i}," + ",".join(f"{value:.5f}" for value in row.ravel()) for i, row in enumerate(columns)]
    header = "idx," + ",".join(f"ldmk_{i}" for i in range(15 if third else 10))
    path.write_text("\n".join([header, *rows]) + "\n")
    matched = open_landmarks(path).match(["1", "2"], 2)  # InsightFace's record sets begin at 1
    assert matched.relative
    for faces, expected in zip(matched.read(), fractions, strict=True):
        face = in_pixels(only_face(faces), 112, 100)
        np.testing.assert_allclose(face.landmarks, expected * [112, 100])


def test_cvlface_is_for_record_sets_and_not_for_others_of_fewer_images(tmp_path: Path) -> None:
    path = tmp_path / "ldmk_5points.csv"
    header = "idx," + ",".join(f"ldmk_{i}" for i in range(10))
    path.write_text(header + "\n" + "".join(f"{i},{commas(FIVE[1] / 10)}\n" for i in range(3)))
    with pytest.raises(FormatError, match=r"by their position in a record set.*'Ann/Ann_0001.jpg'"):
        open_landmarks(path).match(KEYS, 2)
    with pytest.raises(FormatError, match="1 of its 3 entries"):
        open_landmarks(path).match(["1", "2"], 2)
    matched = open_landmarks(path).match(["1", "2", "3", "4"], 4)  # its writer may leave images out
    assert matched.missing == 1


@pytest.mark.parametrize("scale", [1.0, 112.0])
def test_a_wild_number_does_not_decide_about_fractions(tmp_path: Path, scale: float) -> None:
    faces = scale * np.array([[0.34, 0.46], [0.65, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 1.02]]) + np.zeros(
        (7, 5, 2)
    )
    faces[1] += 3.0
    faces[2] = 0.0
    faces[3] = np.nan
    faces[4] = 0.25
    rows = [",".join(f"{value:.5f}" for value in face.ravel()) for face in faces]
    cvlface, ours = tmp_path / "ldmk_5points.csv", tmp_path / "points.csv"
    numbered = [f"{place},{row}\n" for place, row in enumerate(rows)]
    cvlface.write_text("idx," + ",".join(f"ldmk_{i}" for i in range(10)) + "\n" + "".join(numbered))
    ours.write_text("key," + ",".join(f"x{i},y{i}" for i in range(1, 6)) + "\n" + "".join(numbered))
    assert open_landmarks(cvlface).match(list("1234567"), 7).relative == (scale == 1.0)
    if scale == 1.0:
        with pytest.raises(FormatError, match="most coordinates are between about 0 and 1"):
            open_landmarks(ours)
    else:
        assert len(open_landmarks(ours)) == 7


def test_cvlface_columns_with_paths_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "ldmk_5points.csv"
    header = "path," + ",".join(f"ldmk_{i}" for i in range(10))
    path.write_text(header + "\n" + "".join(f"{key},{commas(FIVE[i])}\n" for i, key in enumerate(KEYS)))
    matched = open_landmarks(path).match(KEYS, 2)
    assert not matched.relative
    for faces, expected in zip(matched.read(), FIVE, strict=True):
        np.testing.assert_array_equal(only_face(faces).landmarks, expected)


def test_insightface_list_has_all_x_before_all_y(tmp_path: Path) -> None:
    path = tmp_path / "faces.lst"
    numbers = "\t".join(f"{value:.3f}" for value in FIVE[0].T.ravel())
    lines = [f"0\t/data/Ann/Ann_0001.jpg\t0\t10\t20\t90\t100\t{numbers}", "1\t/data/Bob/Bob_0001.jpg\t1"]
    lines += ["0\t/data/Cy/Cy_0001.jpg\t2\t1\t2\t3\t4"]
    path.write_text("".join(line + "\n" for line in lines))
    file = open_landmarks(path)
    matched = file.match([*KEYS, "Cy/Cy_0001.jpg"], 3)
    assert (len(file), matched.missing) == (1, 2)
    first, second, third = matched.read()
    assert second == third == []
    face = only_face(first)
    np.testing.assert_array_equal(face.landmarks, FIVE[0])
    assert face.box is not None
    assert face.box.tolist() == [10, 20, 90, 100]


def test_our_csv_finds_its_columns_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    header = "score,y1,x1,x2,y2,x3,y3,label,x4,y4,x5,y5,path,left,top,right,bottom"
    path.write_bytes(
        b"\xef\xbb\xbf"  # as spreadsheets write it
        + f'{header}\r\n0.5,2,1,3,4,5,6,a label,7,8,9,1,"Bob/Bob_0001.jpg",1,2,3,4\r\n'.encode()
        + b",40.25,30.5,70,41,50.125,60,,35,80,66,81.75,Ann/Ann_0001.jpg,,,,\r\n"
    )
    ann, bob = map(only_face, read(path))
    np.testing.assert_array_equal(ann.landmarks, FIVE[0])
    np.testing.assert_array_equal(bob.landmarks, FIVE[1])
    assert (ann.box, ann.score, bob.score) == (None, None, 0.5)
    assert bob.box is not None
    assert bob.box.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [5, 25, 68, 98, 106])
def test_every_layout_in_csv_and_json_lines(tmp_path: Path, count: int) -> None:
    table, lines = tmp_path / "points.csv", tmp_path / "points.jsonl"
    names = [f"{axis}{point + 1}" for point in range(count) for axis in "xy"]
    rows = [f"{key},{commas(points(count, i))}" for i, key in enumerate(KEYS)]
    table.write_text("\n".join([",".join(["key", *names]), *rows]) + "\n")
    values = [{"landmarks": points(count, i).tolist(), "key": key} for i, key in enumerate(KEYS)]
    lines.write_text("".join(json.dumps(value) + "\n" for value in values))
    for path in (table, lines):
        for place, faces in enumerate(read(path)):
            np.testing.assert_array_equal(only_face(faces).landmarks, points(count, place))


def test_json_lines_of_faces_and_of_images_without(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    rows = [
        {"key": "Ann/Ann_0001.jpg", "landmarks": FIVE[0].tolist(), "box": [1, 2, 3.5, 4], "score": 1},
        {"key": "Bob/Bob_0001.jpg", "landmarks": None},
        {"key": "Ann/Ann_0001.jpg", "landmarks": FIVE[1].tolist(), "box": None},
        {"key": "Cy/Cy_0001.jpg"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ann, bob = read(path)
    assert isinstance(ann, list)
    assert bob == []
    np.testing.assert_array_equal([face.landmarks for face in ann], FIVE)
    assert ann[0].box is not None
    assert (ann[0].box.tolist(), ann[0].score, ann[1].box) == ([1, 2, 3.5, 4], 1.0, None)


def test_the_landmarks_of_make_sample(tmp_path: Path) -> None:
    make_sample(tmp_path, SampleOptions(identities=2, images=2))
    values = [json.loads(line) for line in (tmp_path / "landmarks.jsonl").read_text().splitlines()]
    found = read(tmp_path / "landmarks.jsonl", [value["key"] for value in values])
    for value, faces in zip(values, found, strict=True):
        np.testing.assert_array_equal(only_face(faces).landmarks, value["landmarks5"])


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "two.txt"
    for path in (one, other):
        path.write_text(f"a.jpg 1,2,3,4 {commas(FIVE[0])}\n")
    assert open_landmarks(one).identity() == open_landmarks(other).identity()
    other.write_text(f"a.jpg 1,2,3,4 {commas(FIVE[1])}\n")
    assert open_landmarks(one).identity() != open_landmarks(other).identity()
    json.dumps(open_landmarks(one).identity())


# --- writing -----------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.floats(allow_nan=True)
ANY_KEY = st.text(min_size=1, max_size=20) | st.binary(min_size=1, max_size=20).map(
    lambda name: name.decode("utf-8", "surrogateescape")
)


@st.composite
def faces(draw: st.DrawFn, points: int) -> Face:
    count = 2 * points
    numbers = draw(st.lists(NUMBERS, min_size=count, max_size=count))
    box = draw(st.none() | st.lists(NUMBERS, min_size=4, max_size=4).map(lambda values: np.array(values, np.float64)))
    # a first number in pixels: a file of nothing but fractions is refused
    landmarks = np.array([117.5, *numbers[1:]], np.float64).reshape(-1, 2)
    return Face(landmarks, box, draw(st.none() | st.floats(0, 1)))


def same(one: Any, other: Any) -> bool:
    return one is other is None or (
        one is not None and other is not None and np.array_equal(one, other, equal_nan=True)
    )


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from(["points.jsonl", "points.CSV", "points"]), st.sampled_from([5, 25]))
def test_what_is_written_is_read(data: st.DataObject, name: str, points: int) -> None:
    written = data.draw(st.lists(st.tuples(ANY_KEY, faces(points)), min_size=1, max_size=5))
    content, kept = landmark_header(name, points), []
    for key, face in written:
        try:
            content += landmark_line(name, key, face, points)
        except FaceError:
            assert name.endswith("CSV")
            assert "\n" in key or "\r" in key
        else:
            kept.append((key, face))
    keys = list(dict.fromkeys(key for key, _ in kept))
    if not kept:
        return
    with file_of(content, name) as path:
        found = list(open_landmarks(path).match(keys, len(keys)).read())
    for key, got in zip(keys, found, strict=True):
        expected = [face for other, face in kept if plain_key(other) == plain_key(key)]
        assert isinstance(got, list)
        for one, other in zip(got, expected, strict=True):
            assert same(one.landmarks, other.landmarks)
            assert same(one.box, other.box)
            assert one.score == other.score


def test_other_programs_read_it_too() -> None:
    face = Face(np.array([[1.5, 2], [3, 4], [5, 6], [7, 8], [9, 0.1]]), np.array([1.0, 2, 3, 4]), 0.75)
    value = json.loads(landmark_line("a.jsonl", 'k"\n,é', face))
    assert value == {"key": 'k"\n,é', "landmarks": face.landmarks.tolist(), "box": [1, 2, 3, 4], "score": 0.75}
    text = (landmark_header("a.csv") + landmark_line("a.csv", 'k",é', face)).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert list(row) == [
        "key",
        *(f"{a}{i}" for i in range(1, 6) for a in "xy"),
        "left",
        "top",
        "right",
        "bottom",
        "score",
    ]
    assert (row["key"], row["x1"], row["y5"], row["left"], row["score"]) == ('k",é', "1.5", "0.1", "1.0", "0.75")


def test_what_a_csv_cannot_hold_is_refused() -> None:
    face = Face(np.ones((5, 2)))
    for key in ("a\nb", "a\rb", ""):
        with pytest.raises(FaceError):
            landmark_line("points.csv", key, face)
    with pytest.raises(FaceError, match="found 106 points, but the file has columns for 5"):
        landmark_line("points.csv", "a", Face(np.ones((106, 2))))
    with pytest.raises(FaceError, match="cannot hold this key, which has 70000 characters"):
        landmark_line("points.jsonl", "a" * 70_000, face)
