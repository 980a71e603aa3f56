"""How many of the true neighbours an approximate search finds, measured on a sample of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facedata.features.neighbours.approximate import IndexSearch, one_thread
from facedata.features.neighbours.base import Base
from facedata.features.neighbours.exact import Nearest, nearest_of

__all__ = ["SAMPLE_ROWS", "measured_recall"]

SAMPLE_ROWS = 1000
_SEED = 1
_SAME = 1e-6  # of the cosines of one pair, as two ways of computing it give them


def measured_recall(search: IndexSearch, base: Base, k: int, at_once: int) -> float:
    """The share of neighbours found that are among the k nearest; the row itself does not count, ties all do.

    Up to 1,000 rows are looked at, fewer where k is in the thousands, always the same, and compared with all rows.
    """
    if k == 1:
        return 1.0
    numbers, queries = base.sample(min(SAMPLE_ROWS, at_once), _SEED)  # what there is room for, where k is large
    with one_thread():
        near = _cosines_of_others(search.nearest_of(queries), numbers)
        true = _cosines_of_others(nearest_of(queries, base, k, at_once), numbers)
    return float(np.mean(near >= true[:, -1:] - _SAME))


def _cosines_of_others(nearest: Nearest, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Those of the other rows, not cut off: at distance 1, half of all rows would count as ties."""
    itself = nearest.ids == rows[:, None]
    itself[~itself.any(axis=1), -1] = True  # behind k duplicates, the last gives way to it
    others: NDArray[np.float32] = nearest.cosines[~itself].reshape(len(rows), -1)
    return others
