"""One shard of an extraction: images are decoded one batch ahead of the network, rows written at their places."""

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
from facedata.features.extraction.inputs import Preprocessing
from facedata.features.extraction.model import Embedder, EmbeddingModel
from facedata.features.extraction.output import FeatureOutput
from facedata.features.feature_set import bad_rows
from facedata.images import opencv_in_one_thread
from facedata.jobs.journal import ShardResult

__all__ = ["ExtractShard", "Extractor"]

Floats = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Extractor:
    """How an image becomes a row; picklable.

    Attributes
    ----------
    model : EmbeddingModel
    preprocessing : Preprocessing
    flip : bool
        Add the embedding of the mirror image.
    normalize : bool
        Scale rows to length 1, after that.
    unlabeled : bool
        Write -1 for each label.
    """

    model: EmbeddingModel
    preprocessing: Preprocessing
    flip: bool = False
    normalize: bool = False
    unlabeled: bool = False

    def identity(self) -> dict[str, Any]:
        """What decides the rows and labels, as JSON values."""
        return {
            "model": self.model.identity(),
            "preprocessing": self.preprocessing.identity(),
            "flip": self.flip,
            "normalize": self.normalize,
            "unlabeled": self.unlabeled,
        }

    def embed(self, network: Embedder, images: Floats) -> Floats:
        """The rows of a batch of prepared images, shape (M, D), in memory of their own."""
        rows = network.embed(images)
        if self.flip:
            rows = rows + network.embed_mirrored(images)
        if not self.normalize:
            return np.array(rows, "<f4")  # the network's own memory may be read-only
        wide = rows.astype(np.float64)  # whose squares do not overflow
        lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        unit: Floats = (wide / np.where(lengths > 0.0, lengths, 1.0)).astype("<f4")
        return unit


class _Entry(NamedTuple):
    """An image of a batch; `failure` says why it cannot be used."""

    key: str
    label: int
    size: int
    failure: Mapping[str, Any] | None


@dataclass(frozen=True)
class ExtractShard:
    """The task of one shard, sent to the worker that does it.

    Attributes
    ----------
    source : Source
        The shard's part of the source.
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
        """Extract and write the rows, labels and keys of the shard."""
        begin = time.monotonic()
        network = self.extractor.model.load()
        labels: list[int] = []
        keys: list[str] = []
        failed: list[int] = []
        failures: list[Mapping[str, Any]] = []
        size = digest = 0
        try:
            with (
                opencv_in_one_thread(),
                self.output.open_rows() as write_rows,
                closing(_one_ahead(self._batches())) as batches,
            ):
                for images, entries in batches:
                    rows, first = self.extractor.embed(network, images), len(labels)
                    for row, entry, bad in zip(rows, entries, bad_rows(rows).tolist(), strict=True):
                        failure = entry.failure
                        if failure is None and bad:
                            failure = self._failure(
                                len(labels), entry.key, f"unusable embedding: the model returned {_kind(row)}"
                            )
                        if failure is None:
                            size += entry.size
                            digest = crc32(row.tobytes(), crc32(b"%d\n" % entry.label, digest))
                        else:
                            row[:] = np.nan
                            failed.append(len(labels))
                            failures.append(failure)
                        labels.append(entry.label)
                        keys.append(entry.key)
                    write_rows(self.first + first, rows)
            self.output.write_lines(self.shard, labels, keys, failed)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.output.path) from error
        for row in reversed(failed):
            del labels[row]
        extent = (min(labels), max(labels)) if labels else None
        seconds = time.monotonic() - begin
        return ShardResult(len(labels), size, f"{digest:08x}", extent, tuple(failures), seconds)

    def _batches(self) -> Iterator[tuple[Floats, list[_Entry]]]:
        """The prepared images of the shard in batches; zeros in the places of those that cannot be used."""
        shape, count = self.extractor.model.input, len(self.source)
        items = iter(self.source.read())
        for begin in range(0, count, shape.batch):
            images = np.zeros(shape.shape(min(shape.batch, count - begin)), np.float32)
            yield images, [self._prepare(begin + place, next(items), into) for place, into in enumerate(images)]

    def _prepare(self, place: int, item: Sample | SampleError, into: Floats) -> _Entry:
        if isinstance(item, SampleError):
            return _Entry(item.key, UNLABELLED, 0, self._failure(place, item.key, item.reason, item))
        shape, preprocessing = self.extractor.model.input, self.extractor.preprocessing
        label, failure = UNLABELLED if self.extractor.unlabeled else item.label, None
        try:
            image = preprocessing.decode(item.image, shape.height, shape.width)
        except RefusedSampleError as error:
            failure = self._failure(place, item.key, str(error))
        else:
            preprocessing.fill(image, shape.layout, into)
        return _Entry(item.key, label, len(item.image), failure)

    def _failure(self, place: int, key: str, reason: str, error: SampleError | None = None) -> dict[str, Any]:
        dataset, offset = self.source.locate(place) if error is None else (error.dataset, error.offset)
        return {"set": dataset, "key": key, "index": self.first + place, "offset": offset, "reason": reason}


def _kind(row: Floats) -> str:
    if np.isnan(row).any():
        return "NaN"
    return "infinity" if not np.isfinite(row).all() else "nothing but zeros"


def _one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items, each made by another thread while the caller works on the one before."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
