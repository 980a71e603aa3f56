"""A choice of the samples of a source, in an order of their own, perhaps with other labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import SampleError

__all__ = ["SelectedSource"]

_BLOCK = 1 << 20


class SelectedSource(WrappedSource):
    """Some samples of a source, in an order of their own, perhaps with other labels.

    Parameters
    ----------
    source : Source
    positions : ndarray of shape (N,), uint32, optional
        Which samples, in which order; None for all as they come.
    kept_labels : ndarray of shape (C,), int64, optional
        Ascending; the new label of each is its place. None where labels stay as they are.
    known_labels : ndarray of shape (len(source),), int32, optional
        The labels of all samples of the source, where they have been read already.
    """

    def __init__(
        self,
        source: Source,
        positions: NDArray[np.uint32] | None = None,
        kept_labels: NDArray[np.int64] | None = None,
        known_labels: NDArray[np.int32] | None = None,
    ) -> None:
        self._source, self._positions, self._known_labels = source, positions, known_labels
        # the old labels, ascending, and the new ones
        self._renumbered = None if kept_labels is None else (kept_labels, np.arange(len(kept_labels)))

    def __len__(self) -> int:
        return len(self._source if self._positions is None else self._positions)

    def __getitem__(self, part: slice) -> SelectedSource:
        return self._part(part, None if self._positions is None else self._positions[part])

    def take(self, positions: NDArray[np.int64]) -> SelectedSource:
        """The samples at `positions` of the choice."""
        return self._part(slice(0, 0), positions if self._positions is None else self._positions[positions])

    def _part(self, part: slice, positions: NDArray[Any] | None) -> SelectedSource:
        """A part alone, with the labels that are in it: that is what goes to a worker, not the whole source."""
        source = self._source[part] if positions is None else self._source.take(positions.astype(np.int64))
        renumbered = self._renumbered
        if renumbered is not None and self._known_labels is not None:
            present = np.unique(self._known_labels[part if positions is None else positions])
            known = present[(present >= 0) & (present <= renumbered[0].max(initial=-1))]
            places = np.searchsorted(renumbered[0], known)
            places = np.unique(places)
            renumbered = renumbered[0][places], renumbered[1][places]
        taken = SelectedSource(source)
        taken._renumbered = renumbered
        return taken

    def _parts(self) -> Iterator[Source]:
        """The source's samples in the order of the choice, a bounded number of them at a time."""
        if self._positions is None:
            yield self._source
            return
        for begin in range(0, len(self._positions), _BLOCK):
            yield self._source.take(self._positions[begin : begin + _BLOCK].astype(np.int64))

    def read(self) -> Iterator[Sample | SampleError]:
        """Every chosen sample with its new label, or the error in its place."""
        for part in self._parts():
            yield from part.read() if self._renumbered is None else _relabelled(part, *self._renumbered)

    def keys(self) -> Iterator[str]:
        """The keys of the chosen samples."""
        for part in self._parts():
            yield from part.keys()

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The new labels."""
        for block in self._old_labels():
            if self._renumbered is None:
                yield block
            else:
                old, new = self._renumbered
                if not len(old):
                    yield np.full(len(block), -1)
                    continue
                places = np.minimum(np.searchsorted(old, block), max(len(old) - 1, 0))
                yield np.where(old[places] == block, new[places], -1)

    def _old_labels(self) -> Iterator[NDArray[np.int64]]:
        if self._known_labels is None:
            for part in self._parts():
                yield from part.labels()
            return
        for begin in range(0, len(self), _BLOCK):
            some = slice(begin, begin + _BLOCK)
            known = self._known_labels[some] if self._positions is None else self._known_labels[self._positions[some]]
            yield known.astype(np.int64)

    def sizes(self) -> NDArray[np.int32]:
        """Those of the chosen samples."""
        sizes = self._source.sizes()
        return sizes if self._positions is None else sizes[self._positions]

    def class_names(self) -> Mapping[int, str] | None:
        """The names under the new labels; where there were no names, the old numbers are the names."""
        names = self._source.class_names()
        if self._renumbered is None:
            return names
        pairs = zip(*(labels.tolist() for labels in self._renumbered), strict=True)
        return {new: (names or {}).get(old, str(old)) for old, new in pairs}

    def declared_classes(self) -> int | None:
        """How many new labels there are; where the labels stay, what the source says."""
        if self._renumbered is None:
            return self._source.declared_classes()
        return int(self._renumbered[1].max(initial=-1)) + 1


def _relabelled(source: Source, old: NDArray[np.int64], new: NDArray[np.int64]) -> Iterator[Sample | SampleError]:
    renumbered = dict(zip(old.tolist(), new.tolist(), strict=True))
    for position, item in enumerate(source.read()):
        if isinstance(item, SampleError):
            yield item
            continue
        label = renumbered.get(item.label)
        if label is not None:
            yield Sample(item.key, label, item.image, item.landmarks)
        else:  # its label could not be told when the labels were counted
            dataset, offset = source.locate(position)
            yield SampleError(dataset, item.key, f"label {item.label} was not met when labels were counted", offset)
