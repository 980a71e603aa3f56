"""How good features are: nearest neighbours with the label of their row, and the similarity of sampled pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.features.checks.report import Observer, Share, Similarity
from facedata.features.checks.rows import unit_rows
from facedata.features.feature_set import VALUE_BYTES, Floats, Matrix

__all__ = ["SameLabelCount", "sample_pairs", "sampled_share", "similarity"]

_SEED = 0x5EED
_ROWS_AT_ONCE = 4096
_MOST_BYTES = 1 << 28  # of sampled rows, and of one block
_PAIRS = 5_000  # rows are read one by one: on a spinning disk this takes a minute
_PAIRS_AT_ONCE = 1_000

Integers = NDArray[np.int64]


@dataclass
class SameLabelCount:
    """Counts neighbours with the label of their row, some rows at a time."""

    labels: Integers
    """Shape (N,)."""
    rows: int = 0
    pairs: int = 0
    same: int = 0
    nearest: int = 0
    nearest_same: int = 0

    def add(self, rows: Integers, ids: Integers) -> None:
        """Count the neighbours `ids`, shape (M, k), nearest first, of the rows with these numbers, shape (M,).

        The rows themselves may be among their neighbours.
        """
        own, others = self.labels[rows][:, None], self.labels[ids]
        counts = (ids != rows[:, None]) & (others > UNLABELLED) & (own > UNLABELLED)
        same = counts & (others == own)
        self.rows += int((own > UNLABELLED).sum())
        self.pairs += int(counts.sum())
        self.same += int(same.sum())
        first = counts.argmax(axis=1)[:, None]
        self.nearest += int(np.take_along_axis(counts, first, 1).sum())
        self.nearest_same += int(np.take_along_axis(same, first, 1).sum())

    def share(self, rows: Integers, neighbours: int, source: str) -> Share | None:
        """The share for these rows with so many neighbours each; None if no neighbour was counted."""
        if not self.pairs:
            return None
        known, sizes = np.unique(self.labels, return_counts=True)
        labelled = self.labels[rows][self.labels[rows] > UNLABELLED]
        others = sizes[np.searchsorted(known, labelled)] - 1
        possible = float(np.minimum(others, neighbours).mean() / neighbours)
        return Share(self.same / self.pairs, self.nearest_same / self.nearest, possible, neighbours, self.rows, source)


def sampled_share(
    matrix: Matrix,
    labels: Integers,
    usable: NDArray[np.bool_],
    neighbours: int,
    sample: int,
    observer: Observer | None = None,
) -> Share | None:
    """Search the exact neighbours, by cosine, of a fixed sample of rows among all rows, and return their share.

    Parameters
    ----------
    labels : ndarray of shape (N,), int64
    usable : ndarray of shape (N,), bool
        Rows that are finite and not zero; others are not neighbours of any row.
    neighbours : int
        Of each row; at most as many as there are.
    sample : int
        How many rows, of those with a label.

    Returns
    -------
    Share or None
        None if no row has a label, or there is only one row.
    """
    candidates = np.flatnonzero(usable & (labels > UNLABELLED))
    neighbours = min(neighbours, int(usable.sum()) - 1)
    room = _MOST_BYTES // max(matrix.dimensions * VALUE_BYTES, _ROWS_AT_ONCE * VALUE_BYTES, neighbours * 64)
    count = min(sample, len(candidates), max(room, 1))
    if neighbours < 1 or count < 1:
        return None
    chosen: Integers = np.sort(np.random.default_rng(_SEED).choice(candidates, count, replace=False))
    counts = SameLabelCount(labels)
    counts.add(chosen, _nearest(matrix, chosen, usable, neighbours, observer))
    return counts.share(chosen, neighbours, f"exact neighbours of {count:,} rows")


def _nearest(
    matrix: Matrix, chosen: Integers, usable: NDArray[np.bool_], wanted: int, observer: Observer | None
) -> Integers:
    """The nearest others of the chosen rows, nearest first, shape (M, wanted)."""
    vectors, count = unit_rows(matrix.rows_at(chosen)), len(chosen)
    row = matrix.dimensions * VALUE_BYTES
    # candidates are collected, and sorted only now and then: below the limits, a row is not among the nearest
    limits = np.full(count, -np.inf, np.float32)
    found: list[tuple[Integers, Integers, Floats]] = []
    unsorted = 0
    for first, block in matrix.blocks(min(_ROWS_AT_ONCE * row, _MOST_BYTES)):
        end = first + len(block)
        scores = vectors @ unit_rows(block).T
        scores[:, ~usable[first:end]] = -np.inf
        begin, after = np.searchsorted(chosen, [first, end])
        scores[np.arange(begin, after), chosen[begin:after] - first] = -np.inf  # not the row itself
        better = scores > limits[:, None]
        if np.count_nonzero(better) > count * wanted and len(block) > wanted:
            best = np.zeros_like(better)
            columns = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
            np.put_along_axis(best, columns, values=True, axis=1)
            better &= best
        queries, columns = np.nonzero(better)
        found.append((queries, columns + first, scores[queries, columns]))
        unsorted += len(queries)
        if unsorted >= count * wanted or end == matrix.rows:
            queries, ids, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
            order = np.lexsort((ids, -cosines, queries))
            queries, ids, cosines = queries[order], ids[order], cosines[order]
            rank = np.arange(len(queries)) - np.searchsorted(queries, np.arange(count))[queries]
            last, kept = rank == wanted - 1, rank < wanted
            limits[queries[last]] = cosines[last]
            found, unsorted = [(queries[kept], ids[kept], cosines[kept])], 0
        if observer is not None:
            observer(end * row, matrix.rows * row)
    return found[0][1].reshape(count, wanted)


def sample_pairs(matrix: Matrix, labels: Integers, usable: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The cosines of sampled pairs of rows with the same label, and with different labels, each of shape (M,).

    Each row of a class of two or more is equally likely to be in a pair of the same label. Rows that are not `usable`
    or have no label are in no pair. The same set gives the same pairs.
    """
    random = np.random.default_rng(_SEED)
    rows = np.flatnonzero(usable & (labels > UNLABELLED))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    count = max(min(_PAIRS, _MOST_BYTES // (4 * matrix.dimensions * VALUE_BYTES)), 1)
    same = rows[_places_of_one_class(labels[rows], count, random)]
    chosen = rows[random.integers(0, len(rows), (count, 2))] if len(rows) else same[:0]
    other = chosen[labels[chosen[:, 0]] != labels[chosen[:, 1]]]
    wanted, places = np.unique(np.concatenate([same, other]), return_inverse=True)
    unit = unit_rows(matrix.rows_at(wanted))
    cosines = np.empty(len(same) + len(other), np.float32)
    for begin in range(0, len(cosines), _PAIRS_AT_ONCE):  # in parts: pairs take no more memory than the rows themselves
        part = places.reshape(-1, 2)[begin : begin + _PAIRS_AT_ONCE]
        cosines[begin : begin + len(part)] = np.einsum("ij,ij->i", unit[part[:, 0]], unit[part[:, 1]])
    return cosines[: len(same)], cosines[len(same) :]


def _places_of_one_class(labels: Integers, count: int, random: np.random.Generator) -> Integers:
    """Pairs of different places with the same label in sorted labels, shape (count, 2), or (0, 2)."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    sizes = np.diff(np.append(starts, len(labels)))
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)  # of the class of each place
    candidates = np.flatnonzero(size > 1)
    if not len(candidates):
        return np.empty((0, 2), np.int64)
    first = random.choice(candidates, count)
    step = random.integers(1, size[first])  # to another place of the class, past its end to its start
    second = start[first] + (first - start[first] + step) % size[first]
    return np.stack([first, second], axis=1)


def similarity(cosines: Floats) -> Similarity | None:
    """Summarise some cosines; None if there are none."""
    if not len(cosines):
        return None
    low, high = np.percentile(cosines, [5, 95])
    return Similarity(len(cosines), float(cosines.mean(dtype=np.float64)), float(low), float(high))
