"""The records of a database in the order of their keys, in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from facedata.converters.lmdb.database import leaf_pages
from facedata.converters.lmdb.pages import Meta

__all__ = ["StoredOrder", "stored_order"]

_AT_A_TIME = 4096


@dataclass(frozen=True)
class StoredOrder:
    """Some records, by their places in the order of the keys.

    Attributes
    ----------
    pages : ndarray of shape (L,), int64
        The leaf pages that they lie on, in the order of the keys.
    ends : ndarray of shape (L,), int64
        The records of the database up to the end of each of these pages.
    begin : int
        The records before the first of these pages.
    positions : range or ndarray of shape (N,), int64
        Which records, counted in the whole database.
    """

    pages: NDArray[np.int64]
    ends: NDArray[np.int64]
    begin: int
    positions: range | NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice) -> StoredOrder:
        return replace(self, positions=self.positions[part])._narrowed()

    def take(self, positions: NDArray[np.int64]) -> StoredOrder:
        """The records at `positions` of these, in that order."""
        return replace(self, positions=np.asarray(self.positions, np.int64)[positions])._narrowed()

    def _narrowed(self) -> StoredOrder:
        """With only the pages that are needed."""
        if not len(self.positions):
            return StoredOrder(self.pages[:0], self.ends[:0], 0, range(0))
        if isinstance(self.positions, range):
            low, high = self.positions[0], self.positions[-1]
        else:
            low, high = int(self.positions.min()), int(self.positions.max())
        first, last = np.searchsorted(self.ends, [low, high], side="right").tolist()
        begin = int(self.ends[first - 1]) if first else self.begin
        return StoredOrder(
            self.pages[first : last + 1].copy(), self.ends[first : last + 1].copy(), begin, self.positions
        )

    def places(self) -> Iterator[tuple[int, int]]:
        """The leaf page of each record, and its place there."""
        begins = np.concatenate([[self.begin], self.ends[:-1]])
        for first in range(0, len(self), _AT_A_TIME):
            positions = np.asarray(self.positions[first : first + _AT_A_TIME], np.int64)
            which = np.searchsorted(self.ends, positions, side="right")
            yield from zip(self.pages[which].tolist(), (positions - begins[which]).tolist(), strict=True)


def stored_order(path: str, meta: Meta) -> StoredOrder:
    """All records of the database in the file `path`."""
    pages, ends = leaf_pages(path, meta)
    return StoredOrder(pages, ends, 0, range(meta.records))
