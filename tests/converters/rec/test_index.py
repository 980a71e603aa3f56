"""The index file: read in any order, refused with its line and a way out where it is damaged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import file_of

from facedata.converters.rec.recordio import RecordIndex, read_index, write_index
from facedata.errors import FormatError, InputError, InputNotFoundError, OutputError

LARGEST = (1 << 63) - 1
ADVICE = "give --rebuild-index to read without it, or rebuild it with facedata index-rec --overwrite"

ENTRIES = st.dictionaries(
    st.integers(0, 30) | st.integers(0, 1 << 40), st.integers(0, 1 << 62) | st.integers(0, 1 << 20), max_size=30
)
"""Keys to offsets; hypothesis draws the keys in any order."""


def read_text(text: str) -> RecordIndex:
    with file_of(text.encode(), "train.idx") as path:
        return read_index(path)


@given(ENTRIES)
def test_keys_and_offsets_in_any_order_come_back_in_key_order(entries: dict[int, int]) -> None:
    with file_of(b"", "train.idx") as path:
        write_index(path, list(entries), np.array(list(entries.values()), np.int64))
        index = read_index(path)
    assert list(index.keys) == sorted(entries)
    assert index.offsets.tolist() == [entries[key] for key in sorted(entries)]
    assert isinstance(index.keys, range) == (bool(entries) and max(entries) - min(entries) == len(entries) - 1)


@given(ENTRIES, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_line_ends_of_any_kind_and_none_at_the_end_are_read(
    entries: dict[int, int], line_end: str, end_missing: bool
) -> None:
    text = "".join(f"{key}\t{offset}{line_end}" for key, offset in entries.items())
    index = read_text(text.removesuffix(line_end) if end_missing else text)
    assert dict(zip(index.keys, index.offsets.tolist(), strict=True)) == entries


def test_keys_are_a_range_unless_there_are_gaps() -> None:
    index = read_text("1\t0\n2\t40\n3\t80\n0\t120\n")  # InsightFace: the meta record is last
    assert (index.keys, index.offsets.tolist()) == (range(4), [120, 0, 40, 80])
    assert (index[1:].keys, [index.position(key) for key in (-1, 0, 3, 4)]) == (range(1, 4), [None, 0, 3, None])
    index = read_text("7\t0\n4294967296\t40\n9\t80\n18014398509481984\t120\n")
    assert list(index.keys) == [7, 9, 1 << 32, 1 << 54]
    assert [index.position(key) for key in (7, 9, 1 << 32, 1 << 54)] == [0, 1, 2, 3]
    assert [index.position(key) for key in (-1, 0, 8, (1 << 54) + 1)] == [None] * 4
    assert (index[1:3].position(1 << 32), index[1:3].position(7)) == (1, None)
    assert index[1:3].offsets.tolist() == [80, 40]
    assert len(read_text("")) == 0


BAD_LINES = {
    "last line cut before the tab": ("1\t0\n2", 2, "2"),
    "last line cut behind the tab": ("1\t0\n2\t", 2, "2\t"),
    "line cut in the middle": ("1\t0\n2\n3\t80\n", 2, "2"),
    "offset missing": ("1\t0\n2\t\n3\t80\n", 2, "2\t"),
    "key missing": ("1\t0\n\t40\n", 2, "\t40"),
    "empty line inside": ("1\t0\n\n2\t40\n", 2, ""),
    "empty line at the beginning": ("\n1\t0\n", 1, ""),
    "letters": ("1\t0\nkey\toffset\n", 2, "key\toffset"),
    "letters behind the offset": ("1\t0\n2\t40x\n", 2, "2\t40x"),
    "letters at the end": ("1\t0\n2\t40x", 2, "2\t40x"),
    "negative key": ("1\t0\n-1\t40\n", 2, "-1\t40"),
    "negative offset": ("1\t0\n2\t-1\n", 2, "2\t-1"),
    "float offset": ("1\t0\n2\t40.0\n", 2, "2\t40.0"),
    "exponent": ("1\t0\n2\t4e1\n", 2, "2\t4e1"),
    "space in place of the tab": ("1\t0\n2 40\n", 2, "2 40"),
    "spaces around": ("1\t0\n 2\t40 \n", 2, " 2\t40 "),
    "three columns": ("1\t0\n2\t40\t80\n", 2, "2\t40\t80"),
    "two lines in one": ("1\t0\t2\t40\n", 1, "1\t0\t2\t40"),
    "bytes that are no text": ("1\t0\n\N{SNOWMAN}\t40\n", 2, r"\xe2\x98\x83" + "\t40"),
    "control characters": ("1\t0\n\x1b[2J\0\n", 2, r"\x1b[2J\x00"),
    "one long line without an end": ("1\t0\n" + "2" * 100, 2, "2" * 60),
}


@pytest.mark.parametrize(("text", "line", "shown"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_refused_by_file_number_and_text(text: str, line: int, shown: str) -> None:
    message = re.escape(f"train.idx: line {line} is '{shown}', expected key<TAB>offset") + f".*{ADVICE}$"
    with pytest.raises(FormatError, match=message):
        read_text(text)


@pytest.mark.parametrize("text", ["1\t0\n2\t40\n1\t80\n", "2\t0\n1\t40\n1\t80\n", "5\t0\n1\t40\n2\t80\n1\t120\n"])
def test_a_key_that_stands_twice_is_refused_by_name(text: str) -> None:
    with pytest.raises(FormatError, match=r"train\.idx: key 1 occurs twice.*" + ADVICE):
        read_text(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *[(f"7\t{n}", f"line 2, key 7: invalid offset {n} .left by a failed write.") for n in (LARGEST, 1 << 80)],
        *[(f"{n}\t40", f"line 2: key {n} is too large") for n in (LARGEST, (1 << 64) - 1)],
        ("1\t" + "9" * 5000, "line 2, key 1: invalid offset 9{40} "),
        ("9" * 5000 + "\t1", "line 2: key 9{40} is too large"),
    ],
)
def test_a_number_that_is_too_large_is_refused_by_line(line: str, message: str) -> None:
    with pytest.raises(FormatError, match=rf"train\.idx: {message}.*{ADVICE}"):
        read_text(f"1\t0\n{line}\n")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"train\.idx: no such file"):
        read_index(tmp_path / "train.idx")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}: is a folder, not a file")):
        read_index(tmp_path)
    with pytest.raises(OutputError, match=r"nowhere/train\.idx: cannot be written"):
        write_index(tmp_path / "nowhere" / "train.idx", [0], np.array([0]))


def test_an_index_is_written_as_by_mxnet_complete_or_not_at_all(tmp_path: Path) -> None:
    write_index(tmp_path / "train.idx", [1, 2, 0], np.array([0, 40, 80]))
    with pytest.raises(ValueError, match="zip"):
        write_index(tmp_path / "train.idx", [1], np.array([0, 40]))
    assert [path.name for path in tmp_path.iterdir()] == ["train.idx"]
    assert (tmp_path / "train.idx").read_bytes() == b"1\t0\n2\t40\n0\t80\n"


@given(st.text("0123456789\t\n", max_size=60) | st.text("19\t\n\r -x.\0", max_size=30))
def test_any_text_is_an_index_or_a_format_error(text: str) -> None:
    try:
        index = read_text(text)
    except FormatError as error:
        assert re.search(r"train\.idx: (line \d+|key \d+ occurs twice)", str(error))  # noqa: PT017, both ways are good
    else:
        lines = [tuple(map(int, line.split("\t"))) for line in text.split("\n") if line.strip()]
        assert list(zip(index.keys, index.offsets.tolist(), strict=True)) == sorted(lines)


@given(ENTRIES, st.sampled_from(["key", "offset", "order"]))
def test_the_digest_tells_indexes_apart(entries: dict[int, int], change: str) -> None:
    entries[1 << 41] = 7
    keys, offsets = list(entries), np.array(list(entries.values()), np.int64)
    text = "".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True))
    other = {"key": f"{(1 << 41) + 1}\t7\n", "offset": f"{1 << 41}\t8\n", "order": f"{1 << 41}\t7\n"}[change]
    changed = "".join(text.splitlines(keepends=True)[:-1]) + other
    assert (read_text(text).digest() == read_text(changed).digest()) == (change == "order")
