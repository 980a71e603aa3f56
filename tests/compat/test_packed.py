"""What facedata packs, as MXNet itself and the loaders of InsightFace read it; and the bytes that MXNet would write."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, jpeg

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.rec import create_sink
from facedata.converters.rec.record_set import open_record_set
from facedata.converters.rec.recordio import MAGIC_BYTES
from facedata.converters.rec.source import import_mxnet_recordio
from facedata.dataset import Sample, Source
from facedata.errors import MissingExtraError
from facedata.images import import_opencv
from facedata.jobs.job import JobOptions
from facedata.synthetic.sample_set import SampleOptions, make_sample

try:
    recordio = import_mxnet_recordio()
except MissingExtraError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*np.bool.*:DeprecationWarning"),
]

STYLES = pytest.mark.parametrize("style", ["insightface", "plain"])
IMAGES = st.lists(st.binary(max_size=9) | st.just(MAGIC_BYTES), max_size=6).map(b"".join).map(jpeg)
SETS = st.lists(st.tuples(st.integers(0, 3) | st.just(1 << 24), IMAGES), min_size=1, max_size=12)


def pack(folder: Path, source: Source, style: str) -> Path:
    """Pack in threads of this process: it has MXNet's own threads, and is not to be forked."""
    conversion = plan_conversion("test", source, create_sink(str(folder), style=style), size=3 << 24)
    assert run_conversion(conversion, JobOptions(workers=2, executor_factory=ThreadPoolExecutor)).good
    return folder


def samples_of(pairs: list[tuple[int, bytes]], style: str) -> list[Sample]:
    return [Sample(str(n), *pair) for n, pair in enumerate(sorted(pairs) if style == "insightface" else pairs)]


def written_by_mxnet(folder: Path, samples: Sequence[Sample], style: str) -> Path:
    """The same set, record by record, as the builders of each style call MXNet."""
    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")

    def write(key: int, label: Any, image: bytes) -> None:
        writer.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), image))

    first = 1 if style == "insightface" else 0
    for key, sample in enumerate(samples, first):
        write(key, float(sample.label), sample.image)
    if style == "insightface":
        people = end = len(samples) + 1
        begin = first
        for _, images in groupby(samples, key=lambda sample: sample.label):
            count = len(list(images))
            write(end, (begin, begin + count), b"")
            begin, end = begin + count, end + 1
        write(0, (people, end), b"")
    writer.close()
    return folder


@STYLES
@settings(deadline=None, max_examples=30)
@given(pairs=SETS)
def test_it_has_the_bytes_that_mxnet_writes(style: str, pairs: list[tuple[int, bytes]]) -> None:
    samples = samples_of(pairs, style)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        ours, mxnets = pack(Path(one), MemorySource(samples), style), written_by_mxnet(Path(other), samples, style)

        for name in ("train.rec", "train.idx"):
            assert (ours / name).read_bytes() == (mxnets / name).read_bytes()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Drawn faces, as JPEGs: 5 people with 4 images each."""
    folder = tmp_path_factory.mktemp("faces")
    make_sample(folder, SampleOptions(identities=5, images=4))
    return open_record_set(folder)


@pytest.fixture(scope="module")
def plain(faces: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """The faces in random order, packed plain; the samples in that order."""
    shuffled = faces.take(np.random.RandomState(0).permutation(len(faces)))
    return pack(tmp_path_factory.mktemp("plain"), shuffled, "plain"), list(shuffled)


@pytest.fixture(scope="module")
def insightface(faces: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    return pack(tmp_path_factory.mktemp("insightface"), faces, "insightface"), list(faces)


def opened(folder: Path) -> Any:
    return recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")


def test_mxnet_reads_every_record_by_key_and_in_the_order_of_the_file(plain: tuple[Path, list[Sample]]) -> None:
    folder, samples = plain
    reader = opened(folder)
    expected = [(sample.label, key, sample.image) for key, sample in enumerate(samples)]

    def unpacked(payload: bytes) -> tuple[float, int, bytes]:
        header, image = recordio.unpack(payload)
        return header.label, header.id, image

    assert reader.keys == list(range(len(samples)))
    assert [unpacked(reader.read_idx(key)) for key in reader.keys] == expected
    reader.reset()
    assert [unpacked(reader.read()) for _ in samples] == expected
    assert reader.read() is None


class InsightFaceLoader:
    """Finds its way through a set as the loaders of InsightFace do, from the meta record on."""

    def __init__(self, folder: Path) -> None:
        self._reader = opened(folder)
        header, _ = recordio.unpack(self._reader.read_idx(0))
        assert header.flag > 0
        self.first_person, self.end = int(header.label[0]), int(header.label[1])
        self.keys = np.array(range(1, self.first_person))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        header, image = recordio.unpack(self._reader.read_idx(self.keys[index]))
        label = header.label if isinstance(header.label, float) else header.label[0]
        return int(label), image

    def people(self) -> Iterator[tuple[int, int]]:
        for key in range(self.first_person, self.end):
            header, image = recordio.unpack(self._reader.read_idx(key))
            assert image == b""
            yield int(header.label[0]), int(header.label[1])


def test_the_loader_of_insightface_finds_every_image_and_person(insightface: tuple[Path, list[Sample]]) -> None:
    folder, samples = insightface
    loader = InsightFaceLoader(folder)

    assert [loader[index] for index in range(len(loader))] == [(sample.label, sample.image) for sample in samples]
    assert list(loader.people()) == [(1, 5), (5, 9), (9, 13), (13, 17), (17, 21)]
    classes, height, width = map(int, (folder / "property").read_text().split(","))
    assert (classes, height, width) == (5, 112, 112)


def pixels(image: bytes) -> Any:
    cv2 = import_opencv()
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].transpose(2, 0, 1)


def delivered(batches: Any) -> list[tuple[int, Any]]:
    return [
        (int(label), image)
        for batch in batches
        for label, image in zip(batch.label[0].asnumpy(), batch.data[0].asnumpy(), strict=True)
    ]


def assert_same_images(found: list[tuple[int, Any]], samples: list[Sample]) -> None:
    assert [label for label, _ in found] == [sample.label for sample in samples]
    for (_, image), sample in zip(found, samples, strict=True):
        assert np.abs(image - pixels(sample.image)).mean() < 2  # two builds of the JPEG library


def test_image_iter_iterates(plain: tuple[Path, list[Sample]]) -> None:
    from mxnet.image import ImageIter

    folder, samples = plain
    names = {"path_imgrec": str(folder / "train.rec"), "path_imgidx": str(folder / "train.idx")}

    assert_same_images(delivered(ImageIter(5, (3, 112, 112), **names)), samples)
    shuffled = delivered(ImageIter(5, (3, 112, 112), shuffle=True, **names))
    assert sorted(label for label, _ in shuffled) == sorted(sample.label for sample in samples)


def test_image_record_iter_iterates(plain: tuple[Path, list[Sample]]) -> None:
    from mxnet.io import ImageRecordIter

    folder, samples = plain
    iterator = ImageRecordIter(
        path_imgrec=str(folder / "train.rec"),
        path_imgidx=str(folder / "train.idx"),
        data_shape=(3, 112, 112),
        batch_size=5,
        preprocess_threads=1,
        verbose=False,
    )

    assert_same_images(delivered(iterator), samples)
