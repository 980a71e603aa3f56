"""Matrices: what their size says, and rows that must not be in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, people, write_set

from facedata.errors import FormatError, InputError, OptionError
from facedata.features.feature_set import FeatureSet, Matrix, open_feature_set, open_matrix


def test_blocks_are_the_rows_in_order(tmp_path: Path) -> None:
    array, labels = people(23, 8)
    write_set(tmp_path, array, labels)
    matrix = open_feature_set(tmp_path, "a").matrix
    assert (matrix.rows, matrix.dimensions) == (23, 8)
    blocks = list(matrix.blocks(at_once=5 * 8 * 4))
    assert [first for first, _ in blocks] == [0, 5, 10, 15, 20]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), array)
    np.testing.assert_array_equal(matrix.rows_at(np.array([22, 3, 3])), array[[22, 3, 3]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((10, 8), np.float64), "640.*twice that: is it float64"),
        (np.ones((10, 8), np.float16), "half of that: is it float16"),
        (np.ones((9, 8), np.float32), "9 rows, 1 fewer"),
        (np.ones((10, 9), np.float32), "would fit with 9 dimensions"),
        (np.ones(77, np.float32), "cut short"),
        (np.ones(83, np.float32), "does it belong to another set"),
    ],
)
def test_a_wrong_size_is_refused_with_a_guess(tmp_path: Path, rows: Array, message: str) -> None:
    rows.tofile(tmp_path / "a.bin")
    with pytest.raises(FormatError, match=rf"a\.bin: expected 320 bytes for 10 rows of 8 float32, found .*{message}"):
        open_matrix(tmp_path / "a.bin", 8, 10)


@pytest.mark.parametrize(
    ("labels", "dimensions", "message"),
    [
        ("1\n\n2\n", None, "line 2 is blank"),
        ("", None, "is empty"),
        ("0\n" * 7, None, "not a whole number of float32 values for each of the 7 lines.*give --dim"),
        ("0\n" * 7, 8, r"96 bytes too long: was it saved by np.save\? \(7 lines in .*a\.meta\)"),
    ],
)
def test_labels_and_matrix_must_fit(tmp_path: Path, labels: str, dimensions: int | None, message: str) -> None:
    write_set(tmp_path, people(10, 8)[0], labels)
    with pytest.raises(FormatError, match=message):
        open_feature_set(tmp_path, "a", dimensions)


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_set(tmp_path, people(10, 8)[0])
    with pytest.raises(InputError, match=r"b\.bin: no such file"):
        open_feature_set(tmp_path, "b")
    with pytest.raises(OptionError, match="give --dim"):
        open_feature_set(tmp_path, "a")
    assert open_feature_set(tmp_path, "a", 8).matrix.rows == 10


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a\n"])
def test_a_name_is_that_of_a_file(name: str) -> None:
    with pytest.raises(OptionError, match="is not a file name"):
        FeatureSet("data", name)


def test_a_matrix_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    np.ones((4, 4), np.float32).tofile(tmp_path / "a.bin")
    with pytest.raises(FormatError, match="cut short while it was being read"):
        Matrix(str(tmp_path / "a.bin"), 6, 4).block(0, 6)
