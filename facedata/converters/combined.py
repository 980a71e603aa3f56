"""Several sources behind each other, their labels shifted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.dataset import Sample, Source
from facedata.errors import OptionError, SampleError

__all__ = ["LARGEST_LABEL", "ConcatenatedSource", "all_labels", "join_sources"]

_T = TypeVar("_T")
"""What readers of labels take: a signed integer of 32 bits."""
_log = logging.getLogger(__name__)


class ConcatenatedSource(Source):
    """Several sources, one after the other, each with its labels shifted.

    Parameters
    ----------
    sources : sequence of Source
    shifts : sequence of int
        What is added to the labels of each.
    classes : sequence of int or None
        The number of classes of each, where its labels must stay below it because the labels of the next set
        begin there; None where they need not.
    """

    def __init__(self, sources: Sequence[Source], shifts: Sequence[int], classes: Sequence[int | None]) -> None:
        self._parts = list(zip(sources, shifts, classes, strict=True))

    def __len__(self) -> int:
        return sum(len(source) for source, _, _ in self._parts)

    def __getitem__(self, part: slice) -> ConcatenatedSource:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a source is sliced in steps of 1, not {step}")
        kept, first = [], 0
        for source, shift, classes in self._parts:
            inner = slice(max(start - first, 0), max(min(stop - first, len(source)), 0))
            if inner.start < inner.stop:
                kept.append((source[inner], shift, classes))
            first += len(source)
        result = ConcatenatedSource([], [], [])
        result._parts = kept
        return result

    def take(self, positions: NDArray[np.int64]) -> Source:
        """The samples at `positions`, of all sets in any order."""
        ends = np.cumsum([len(source) for source, _, _ in self._parts])
        which = np.searchsorted(ends, positions, side="right").astype(np.int32)
        taken = []
        for number, (source, shift, classes) in enumerate(self._parts):
            first = int(ends[number]) - len(source)
            taken.append(ConcatenatedSource([source.take(positions[which == number] - first)], [shift], [classes]))
        return _Interleaved(taken, which)

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample of every source in order, labels shifted, with the error in the place of each that fails."""
        for source, shift, classes in self._parts:
            if shift == 0 and classes is None:
                yield from source.read()
            else:
                yield from _shifted(source, shift, classes)

    def identity(self) -> Mapping[str, Any]:
        """The identities of the sources, and the shifts."""
        return {
            "sets": [dict(source.identity()) for source, _, _ in self._parts],
            "label shifts": [shift for _, shift, _ in self._parts],
        }

    def locate(self, position: int) -> tuple[str, int | None]:
        """Ask the source that the sample at `position` is in."""
        for source, _, _ in self._parts:
            if position < len(source):
                return source.locate(position)
            position -= len(source)
        raise IndexError(f"position {position} lies behind the last sample")

    def places(self) -> Mapping[str, bool]:
        """Those of every source."""
        return {path: whole for source, _, _ in self._parts for path, whole in source.places().items()}

    def keys(self) -> Iterator[str]:
        """The keys of every source."""
        for source, _, _ in self._parts:
            yield from source.keys()

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The shifted labels; -1 where one cannot be told, or lies above the classes of its set."""
        for source, shift, classes in self._parts:
            for block in source.labels():
                known = (block >= 0) & (block < (classes if classes is not None else np.iinfo(np.int64).max))
                yield np.where(known, block + shift, -1)

    def size(self) -> int:
        """Those of the sources together."""
        return sum(source.size() for source, _, _ in self._parts)

    def sizes(self) -> NDArray[np.int32]:
        """Those of the sources, one behind the other."""
        return np.concatenate([np.empty(0, np.int32), *(source.sizes() for source, _, _ in self._parts)])

    def class_names(self) -> Mapping[int, str] | None:
        """The names of all sets under the shifted labels; of labels that several sets share, the first name."""
        names: dict[int, str] = {}
        for source, shift, _ in self._parts:
            for label, name in (source.class_names() or {}).items():
                names.setdefault(label + shift, name)
        return names or None

    def declared_classes(self) -> int | None:
        """Where the last set says how many it has, those and all before it."""
        declared = [None if (n := source.declared_classes()) is None else n + shift for source, shift, _ in self._parts]
        return None if None in declared or not declared else max(n for n in declared if n is not None)


def _shifted(source: Source, shift: int, classes: int | None) -> Iterator[Sample | SampleError]:
    for position, item in enumerate(source.read()):
        if isinstance(item, SampleError):
            yield item
        elif classes is not None and item.label >= classes:
            dataset, offset = source.locate(position)
            reason = f"label {item.label}, but the set declares {classes} classes, and the next set's begin behind them"
            yield SampleError(dataset, item.key, reason, offset)
        else:
            yield Sample(item.key, item.label + shift, item.image, item.landmarks)


class _Interleaved(Source):
    """Samples taken from several sources in turn: `which` (shape (N,)) says from which source each comes."""

    def __init__(self, sources: Sequence[Source], which: NDArray[np.int32]) -> None:
        self._sources, self._which = sources, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, part: slice) -> _Interleaved:
        return self.take(np.arange(len(self))[part])

    def take(self, positions: NDArray[np.int64]) -> _Interleaved:
        """The samples at `positions`."""
        which = self._which[positions]
        sources = []
        for number, source in enumerate(self._sources):
            rank = np.cumsum(self._which == number) - 1  # which of its source's samples each one is
            sources.append(source.take(rank[positions[which == number]]))
        return _Interleaved(sources, which)

    def read(self) -> Iterator[Sample | SampleError]:
        """Each source is read once, from its start, as far as its samples are wanted."""
        return self._in_turn([source.read() for source in self._sources])

    def _in_turn(self, parts: Sequence[Iterator[_T]]) -> Iterator[_T]:
        for number in self._which.tolist():
            yield next(parts[number])

    def identity(self) -> Mapping[str, Any]:
        """Those of the sources."""
        return {"sets": [dict(source.identity()) for source in self._sources]}

    def locate(self, position: int) -> tuple[str, int | None]:
        """Ask the source that the sample at `position` is from."""
        number = int(self._which[position])
        return self._sources[number].locate(int(np.count_nonzero(self._which[:position] == number)))

    def places(self) -> Mapping[str, bool]:
        """Those of every source."""
        return {path: whole for source in self._sources for path, whole in source.places().items()}

    def keys(self) -> Iterator[str]:
        """The keys, in turn."""
        return self._in_turn([source.keys() for source in self._sources])

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels, in turn."""
        labels = np.empty(len(self), np.int64)
        for number, source in enumerate(self._sources):
            labels[self._which == number] = all_labels(source)
        yield labels

    def size(self) -> int:
        """Those of the sources together."""
        return sum(source.size() for source in self._sources)

    def sizes(self) -> NDArray[np.int32]:
        """The sizes, in turn."""
        sizes = np.empty(len(self), np.int32)
        for number, source in enumerate(self._sources):
            sizes[self._which == number] = source.sizes()
        return sizes

    def class_names(self) -> Mapping[int, str] | None:
        """The names of all sources."""
        names: dict[int, str] = {}
        for source in self._sources:
            names = {**(source.class_names() or {}), **names}
        return names or None

    def declared_classes(self) -> int | None:
        """Where all say how many there are, the most of them."""
        declared = [source.declared_classes() for source in self._sources]
        known = [number for number in declared if number is not None]
        return max(known) if known and len(known) == len(declared) else None


