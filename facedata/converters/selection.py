"""Choosing samples of a source by their labels, closing gaps in these, and bringing the samples into an order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.combined import SelectedSource, all_labels
from facedata.dataset import Source
from facedata.errors import EmptyDatasetError, OptionError

__all__ = ["Selection", "select"]


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

    The labels of all samples are read first, and kept in 4 bytes each; positions take 8.

    Raises
    ------
    EmptyDatasetError
        Where no sample is left.
    OptionError
        Where the format of the source cannot be read in the order that is wanted.
    """
    positions, kept_labels = None, None
    if selection.min_images or selection.max_images or selection.relabel or selection.group:
        labels = all_labels(source)
        positions = _chosen(labels, selection)
        if selection.group:
            positions = _grouped(labels, positions)
        if selection.relabel:
            left = labels if positions is None else labels[positions]
            kept_labels = np.unique(left[left >= 0]).astype(np.int64)
    if selection.shuffle:
        positions = _shuffled(len(source), positions, selection.seed)
    if positions is None and kept_labels is None:
        return source
    selected = SelectedSource(source, positions, kept_labels)
    if positions is not None:
        selected[:1]  # a format that cannot be read in this order says so now
    return selected


def _chosen(labels: NDArray[np.int32], selection: Selection) -> NDArray[np.int64] | None:
    """Positions of the samples that are wanted; None for all of them. What has no label is kept: it fails by name."""
    if not selection.min_images and not selection.max_images:
        return None
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = np.ones(len(labels), bool)
    if selection.min_images:
        wanted &= counts[inverse] >= selection.min_images
    if selection.max_images:
        order = np.argsort(inverse, kind="stable")
        firsts = np.cumsum(counts) - counts
        wanted[order] &= np.arange(len(labels)) - np.repeat(firsts, counts) < selection.max_images
    wanted |= labels < 0
    if not (wanted & (labels >= 0)).any():
        raise EmptyDatasetError(
            f"no class has {selection.min_images} images: the largest has {counts.max(initial=0)}; lower --min-images"
        )
    return None if wanted.all() else np.flatnonzero(wanted)


def _grouped(labels: NDArray[np.int32], positions: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Positions in the order of labels, those without a label last; as they are where that is the order already."""
    left = labels if positions is None else labels[positions]
    keys = np.where(left < 0, np.iinfo(np.int32).max, left)
    if not len(keys) or bool((keys[1:] >= keys[:-1]).all()):
        return positions
    order = np.argsort(keys, kind="stable")
    return order if positions is None else positions[order]


def _shuffled(count: int, positions: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    # the stream of RandomState is frozen for good, that of Generator may change with NumPy's version
    order: NDArray[np.int64] = np.random.RandomState(seed).permutation(count if positions is None else len(positions))
    return order if positions is None else positions[order]
