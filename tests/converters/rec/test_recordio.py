"""Records and index: every payload comes back, and no file, whatever it holds, does more than raise `FormatError`."""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import chunk, file_of, peak_bytes

from facedata.converters.rec import recordio
from facedata.converters.rec.recordio import (
    ADVICE,
    LARGEST_LABEL,
    MAGIC,
    MAGIC_BYTES,
    MAXIMUM_LENGTH,
    ImageRecord,
    RecordIndex,
    RecordReader,
    class_of,
    encode_record,
    pack_image_record,
    read_index,
    unpack_image_record,
    write_index,
)
from facedata.errors import FormatError, InputError, InputNotFoundError, OutputError

PAYLOADS = st.lists(st.binary(max_size=9) | st.just(MAGIC_BYTES), max_size=12).map(b"".join)
"""With the magic word at multiples of 4, elsewhere, several times in a row, at both ends."""

CHUNK_HEADERS = st.builds(
    lambda flag, length: struct.pack("<II", MAGIC, flag << 29 | length),
    st.integers(0, 7),
    st.integers(0, 40) | st.sampled_from([MAXIMUM_LENGTH, MAXIMUM_LENGTH - 1, 1 << 20]),
)
HOSTILE_FILES = st.lists(st.binary(max_size=24) | CHUNK_HEADERS | PAYLOADS.map(encode_record), max_size=8).map(b"".join)


def read(data: bytes, offset: int = 0) -> tuple[bytes, int]:
    with file_of(data) as path, RecordReader(path) as reader:
        return reader.read(offset)


@given(PAYLOADS)
@example(bytes(24) + b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES * 2 + b"xy")
@example(b"a" + MAGIC_BYTES + b"bcd")
def test_a_payload_is_split_at_each_magic_on_a_multiple_of_four_and_comes_back(payload: bytes) -> None:
    parts = [b""]
    for at in range(0, len(payload), 4):
        word = payload[at : at + 4]
        if word == MAGIC_BYTES:
            parts.append(b"")
        else:
            parts[-1] += word
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    data = encode_record(payload)
    assert data == b"".join(map(chunk, flags, parts))
    assert read(data) == (payload, len(data))


def test_a_payload_longer_than_the_format_can_say_is_refused() -> None:
    with pytest.raises(FormatError, match=f"{MAXIMUM_LENGTH + 1} bytes: RecordIO holds at most {MAXIMUM_LENGTH}"):
        encode_record(bytes(MAXIMUM_LENGTH + 1))


FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40)
UINT64 = st.integers(0, (1 << 64) - 1)


@given(FLOATS, st.booleans(), UINT64, UINT64, st.binary(max_size=20))
def test_image_headers_have_the_layout_of_irheader(
    labels: list[float], is_array: bool, number: int, second: int, image: bytes
) -> None:
    flag, single = (len(labels), 0.0) if is_array else (0, labels[0])
    array = struct.pack(f"<{flag}f", *labels[:flag])
    payload = struct.pack("<IfQQ", flag, single, number, second) + array + image
    record = ImageRecord(flag, tuple(labels if is_array else labels[:1]), number, second, image)
    assert pack_image_record(record) == payload
    assert unpack_image_record(payload) == record


def test_a_payload_shorter_than_its_header_says_is_refused() -> None:
    for flag in (3, (1 << 32) - 1):
        with pytest.raises(FormatError, match=f"declares {flag} labels, but the record has 35 bytes"):
            unpack_image_record(struct.pack("<IfQQ", flag, 0.0, 0, 0) + bytes(11))
    labels = 1 << 20  # of which there is room
    with pytest.raises(FormatError, match="declares 1,048,576 labels; at most 65,536 are read"):
        unpack_image_record(struct.pack("<IfQQ", labels, 0.0, 0, 0) + bytes(4 * labels + 1))
    with pytest.raises(FormatError, match="23 bytes is too short for the 24 byte image header"):
        unpack_image_record(bytes(23))


@pytest.mark.parametrize("label", [np.nan, np.inf, -np.inf, -1.0, 0.5, 1e-30, float(LARGEST_LABEL + 2), 3.0e38])
def test_a_label_that_is_not_an_exact_integer_from_0_is_refused(label: float) -> None:
    rounded = LARGEST_LABEL < label < float("inf")
    message = f"above {LARGEST_LABEL}, above which" if rounded else f"label {label:g} is not an integer from 0"
    for flag in (0, 2):
        assert class_of(ImageRecord(flag, (float(LARGEST_LABEL), 1.5), 0, 0, b"")) == LARGEST_LABEL
        with pytest.raises(FormatError, match=re.escape(message)):
            class_of(ImageRecord(flag, (label, 1.0), 0, 0, b""))


