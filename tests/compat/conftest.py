"""Every dialect of record sets, written by MXNet 1.9.1 itself in the order of the builder that it is named after."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from facedata.converters.rec.recordio import MAGIC_BYTES
from facedata.dataset import Sample

# MXNet uses much that its NumPy has deprecated, and warnings are errors here: it is imported once, quietly.
with suppress(ImportError, AttributeError), warnings.catch_warnings():  # AttributeError: a NumPy that is too new
    warnings.simplefilter("ignore")
    import mxnet  # noqa: F401

Pairs = list[tuple[int, bytes]]


class Record(NamedTuple):
    """A record as it is handed to MXNet; `identifier` is the id in its header where that is not the key."""

    key: int
    label: float | Sequence[float]
    image: bytes = b""
    identifier: int | None = None


def _image(number: int) -> bytes:
    """Begins like a JPEG. All lengths modulo 4; the magic word once, twice or not at all, where it splits and not."""
    noise = random.Random(number).randbytes(30 + number)
    return b"\xff\xd8\xff\xe0" + noise[: number % 8] + MAGIC_BYTES * (number % 3) + noise + b"\xff\xd9"


def _pairs() -> Pairs:
    labels = [label for label, images in enumerate([3, 1, 9, 4, 12, 2, 5]) for _ in range(images)]
    return [(label, _image(number)) for number, label in enumerate(labels)]


def _numbered(pairs: Pairs, first: int) -> list[Record]:
    return [Record(key, float(label), image) for key, (label, image) in enumerate(pairs, first)]


def _ranges(pairs: Pairs) -> list[tuple[int, int]]:
    """For each run of one label, the key of its first image and the one behind its last, counted from 1."""
    runs = [len(list(run)) for _, run in groupby(pairs, key=lambda pair: pair[0])]
    return list(pairwise(accumulate(runs, initial=1)))


def _identities(pairs: Pairs) -> list[Record]:
    return [Record(key, bounds) for key, bounds in enumerate(_ranges(pairs), len(pairs) + 1)]


def _meta(pairs: Pairs) -> Record:
    return Record(0, (len(pairs) + 1, len(pairs) + 1 + len(_identities(pairs))))


def _face2rec2(pairs: Pairs) -> list[Record]:
    """Labels are arrays, the meta record stands before the identities, and a label may come back."""
    pairs = [*pairs, (0, _image(98)), (0, _image(99))]
    images = [Record(key, (label, 1), image) for key, (label, image) in enumerate(pairs, 1)]
    return [*images, _meta(pairs), *_identities(pairs)]


def _dataset_merge(pairs: Pairs) -> list[Record]:
    """Labels are numbers, the meta record stands last."""
    return [*_numbered(pairs, 1), *_identities(pairs), _meta(pairs)]


def _dataset_relabel(pairs: Pairs) -> list[Record]:
    """The meta record stands first, and each identity record before its images."""
    images, records = _numbered(pairs, 1), [_meta(pairs)]
    for identity, (first, end) in zip(_identities(pairs), _ranges(pairs), strict=True):
        records += [identity, *images[first - 1 : end - 1]]
    return records


def _dataset_clean(pairs: Pairs) -> list[Record]:
    """Images were taken out: the keys are counted anew, the ids of those left are their old keys."""
    old = [(key, pair) for key, pair in enumerate(pairs, 1) if key < 7 or key > 26]
    left = [pair for _, pair in old]
    images = [Record(key, float(label), image, was) for key, (was, (label, image)) in enumerate(old, 1)]
    return [*images, *_identities(left), _meta(left)]


def _shuffle_rec(pairs: Pairs) -> list[Record]:
    """The images of an InsightFace set in random order: the keys count from 0, the ids are the old keys."""
    mixed = random.Random(0).sample(_numbered(pairs, 1), len(pairs))
    return [Record(key, was.label, was.image, was.key) for key, was in enumerate(mixed)]


def _im2rec_shuffled(pairs: Pairs) -> list[Record]:
    """A list in random order, in which some images could not be read."""
    listed = [record for record in _numbered(pairs, 0) if record.key % 7]
    return random.Random(0).sample(listed, len(listed))


def _im2rec_pack_label(pairs: Pairs) -> list[Record]:
    return [Record(key, (label, 0.5, -1, 2**24, 1e-30), image) for key, (label, image) in enumerate(pairs)]


DIALECTS: dict[str, Callable[[Pairs], list[Record]]] = {
    "face2rec2": _face2rec2,
    "dataset_merge": _dataset_merge,
    "dataset_relabel": _dataset_relabel,
    "dataset_clean": _dataset_clean,
    "rec_builder": lambda pairs: _numbered(pairs, 0),
    "shuffle_rec": _shuffle_rec,
    "im2rec": lambda pairs: _numbered(pairs, 0),
    "im2rec_from_1": lambda pairs: _numbered(pairs, 1),
    "im2rec_shuffled": _im2rec_shuffled,
    "im2rec_pack_label": _im2rec_pack_label,
}


def _write(folder: Path, records: list[Record]) -> None:
    from mxnet import recordio

    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for key, label, image, identifier in records:
        header = recordio.IRHeader(0, label, key if identifier is None else identifier, 0)
        writer.write_idx(key, recordio.pack(header, image))
    writer.close()


def _sample(record: Record) -> Sample:
    label = record.label if isinstance(record.label, float) else record.label[0]
    return Sample(str(record.key), int(label), record.image)


@pytest.fixture(params=DIALECTS)
def record_set(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Sample]]:
    """A record set of each dialect in turn: its folder, and its images in the order of their keys."""
    folder = tmp_path / request.param
    folder.mkdir()
    records = DIALECTS[request.param](_pairs())
    _write(folder, records)
    if request.param == "rec_builder":
        (folder / "train.meta").write_bytes(b"\x80\x04]\x94.")
        (folder / "property").write_text(f"7,112,112\n{len(records)}\n")
    elif request.param == "dataset_merge":
        (folder / "property").write_text("7,112,112")
    return folder, [_sample(record) for record in sorted(records) if record.image]


@pytest.fixture
def unindexed(record_set: tuple[Path, list[Sample]]) -> tuple[Path, list[Sample]]:
    """The same without its index, which was moved to ``original.idx``."""
    folder, _ = record_set
    (folder / "train.idx").rename(folder / "original.idx")
    return record_set
