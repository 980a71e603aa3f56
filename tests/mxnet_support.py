"""Record sets of every dialect, written by MXNet 1.9.1 itself in the order of the builder that each is named after."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from facedata.converters.rec.recordio import MAGIC_BYTES

Pairs = list[tuple[int, bytes]]


class Record(NamedTuple):
    """A record as it is handed to MXNet; `identifier` is the id in its header if that is not the key."""

    key: int
    label: float | Sequence[float]
    image: bytes = b""
    identifier: int | None = None


def image(number: int) -> bytes:
    """Begins like a JPEG. All lengths modulo 4; the magic word once, twice or not at all, where it splits and not."""
    noise = random.Random(number).randbytes(30 + number)
    return b"\xff\xd8\xff\xe0" + noise[: number % 8] + MAGIC_BYTES * (number % 3) + noise + b"\xff\xd9"


def numbered(pairs: Pairs, first: int = 0) -> list[Record]:
    return [Record(key, float(label), image) for key, (label, image) in enumerate(pairs, first)]


def _ranges(pairs: Pairs) -> list[tuple[int, int]]:
    """For each run of one label, the key of its first image and the one after its last, counted from 1."""
    runs = [len(list(run)) for _, run in groupby(pairs, key=lambda pair: pair[0])]
    return list(pairwise(accumulate(runs, initial=1)))


def _identities(pairs: Pairs) -> list[Record]:
    return [Record(key, bounds) for key, bounds in enumerate(_ranges(pairs), len(pairs) + 1)]


def _meta(pairs: Pairs) -> Record:
    return Record(0, (len(pairs) + 1, len(pairs) + 1 + len(_identities(pairs))))


def _face2rec2(pairs: Pairs) -> list[Record]:
    """Labels are arrays, the meta record stands before the identities, and a label may come back."""
    pairs = [*pairs, (0, image(98)), (0, image(99))]
    images = [Record(key, (label, 1), image) for key, (label, image) in enumerate(pairs, 1)]
    return [*images, _meta(pairs), *_identities(pairs)]


def dataset_merge(pairs: Pairs) -> list[Record]:
    """Labels are numbers, the meta record stands last."""
    return [*numbered(pairs, 1), *_identities(pairs), _meta(pairs)]


def _dataset_relabel(pairs: Pairs) -> list[Record]:
    """The meta record stands first, and each identity record before its images."""
    images, records = numbered(pairs, 1), [_meta(pairs)]
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
    mixed = random.Random(0).sample(numbered(pairs, 1), len(pairs))
    return [Record(key, was.label, was.image, was.key) for key, was in enumerate(mixed)]


def _im2rec_shuffled(pairs: Pairs) -> list[Record]:
    """A list in random order, in which some images could not be read."""
    listed = [record for record in numbered(pairs) if record.key % 7]
    return random.Random(0).sample(listed, len(listed))


WITH_META: dict[str, Callable[[Pairs], list[Record]]] = {
    "face2rec2": _face2rec2,
    "dataset_merge": dataset_merge,
    "dataset_relabel": _dataset_relabel,
    "dataset_clean": _dataset_clean,
}
DIALECTS: dict[str, Callable[[Pairs], list[Record]]] = {
    **WITH_META,
    "rec_builder": numbered,
    "shuffle_rec": _shuffle_rec,
    "im2rec": numbered,
    "im2rec_from_1": lambda pairs: numbered(pairs, 1),
    "im2rec_shuffled": _im2rec_shuffled,
    "im2rec_pack_label": lambda pairs: [
        Record(key, (label, 0.5, -1, 2**24, 1e-30), image) for key, (label, image) in enumerate(pairs)
    ],
}


def write(folder: Path, records: list[Record]) -> None:
    from mxnet import recordio

    writer = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for key, label, image, identifier in records:
        header = recordio.IRHeader(0, label, key if identifier is None else identifier, 0)
        writer.write_idx(key, recordio.pack(header, image))
    writer.close()
