"""Walking a record file: it finds every record, says where damage is, and with salvage loses only what is damaged."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support import chunk, file_of, jpeg, peak_bytes

from facedata.converters.rec import walk as walk_module
from facedata.converters.rec.recordio import (
    MAGIC,
    MAGIC_BYTES,
    MAXIMUM_LENGTH,
    ImageRecord,
    RecordReader,
    encode_record,
    pack_image_record,
)
from facedata.converters.rec.walk import WalkedRecords, walk_records
from facedata.errors import FormatError


def image_record(key: int, image: bytes | None = None, labels: Sequence[float] = (0.0,)) -> bytes:
    """The chunks of an image record, or of a meta record where there are two labels."""
    flag = 0 if len(labels) == 1 else len(labels)
    content = jpeg(key) if image is None else image
    return encode_record(pack_image_record(ImageRecord(flag, tuple(labels), key, 0, content)))


def records_of(pieces: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    images = st.lists(pieces | st.just(MAGIC_BYTES), max_size=8).map(b"".join)
    return st.lists(images, min_size=1, max_size=8).map(
        lambda images: [image_record(key, image) for key, image in enumerate(images)]
    )


RECORDS = records_of(st.binary(max_size=9))
UNLIKE_RECORDS = records_of(st.lists(st.integers(0x80, 0xFF), max_size=9).map(bytes))
"""What follows a magic word in an image is no length: after damage, a record inside an image is taken for one."""
BLOCKS = st.integers(9, 40).map(lambda words: 4 * words)
A, B, C = image_record(0), image_record(1), image_record(2)
SPLIT = image_record(3, b"ab--" + MAGIC_BYTES + b"cd--" + MAGIC_BYTES + b"ef")
PARTS = (36, 48, 58)
"""Where the parts of `SPLIT` end: 8 + 28, 8 + 4 more, 8 + 2 more and padding."""


def walk(data: bytes, *, salvage: bool = False, block: int = 1 << 22) -> WalkedRecords:
    with file_of(data) as path:
        return walk_records(path, salvage=salvage, block_size=block)


def places(records: Sequence[bytes]) -> list[int]:
    return list(accumulate(map(len, records), initial=0))[:-1]


def keys_by_offset(data: bytes, *, salvage: bool = False) -> dict[int, int]:
    with file_of(data) as path:
        index = walk_records(path, salvage=salvage).index(str(path))
    return dict(zip(index.offsets.tolist(), index.keys, strict=True))


def salvaged(data: bytes, block: int = 1 << 22) -> tuple[list[bytes], int]:
    """The encoded records that can be read after a walk with salvage, and how many of those listed fail."""
    with file_of(data) as path, RecordReader(path) as reader:
        walked = walk_records(path, salvage=True, block_size=block)
        assert list(walked.offsets) == sorted(set(walked.offsets))
        whole, failed = [], 0
        for offset in walked.offsets:
            try:
                payload, _ = reader.read(offset)
            except FormatError:
                failed += 1
                continue
            if offset in walked.corrupt:
                failed += 1
            else:
                whole.append(encode_record(payload))
    assert walked.damaged <= failed  # damage inside a record may show only when it is read
    return whole, failed


@given(RECORDS, BLOCKS | st.just(1 << 22))
def test_it_finds_what_was_written_wherever_the_blocks_end(records: list[bytes], block: int) -> None:
    walked = walk(b"".join(records), block=block)
    assert list(walked.offsets) == places(records)
    assert list(walked.identifiers) == list(range(len(records)))
    assert walked.damaged == 0


def test_a_long_record_is_jumped_over_not_read(tmp_path: Path) -> None:
    path, long = tmp_path / "train.rec", (1 << 26) - 1
    with open(path, "wb") as file:
        file.write(chunk(0, bytes(24), length=long))
        file.seek(8 + long + 1)  # a hole in the file: 64 MiB that are not there
        file.write(image_record(1))
    found: list[int] = []
    assert peak_bytes(lambda: found.extend(walk_records(path, block_size=1 << 20).offsets)) < 1 << 22
    assert found == [0, 8 + long + 1]


IDS = st.integers(0, 1 << 40).filter(lambda number: number & 0xFFFFFFFF != MAGIC)  # or the header itself is split


@given(st.lists(IDS, unique=True, min_size=1, max_size=8))
def test_keys_are_the_ids_of_the_records_if_these_differ(ids: list[int]) -> None:
    assume(sorted(ids) != list(range(1, len(ids) + 1)))  # see the next test
    records = [image_record(key, b"image") for key in ids]
    assert keys_by_offset(b"".join(records)) == dict(zip(places(records), ids, strict=True))


# the ids of the images, those of the records after them, with the two labels of each, and the keys
Ranges = list[tuple[int, float, float]]
COUNTED: dict[str, tuple[list[int], Ranges, list[int]]] = {
    "all 0": ([0, 0, 0], [], [0, 1, 2]),
    "one twice": ([5, 7, 5], [], [0, 1, 2]),
    "shuffled from 1, as by shuffle_rec.py": ([3, 1, 2], [], [0, 1, 2]),
    "the meta record is the last": ([7, 7], [(7, 1, 3), (7, 3, 4)], [1, 2, 3, 0]),
    "more than meta counts, as left by dataset_clean.py": ([3, 9], [(3, 1, 3), (0, 3, 4)], [1, 2, 3, 0]),
    "meta counts nan": ([1, 2], [(0, 3, float("nan"))], [1, 2, 0]),
    "meta counts inf": ([1, 2], [(0, 3, float("inf"))], [1, 2, 0]),
    "meta counts 3.4e38": ([1, 2], [(0, 3, 3.4e38)], [1, 2, 0]),
}


@pytest.mark.parametrize(("images", "others", "keys"), COUNTED.values(), ids=COUNTED)
def test_records_are_counted_if_ids_cannot_be_keys(images: list[int], others: Ranges, keys: list[int]) -> None:
    records = [image_record(key) for key in images] + [image_record(key, b"", labels) for key, *labels in others]
    assert keys_by_offset(b"".join(records)) == dict(zip(places(records), keys, strict=True))


@pytest.mark.parametrize(
    "middle",
    [encode_record(b"short"), image_record(1 << 63), b"\0" + B[1:]],
    ids=["no image header", "id too large", "damaged"],
)
def test_a_record_without_a_usable_id_takes_none_from_the_others(middle: bytes) -> None:
    for after, keys in ((7, [0, 1, 7, 8]), (1, [0, 9, 1, 8])):
        records = [A, middle, image_record(after), image_record(8)]
        assert keys_by_offset(b"".join(records), salvage=True) == dict(zip(places(records), keys, strict=True))


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=4), st.integers(0, 4))
@example([(1 << 63) - 1], 1)
def test_ids_of_any_size_with_damage_between_give_each_record_a_key(ids: list[int], damaged: int) -> None:
    records = [image_record(key, b"image") for key in ids]
    records.insert(damaged, bytes(32))
    keys = keys_by_offset(b"".join(records), salvage=True)
    assert len(set(keys.values())) == len(keys) == len(records)
    assert min(keys.values()) >= 0


def test_progress_counts_up_to_the_size_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(A * 9 + image_record(1, bytes(500)))
    seen: list[tuple[int, int]] = []
    walk_records(tmp_path / "train.rec", progress=lambda done, total: seen.append((done, total)), block_size=64)
    size = (tmp_path / "train.rec").stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert len(seen) > 5


# the data, how many records lie before the damage, where it is, the complete records that --salvage finds, and how
# many places are damaged
DAMAGED: dict[str, tuple[bytes, int, int, list[bytes], int]] = {
    "cut in a header": (A + B + C[:7], 2, len(A + B), [A, B], 1),
    "cut in the middle of a chunk": (A + B[:-9], 1, len(A), [A], 1),
    "nothing but garbage": (b"\xff" * 99, 0, 0, [], 1),
    "garbage twice": (A + bytes(8) + B + bytes(400) + C, 1, len(A), [A, B, C], 2),
    "magic flipped": (A + b"\0" + B[1:] + C, 1, len(A), [A, C], 1),
    "magic of the first flipped": (b"\0" + A[1:] + B, 0, 0, [B], 1),
    "length too small": (A + chunk(0, B[8:-4], length=20) + C, 2, len(A) + 28, [A, chunk(0, B[8:28]), C], 1),
    "cflag 5": (A + chunk(5, bytes(24)) + C, 1, len(A), [A, C], 1),
    "split record cut in a part": (A + SPLIT[: PARTS[1] - 2], 2, len(A) + PARTS[0], [A], 1),
    "last part missing": (A + SPLIT[: PARTS[1]] + B, 2, len(A) + PARTS[1], [A, B], 1),
    "middle part missing": (A + SPLIT[: PARTS[0]] + SPLIT + B, 2, len(A) + PARTS[0], [A, SPLIT, B], 1),
    "5 bytes between records": (A + b"abcde" + B + SPLIT, 1, len(A), [A, B, SPLIT], 1),
    "part of a magic between records": (A + MAGIC_BYTES[:3] + B + SPLIT, 1, len(A), [A, B, SPLIT], 1),
    "first part missing": (A + SPLIT[PARTS[0] :] + B, 1, len(A), [A, B], 1),
}


@pytest.mark.parametrize(("data", "before", "place", "complete", "damaged"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_refused_with_its_place_and_skipped_with_salvage(
    data: bytes, before: int, place: int, complete: list[bytes], damaged: int
) -> None:
    message = rf"train\.rec: byte {place} of {len(data)}: .* the {before} records before it .*Fetch the file again, or "
    for block in (36, 64, 1 << 22):
        with pytest.raises(FormatError, match=message + "give --salvage"):
            walk(data, block=block)
        assert salvaged(data, block) == (complete, damaged)


def test_with_salvage_whole_records_after_a_wrong_length_are_found() -> None:
    for length in (len(B) + 4, len(B + C) + 4):  # too large by a word, and by a record
        assert salvaged(A + chunk(0, B[8:], length=length) + C + A) == ([A, C, A], 1)
    for ends_missing, damaged in ((B[:-8], 1), (B[:36] + B[:-8], 2)):
        assert salvaged(A + ends_missing + C + A) == ([A, C, A], damaged)
    first, rest = SPLIT[: PARTS[0]], SPLIT[PARTS[0] :]  # the first part of a split record is too long
    assert salvaged(A + chunk(1, first[8:], length=len(first) + 4) + rest + B) == ([A, B], 1)


@given(UNLIKE_RECORDS, BLOCKS, st.booleans(), st.integers(1, 255) | st.sampled_from([4, 8, 16, 32, 64]), st.data())
def test_with_salvage_a_flipped_byte_or_missing_ones_never_cost_a_whole_record(
    records: list[bytes], block: int, missing: bool, flip: int, data: st.DataObject
) -> None:
    damaged, offsets = bytearray(b"".join(records)), places(records)
    first = data.draw(st.integers(0, len(damaged) - 1) | st.sampled_from([offset + 4 for offset in offsets]))
    end = data.draw(st.integers(first, len(damaged))) if missing else first + 1
    damaged[first:end] = b"" if missing else bytes([damaged[first] ^ flip])
    whole, found = salvaged(bytes(damaged), block)
    untouched = [
        record
        for record, offset in zip(records, offsets, strict=True)
        if offset + len(record) <= first or offset >= end
    ]
    if found:  # the damage shows
        assert [record for record in whole if record in untouched] == untouched


@given(RECORDS, BLOCKS, st.data())
def test_salvage_of_a_cut_file_gives_what_lies_before(records: list[bytes], block: int, data: st.DataObject) -> None:
    whole = b"".join(records)
    end = data.draw(st.integers(0, len(whole)))
    found, damaged = salvaged(whole[:end], block)
    kept = [record for record, offset in zip(records, places(records), strict=True) if offset + len(record) <= end]
    assert found[: len(kept)] == kept
    assert damaged <= 1
    assert len(found) + damaged == sum(offset < end for offset in places(records))


PIECES = st.binary(max_size=20) | st.sampled_from([A, SPLIT, MAGIC_BYTES, *map(chunk, range(4), [b""] * 4)])


@given(st.lists(PIECES), BLOCKS)
def test_any_bytes_are_walked_to_their_end(pieces: list[bytes], block: int) -> None:
    data = b"".join(pieces)
    whole, damaged = salvaged(data, block)
    if walk(data, salvage=True, block=block).damaged:
        with pytest.raises(FormatError, match=r"train\.rec: byte \d+ of"):
            walk(data, block=block)
    elif not damaged:
        assert b"".join(whole) == data or not any(data[-3:])  # padding may be missing at the end


def test_many_damaged_places_cost_no_more_than_some_readings_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def counting(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal taken
        data = os.pread(descriptor, length, offset)
        taken += len(data)
        return data

    monkeypatch.setattr(walk_module, "read_exactly", counting)
    data = (chunk(0, b"") + b"junk") * 300 + bytes(1 << 23)
    assert walk(data, salvage=True).damaged == 300
    assert taken < 8 * len(data)


def test_damage_is_passed_over_without_believing_a_length() -> None:
    data = b"".join(chunk(flag % 4, b"", length=MAXIMUM_LENGTH) for flag in range(64))
    with file_of(data) as path:
        assert peak_bytes(lambda: walk_records(path, salvage=True)) < 1 << 24  # a few blocks; the length says 512 MiB


def test_a_file_that_becomes_shorter_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    path.write_bytes(A * 9)
    with pytest.raises(FormatError, match=re.escape(f"{path}: the file became shorter while it was being read")):
        walk_records(path, salvage=True, progress=lambda done, _: os.truncate(path, done + 8), block_size=64)
