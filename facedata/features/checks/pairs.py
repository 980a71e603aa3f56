"""How similar rows of one label are, and rows of different labels: a sample of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.features.checks.rows import rows_at
from facedata.features.checks.shares import unit_rows
from facedata.features.matrix import VALUE_BYTES, Floats, Matrix

__all__ = ["Pairs", "Similarity", "sample_pairs", "similarity"]

_SEED = 0x5EED
_PAIRS = 5_000  # rows are read one by one: on a spinning disk that many take a minute
_MOST_BYTES = 1 << 28

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Similarity:
    """Cosines of pairs: the mean, and what 5 % and 95 % of them lie below."""

    pairs: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pairs:
    """The cosines of sampled pairs, each of shape (M,); empty where there are no such pairs."""

    same: Floats
    other: Floats


def similarity(cosines: Floats) -> Similarity | None:
    """The sum of some cosines; None where there are none."""
    if not len(cosines):
        return None
    low, high = np.percentile(cosines, [5, 95])
    return Similarity(len(cosines), float(cosines.mean(dtype=np.float64)), float(low), float(high))


def sample_pairs(matrix: Matrix, labels: Integers, usable: NDArray[np.bool_]) -> Pairs:
    """Pairs of rows with the same label and with different ones, the same for the same set.

    Each row of a class of two or more is as likely as any other to be in a pair of the same label.

    Parameters
    ----------
    matrix : Matrix
    labels : ndarray of shape (N,), int64
    usable : ndarray of shape (N,), bool
        Rows that are finite and not zero; others are in no pair.
    """
    random = np.random.default_rng(_SEED)
    rows = np.flatnonzero(usable & (labels > UNLABELLED))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    count = max(min(_PAIRS, _MOST_BYTES // (4 * matrix.dimensions * VALUE_BYTES)), 1)
    first, second = _same_label(labels[rows], count, random)
    same = np.stack([rows[first], rows[second]], axis=1)
    chosen = rows[random.integers(0, len(rows), (count, 2))] if len(rows) else same[:0]
    other = chosen[labels[chosen[:, 0]] != labels[chosen[:, 1]]]
    wanted, places = np.unique(np.concatenate([same, other]), return_inverse=True)
    unit = unit_rows(rows_at(matrix, wanted))
    cosines = _cosines(unit, places.reshape(-1, 2))
    return Pairs(cosines[: len(same)], cosines[len(same) :])


def _same_label(labels: Integers, count: int, random: np.random.Generator) -> tuple[Integers, Integers]:
    """Places in sorted labels, the two of a pair different."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    sizes = np.diff(np.append(starts, len(labels)))
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)  # of each place
    candidates = np.flatnonzero(size > 1)
    if not len(candidates):
        return candidates, candidates
    first: Integers = random.choice(candidates, count)
    step = random.integers(1, size[first])  # to another of the class, around its end
    return first, start[first] + (first - start[first] + step) % size[first]


def _cosines(unit: Floats, places: Integers) -> Floats:
    """In parts, so that pairs take no more memory than the rows themselves."""
    parts = [np.einsum("ij,ij->i", unit[one[:, 0]], unit[one[:, 1]]) for one in _parts(places)]
    cosines: Floats = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return cosines


def _parts(places: Integers) -> list[Integers]:
    return [places[begin : begin + 1000] for begin in range(0, len(places), 1000)]