DAMAGED = {
    "wrong magic": (chunk(0, b"abcd", magic=0x0BADCAFE), "no record begins at byte 0: found 0x0badcafe, expected"),
    "cflag 4": (chunk(4, b"abcd"), "cflag 4 at byte 0 is not one of 0 to 3"),
    "begins with part 2": (chunk(2, b"abcd"), "here is part 2 of a split record"),
    "split, then a whole record": (chunk(1, b"ab") + chunk(0, b"cd"), "not continued at byte 12: a new record"),
    "split, then the end": (chunk(1, b"abcd"), "offset 12 lies past the end of the file"),
    "split, then garbage": (chunk(1, b"abcd") + bytes(16), "no record begins at byte 12"),
    "longer than the file": (chunk(0, b"abcd", length=5), "has 5 bytes, but the file ends 4 bytes after its header"),
    "part longer than the file": (chunk(1, b"abcd") + chunk(3, b"", length=1), "byte 12 has 1 bytes, but the file"),
    "header cut": (chunk(0, b"")[:7], "offset 0 lies past the end of the file"),
    "empty file": (b"", "offset 0 lies past the end of the file"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(data)


@pytest.mark.parametrize("offset", [-8, -1, 1, 5, 12, 1 << 63, 1 << 70])
def test_an_offset_where_no_record_begins_is_refused(offset: int) -> None:
    with pytest.raises(FormatError, match=r"past the end of the file|no record begins"):
        read(encode_record(b"abcd"), offset)


def test_a_record_larger_than_any_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_LARGEST_RECORD", 255)  # the real one would take a quarter of a gigabyte
    for data in (chunk(1, bytes(200)) + chunk(2, bytes(52)) + chunk(3, b""), chunk(0, bytes(256))):
        with pytest.raises(FormatError, match="has 256 bytes or more; at most 255 are read"):
            read(data)
    assert len(read(chunk(1, bytes(200)) + chunk(3, bytes(51)))[0]) == 255


def test_a_file_that_becomes_shorter_while_it_is_read_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    path.write_bytes(encode_record(b"abcdefgh"))
    with RecordReader(path) as reader:
        os.truncate(path, 12)
        with pytest.raises(FormatError, match="the file ends inside the record at byte 0"):
            reader.read(0)
        os.truncate(path, 5)
        with pytest.raises(FormatError, match="the file ends inside the record's header at byte 0"):
            reader.read(0)


@given(HOSTILE_FILES, st.integers(-9, 150) | st.integers())
def test_any_bytes_read_anywhere_are_a_record_or_a_format_error(data: bytes, offset: int) -> None:
    with suppress(FormatError):
        payload, end = read(data, offset)
        assert 0 <= offset < end <= len(data) + 3
        assert len(payload) <= end - offset - 8


@given(HOSTILE_FILES)
def test_no_claimed_length_is_believed_before_it_is_checked(data: bytes) -> None:
    with file_of(data) as path, RecordReader(path) as reader:

        def read_everywhere() -> None:
            for offset in range(len(data)):
                with suppress(FormatError):
                    reader.read(offset)

        assert peak_bytes(read_everywhere) < (1 << 16) + 8 * len(data)


CRAFTED = {
    "magic words": chunk(0, (MAGIC_BYTES + b"abcd") * 20_000),
    "small parts": chunk(1, b"") + chunk(2, b"abcd") * 20_000 + chunk(3, b""),
    "empty parts": chunk(1, b"") + chunk(2, b"") * 20_000 + chunk(3, b""),
}


@pytest.mark.parametrize("data", CRAFTED.values(), ids=CRAFTED)
def test_a_record_takes_little_more_memory_than_it_has_bytes(data: bytes) -> None:
    def read_it() -> None:
        with suppress(FormatError):
            read(data)

    assert peak_bytes(read_it) < 3 * len(data)


@given(st.integers(0, 60), st.data())
def test_a_record_cut_anywhere_is_a_format_error(size: int, data: st.DataObject) -> None:
    payload = bytes(24) + MAGIC_BYTES.join([b"x" * size] * 3)
    whole = encode_record(payload)
    last = len(whole) - -len(payload) % 4  # the padding at the end may be missing
    with pytest.raises(FormatError):
        read(whole[: data.draw(st.integers(0, last - 1))])
    assert read(whole[:last])[0] == payload


# The index

LARGEST = (1 << 63) - 1

ENTRIES = st.dictionaries(
    st.integers(0, 30) | st.integers(0, 1 << 40), st.integers(0, 1 << 62) | st.integers(0, 1 << 20), max_size=30
)
"""Keys to offsets; hypothesis draws the keys in any order."""


def read_text(text: str) -> RecordIndex:
    with file_of(text.encode(), "train.idx") as path:
        return read_index(path)


@given(ENTRIES, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_entries_come_back_in_key_order(entries: dict[int, int], line_end: str, end_missing: bool) -> None:
    text = "".join(f"{key}\t{offset}{line_end}" for key, offset in entries.items())
    index = read_text(text.removesuffix(line_end) if end_missing else text)
    assert list(index.keys) == sorted(entries)
    assert index.offsets.tolist() == [entries[key] for key in sorted(entries)]
    assert isinstance(index.keys, range) == (bool(entries) and max(entries) - min(entries) == len(entries) - 1)


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
    texts = ["1\t0\n2\t40\n", "1\t0\n3\t40\n", "1\t0\n2\t44\n", "2\t40\n1\t0\n"]
    assert len({read_text(text).digest() for text in texts}) == 3  # the order of the lines does not count
    assert len(read_text("")) == 0


BAD_LINES = ["2", "2\t", "2\n3\t80\n", "\t40\n", "\n2\t40\n", "key\toffset\n", "-1\t40\n", "2\t40.0\n", "2 40\n"]
BAD_LINES += ["2\t40\t80\n", "\N{SNOWMAN}\t40\n", "\x1b[2J\0\n", "2" * 100]
SHOWN = {"\N{SNOWMAN}\t40": r"\xe2\x98\x83" + "\t40", "\x1b[2J\0": r"\x1b[2J\x00", "2" * 100: "2" * 60}


@pytest.mark.parametrize("text", BAD_LINES)
def test_a_bad_line_is_refused_by_file_number_and_text(text: str) -> None:
    line = text.partition("\n")[0]
    message = re.escape(f"train.idx: line 2 is '{SHOWN.get(line, line)}', expected key<TAB>offset") + f".*{ADVICE}$"
    with pytest.raises(FormatError, match=message):
        read_text(f"1\t0\n{text}")


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
