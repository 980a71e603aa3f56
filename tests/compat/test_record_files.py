"""The bytes of record files: what MXNet writes facedata reads, and the other way round."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import MemorySource, RecordSetMaker

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.rec import create_sink
from facedata.converters.rec.record_set import open_record_set
from facedata.converters.rec.recordio import (
    MAGIC_BYTES,
    ImageRecord,
    RecordReader,
    encode_record,
    pack_image_record,
    read_index,
    unpack_image_record,
)
from facedata.converters.rec.source import import_mxnet_recordio
from facedata.dataset import Sample
from facedata.errors import FormatError, MissingExtraError
from facedata.jobs.job import JobOptions

try:
    recordio = import_mxnet_recordio()
except MissingExtraError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.compat, pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")]

Records = Sequence[tuple[int, bytes]]
WITH_META = ["face2rec2", "dataset_merge", "dataset_relabel", "dataset_clean"]

_pieces = st.one_of(st.just(MAGIC_BYTES), st.binary(max_size=9), st.sampled_from([MAGIC_BYTES[:2], MAGIC_BYTES[2:]]))
payloads = st.lists(_pieces, max_size=8).map(b"".join)
keys = st.integers(0, 2**32 - 1)
records_of_any_kind = st.lists(st.tuples(keys, payloads), min_size=1, max_size=6, unique_by=lambda record: record[0])
float32 = st.floats(width=32, allow_nan=False)
uint64 = st.integers(0, 2**64 - 1)


def written_by_mxnet(folder: Path, records: Records) -> tuple[bytes, bytes]:
    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for key, payload in records:
        writer.write_idx(key, payload)
    writer.close()
    return (folder / "train.rec").read_bytes(), (folder / "train.idx").read_bytes()


def written_by_facedata(folder: Path, records: Records) -> tuple[bytes, bytes]:
    maker = RecordSetMaker(folder)
    for key, payload in records:
        maker.add_payload(key, payload)
    maker.write()
    return (folder / "train.rec").read_bytes(), (folder / "train.idx").read_bytes()


def pack(folder: Path, samples: Sequence[Sample]) -> None:
    """Pack in threads of this process: it has MXNet's own threads, and must not be forked."""
    conversion = plan_conversion("test", MemorySource(samples), create_sink(str(folder), keep_undecodable=True))
    assert run_conversion(conversion, JobOptions(workers=1, executor_factory=ThreadPoolExecutor)).good


def read_by_mxnet(folder: Path, keys: Sequence[int]) -> list[bytes]:
    reader = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    try:
        return [reader.read_idx(key) for key in keys]
    finally:
        reader.close()


def read_by_facedata(folder: Path, keys: Sequence[int]) -> list[bytes]:
    index = read_index(folder / "train.idx")
    with RecordReader(folder / "train.rec") as reader:
        places = [index.position(key) for key in keys]
        return [reader.read(int(index.offsets[place]))[0] for place in places if place is not None]


@settings(deadline=None)
@given(records_of_any_kind)
@example([(0, MAGIC_BYTES)])
@example([(0, MAGIC_BYTES * 5)])
@example([(0, MAGIC_BYTES + b"begins and ends with it ." + MAGIC_BYTES)])
@example([(0, b"ends with it" + MAGIC_BYTES), (1, MAGIC_BYTES + b"begins with it")])
@example([(0, b"." + MAGIC_BYTES + b"not where it splits" + MAGIC_BYTES)])
@example([(0, b"twice in a row" + b".." + MAGIC_BYTES * 2 + b"and later" + b"..." + MAGIC_BYTES)])
@example([(0, b""), (1, b""), (2, b"x")])
def test_both_write_the_same_files_and_read_each_other(records: list[tuple[int, bytes]]) -> None:
    keys, payloads = [key for key, _ in records], [payload for _, payload in records]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        mxnets, ours = Path(one), Path(other)

        files = written_by_mxnet(mxnets, records)

        assert written_by_facedata(ours, records) == files
        assert b"".join(map(encode_record, payloads)) == files[0]
        assert read_by_facedata(mxnets, keys) == payloads
        assert read_by_mxnet(ours, keys) == payloads