def all_labels(source: Source) -> NDArray[np.int32]:
    """Every label at once, shape (N,), 4 bytes each; -1 where one cannot be told.

    Raises
    ------
    OptionError
        Where one does not fit into 4 bytes.
    """
    labels = np.empty(len(source), np.int32)
    filled = 0
    for block in source.labels():
        if int(block.max(initial=-1)) > LARGEST_LABEL:
            raise _too_large(int(block.max()))
        labels[filled : filled + len(block)] = block
        filled += len(block)
    return labels


def join_sources(sources: Sequence[Source], *, shift: bool) -> tuple[Source, list[tuple[int, int | None]]]:
    """Put sources behind each other.

    Parameters
    ----------
    sources : sequence of Source
    shift : bool
        Shift the labels of each past those of the sources before it, so that people stay apart. Where a source does not
        say how many classes it has, its labels are read to count them.

    Returns
    -------
    Source
    list of tuple
        For each source what its labels are shifted by, and how many classes it has, where that is known.
    """
    told: list[tuple[int, int | None]] = []
    limits: list[int | None] = []
    first = 0
    for source in sources:
        last = len(told) == len(sources) - 1
        classes = source.declared_classes()
        if shift and not last and classes is None:
            place = next(iter(source.places()), "a set")
            _log.info("%s: declares no number of classes; reading its labels to count them", place)
            classes = max((int(labels.max(initial=-1)) for labels in source.labels()), default=-1) + 1
        if first + (classes or 1) - 1 > LARGEST_LABEL:
            raise _too_large(first + (classes or 1) - 1)
        told.append((first, classes))
        limits.append(classes if shift and not last else None)
        first += classes or 0 if shift else 0
    if len(sources) == 1:
        return sources[0], told
    return ConcatenatedSource(sources, [first for first, _ in told], limits), told


def _too_large(label: int) -> OptionError:
    return OptionError(
        f"the largest label would be {label}, and labels end at {LARGEST_LABEL}; close the gaps in the labels of each "
        "set first (facedata convert ... --relabel), or keep them as they are with --labels keep"
    )
