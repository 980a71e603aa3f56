"""Joining several sources: one after the other or in any order, the labels of each shifted past those before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import OptionError, SampleError

__all__ = ["JoinedSource", "ShiftedSource", "all_labels", "join_sources"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def join_sources(sources: Sequence[Source], *, shift: bool) -> tuple[Source, list[tuple[int, int | None]]]:
    """Join sources, one after the other.

    Parameters
    ----------
    sources : sequence of Source
    shift : bool
        Shift the labels of each past those of the sources before it, so that people stay apart. If a source does not
        declare its number of classes, its labels are read to count them.

    Returns
    -------
    Source
    list of tuple
        For each source by how much its labels are shifted, and how many classes it has, if that is known.

    Raises
    ------
    OptionError
        If a shifted label would be too large.
    """
    joined: list[Source] = []
    labels: list[tuple[int, int | None]] = []
    first = 0
    for number, source in enumerate(sources, 1):
        classes = source.declared_classes()
        followed = shift and number < len(sources)  # by a source whose labels begin after these
        if followed and classes is None:
            place = next(iter(source.places()), "a set")
            _log.info("%s: declares no number of classes; reading its labels to count them", place)
            classes = max((int(block.max(initial=-1)) for block in source.labels()), default=-1) + 1
        if first + (classes or 1) - 1 > LARGEST_LABEL:
            raise _too_large(first + (classes or 1) - 1)
        joined.append(ShiftedSource(source, first, classes if followed else None) if first or followed else source)
        labels.append((first, classes))
        first += classes or 0 if shift else 0
    return (joined[0] if len(joined) == 1 else JoinedSource(joined)), labels


def _too_large(label: int) -> OptionError:
    return OptionError(
        f"the largest label would be {label}, and labels end at {LARGEST_LABEL}; close the gaps in the labels of each "
        "set first (facedata convert ... --relabel), or keep them as they are with --labels keep"
    )


class ShiftedSource(WrappedSource):
    """A source whose labels are shifted.

    Parameters
    ----------
    source : Source
    shift : int
        Added to each label.
    classes : int or None
        The number of classes of the source, if its labels must stay below it because those of another source follow.
    """

    def __init__(self, source: Source, shift: int, classes: int | None = None) -> None:
        super().__init__(source)
        self._shift, self._classes = shift, classes

    def __getitem__(self, part: slice) -> ShiftedSource:
        return ShiftedSource(self._source[part], self._shift, self._classes)

    def take(self, positions: NDArray[np.int64]) -> ShiftedSource:
        """The samples at `positions`."""
        return ShiftedSource(self._source.take(positions), self._shift, self._classes)

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample with its shifted label; an error for one with a label out of range."""
        for position, item in enumerate(self._source.read()):
            if isinstance(item, SampleError):
                yield item
            elif self._classes is not None and item.label >= self._classes:
                dataset, offset = self._source.locate(position)
                reason = (
                    f"label {item.label} is out of range: the dataset declares {self._classes} classes (0 to "
                    f"{self._classes - 1})"
                )
                yield SampleError(dataset, item.key, reason, offset)
            else:
                yield item._replace(label=item.label + self._shift)

    def identity(self) -> Mapping[str, Any]:
        """The identity of the source, and the shift."""
        return {**self._source.identity(), "label shift": self._shift}

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The shifted labels; -1 for one that cannot be read or is out of range."""
        end = np.iinfo(np.int64).max if self._classes is None else self._classes
        for block in self._source.labels():
            yield np.where((block >= 0) & (block < end), block + self._shift, -1)

    def class_names(self) -> Mapping[int, str] | None:
        """The names under the shifted labels."""
        names = self._source.class_names()
        return None if names is None else {label + self._shift: name for label, name in names.items()}

    def declared_classes(self) -> int | None:
        """The declared classes of the source, and those that the shift leaves room for."""
        classes = self._source.declared_classes()
        return None if classes is None else classes + self._shift


class JoinedSource(Source):
    """The samples of several sources: one source after the other, or in any order.

    Parameters
    ----------
    sources : sequence of Source
    which : ndarray of shape (N,), int32, optional
        The number of the source of each sample; None for one source after the other.
    """

    def __init__(self, sources: Sequence[Source], which: NDArray[np.int32] | None = None) -> None:
        self._sources, self._which = list(sources), which

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, part: slice) -> Source:
        start, stop, step = part.indices(len(self))
        if self._which is not None or step != 1:
            return super().__getitem__(part)
        kept, first = [], 0
        for source in self._sources:
            inner = slice(max(start - first, 0), max(min(stop - first, len(source)), 0))
            if inner.start < inner.stop:
                kept.append(source[inner])
            first += len(source)
        return JoinedSource(kept)

    def take(self, positions: NDArray[np.int64]) -> JoinedSource:
        """The samples at `positions`."""
        which, ranks = self._find(positions)
        sources = [source.take(ranks[which == number]) for number, source in enumerate(self._sources)]
        return JoinedSource(sources, None if bool((which[1:] >= which[:-1]).all()) else which)

    def _find(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """For each position the number of its source, and which of the source's samples it is."""
        if self._which is None:
            ends = np.cumsum([0, *map(len, self._sources)])
            found = np.searchsorted(ends[1:], positions, side="right").astype(np.int32)
            return found, positions - ends[found]
        ranks = np.empty(len(self), np.int64)
        ranks[np.argsort(self._which, kind="stable")] = np.concatenate([np.arange(len(s)) for s in self._sources])
        return self._which[positions], ranks[positions]

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample; each source is read once, from its start, as far as its samples are needed."""
        return self._merge([source.read() for source in self._sources])

    def keys(self) -> Iterator[str]:
        """The key of every sample."""
        return self._merge([source.keys() for source in self._sources])

    def _merge(self, parts: Sequence[Iterator[_T]]) -> Iterator[_T]:
        if self._which is None:
            return chain.from_iterable(parts)
        return (next(parts[number]) for number in self._which.tolist())

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels, in blocks."""
        if self._which is None:
            for source in self._sources:
                yield from source.labels()
        else:
            yield self._merge_arrays([all_labels(source) for source in self._sources]).astype(np.int64)

    def sizes(self) -> NDArray[np.int32]:
        """The size of every image."""
        return self._merge_arrays([source.sizes() for source in self._sources])

    def _merge_arrays(self, arrays: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
        joined = np.concatenate([np.empty(0, np.int32), *arrays])
        if self._which is None:
            return joined
        merged = np.empty(len(self), np.int32)
        merged[np.argsort(self._which, kind="stable")] = joined
        return merged

    def size(self) -> int:
        """The size of all sources together."""
        return sum(source.size() for source in self._sources)

    def identity(self) -> Mapping[str, Any]:
        """The identities of the sources."""
        return {"sets": [dict(source.identity()) for source in self._sources]}

    def locate(self, position: int) -> tuple[str, int | None]:
        """Where the sample at `position` lies."""
        which, ranks = self._find(np.array([position]))
        return self._sources[int(which[0])].locate(int(ranks[0]))

    def places(self) -> Mapping[str, bool]:
        """The places of all sources."""
        return {path: whole for source in self._sources for path, whole in source.places().items()}

    def class_names(self) -> Mapping[int, str] | None:
        """The names of all sources; the first name of a label that several sources share."""
        names: dict[int, str] = {}
        for source in self._sources:
            names = {**(source.class_names() or {}), **names}
        return names or None

    def declared_classes(self) -> int | None:
        """The largest number of classes, if all sources declare one."""
        declared = [source.declared_classes() for source in self._sources]
        known = [classes for classes in declared if classes is not None]
        return max(known) if known and len(known) == len(declared) else None


def all_labels(source: Source) -> NDArray[np.int32]:
    """Every label at once, shape (N,), 4 bytes each; -1 for one that cannot be read.

    Raises
    ------
    OptionError
        If a label does not fit into 4 bytes.
    """
    labels = np.empty(len(source), np.int32)
    filled = 0
    for block in source.labels():
        if int(block.max(initial=-1)) > LARGEST_LABEL:
            raise _too_large(int(block.max()))
        labels[filled : filled + len(block)] = block
        filled += len(block)
    return labels
