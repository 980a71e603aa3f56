"""Record files against MXNet: both write the same bytes and read each other, and loaders take what facedata packs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mxnet_support import WITH_META, Pairs, dataset_merge, numbered, write
from support import MemorySource, RecordSetMaker, jpeg, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.rec import create_sink
from facedata.converters.rec.record_set import index_records, open_record_set
from facedata.converters.rec.recordio import (
    INSIGHTFACE,
    MAGIC_BYTES,
    PLAIN,
    ImageRecord,
    RecordReader,
    pack_image_record,
    read_index,
    unpack_image_record,
)
from facedata.dataset import Sample, Source
from facedata.images import import_opencv
from facedata.jobs.job import JobOptions
from facedata.synthetic.sample_set import SampleOptions, make_sample

recordio = pytest.importorskip("mxnet.recordio")

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*np.bool.*:DeprecationWarning"),
]

PIECES = st.just(MAGIC_BYTES) | st.binary(max_size=9) | st.sampled_from([MAGIC_BYTES[:2], MAGIC_BYTES[2:]])
PAYLOADS = st.lists(PIECES, max_size=8).map(b"".join)
KEYS = st.integers(0, 2**32 - 1)
SPLIT = [b"\xff" * before + MAGIC_BYTES * n + bytes(after) for before, n, after in product(range(5), repeat=3)]
FLOAT32 = st.floats(width=32, allow_nan=False)
UINT64 = st.integers(0, 2**64 - 1)
SETS = st.lists(st.tuples(st.integers(0, 3) | st.just(1 << 24), PAYLOADS.map(jpeg)), min_size=1, max_size=12)


def opened(folder: Path, mode: str = "r") -> Any:
    return recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), mode)


def pack(folder: Path, source: Source, style: str) -> None:
    """Pack in threads of this process: it has MXNet's own threads, and is not to be forked."""
    conversion = plan_conversion("test", source, create_sink(str(folder), style=style), size=3 << 24)
    assert run_conversion(conversion, JobOptions(workers=2, executor_factory=ThreadPoolExecutor)).good


@settings(deadline=None)
@given(st.dictionaries(KEYS, PAYLOADS, min_size=1, max_size=6))
@example(dict(enumerate(SPLIT)))
@example({0: b"." + MAGIC_BYTES + b"not where it splits" + MAGIC_BYTES, 1: MAGIC_BYTES + b"12345678" + MAGIC_BYTES})
@example({0: b"twice in a row.." + MAGIC_BYTES * 2 + b"and later..." + MAGIC_BYTES})
def test_both_write_the_same_files_and_read_each_other(records: dict[int, bytes]) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        mxnets, ours = Path(one), Path(other)
        writer, maker = opened(mxnets, "w"), RecordSetMaker(ours)
        for key, payload in records.items():
            writer.write_idx(key, payload)
            maker.add_payload(key, payload)
        writer.close()
        assert tree(maker.write()) == tree(mxnets)
        index = read_index(mxnets / "train.idx")
        with RecordReader(mxnets / "train.rec") as reader:
            read = [reader.read(offset)[0] for offset in index.offsets.tolist()]
        assert dict(zip(index.keys, read, strict=True)) == records
        reading = opened(ours)
        assert {key: reading.read_idx(key) for key in records} == records
        reading.close()


@settings(deadline=None)
@given(FLOAT32 | st.lists(FLOAT32, min_size=1, max_size=8), UINT64, UINT64, PAYLOADS)
def test_both_pack_and_unpack_the_same_headers(label: float | list[float], key: int, key2: int, image: bytes) -> None:
    labels = (label,) if isinstance(label, float) else tuple(label)
    record = ImageRecord(0 if isinstance(label, float) else len(labels), labels, key, key2, image)
    packed = recordio.pack(recordio.IRHeader(0, label, key, key2), image)
    header, unpacked = recordio.unpack(packed)
    assert pack_image_record(record) == packed
    assert unpack_image_record(packed) == record
    assert (header.flag, tuple(np.atleast_1d(header.label)), header.id, header.id2) == (record.flag, labels, key, key2)
    assert unpacked == image


