"""One shard of an extraction: images decoded one batch ahead of the network, rows written at their places."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.dataset import Sample, Source
from facedata.errors import FacedataError, RefusedSampleError, SampleError, output_error
from facedata.features.extraction.fragments import encoded_key, write_fragment
from facedata.features.extraction.model import Embedder, EmbeddingModel
from facedata.features.extraction.output import FeatureOutput
from facedata.features.extraction.preprocessing import Preprocessing
from facedata.features.feature_set import bad_rows
from facedata.images import opencv_in_one_thread
from facedata.jobs.journal import ShardResult

__all__ = ["ExtractShard", "Extractor"]

Floats = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Extractor:
    """What becomes of an image; picklable.

    Attributes
    ----------
    model : EmbeddingModel
    preprocessing : Preprocessing
    flip : bool
        Add the embedding of the mirror image.
    normalize : bool
        Give rows the length 1, after that.
    unlabeled : bool
        Write -1 for each label.
    """

    model: EmbeddingModel
    preprocessing: Preprocessing
    flip: bool = False
    normalize: bool = False
    unlabeled: bool = False

    def identity(self) -> dict[str, Any]:
        """All that decides the rows and labels, as JSON values."""
        return {
            "model": self.model.identity(),
            "preprocessing": self.preprocessing.identity(),
            "flip": self.flip,
            "normalize": self.normalize,
            "unlabeled": self.unlabeled,
        }

    def embed(self, network: Embedder, images: Floats) -> Floats:
        """The rows of a batch of prepared images."""
        rows = network.embed(images)
        if self.flip:
            rows = rows + network.embed_mirrored(images)
        return _normalized(rows) if self.normalize else rows


def _normalized(rows: Floats) -> Floats:
    """Rows of length 1; in float64, which no embedding overflows. A row of zeros stays one."""
    exact = rows.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    unit: Floats = (exact / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
    return unit


class _Entry(NamedTuple):
    """An image, or what says why it cannot be used."""

    key: str
    label: int
    size: int
    failure: Mapping[str, Any] | None


class _Batch(NamedTuple):
    """Images as the network takes them; zeros in the places of those that cannot be used."""

    images: Floats
    entries: list[_Entry]


@dataclass(frozen=True)
class ExtractShard:
    """The task of one shard, sent to the worker that does it.

    Attributes
    ----------
    source : Source
        The shard's part of it.
    extractor : Extractor
    output : FeatureOutput
    shard : int
    first : int
        The number of its first image in the job.
    """

    source: Source
    extractor: Extractor
    output: FeatureOutput
    shard: int
    first: int

    def __call__(self) -> ShardResult:
        """Do it."""
        begin = time.monotonic()
        network = self.extractor.model.load()
        tally = _Tally()
        try:
            with (
                opencv_in_one_thread(),
                self.output.open_rows() as rows,
                closing(_one_ahead(self._batches())) as batches,
            ):
                for batch in batches:
                    found = self.extractor.embed(network, batch.images)
                    rows.write(self.first + tally.rows, self._checked(found, batch, tally))
            write_fragment(self.output.building, self.shard, tally.labels, tally.keys, tally.failed)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.output.target.features) from error
        return tally.result(time.monotonic() - begin)

    def _batches(self) -> Iterator[_Batch]:
        """The images of the shard, so many at a time: the same ones together whoever runs it."""
        shape, count = self.extractor.model.input, len(self.source)
        items = iter(self.source.read())
        for begin in range(0, count, shape.batch):
            images = np.zeros(shape.shape(min(shape.batch, count - begin)), np.float32)
            entries = [self._prepare(begin + place, next(items), into) for place, into in enumerate(images)]
            yield _Batch(images, entries)

    def _prepare(self, place: int, item: Sample | SampleError, into: Floats) -> _Entry:
        if isinstance(item, SampleError):
            return _Entry(item.key, UNLABELLED, 0, self._failure(place, item))
        shape, preprocessing = self.extractor.model.input, self.extractor.preprocessing
        label, failure = UNLABELLED if self.extractor.unlabeled else item.label, None
        try:
            image = preprocessing.decode(item.image, shape.height, shape.width)
        except RefusedSampleError as error:
            failure = self._failure(place, self._error(place, item.key, str(error)))
        else:
            preprocessing.fill(image, shape.layout, into)
        return _Entry(item.key, label, len(item.image), failure)

    def _error(self, place: int, key: str, reason: str) -> SampleError:
        dataset, offset = self.source.locate(place)
        return SampleError(dataset, key, reason, offset)

    def _failure(self, place: int, error: SampleError) -> dict[str, Any]:
        return {
            "set": error.dataset,
            "key": error.key,
            "index": self.first + place,
            "offset": error.offset,
            "reason": error.reason,
        }

    def _checked(self, rows: Floats, batch: _Batch, tally: _Tally) -> Floats:
        """The rows with NaN for images that failed; those that the model gives no use for fail too."""
        rows = np.array(rows, "<f4")  # a copy: the network's own may be read-only
        for place, (entry, bad) in enumerate(zip(batch.entries, bad_rows(rows).tolist(), strict=True)):
            failure = entry.failure
            if failure is None and bad:
                reason = f"unusable embedding: the model gives {_kind(rows[place])}"
                failure = self._failure(tally.rows, self._error(tally.rows, entry.key, reason))
            if failure is not None:
                rows[place] = np.nan
            tally.add(entry, failure, rows[place])
        return rows


def _kind(row: Floats) -> str:
    if np.isnan(row).any():
        return "NaN"
    return "infinity" if not np.isfinite(row).all() else "nothing but zeros"


class _Tally:
    """What a shard comes to, row by row."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self.keys: list[bytes] = []
        self.failed: list[int] = []
        self._failures: list[Mapping[str, Any]] = []
        self._delivered: set[int] = set()
        self._bytes = self._digest = 0

    @property
    def rows(self) -> int:
        return len(self.labels)

    def add(self, entry: _Entry, failure: Mapping[str, Any] | None, row: Floats) -> None:
        if failure is not None:
            self.failed.append(self.rows)
            self._failures.append(failure)
        else:
            self._bytes += entry.size
            self._delivered.add(entry.label)
            self._digest = crc32(row.tobytes(), crc32(b"%d\n" % entry.label, self._digest))
        self.labels.append(entry.label)
        self.keys.append(encoded_key(entry.key))

    def result(self, seconds: float) -> ShardResult:
        labels = (min(self._delivered), max(self._delivered)) if self._delivered else None
        count = self.rows - len(self.failed)
        return ShardResult(count, self._bytes, f"{self._digest:08x}", labels, tuple(self._failures), seconds)


def _one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items, each made by another thread while whoever asks is at the one before: decoding waits for nobody."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
