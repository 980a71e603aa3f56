"""Matrices: what their size says, and rows that must not be in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from features.sets import Array, people, write_set

from facedata.errors import FormatError, InputError, OptionError
from facedata.features.feature_set import FeatureSet, open_feature_set, open_matrix


def test_blocks_are_the_rows_in_order_and_missing_files_are_named(tmp_path: Path) -> None:
    array, labels = people(23, 8)
    matrix = open_feature_set(write_set(tmp_path, array, labels), "a").matrix
    blocks = list(matrix.blocks(at_once=5 * 8 * 4))
    assert [first for first, _ in blocks] == [0, 5, 10, 15, 20]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), array)
    np.testing.assert_array_equal(matrix.rows_at(np.array([22, 3, 3])), array[[22, 3, 3]])
    with pytest.raises(InputError, match=r"b\.bin: no such file"):
        open_feature_set(tmp_path, "b")
    with pytest.raises(FormatError, match=r"a\.meta: is empty; expected a label for each row"):
        open_feature_set(write_set(tmp_path, array, ""), "a")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((10, 8), np.float64), "640.*twice that: is it float64"),
        (np.ones((10, 8), np.float16), "half of that: is it float16"),
        (np.ones((9, 8), np.float32), "9 rows, 1 fewer"),
        (np.ones((10, 9), np.float32), "would fit with 9 dimensions"),
        (np.ones(77, np.float32), "cut short"),
        (np.ones(83, np.float32), "does it belong to another set"),
        (np.ones(112, np.float32), "128 bytes too long: was it saved by np.save"),
    ],
)
def test_a_wrong_size_is_refused_with_a_guess(tmp_path: Path, rows: Array, message: str) -> None:
    rows.tofile(tmp_path / "a.bin")
    with pytest.raises(FormatError, match=rf"a\.bin: expected 320 bytes for 10 rows of 8 float32, found .*{message}"):
        open_matrix(tmp_path / "a.bin", 8, 10)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a\n"])
def test_a_name_is_that_of_a_file(name: str) -> None:
    with pytest.raises(OptionError, match="is not a file name"):
        FeatureSet("data", name)
