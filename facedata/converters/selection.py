"""Choosing samples of a source by their labels, closing gaps in these, and bringing the samples into an order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.combined import all_labels
from facedata.converters.selected import SelectedSource
from facedata.dataset import Source
from facedata.errors import EmptyDatasetError, OptionError

__all__ = ["Selection", "select"]

_BLOCK = 1 << 20
_POSITION = np.uint32  # 4 bytes a sample: there are no datasets of 4 thousand million images


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
        Number the labels that are left anew, from 0 without a gap, their order kept.
    group : bool
        Sort by label, the order within a class kept.
    shuffle : bool
        Bring the samples into a random order that follows from `seed` alone.
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
        """What differs from taking all as it comes, as JSON values; for a plan."""
        said = {
            "min images": self.min_images,
            "max images": self.max_images,
            "relabel": self.relabel,
            "grouped by label": self.group,
            "shuffle seed": self.seed if self.shuffle else None,
        }
        return {name: value for name, value in said.items() if value not in (None, False)}


def select(source: Source, selection: Selection) -> Source:
    """Apply a selection; the source itself where there is nothing to apply.

    The labels of all samples are read first, and kept in 4 bytes each; positions take 4 more.

    Raises
    ------
    EmptyDatasetError
        Where no sample is left.
    OptionError
        Where the format of the source cannot be read in the order that is wanted.
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
        # the stream of RandomState is frozen for good, that of Generator may change with NumPy's version
        np.random.RandomState(selection.seed).shuffle(positions)
    if positions is None and kept_labels is None:
        return source
    selected = SelectedSource(source, positions, kept_labels, labels)
    if positions is not None:
        selected[:_BLOCK].size()  # a format that cannot be read in this order says so now
    return selected


class _Classes:
    """Counts the labels of all samples, block by block, so that no second array of their length is needed.

    Parameters
    ----------
    labels : ndarray of shape (N,), int32
        -1 for a sample without one; these make up a class of their own behind all others.
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
        """The place of each label among all labels."""
        return np.where(block < 0, len(self.labels), np.searchsorted(self.labels, block))

    def ranked(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Block by block: where it begins, the class of each sample, and how many of this class came before it."""
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
        """Positions in the order of labels, the order within a class kept."""
        positions = np.empty(len(self._all), _POSITION)
        firsts = np.cumsum(self.counts) - self.counts
        for begin, codes, ranks in self.ranked():
            positions[firsts[codes] + ranks] = np.arange(begin, begin + len(codes))
        return positions


def _wanted(classes: _Classes, selection: Selection) -> NDArray[np.bool_] | None:
    """Which samples are wanted; None for all of them. What has no label is kept: it fails by name."""
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
