"""How many of the true neighbours an approximate search finds, measured on a sample of rows."""

from __future__ import annotations

import numpy as np

from facedata.features.neighbours.approximate import IndexSearch, one_thread
from facedata.features.neighbours.base import Base
from facedata.features.neighbours.exact import nearest_of
from facedata.features.neighbours.found import with_itself_first

__all__ = ["SAMPLE_ROWS", "measured_recall"]

SAMPLE_ROWS = 1000
_SEED = 1
_SAME = 1e-6  # of the distances of one pair, as two ways of computing it give them


def measured_recall(search: IndexSearch, base: Base, k: int, at_once: int) -> float:
    """The share of neighbours found that are among the k nearest; the row itself does not count, ties all do.

    Up to 1,000 rows are looked at, always the same, and compared with all rows.
    """
    if k == 1:
        return 1.0
    numbers, queries = base.sample(SAMPLE_ROWS, _SEED)
    with one_thread():
        near = with_itself_first(*search.nearest_of(queries), numbers).distances
        true = with_itself_first(*nearest_of(queries, base, k, at_once), numbers).distances
    return float(np.mean(near[:, 1:] <= true[:, -1:] + _SAME))