def test_split_at_every_place_as_mxnet_splits(tmp_path: Path) -> None:
    places = product(range(5), range(4), range(5))
    payloads = [b"\xff" * before + MAGIC_BYTES * times + b"\x00" * behind for before, times, behind in places]

    assert written_by_mxnet(tmp_path, list(enumerate(payloads)))[0] == b"".join(map(encode_record, payloads))
    assert read_by_facedata(tmp_path, range(len(payloads))) == payloads


def test_the_chunks_noted_in_the_reference(tmp_path: Path) -> None:
    image = b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES * 2 + b"xy"
    written_by_mxnet(tmp_path, [(0, recordio.pack(recordio.IRHeader(0, 0.0, 0, 0), image))])

    with RecordReader(tmp_path / "train.rec") as reader:
        assert [reader.chunk(offset) for offset in (0, 36, 48, 56)] == [(1, 28), (2, 4), (2, 0), (3, 2)]


@settings(deadline=None)
@given(float32 | st.lists(float32, min_size=1, max_size=8), uint64, uint64, payloads)
def test_both_pack_and_unpack_the_same_headers(label: float | list[float], key: int, key2: int, image: bytes) -> None:
    labels = (label,) if isinstance(label, float) else tuple(label)
    record = ImageRecord(0 if isinstance(label, float) else len(labels), labels, key, key2, image)
    packed = recordio.pack(recordio.IRHeader(0, label, key, key2), image)
    header, unpacked = recordio.unpack(pack_image_record(record))

    assert pack_image_record(record) == packed
    assert unpack_image_record(packed) == record
    assert (header.flag, tuple(np.atleast_1d(header.label)), header.id, header.id2) == (record.flag, labels, key, key2)
    assert unpacked == image


def test_both_refuse_a_record_that_is_too_long(tmp_path: Path) -> None:
    payload = bytes(1 << 29)

    with pytest.raises(FormatError, match="at most 536870911"):
        encode_record(payload)
    with pytest.raises(Exception, match=r"2\^29 bytes"):
        written_by_mxnet(tmp_path, [(0, payload)])


def test_every_dialect_is_read(record_set: tuple[Path, list[Sample]]) -> None:
    folder, samples = record_set

    opened = open_record_set(folder)

    assert opened.dialect == ("insightface" if folder.name in WITH_META else "plain")
    assert list(opened) == samples
    assert list(opened[3:9]) == samples[3:9]
    assert np.concatenate(list(opened.labels())).tolist() == [sample.label for sample in samples]


def test_every_dialect_is_read_without_its_index(unindexed: tuple[Path, list[Sample]]) -> None:
    folder, samples = unindexed

    opened = open_record_set(folder)

    assert opened.dialect == ("insightface" if folder.name in WITH_META else "plain")
    assert list(opened) == samples


@pytest.mark.parametrize("record_set", ["dataset_merge"], indirect=True)
def test_insightface_set_is_written_as_the_builder_writes_it(
    record_set: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    folder, samples = record_set
    ours = tmp_path / "ours"

    pack(ours, samples)

    for name in ("train.rec", "train.idx"):
        assert (ours / name).read_bytes() == (folder / name).read_bytes()
    assert (ours / "property").read_text().strip() == (folder / "property").read_text()


def test_mxnet_finds_its_way_through_an_insightface_set_of_ours(tmp_path: Path) -> None:
    pairs = [(0, b"a"), (0, MAGIC_BYTES), (1, b"b" * 9), (2, b"c"), (2, b"d")]
    pack(tmp_path, [Sample(str(place), label, image) for place, (label, image) in enumerate(pairs)])

    def unpacked(key: int) -> tuple[list[float], int, bytes]:
        header, image = recordio.unpack(read_by_mxnet(tmp_path, [key])[0])
        return np.atleast_1d(header.label).tolist(), header.id, image

    assert unpacked(0) == ([6, 9], 0, b"")
    assert [unpacked(key) for key in (6, 7, 8)] == [([1, 3], 6, b""), ([3, 4], 7, b""), ([4, 6], 8, b"")]
    assert [unpacked(key) for key in (1, 2, 5)] == [([0], 1, b"a"), ([0], 2, MAGIC_BYTES), ([2], 5, b"d")]
