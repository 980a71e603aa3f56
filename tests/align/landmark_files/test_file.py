"""Landmark files and folders: wrong, damaged or hostile ones; a file for each image; and which entry is whose."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from align_support import only_faces, read_landmarks
from hypothesis import given, settings
from hypothesis import strategies as st

from facedata.align.faces import Face
from facedata.align.landmark_files import LandmarkFile, MatchedLandmarks, open_landmarks
from facedata.errors import EmptyDatasetError, FaceError, FormatError, InputError

HEADER = "key," + ",".join(f"x{i},y{i}" for i in range(1, 6))
ROW = "1,2,30,4,5,6,7,8,9,10"
CVLFACE = "idx," + ",".join(f"ldmk_{i}" for i in range(10)) + "\n"
JSON_ROW = '"landmarks": [[1, 2], [30, 4], [5, 6], [7, 8], [9, 10]]'
INFO = "a 1,2,3,4 " + ",".join(["7"] * 212) + "\n"
CSV = f"{HEADER}\na,{ROW}\n"
JSON = '{"key": "a", ' + JSON_ROW + "}\n"
PAIR = "[1, 1]"


def problem(faces: list[Face] | FaceError) -> str:
    assert isinstance(faces, FaceError)
    assert faces.cause == "bad landmarks"
    return faces.detail


def json_with(points: str) -> str:
    return '{"key": "b", "landmarks": ' + points + "}"


@pytest.mark.parametrize(
    ("good", "line", "found"),
    [
        (CSV, "b,1,2,3", "expected 11 fields, found 4"),
        (CSV, "b,1,2,x,4,5,6,7,8,9,10", "expected numbers, found 'x'"),
        (CSV, "b,1,2,1_0,4,5,6,7,8,9,10", "found '1_0'"),
        (INFO, "b 1,2,3,4 " + ",".join(["7"] * 210), "found 105 points"),
        (INFO, "b 1,2,3,4 " + ",".join(["7"] * 211), "found 211 numbers"),
        (JSON, json_with("[[1, 2], [3, 4]]"), "found 2 points, expected 5, 25, 68, 98 or 106 points"),
        (JSON, json_with("[1, 2, 3, 4]"), "expected landmarks as a list of [x, y]"),
        (JSON, json_with('["ab", "cd", "ef", "gh", "ij"]'), "expected landmarks as a list"),
        (JSON, json_with(f"[[1, null], {PAIR}, {PAIR}, {PAIR}, {PAIR}]"), "expected landmarks as a list"),
        (JSON, json_with('{"x": 1}'), "expected landmarks as a list"),
        (JSON, json_with("[" * 20_000 + "]" * 20_000), "is not JSON"),
        (JSON, json_with(f"[[{'9' * 9000}, 1], {PAIR}, {PAIR}, {PAIR}, {PAIR}]"), "is not JSON"),
        (JSON, json_with(f"[[{'9' * 400}, 1], {PAIR}, {PAIR}, {PAIR}, {PAIR}]"), "a number is too large"),
        (JSON, '{"key": "b", "key": "c", ' + JSON_ROW + "}", "an object has the same name twice"),
        (JSON, '{"key": "b", "box": [1, 2, 3], ' + JSON_ROW + "}", "expected a box"),
        (JSON, '{"key": "b", "score": "high", ' + JSON_ROW + "}", "expected a number as the score"),
    ],
)
def test_a_wrong_line_concerns_its_own_image_only(good: str, line: str, found: str) -> None:
    last = good.splitlines()[-1].replace("a", "c", 1)
    first, second, third = read_landmarks(f"{good}{line}\n{last}\n", ["a", "b", "c"])
    assert len(only_faces([first, third])) == 2
    assert f"points: byte {len(good)}: " in problem(second)
    assert found in problem(second)
    assert len(problem(second)) < 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"a 1,2,3,4 {','.join(['7'] * 210)}\n" * 3, "line 1: found 105 points, .*the first 3 entries are all wrong"),
        ("key," + ",".join(f"x{i},y{i}" for i in range(1, 106)) + "\n", "line 1: found 105 points"),
        ("idx," + ",".join(f"ldmk_{i}" for i in range(12)) + "\n", "line 1: found 6 points"),
        ("idx,ldmk_0,ldmk_2\n", "line 1: expected the columns idx, ldmk_0, ldmk_1, ldmk_2 and so on"),
        (CVLFACE + f"0,{ROW}\nx,{ROW}\n", "line 3: expected the position of an image, counted from 0, found 'x'"),
        (CVLFACE + f"0,{ROW}\n1\n", "line 3: expected a key and 10 more fields"),
        (CVLFACE + "0,1,2\n", "line 2: expected 11 fields, found 3"),
        ("x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n", "line 1: has no column 'key'"),
        (HEADER.replace("y3", "z3") + "\n", "line 1: has no column for the y of point 3"),
        (HEADER + ",left,top,bottom\n", "line 1: has no column 'right'"),
        (HEADER + ",key\n", "line 1: two columns have the name 'key'"),
        (HEADER + f"\n\na,{ROW}\n", "line 2: is blank"),
        (HEADER + f"\na,{ROW}\n\nb,{ROW}\n", "line 3: is blank"),
        (HEADER + f"\na,{ROW}\n\nb,{ROW}", "line 3: is blank"),
        (HEADER + f"\na,{ROW}\n,{ROW}\n", "line 3: expected a key and 10 more fields"),
        (HEADER + f'\na,{ROW}\n"b\nc",{ROW}\n', "line 3: a quotation mark too many"),
        (JSON + '{"name": "b", ' + JSON_ROW + "}\n", 'line 2: expected an object with a "key"'),
        (JSON + '{"key": ', "line 2: is not JSON"),
        (JSON + "[1]\n", "line 2: expected a JSON object"),
        ("0\ta.jpg\t0\n2\tb.jpg\t0\n", "line 2: expected 'aligned path label'"),
        ("a.jpg 1,2,3,4 " + ",".join("7" * 10) + "\nb.jpg\n", "line 2: expected 'path left,top,right,bottom"),
        ("hello world\n", "line 1: is not a known kind of landmark file: 'hello world'; expected one of: JSON lines"),
        ("0\t1.0\tAnn/1.jpg\n", "line 1: is not a known kind"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "expected landmarks, found an image .png."),
        (b"\xff\xfek\x00e\x00y\x00,\x00x\x001\x00,\x00\n\x00", "line 1: is UTF-16"),
        ("0\ta.jpg\t0\t1\t2\t3\t4\t5\t6\t7\t8\t9\t10\t11\n", "line 1: expected 17 fields, found 14"),
        (CSV + f"a,{ROW}\n" * 100 + "b" * 70_000 + f",{ROW}\na,{ROW}\n", "line 103 is longer than"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(data: str | bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read_landmarks(data, ["a"])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "data", ["", " \n\n", HEADER, HEADER + "\n", "1\ta.jpg\t0\n", '{"key": "a", "box": [1, 2, 3, 4]}\n']
)
def test_a_file_without_landmarks(data: str) -> None:
    with pytest.raises(EmptyDatasetError):
        read_landmarks(data, ["a"])


@pytest.mark.parametrize("end", ["\n", "\r\n\r\n", "  \n\t\n", "\n" * 5000])
def test_blank_lines_at_the_end_are_left_out(end: str) -> None:
    for data in (CSV, JSON, f"\ufeff{CSV}"):
        assert len(only_faces(read_landmarks(data + end, ["a"]))) == 1


def test_a_last_line_that_was_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    first, second = read_landmarks(f"{CSV}b,1,2,3", ["a", "b"])
    assert len(only_faces([first])) == 1
    assert "found 4" in problem(second)
    assert "its last line does not end in a newline; was the file cut?" in caplog.text


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    matched = write(tmp_path, ["a", "b"]).match(["a", "b"], 2)
    write(tmp_path, ["b", "a", "c"])
    with pytest.raises(FormatError, match="was changed while it was being read"):
        list(matched.read())
    (tmp_path / "points.csv").unlink()
    with pytest.raises(InputError):
        list(matched.read())


WHOLE_FILES = [
    f'{HEADER},left,top,right,bottom,score\na,{ROW},1,2,3,4,.5\n"b",{ROW},,,,,\n',
    JSON[:-2] + ', "box": [1, 2, 3, 4], "score": 0.5}\n{"score": null, "key": "b", ' + JSON_ROW + "}\n",
    f"a 1,2,3,4 {ROW}\nb 1,2,3,4 {ROW}\n",
    f"{ROW}\n{ROW}\n".replace(",", " "),
    f"1\ta\t0\t1\t2\t3\t4\t{ROW}\n0\tb\t0\n".replace(",", "\t"),
    f"{CVLFACE}0,{ROW}\n1,{ROW}\n",
    "a 7 69 109 106 113 77 142 73 152 108 154 .9\nb 7 69 110 107 112 81 135 70 151 108 153 .9\n",
]
DAMAGE = st.tuples(st.integers(0, 400), st.integers(0, 5), st.binary(max_size=3) | st.sampled_from([b"\n", b",", b'"']))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(WHOLE_FILES), st.lists(DAMAGE, max_size=3))
def test_damage_is_an_error_of_ours_or_of_one_image(whole: str, damages: list[tuple[int, int, bytes]]) -> None:
    data = whole.encode()
    for place, length, other in damages:
        data = data[:place] + other + data[place + length :]
    try:
        found = read_landmarks(data, ["1", "2"] if whole.startswith(("idx", "1 2")) else ["a", "b"])
    except InputError:
        assert damages
    else:
        assert len(found) == 2
        assert damages or isinstance(found[0], list)


def lines(matched: MatchedLandmarks) -> list[list[int]]:
    """The first x of the faces that each image got: in most files here, the number of the line."""
    return [[int(face.landmarks[0, 0]) for face in faces] for faces in matched.read() if isinstance(faces, list)]


def write(folder: Path, keys: Sequence[str]) -> LandmarkFile:
    """An entry for each key, the first x of which is the number of its line."""
    rows = [f"{key},{line},2,3,4,5,6,7,8,9,10" for line, key in enumerate(keys)]
    (folder / "points.csv").write_text("\n".join([HEADER, *rows, ""]), errors="surrogateescape")
    return open_landmarks(folder / "points.csv")


def test_keys_with_one_hash_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facedata.align.landmark_files.keys.hash_keys", lambda keys: np.zeros(len(keys), np.int64))
    assert lines(write(tmp_path, ["a", "b"]).match(["b", "a", "x"], 3)) == [[1], [0], []]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FaceX-Zoo's files, one an image, whose first x is 0, 1 and 2."""
    root = tmp_path / "landmarks"
    for place, name in enumerate(["a/1.txt", "a/2.txt", "b c/1.txt"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(" ".join(str(place + number) for number in range(212)) + " ")
    return root


def test_files_belong_to_the_images_of_their_names(folder: Path) -> None:
    file = open_landmarks(folder)
    matched = file.match(["b c/1.jpg", "a/3.jpg", "a/1.jpg", "d/1.jpg"], 4)
    assert (len(file), matched.missing, list(file.unused(matched))) == (3, 2, ["a/2.txt"])
    assert lines(matched) == [[2], [], [0], []]
    assert lines(pickle.loads(pickle.dumps(matched[1:3]))) == [[], [0]]  # noqa: S301
    assert lines(matched.take(np.array([2, 2, 0]))) == [[0], [0], [2]]
    (face,) = only_faces(matched[:1].read())
    np.testing.assert_array_equal(face.landmarks, 2 + np.arange(212).reshape(106, 2))


def test_a_part_for_a_worker_contains_only_its_own_names(folder: Path) -> None:
    keys = [f"a/{number}.jpg" for number in range(200)]
    for key in keys:
        (folder / key).with_suffix(".txt").write_text(" ".join("7" * 212))
    assert len(pickle.dumps(open_landmarks(folder).match(keys, len(keys))[:10])) < 2000


def test_below_another_folder_and_with_the_images_extension(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"'a/1.txt' matches several images"):
        open_landmarks(folder).match(["a/1.jpg", "a/1.png", "a/2.png"], 3)
    assert open_landmarks(folder.parent).match(["a/1.png", "a/2.png"], 2).missing == 0
    for name in ("1", "2"):
        (folder / "a" / f"{name}.txt").rename(folder / "a" / f"{name}.jpg.txt")
    assert open_landmarks(folder).match(["a/1.jpg", "a/2.jpg"], 2).missing == 0


def test_a_wrong_file_concerns_its_own_image_only(folder: Path) -> None:
    (folder / "a" / "1.txt").write_text("1 2 3")
    (folder / "a" / "2.txt").write_bytes(b"\0" * 100_000)
    os.mkfifo(folder / "a" / "3.txt")
    os.symlink(folder / "a" / "nothing.txt", folder / "a" / "4.txt")
    os.symlink(folder, folder / "a" / "circle")
    file = open_landmarks(folder)
    assert len(file) == 5
    found = list(file.match([f"a/{number}.jpg" for number in range(1, 5)], 4).read())
    expected = ["found 3 numbers", "is larger than", "is a named pipe", "no such file"]
    for number, (error, words) in enumerate(zip(found, expected, strict=True), 1):
        assert problem(error).startswith(f"{folder}/a/{number}.txt: ")
        assert words in problem(error)
        assert problem(error).count(str(folder)) == 1


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.txt"):
        path.write_text(" ".join("7" * 210))
    with pytest.raises(FormatError, match=r"a/1.txt: found 105 points.*the first 3 entries are all wrong"):
        open_landmarks(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyDatasetError, match=r"no file that ends in .txt"):
        open_landmarks(tmp_path / "empty")


def test_identity_is_of_names_and_content(folder: Path, tmp_path: Path) -> None:
    before = open_landmarks(folder).identity()
    folder.rename(tmp_path / "moved")
    assert open_landmarks(tmp_path / "moved").identity() == before
    (tmp_path / "moved" / "a" / "1.txt").write_text("\ufeff" + " ".join("7" * 212))  # after a byte order mark
    moved = open_landmarks(tmp_path / "moved")
    assert moved.identity() != before
    assert lines(moved.match(["a/1.jpg"], 1)) == [[7]]


@pytest.mark.parametrize(
    ("in_file", "of_images", "left_out"),
    [
        (["a/1.jpg", "b/2.jpg"], ["a/1.jpg", "b/2.jpg"], ""),
        (["./a/1.jpg", "././b//2.jpg"], ["a/1.jpg", "b/2.jpg"], ""),
        (["a\\1.jpg", "b\\2.jpg"], ["a/1.jpg", "b/2.jpg"], ""),
        (["/data/lfw/a/1.jpg", "/data/lfw/b/2.jpg"], ["a/1.jpg", "b/2.jpg"], "the first 2 folders of its paths"),
        (["a/1.jpg", "b/2.jpg"], ["raw/lfw/a/1.jpg", "raw/lfw/b/2.jpg"], "the first 2 folders of the images' paths"),
        (["a/1.JPG", "b/2.jpeg"], ["a/1.png", "b/2.png"], ""),
        (["x/a/1.jpg", "x/b/2.jpg"], ["a/1", "b/2"], "the first folder of its paths and the file extensions"),
        (["a/1.jpg", "b/2.jpg"], ["x/a/1.webp", "x/b/2.webp"], "images' paths and the file extensions"),
        (["a/1.jpg", "A/1.jpg"], ["a/1.jpg", "A/1.jpg"], ""),
        (["id.0/v1.5", "id.0/v1.6"], ["id.0/v1.5", "id.0/v1.6"], ""),
        (["Bücher/ä.jpg", "Bücher/\udce4.jpg"], ["Bücher/ä.jpg", "Bücher/\udce4.jpg"], ""),
    ],
)
def test_keys_fit_but_for_folders_and_extensions(
    tmp_path: Path, in_file: list[str], of_images: list[str], left_out: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = write(tmp_path, in_file)
    matched = file.match([of_images[1], "none", of_images[0]], 3)
    assert lines(matched) == [[1], [], [0]]
    assert (matched.missing, list(file.unused(matched))) == (1, [])
    assert left_out in caplog.text if left_out else not caplog.text


@pytest.mark.parametrize(
    ("in_file", "of_images", "message"),
    [
        (["train/a/1.jpg", "train/a/2.jpg", "test/a/1.jpg"], ["a/1.jpg", "a/2.jpg"], "'train/a/1.jpg' and"),
        (["1.jpg", "2.jpg"], ["a/1.jpg", "b/1.jpg", "b/2.jpg"], "'1.jpg' matches several images"),
        (["1.jpg", "2.jpg"], ["1.png", "1.webp", "2.png"], "'1.jpg' matches several images"),
        (["c/a\\1.jpg", "c/a/1.jpg"], ["c/a\\1.jpg", "c/a/1.jpg"], "replacing backslashes.* matches several images"),
        (["x/y/1.jpg", "x/y/2.jpg"], ["1.jpg", "2.jpg", "y/1.jpg", "y/2.jpg"], "match those of the images without"),
        (["x/a/1.jpg"], ["b/1.jpg", "b/2.jpg"], "points.csv: .*first image is 'b/1.jpg', the first entry 'x/a/1.jpg'"),
        (["Jos\u00e9/1.jpg"], ["Jose\u0301/1.jpg"], "their accents are encoded differently"),
        (["Jos\u00e9/1.jpg"], ["Ann/1.jpg"], "the file extension$"),
    ],
)
def test_ambiguous_or_unknown_keys(tmp_path: Path, in_file: list[str], of_images: list[str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        write(tmp_path, in_file).match(of_images, len(of_images))


def test_a_few_that_fit_as_they_are_do_not_hide_that_the_others_have_folders(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(1000)]
    file = write(tmp_path, ["0.jpg", *(f"lfw/{key}" for key in keys[1:])])
    matched = file.match(keys, 1000)
    assert matched.missing == 1  # 0.jpg has no folder to leave out


def test_a_file_is_matched_to_one_source_after_another(tmp_path: Path) -> None:
    file = write(tmp_path, ["x/a.jpg", "x/b.jpg"])
    for key, line in (("b.png", 1), ("x\\a.jpg", 0), ("x/a.jpg", 0)):
        assert lines(file.match([key], 1)) == [[line]]
    none = file.match([], 0)
    assert (len(none), list(none.read()), list(file.unused(none))) == (0, [], ["x/a.jpg", "x/b.jpg"])


def test_images_far_apart_in_a_long_file(tmp_path: Path) -> None:
    keys = [f"person_{number // 20}/{number:06d}.jpg" for number in range(17_000)]
    order = np.random.default_rng(0).permutation(len(keys))
    matched = write(tmp_path, keys).match((keys[place] for place in order), len(keys))
    assert lines(matched[:3000]) == [[place] for place in order[:3000].tolist()]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sampled_from(["a/1", "a/2", "b/1", "c", "d"]), min_size=1),
    st.lists(st.sampled_from(["a/1", "a/2", "b/1", "c", "x"])),
    st.lists(st.integers(0, 9)),
)
def test_every_image_gets_the_lines_with_its_key(
    tmp_path_factory: pytest.TempPathFactory, file: list[str], images: list[str], places: list[int]
) -> None:
    opened = write(tmp_path_factory.mktemp("any"), file)
    if images and not set(file) & set(images):
        with pytest.raises(FormatError):
            opened.match(images, len(images))
        return
    matched = opened.match(iter(images), len(images))
    expected = [[line for line, key in enumerate(file) if key == image] for image in images]
    assert lines(matched) == expected
    assert lines(matched[1:][1:4]) == expected[2:5]
    taken = [place for place in places if place < len(images)]
    assert lines(matched.take(np.array(taken, np.int64))) == [expected[place] for place in taken]
    assert matched[1:].missing == expected[1:].count([])
    assert list(opened.unused(matched)) == [key for key in file if key not in images]