def test_every_dialect_is_read_with_its_index_and_without(record_set: tuple[Path, list[Sample]]) -> None:
    folder, samples = record_set
    index = folder / "train.idx"
    original = index.read_bytes()
    for _ in ("with", "without"):
        source = open_record_set(folder)
        assert source.dialect == (INSIGHTFACE if folder.name in WITH_META else PLAIN)
        assert list(source) == samples
        assert list(source[3:9]) == samples[3:9]
        assert source.labels().tolist() == [sample.label for sample in samples]
        index.unlink(missing_ok=True)
    assert index_records(folder).records == original.count(b"\n")
    assert index.read_bytes() == original


@pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])
@settings(deadline=None, max_examples=30)
@given(pairs=SETS)
def test_what_is_packed_has_the_bytes_that_mxnet_writes(style: str, pairs: Pairs) -> None:
    pairs = sorted(pairs) if style == INSIGHTFACE else pairs
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        pack(Path(one), MemorySource([Sample(str(n), *pair) for n, pair in enumerate(pairs)]), style)
        write(Path(other), dataset_merge(pairs) if style == INSIGHTFACE else numbered(pairs))
        assert {name: Path(one, name).read_bytes() for name in tree(Path(other))} == tree(Path(other))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Drawn faces, as JPEGs: 5 people with 4 images each."""
    folder = tmp_path_factory.mktemp("faces")
    make_sample(folder, SampleOptions(identities=5, images=4))
    return open_record_set(folder)


def test_the_loaders_of_insightface_find_every_image_and_person(faces: Source, tmp_path: Path) -> None:
    """They find their way through a set from the meta record on."""
    pack(tmp_path, faces, INSIGHTFACE)
    reader = opened(tmp_path)
    first, end = map(int, recordio.unpack(reader.read_idx(0))[0].label)
    read = {key: recordio.unpack(reader.read_idx(key)) for key in range(1, end)}
    images = [(header.label, image) for key, (header, image) in read.items() if key < first]
    assert images == [(sample.label, sample.image) for sample in faces]
    people = [(*header.label, image) for key, (header, image) in read.items() if key >= first]
    assert people == [(key, key + 4, b"") for key in range(1, 21, 4)]
    assert (tmp_path / "property").read_text() == "5,112,112\n"


def delivered(batches: Any) -> list[tuple[int, Any]]:
    return [
        (int(label), image)
        for batch in batches
        for label, image in zip(batch.label[0].asnumpy(), batch.data[0].asnumpy(), strict=True)
    ]


def test_the_iterators_of_mxnet_deliver_every_image(faces: Source, tmp_path: Path) -> None:
    from mxnet.image import ImageIter
    from mxnet.io import ImageRecordIter

    cv2 = import_opencv()
    samples = list(faces.take(np.random.RandomState(0).permutation(len(faces))))
    pack(tmp_path, MemorySource(samples), PLAIN)
    options: dict[str, Any] = {"data_shape": (3, 112, 112), "batch_size": 5}
    options |= {"path_imgrec": str(tmp_path / "train.rec"), "path_imgidx": str(tmp_path / "train.idx")}
    for iterator in (ImageIter(**options), ImageRecordIter(preprocess_threads=1, verbose=False, **options)):
        found = delivered(iterator)
        assert [label for label, _ in found] == [sample.label for sample in samples]
        for (_, image), sample in zip(found, samples, strict=True):
            pixels = cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(image - pixels[:, :, ::-1].transpose(2, 0, 1)).mean() < 2  # two builds of the JPEG library
    mixed = delivered(ImageIter(shuffle=True, **options))
    assert sorted(label for label, _ in mixed) == sorted(sample.label for sample in samples)
