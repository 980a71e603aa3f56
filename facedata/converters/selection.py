"""Selecting samples of a source by their labels, renumbering these, and putting the samples into an order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.joined import all_labels
from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import EmptyDatasetError, OptionError, SampleError

__all__ = ["Selection", "select"]

_BLOCK = 1 << 20
_POSITION = np.uint32  # 4 bytes a sample: no dataset has 4 thousand million images


@dataclass(frozen=True)
class Selection:
    """Which samples, with which labels, in which order.

    Attributes
    ----------
    min_images : int, optional
        Leave out classes with fewer images.
    max_images : int, optional
        Of each class only the first so many images.
    relabel : bool
        Renumber the remaining labels from 0 without gaps, in the same order.
    group : bool
        Sort by label; within a class the order stays.
    shuffle : bool
        Put the samples into a random order that depends on `seed` alone.
    seed : int
        From 0 to 2**32 - 1.
    """

    min_images: int | None = None
    max_images: int | None = None
    relabel: bool = False
    group: bool = False
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group and self.shuffle:
            raise OptionError(
                "shuffled samples cannot be grouped by label: choose --style plain, or leave out --shuffle"
            )

    def options(self) -> dict[str, Any]:
        """What differs from taking all samples as they come, as JSON values; for a plan."""
        chosen = {
            "min images": self.min_images,
            "max images": self.max_images,
            "relabel": self.relabel,
            "grouped by label": self.group,
            "shuffle seed": self.seed if self.shuffle else None,
        }
        return {name: value for name, value in chosen.items() if value not in (None, False)}


def select(source: Source, selection: Selection) -> Source:
    """Apply a selection; returns the source itself if there is nothing to apply.

    The labels of all samples are read first, and kept in 4 bytes each; positions take 4 more.

    Raises
    ------
    EmptyDatasetError
        If no sample is left.
    OptionError
        If the format of the source cannot be read in the order that is asked for.
    """
    if selection == Selection(seed=selection.seed):
        return source
    labels = positions = kept_labels = None
    if selection.min_images or selection.max_images or selection.relabel or selection.group:
        labels = all_labels(source)
        classes = _Classes(labels)
        wanted = _wanted(classes, selection)
        if selection.group and not classes.grouped:
            positions = classes.grouped_positions()
            positions = positions if wanted is None else positions[wanted[positions]]
        elif wanted is not None:
            positions = np.flatnonzero(wanted).astype(_POSITION)
        if selection.relabel:
            left = classes.labels if wanted is None else np.unique(labels[wanted & (labels >= 0)])
            kept_labels = left.astype(np.int64)
    if selection.shuffle:
        if positions is None:
            positions = np.arange(len(source), dtype=_POSITION)
        # the stream of RandomState never changes; that of Generator may change with NumPy's version
        np.random.RandomState(selection.seed).shuffle(positions)
    if positions is None and kept_labels is None:
        return source
    new_labels = None if kept_labels is None else (kept_labels, np.arange(len(kept_labels)))
    selected = _SelectedSource(source, positions, new_labels, labels)
    if positions is not None:
        selected[:_BLOCK].size()  # a format that cannot be read in this order raises now
    return selected


class _Classes:
    """Counts the labels of all samples, block by block, so that no second array of their length is needed.

    Parameters
    ----------
    labels : ndarray of shape (N,), int32
        -1 for a sample without one; these make up a class of their own after all others.
    """

    def __init__(self, labels: NDArray[np.int32]) -> None:
        self._all = labels
        blocks = [np.unique(block) for _, block in self._blocks()]
        known = np.unique(np.concatenate([np.empty(0, np.int32), *blocks]))
        self.labels: NDArray[np.int64] = known[known >= 0].astype(np.int64)
        self.counts = np.zeros(len(self.labels) + 1, np.int64)
        self.grouped = True
        last = 0
        for _, block in self._blocks():
            codes = self._codes(block)
            self.counts += np.bincount(codes, minlength=len(self.counts))
            self.grouped &= bool((codes[1:] >= codes[:-1]).all()) and int(codes[0]) >= last
            last = int(codes[-1])

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        for begin in range(0, len(self._all), _BLOCK):
            yield begin, self._all[begin : begin + _BLOCK]

    def _codes(self, block: NDArray[np.int32]) -> NDArray[np.int64]:
        """The rank of each label among the labels that occur."""
        return np.where(block < 0, len(self.labels), np.searchsorted(self.labels, block))

    def ranked(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Block by block: where it begins, the class of each sample, and how many of that class came before it."""
        before = np.zeros_like(self.counts)
        for begin, block in self._blocks():
            codes = self._codes(block)
            order = np.argsort(codes, kind="stable")
            here = np.bincount(codes, minlength=len(before))
            ranks = np.empty(len(codes), np.int64)
            ranks[order] = np.arange(len(codes)) - np.repeat(np.cumsum(here) - here, here)
            yield begin, codes, ranks + before[codes]
            before += here

    def grouped_positions(self) -> NDArray[np.uint32]:
        """Positions in the order of the labels; within a class the order stays."""
        positions = np.empty(len(self._all), _POSITION)
        firsts = np.cumsum(self.counts) - self.counts
        for begin, codes, ranks in self.ranked():
            positions[firsts[codes] + ranks] = np.arange(begin, begin + len(codes))
        return positions


