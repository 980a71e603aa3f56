"""Labels for packing: from wherever they come, in order, and nothing that only looks like labels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of, jpeg

from facedata.dataset import open_dataset
from facedata.errors import FacedataError, FormatError, InputError
from facedata.features.pack import UNLABELLED_ROWS, Labels, meta_lines, open_labels


def read(labels: Labels) -> list[int]:
    return [label for block in labels.blocks() for label in block.tolist()]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-1, (1 << 59)), min_size=1), st.sampled_from(["text", "windows", "<i8", ">i8", "<u8"]))
def test_labels_come_back_and_are_written_as_integers_a_line(expected: list[int], how: str) -> None:
    if how in ("text", "windows"):
        data = "".join(f"{label}{chr(13) * (how == 'windows')}\n" for label in expected).encode()
    else:
        expected = [abs(label) for label in expected] if how == "<u8" else expected
        data = npy(np.array(expected, how))
    with file_of(data, "labels") as path:
        labels = open_labels(path)
        assert read(labels) == expected
        assert labels.count() == (len(expected), len(set(expected) - {-1}))
        assert b"".join(meta_lines(labels, len(expected))) == "".join(f"{label}\n" for label in expected).encode()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def test_a_list_and_a_folder_give_the_labels_of_their_dataset(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a/1.jpg 7\nb/2.jpg 3\na/3.jpg 7\n")
    assert read(open_labels(tmp_path / "train.txt")) == [7, 3, 7]
    for name in ("b10", "b9", "a"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for image in range(len(name)):
            (tmp_path / "images" / name / f"{image}.jpg").write_bytes(jpeg(image))
    source = open_dataset(f"folder:{tmp_path / 'images'}")
    expected = np.concatenate(list(source.labels())).tolist()
    assert expected == [0, 1, 1, 2, 2, 2]  # a, b9, b10: the natural order of the names
    assert read(open_labels(tmp_path / "images")) == expected
    assert read(open_labels(f"folder:{tmp_path / 'images'}")) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\n1.0\n", "line 2 is '1.0', expected an integer"),
        (b"1\n-2\n", r"the label of row 1 is -2; expected an integer from 0, or -1 for unlabelled"),
        (b"a.jpg 1\nb.jpg 1.5\n", "line 2: the label is not an integer"),
        (b"a.jpg 1\nb.jpg\n", "line 2: expected 'path label'"),
        (npy(np.array([1.0, 2.0])), r"expected labels as integers of shape \(rows,\), found float64"),
        (npy(np.array([[1], [2]])), r"found int64 of shape \(2, 1\); in Python: .*ravel"),
        (npy(np.array([1 << 63], np.uint64)), "the label of row 0 is 9223372036854775808; expected at most"),
        (npy(np.array([0, 10**18])), "the label of row 1 is 1000000000000000000; expected at most 999999999999999999"),
        (npy(np.array(["a", None], object)), "never loaded"),
        (npy(np.array([1, 2]))[:-1], "was it cut short"),
    ],
)
def test_wrong_labels_are_refused_by_their_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read(open_labels(tmp_path / "labels"))


def test_missing_and_too_few_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_labels(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FacedataError, match="image"):
        open_labels(tmp_path / "empty")
    (tmp_path / "labels").write_text("1\n2\n")
    with pytest.raises(FormatError, match="has 2 labels, but 3 rows need one"):
        list(meta_lines(open_labels(tmp_path / "labels"), 3))
    assert b"".join(meta_lines(UNLABELLED_ROWS, (1 << 20) + 1)) == b"-1\n" * ((1 << 20) + 1)


def test_the_output_of_an_unfinished_job_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "id_0").mkdir()
    (tmp_path / "id_0" / "1.jpg").touch()
    (tmp_path / ".facedata-plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"plan\.json|has not finished"):
        open_labels(tmp_path)
