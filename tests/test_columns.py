"""Columns of integers, read in blocks however these cut the lines."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import peak_bytes

from facedata import columns
from facedata.columns import different_labels, integers, read_label_lines, read_labels, whole_lines
from facedata.errors import FormatError

LABELS = st.lists(st.integers(0, columns.LARGEST_LABEL), min_size=1, max_size=30)


@given(LABELS, st.integers(1, 40), st.booleans())
def test_blocks_of_any_size_give_the_same_lines(labels: list[int], block: int, end_missing: bool) -> None:
    with TemporaryDirectory() as folder, patch.object(columns, "_BLOCK", block):
        path = Path(folder, "list.txt")
        text = "".join(f"a/{place}.jpg {label}\n" for place, label in enumerate(labels))
        path.write_text(text.removesuffix("\n") if end_missing else text)
        lines = read_label_lines(path)
        assert lines.labels.tolist() == labels
        assert list(lines.texts()) == [f"a/{place}.jpg" for place in range(len(labels))]
        assert list(lines[1:].texts()) == [f"a/{place}.jpg" for place in range(1, len(labels))]
        assert different_labels(path).tolist() == sorted(set(labels))
        blocks = list(whole_lines(path))
        assert b"".join(part.block for part in blocks) == text.encode()
        assert [part.first for part in blocks] == [1 + text[: part.offset].count("\n") for part in blocks]
        path.write_text("".join(f"{label}\n" for label in [-1, *labels]))
        assert np.concatenate(list(read_labels(path))).tolist() == [-1, *labels]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1\nb\n", "line 2: expected 'path label' with one space between, found 1 fields"),
        ("a 1\nb  2\n", "line 2: expected 'path label' with one space between, found 3 fields"),
        ("a 1\n 2\n", "line 2: .*nothing before the label"),
        ("a\t1\n", "line 1: .*it has a tab"),
        ("a 1\n\nb 2\n", "line 2: is blank"),
        ("a -1\n", "line 1: the label is not an integer from 0"),
        ("a 1\nb 2147483648\n", "line 2: the label is not an integer from 0 to 2147483647"),
        ("a 1\nb 2x\nc 3\n", "line 2: the label is not an integer"),
        ("a" * 20_000 + " 1\n", "line 1"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(FormatError, match=rf"list\.txt: {message}"):
        read_label_lines(path)


@pytest.mark.parametrize(
    "text", ["1\n\n2\n", "1\n2 3\n", "1\nx\n", "1\n1.5\n", "1\n" + "9" * 30 + "\n", "1\nx\n" + "y" * 9_000_000]
)
def test_a_label_file_names_the_line_that_is_not_an_integer(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.meta"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"a\.meta: line 2 is .*expected an integer"):
        list(read_labels(path))


def test_numbers_end_at_the_first_word_that_is_not_one() -> None:
    assert integers(b"1\t2\n-3 x 4").tolist()[:3] in ([1, 2, -3], [])
    assert integers(b"99999999999999999999").tolist() == [np.iinfo(np.int64).max]


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a 1\n")
    os.truncate(path, 1 << 33)  # a hole

    def refused() -> None:
        with pytest.raises(FormatError, match="line 2 is longer than"):
            read_label_lines(path)

    assert peak_bytes(refused) < 40_000_000