def _wanted(classes: _Classes, selection: Selection) -> NDArray[np.bool_] | None:
    """Which samples are selected; None for all. A sample without a label is kept, so that it fails by name."""
    if not selection.min_images and not selection.max_images:
        return None
    large = classes.counts >= (selection.min_images or 0)
    large[-1] = True
    most = np.full(len(large), selection.max_images or np.iinfo(np.int64).max)
    most[-1] = np.iinfo(np.int64).max
    if not len(classes.labels):
        raise EmptyDatasetError("no sample has a label that can be read, so no class can be chosen by its size")
    if not large[:-1].any():
        raise EmptyDatasetError(
            f"no class has {selection.min_images} images: the largest has {classes.counts[:-1].max(initial=0)}; lower "
            "--min-images"
        )
    wanted = np.concatenate([large[codes] & (ranks < most[codes]) for _, codes, ranks in classes.ranked()])
    return None if wanted.all() else wanted


class _SelectedSource(WrappedSource):
    """Some samples of a source, in an order of their own, perhaps with new labels.

    Parameters
    ----------
    source : Source
    positions : ndarray of shape (N,), uint32, optional
        Which samples, in which order; None for all as they come.
    new_labels : pair of ndarray of shape (C,), int64, optional
        The old labels, ascending, and the new label of each; None if labels stay as they are.
    known_labels : ndarray of shape (len(source),), int32, optional
        The labels of all samples of the source, if they have been read already.
    """

    def __init__(
        self,
        source: Source,
        positions: NDArray[np.uint32] | None = None,
        new_labels: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        known_labels: NDArray[np.int32] | None = None,
    ) -> None:
        super().__init__(source)
        self._positions, self._new_labels, self._known_labels = positions, new_labels, known_labels

    def __len__(self) -> int:
        return len(self._source if self._positions is None else self._positions)

    def __getitem__(self, part: slice) -> _SelectedSource:
        if self._positions is None:
            return self._part(self._source[part], part)
        chosen = self._positions[part]
        return self._part(self._source.take(chosen.astype(np.int64)), chosen)

    def take(self, positions: NDArray[np.int64]) -> _SelectedSource:
        """The samples at `positions` of the selection."""
        chosen = positions if self._positions is None else self._positions[positions].astype(np.int64)
        return self._part(self._source.take(chosen), chosen)

    def _part(self, source: Source, chosen: slice | NDArray[Any]) -> _SelectedSource:
        """A part with the new labels that occur in it: that is what a worker gets, not those of the whole source."""
        new_labels = self._new_labels
        if new_labels is not None and self._known_labels is not None:
            old, new = new_labels
            places = np.searchsorted(old, np.unique(self._known_labels[chosen]))
            places = np.unique(places[places < len(old)])
            new_labels = old[places], new[places]
        return _SelectedSource(source, None, new_labels)

    def _parts(self) -> Iterator[Source]:
        """The source's samples in the order of the selection, a bounded number of them at a time."""
        if self._positions is None:
            yield self._source
            return
        for begin in range(0, len(self._positions), _BLOCK):
            yield self._source.take(self._positions[begin : begin + _BLOCK].astype(np.int64))

    def read(self) -> Iterator[Sample | SampleError]:
        """Every selected sample with its new label, or the error in its place."""
        if self._new_labels is None:
            for part in self._parts():
                yield from part.read()
            return
        old, new = self._new_labels
        renumbered = dict(zip(old.tolist(), new.tolist(), strict=True))
        for part in self._parts():
            for position, item in enumerate(part.read()):
                if isinstance(item, SampleError):
                    yield item
                elif item.label in renumbered:
                    yield item._replace(label=renumbered[item.label])
                else:  # its label could not be read when the labels were counted
                    dataset, offset = part.locate(position)
                    reason = f"label {item.label} did not occur when the labels were counted"
                    yield SampleError(dataset, item.key, reason, offset)

    def keys(self) -> Iterator[str]:
        """The keys of the selected samples."""
        for part in self._parts():
            yield from part.keys()

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The new labels; -1 for a label that did not occur when the labels were counted."""
        for block in self._old_labels():
            if self._new_labels is None:
                yield block
                continue
            old, new = self._new_labels
            places = np.searchsorted(old, block)
            places[places == len(old)] = 0
            yield np.where(old[places] == block, new[places], -1) if len(old) else np.full(len(block), -1)

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
        """The sizes of the selected images."""
        sizes = self._source.sizes()
        return sizes if self._positions is None else sizes[self._positions]

    def locate(self, position: int) -> tuple[str, int | None]:
        """Where the source has this sample."""
        return self._source.locate(position if self._positions is None else int(self._positions[position]))

    def class_names(self) -> Mapping[int, str] | None:
        """The names under the new labels; without names, the old numbers are the names."""
        names = self._source.class_names()
        if self._new_labels is None:
            return names
        pairs = zip(*(labels.tolist() for labels in self._new_labels), strict=True)
        return {new: (names or {}).get(old, str(old)) for old, new in pairs}

    def declared_classes(self) -> int | None:
        """The number of new labels, or what the source declares if the labels stay."""
        if self._new_labels is None:
            return self._source.declared_classes()
        return int(self._new_labels[1].max(initial=-1)) + 1
