"""Matrices: what their size says, and rows that must not be in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from facedata.errors import FormatError, InputError, OptionError
from facedata.features.feature_set import (
    FeatureSet,
    Matrix,
    bad_rows,
    check_rows,
    open_feature_set,
    open_matrix,
)

Array = NDArray[Any]


def write(path: Path, array: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array.tofile(path)
    return path


def make_set(root: Path, rows: int = 10, dimensions: int = 8, labels: str | None = None) -> Array:
    array = np.random.default_rng(0).normal(size=(rows, dimensions)).astype(np.float32)
    write(root / "features" / "a.bin", array)
    (root / "labels").mkdir()
    (root / "labels" / "a.meta").write_text("".join(f"{n}\n" for n in range(rows)) if labels is None else labels)
    return array


def test_blocks_are_the_rows_in_order(tmp_path: Path) -> None:
    array = make_set(tmp_path, rows=23)
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
    path = write(tmp_path / "a.bin", rows)
    with pytest.raises(FormatError, match=rf"a\.bin: expected 320 bytes for 10 rows of 8 float32, found .*{message}"):
        open_matrix(path, 8, 10)


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
    make_set(tmp_path, labels=labels)
    with pytest.raises(FormatError, match=message):
        open_feature_set(tmp_path, "a", dimensions)


def test_missing_files_are_named(tmp_path: Path) -> None:
    make_set(tmp_path)
    with pytest.raises(InputError, match=r"b\.bin: no such file"):
        open_feature_set(tmp_path, "b")
    (tmp_path / "labels" / "a.meta").unlink()
    with pytest.raises(OptionError, match="give --dim"):
        open_feature_set(tmp_path, "a")
    assert open_feature_set(tmp_path, "a", 8).matrix.rows == 10


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a\n"])
def test_a_name_is_that_of_a_file(name: str) -> None:
    with pytest.raises(OptionError, match="is not a file name"):
        FeatureSet("data", name)


def test_a_matrix_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", np.ones((4, 4), np.float32))
    with pytest.raises(FormatError, match="cut short while it was being read"):
        Matrix(str(path), 6, 4).block(0, 6)


@given(arrays.arrays(np.float32, (6, 3), elements=st.sampled_from([0.0, 1.0, np.nan, np.inf, -0.0])))
def test_bad_rows_are_found_and_named(block: Array) -> None:
    expected = [not all(np.isfinite(row)) or not any(row) for row in block.tolist()]
    assert bad_rows(block).tolist() == expected
    if any(expected):
        with pytest.raises(FormatError, match=rf"x: row {1000 + expected.index(True):,} \("):
            check_rows(block, 1000, "x")
    else:
        check_rows(block, 1000, "x")
