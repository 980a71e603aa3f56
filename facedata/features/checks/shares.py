"""The share of nearest neighbours that have the row's own label: how good features are, before any clustering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.features.checks.findings import Observer
from facedata.features.checks.labels import best_share
from facedata.features.checks.rows import row_norms, rows_at
from facedata.features.matrix import VALUE_BYTES, Floats, Matrix

__all__ = ["Counted", "Share", "sampled_share", "unit_rows"]

_SEED = 0x5EED
_ROWS_AT_ONCE = 4096
_MOST_BYTES = 1 << 28
"""Of sampled rows, and of one block."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """How many neighbours have the row's label; the row itself is not one of them, and -1 is no label.

    Attributes
    ----------
    all : float
        Of all neighbours.
    nearest : float
        Of the nearest of each row.
    possible : float
        What `all` could be at most, with classes of these sizes.
    neighbours : int
        Of each row.
    rows : int
        Whose neighbours were looked at.
    source : str
        A file of neighbours, or ``"exact neighbours of a sample"``.
    """

    all: float
    nearest: float
    possible: float
    neighbours: int
    rows: int
    source: str


@dataclass
class Counted:
    """Neighbours counted so far."""

    rows: int = 0
    pairs: int = 0
    same: int = 0
    nearest: int = 0
    nearest_same: int = 0

    def add(self, labels: Integers, rows: Integers, ids: Integers) -> None:
        """Count the neighbours of some rows.

        Parameters
        ----------
        labels : ndarray of shape (N,)
        rows : ndarray of shape (M,)
            Their numbers.
        ids : ndarray of shape (M, k)
            Their neighbours, nearest first, themselves among them or not.
        """
        own, others = labels[rows][:, None], labels[ids]
        counts = (ids != rows[:, None]) & (others > UNLABELLED) & (own > UNLABELLED)
        same = counts & (others == own)
        self.rows += int((own > UNLABELLED).sum())
        self.pairs += int(counts.sum())
        self.same += int(same.sum())
        first = counts.argmax(axis=1)[:, None]
        self.nearest += int(np.take_along_axis(counts, first, 1).sum())
        self.nearest_same += int(np.take_along_axis(same, first, 1).sum())

    def share(self, labels: Integers, rows: Integers, neighbours: int, source: str) -> Share | None:
        """The sum of these rows; None where no neighbour was counted."""
        if not self.pairs:
            return None
        possible = best_share(labels, rows[labels[rows] > UNLABELLED], neighbours)
        return Share(self.same / self.pairs, self.nearest_same / self.nearest, possible, neighbours, self.rows, source)


def sampled_share(
    matrix: Matrix,
    labels: Integers,
    usable: NDArray[np.bool_],
    neighbours: int,
    sample: int,
    observer: Observer | None = None,
) -> Share | None:
    """The share by exact neighbours of a fixed sample of rows among all rows, by cosine.

    Parameters
    ----------
    matrix : Matrix
    labels : ndarray of shape (N,), int64
    usable : ndarray of shape (N,), bool
        Rows that are finite and not zero; others are no neighbours.
    neighbours : int
        Of each row; at most as many as there are.
    sample : int
        Rows, of those with a label.
    observer : callable, optional

    Returns
    -------
    Share or None
        None where no row has a label, or there is only one row.
    """
    candidates = np.flatnonzero(usable & (labels > UNLABELLED))
    neighbours = min(neighbours, int(usable.sum()) - 1)
    room = _MOST_BYTES // max(matrix.dimensions * VALUE_BYTES, _ROWS_AT_ONCE * VALUE_BYTES, neighbours * 64)
    count = min(sample, len(candidates), max(room, 1))
    if neighbours < 1 or count < 1:
        return None
    chosen: Integers = np.sort(np.random.default_rng(_SEED).choice(candidates, count, replace=False))
    counted = Counted()
    counted.add(labels, chosen, _nearest(matrix, chosen, usable, neighbours, observer))
    return counted.share(labels, chosen, neighbours, f"exact neighbours of {count:,} rows")


def unit_rows(rows: Floats) -> Floats:
    """Rows of length 1; a row that is zero or not finite becomes zero."""
    norms = row_norms(rows)
    good = (norms > 0) & (norms < np.inf)
    unit: Floats = np.zeros_like(rows)
    np.divide(rows, norms[:, None], out=unit, where=good[:, None])
    return unit


def _nearest(
    matrix: Matrix, chosen: Integers, usable: NDArray[np.bool_], neighbours: int, observer: Observer | None
) -> Integers:
    """The nearest others of the chosen rows, nearest first, shape (M, neighbours)."""
    queries, best = unit_rows(rows_at(matrix, chosen)), _Best(len(chosen), neighbours)
    row = matrix.dimensions * VALUE_BYTES
    at_once = min(_ROWS_AT_ONCE * row, _MOST_BYTES)
    for first, block in matrix.blocks(at_once):
        scores = queries @ unit_rows(block).T
        scores[:, ~usable[first : first + len(block)]] = -np.inf
        begin, end = np.searchsorted(chosen, [first, first + len(block)])
        scores[np.arange(begin, end), chosen[begin:end] - first] = -np.inf  # not itself
        best.add(scores, first)
        if observer is not None:
            observer((first + len(block)) * row, matrix.rows * row)
    return best.ids()


class _Best:
    """The best so many of each query; new ones are sorted in only now and then."""

    def __init__(self, queries: int, wanted: int) -> None:
        self._wanted, self._queries = wanted, queries
        self._limits = np.full(queries, -np.inf, np.float32)
        self._held: list[tuple[Integers, Integers, Floats]] = []
        self._waiting = 0

    def add(self, scores: Floats, first: int) -> None:
        """Scores of shape (queries, M) for the rows from `first` on."""
        beats = scores > self._limits[:, None]
        if np.count_nonzero(beats) > self._queries * self._wanted and scores.shape[1] > self._wanted:
            columns = np.argpartition(-scores, self._wanted - 1, axis=1)[:, : self._wanted]
            beats = np.zeros_like(beats)
            np.put_along_axis(beats, columns, values=True, axis=1)
            beats &= scores > self._limits[:, None]
        queries, columns = np.nonzero(beats)
        self._held.append((queries, columns + first, scores[queries, columns]))
        self._waiting += len(queries)
        if self._waiting >= self._queries * self._wanted:
            self._merge()

    def ids(self) -> Integers:
        self._merge()
        return self._held[0][1].reshape(self._queries, self._wanted)

    def _merge(self) -> None:
        queries, ids, scores = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
        order = np.lexsort((ids, -scores, queries))
        queries, ids, scores = queries[order], ids[order], scores[order]
        starts = np.searchsorted(queries, np.arange(self._queries))
        rank = np.arange(len(queries)) - starts[queries]
        kept = rank < self._wanted
        self._held, self._waiting = [(queries[kept], ids[kept], scores[kept])], 0
        last = rank == self._wanted - 1
        self._limits[queries[last]] = scores[last]
