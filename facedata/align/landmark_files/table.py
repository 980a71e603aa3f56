"""`EntryTable`: where the entries of a landmark file are, found by their keys; 16 bytes an entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["EntryTable", "Found", "hash_keys"]

_ROWS = 1 << 20


def hash_keys(keys: Sequence[bytes]) -> NDArray[np.float64]:
    """Hashes of keys, integers of 53 bits, which a float64 holds exactly; good in this process alone."""
    return (np.fromiter(map(hash, keys), np.int64, len(keys)) >> 11).astype(np.float64)


class Found(NamedTuple):
    """Which entries have the keys that were asked for.

    Attributes
    ----------
    first : ndarray of shape (K,), int64
        The reference of the first entry of each key; -1 where there is none.
    again : ndarray of shape (M,), int64
        Which key each further entry has, ascending.
    further : ndarray of shape (M,), int64
        The reference of each further entry.
    """

    first: NDArray[np.int64]
    again: NDArray[np.int64]
    further: NDArray[np.int64]


class EntryTable:
    """Pairs of a key's hash and a reference below 2**53: a byte offset, a number.

    The pairs are complex numbers, for these NumPy sorts by the first part, then the second, without further memory.
    """

    def __init__(self) -> None:
        self._pairs = np.empty(0, np.complex128)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, keys: Sequence[bytes], references: NDArray[np.int64]) -> None:
        """Add entries; `seal` when all are there."""
        end = self._length + len(keys)
        if end > len(self._pairs):
            self._pairs.resize(max(end, len(self._pairs) + (len(self._pairs) >> 3)), refcheck=False)
        part = self._pairs[self._length : end]
        part.real, part.imag = hash_keys(keys), references
        self._length = end

    def seal(self) -> EntryTable:
        """Make ready for `find`."""
        self._pairs.resize(self._length, refcheck=False)
        self._pairs.sort()
        return self

    def find(self, keys: Sequence[bytes]) -> Found:
        """Look some keys up; the entries of each in the order of their references."""
        hashes = hash_keys(keys)
        order = np.argsort(hashes)  # neighbours are looked for in the same place of memory
        low = np.empty(len(keys), np.int64)
        low[order] = np.searchsorted(self._pairs, hashes[order].astype(np.complex128))
        there = self._has(low, hashes)
        first = np.full(len(keys), -1, np.int64)
        first[there] = self._references(low[there])
        several = np.flatnonzero(there)
        several = several[self._has(low[several] + 1, hashes[several])]
        return Found(first, *self._further(several, low[several], hashes[several]))

    def _has(self, places: NDArray[np.int64], hashes: NDArray[np.float64]) -> NDArray[np.bool_]:
        if not self._length:
            return np.zeros(len(places), np.bool_)
        same: NDArray[np.bool_] = self._pairs.real[np.minimum(places, self._length - 1)] == hashes
        return same & (places < self._length)

    def _further(
        self, keys: NDArray[np.int64], low: NDArray[np.int64], hashes: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ends = hashes.astype(np.complex128)
        ends.imag = np.inf
        counts = np.searchsorted(self._pairs, ends) - low - 1
        before = np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(low + 1, counts) + np.arange(len(before)) - before
        return np.repeat(keys, counts), self._references(places)

    def _references(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._pairs.imag[places].astype(np.int64)

    def references(self) -> NDArray[np.int64]:
        """The references of all entries, ascending."""
        references = self._pairs.imag.astype(np.int64)
        references.sort()
        return references

    def keys(self) -> int:
        """How many different keys there are."""
        hashes, count = self._pairs.real, min(self._length, 1)
        for begin in range(1, self._length, _ROWS):
            part = hashes[begin - 1 : begin + _ROWS]
            count += int(np.count_nonzero(part[1:] != part[:-1]))
        return count

    def repeated(self) -> NDArray[np.int64]:
        """References of pairs of entries with the same hash, shape (R, 2)."""
        places = np.flatnonzero(self._pairs.real[1:] == self._pairs.real[:-1])
        return np.stack([self._references(places), self._references(places + 1)], axis=1)
