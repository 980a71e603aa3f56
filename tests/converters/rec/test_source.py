"""`RecSource`: reading in large blocks delivers the very samples that reading record by record does."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import RecordSetMaker, file_of, jpeg, peak_bytes

from facedata.converters.rec import recordio
from facedata.converters.rec import source as source_module
from facedata.converters.rec.record_set import open_record_set
from facedata.converters.rec.recordio import (
    MAGIC_BYTES,
    RecordIndex,
    RecordReader,
    class_of,
    encode_record,
    unpack_image_record,
)
from facedata.converters.rec.source import RecSource
from facedata.dataset import Sample
from facedata.errors import FormatError, InputNotFoundError, SampleError

MakeSet = Callable[..., RecordSetMaker]

IMAGES = st.binary(min_size=1, max_size=40) | st.lists(
    st.binary(max_size=5) | st.just(MAGIC_BYTES), min_size=1, max_size=6
).map(b"".join)
LABEL_BITS = st.integers(0, (1 << 32) - 1) | st.sampled_from([0, 0x3F800000, 0x4B800000, 0x4B800001, 0x7F800000])
"""Any float32 as its bits: 0, 1, 2**24, the number behind it, infinity among them."""
FLAGS = st.integers(0, 3) | st.sampled_from([1000, (1 << 32) - 1])
PAYLOADS = st.builds(
    lambda flag, bits, values, image: struct.pack("<IIQQ", flag, bits, 0, 0) + values + image,
    FLAGS,
    LABEL_BITS,
    st.lists(LABEL_BITS, max_size=3).map(lambda bits: struct.pack(f"<{len(bits)}I", *bits)),
    IMAGES | st.just(b""),
)
PIECES = st.builds(encode_record, PAYLOADS) | st.binary(max_size=30) | IMAGES.map(encode_record)
"""Records, and between them gaps, garbage, and records that hold no image header."""


def record_by_record(source: RecSource) -> list[Sample | str]:
    """What the source must deliver, by the plain reader; errors by their reason alone."""
    items: list[Sample | str] = []
    with RecordReader(source.path) as reader:
        for key, offset in zip(source.index.keys, source.index.offsets.tolist(), strict=True):
            try:
                record = unpack_image_record(reader.read(offset)[0])
                label = class_of(record) if record.image else -1
                sample = Sample(str(key), label, record.image, None, record.labels[1:] or None)
                items.append(sample if record.image else "the record holds no image")
            except FormatError as error:
                items.append(str(error))
    return items


def comparable(items: Iterable[Sample | SampleError]) -> list[Sample | str]:
    return [item.reason if isinstance(item, SampleError) else item for item in items]


@contextmanager
def source_of(pieces: list[bytes], order: list[int]) -> Iterator[RecSource]:
    """A source that takes every piece for a record, in the order given."""
    ends = np.cumsum([len(piece) for piece in pieces])
    offsets = (ends - [len(piece) for piece in pieces])[order].astype(np.int64)
    with file_of(b"".join(pieces)) as path:
        index = RecordIndex(range(3, 3 + len(order)), offsets)
        yield RecSource(str(path), index, {"size": int(ends[-1])}, {"records": len(pieces)})


@contextmanager
def small_blocks(block: int, gap: int, shortest_run: int = 1, window: int = 1 << 16) -> Iterator[None]:
    sizes: dict[str, Any] = {"_BLOCK": block, "_LARGEST_GAP": gap, "_SHORTEST_RUN": shortest_run, "_WINDOW": window}
    with patch.multiple(source_module, **sizes, MOST_LABELS=2), patch.object(recordio, "MOST_LABELS", 2):
        yield


WORDS = st.integers(1, 100).map(lambda words: 4 * words)


@given(st.lists(PIECES, min_size=1, max_size=12), st.data(), WORDS, WORDS, st.integers(1, 5), st.integers(1, 20))
def test_blocks_and_lone_reads_deliver_what_the_plain_reader_delivers(
    pieces: list[bytes], data: st.DataObject, block: int, gap: int, shortest_run: int, window: int
) -> None:
    in_order = list(range(len(pieces)))
    order = data.draw(st.just(in_order) | st.lists(st.sampled_from(in_order), min_size=1, max_size=15))
    with source_of(pieces, order) as source, small_blocks(block, gap, shortest_run, window):
        expected = record_by_record(source)
        shown = list(map(repr, expected))  # values may be NaN
        assert list(map(repr, comparable(source.read()))) == shown
        assert list(map(repr, comparable(map(source.fetch, range(len(order)))))) == shown
        labels = source.labels().tolist()
        assert labels == [item.label if isinstance(item, Sample) else -1 for item in expected]
        first, end = (data.draw(st.integers(0, len(order))) for _ in range(2))
        assert list(map(repr, comparable(source[first:end].read()))) == shown[first:end]
        places = data.draw(st.permutations(range(len(order))))
        taken = source.take(np.array(places))
        keys = [str(place + 3) for place in places]
        assert [getattr(item, "key", None) for item in taken.read()] == list(taken.keys()) == keys
        assert taken.labels().tolist() == [labels[n] for n in places]
        assert [taken.locate(n)[1] for n in range(len(places))] == source.index.offsets[places].tolist()


def test_records_in_any_order_take_no_more_memory(record_set: MakeSet) -> None:
    maker = record_set()
    maker.plain(range(2000))
    source = open_record_set(maker.folder)
    positions = np.random.default_rng(0).integers(0, 2000, 10_000)

    def peak(number: int) -> int:
        taken = source.take(positions[:number])
        return peak_bytes(lambda: sum(1 for _ in taken.read()))

    with small_blocks(1 << 22, 1 << 18, 8, window=1000):
        assert peak(10_000) < peak(2_000) + (1 << 16)


def test_records_larger_than_a_block_and_far_apart_are_delivered(record_set: MakeSet) -> None:
    maker, sizes = record_set(), [10, 5_000_000, 3, 300_000, 4_194_304, 1, 1]
    for key, size in enumerate(sizes):
        maker.add(key, float(key), random.Random(key).randbytes(size))
    source = open_record_set(maker.write())
    assert list(source) == record_by_record(source)
    assert [len(sample.image) for sample in source] == sizes
    alone = source.take(np.array([5, 1, 3]))  # longer than one read of a lone record
    assert list(alone) == record_by_record(alone)
    assert peak_bytes(lambda: list(map(type, source.read()))) < 24 << 20


@pytest.mark.parametrize("keys", [range(20), [0, *range(7, 26)]], ids=["range", "gaps"])
def test_a_slice_that_is_pickled_carries_its_part_alone(record_set: MakeSet, keys: list[int] | range) -> None:
    maker = record_set()
    for key in keys:
        maker.add(key, float(key), jpeg(key))
    source = open_record_set(maker.write())
    sent = pickle.loads(pickle.dumps(source[5:15]))  # noqa: S301, our own bytes
    assert list(sent) == list(source)[5:15]
    assert sent.identity() == source.identity()
    lone, all_of_it = (len(pickle.dumps(part)) for part in (source[5:6], source))
    assert all_of_it - lone >= 19 * 8


def test_the_identity_is_that_of_the_content_not_of_the_place(record_set: MakeSet) -> None:
    one, copy, other = (
        open_record_set(record_set(name).plain([0, 1, label])).identity()
        for name, label in (("one", 2), ("copy", 2), ("other", 3))
    )
    assert one == copy
    assert one != other


def test_a_damaged_record_fails_alone_with_key_offset_and_reason(record_set: MakeSet) -> None:
    maker = record_set()
    maker.add(0, 0.0, jpeg(0))
    maker.add_payload(5, struct.pack("<IfQQ", 9, 0.0, 0, 0) + bytes(20))
    maker.add_payload(6, struct.pack("<IIQQ", 0, 0x7FA00000, 0, 0) + jpeg(6))  # a signalling NaN, without a warning
    maker.add(9, 0.0, b"")
    maker.add(11, 0.0, jpeg(11))
    maker.add(12, 2.0, jpeg(12))
    maker.data[maker.offsets[4]] ^= 1
    source = open_record_set(maker.write())
    errors = [item for item in source.read() if isinstance(item, SampleError)]
    assert [item.key for item in source.read() if isinstance(item, Sample)] == ["0", "12"]
    assert [(error.key, error.offset) for error in errors] == [
        (str(key), offset) for key, offset in zip(maker.keys[1:5], maker.offsets[1:5], strict=True)
    ]
    assert [error.reason for error in errors] == [
        "the header declares 9 labels, but the record has 44 bytes",
        "label nan is not an integer from 0",
        "the record holds no image",
        f"no record begins at byte {maker.offsets[4]}: found 0xced7230b, expected the magic 0xced7230a",
    ]
    assert str(errors[0]) == f"{source.path}: key 5, byte {maker.offsets[1]}: {errors[0].reason}"


def test_a_file_that_became_shorter_fails_for_what_is_gone(record_set: MakeSet) -> None:
    maker = record_set()
    folder = maker.plain(range(6))
    source = open_record_set(folder)
    os.truncate(folder / "train.rec", maker.offsets[3] + 20)
    items = list(source.read())
    assert [item.key for item in items if isinstance(item, Sample)] == ["0", "1", "2"]
    reasons = [item.reason for item in items if isinstance(item, SampleError)]
    assert re.match(rf"the record at byte {maker.offsets[3]} has \d+ bytes, but the file ends 12 bytes", reasons[0])
    assert all("past the end of the file" in reason for reason in reasons[1:])


def test_a_file_that_is_gone_is_an_input_error(record_set: MakeSet) -> None:
    folder = record_set().plain([0, 1])
    source = open_record_set(folder)
    (folder / "train.rec").unlink()
    for reading in (source.read, source.labels):
        with pytest.raises(InputNotFoundError, match=r"train\.rec: no such file"):
            list(reading())


@pytest.mark.parametrize("offset", [(1 << 63) - 1, (1 << 63) - 40, 1 << 40])
def test_an_offset_that_no_file_has_fails_alone(record_set: MakeSet, offset: int) -> None:
    maker = record_set()
    folder = maker.plain([0, 1, 2])
    index = RecordIndex(range(4), np.array([*maker.offsets[:2], offset, maker.offsets[2]]))
    source = RecSource(str(folder / "train.rec"), index, {"size": len(maker.data)}, {"records": 4})
    items = list(source.read())
    assert [item.key for item in items if isinstance(item, Sample)] == ["0", "1", "3"]
    assert f"key 2, byte {offset}: offset {offset} lies past the end of the file" in str(items[2])
    assert source.labels().tolist() == [0, 1, -1, 2]


@pytest.mark.parametrize("change", [1, 4], ids=["magic", "length"])
def test_a_salvaged_set_names_its_damaged_place(record_set: MakeSet, change: int) -> None:
    maker = record_set()
    maker.plain([0, 1, 2], index=False)
    if change == 1:
        maker.data[maker.offsets[1]] ^= 1
    else:  # a length that reaches to the next record but one
        maker.data[maker.offsets[1] + 4] += maker.offsets[2] - maker.offsets[1]
    source = open_record_set(maker.write(index=False), salvage=True)
    items = list(source.read())
    assert [item.key for item in items if isinstance(item, Sample)] == ["0", "2"]
    reason = "no record begins" if change == 1 else "the record is incomplete"
    assert f"train.rec: key 1, byte {maker.offsets[1]}: {reason}" in str(items[1])
    assert source.locate(1) == (source.path, maker.offsets[1])
