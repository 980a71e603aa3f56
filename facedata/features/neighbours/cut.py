"""How a search is cut into pieces: by the matrix and k alone, so that memory and threads do not show in the result."""

from __future__ import annotations

from dataclasses import dataclass

from facedata.features.matrix import VALUE_BYTES

__all__ = ["Cut", "cut_search"]

_ROWS_AT_ONCE = 1 << 10
_VALUES_AT_ONCE = 1 << 17  # fewer, and faiss multiplies without BLAS, at a quarter of the speed
_MOST_AT_ONCE = 1 << 12
_FOUND_BYTES = 1 << 25  # of what is found at once, ids and cosines
_FOUND_EACH = 12
_CHUNK_BYTES = 1 << 28  # smaller ones cost: the k nearest are found anew in each, 7 % more time at a quarter
_CHUNK_ROWS = 1 << 10  # faiss takes so many rows of the base at a time
_ROWS_FOR_ONE_MORE = 1 << 18
_MOST_PIECES = 8


@dataclass(frozen=True)
class Cut:
    """How many rows are taken at a time.

    faiss gives other last bits where it multiplies blocks of other sizes. So these are fixed.

    Attributes
    ----------
    at_once : int
        Rows whose neighbours faiss is asked for in one call.
    chunk : int
        Rows that they are compared with in one call.
    shards : int
        Pieces of the job, of about equal size; some calls each, so that a chunk that was read serves several.
    """

    at_once: int
    chunk: int
    shards: int

    def shard_rows(self, rows: int) -> int:
        """The most rows in a shard."""
        return -(-rows // self.shards)


def cut_search(rows: int, dimensions: int, k: int) -> Cut:
    """Cut the search for `k` neighbours of each of so many rows."""
    at_once = min(max(_ROWS_AT_ONCE, _VALUES_AT_ONCE // dimensions), _MOST_AT_ONCE)
    at_once = max(min(at_once, _FOUND_BYTES // (_FOUND_EACH * k)), 1)
    pieces = min(max(rows // _ROWS_FOR_ONE_MORE, 1), _MOST_PIECES, max(_FOUND_BYTES // (_FOUND_EACH * k * at_once), 1))
    chunk = max(_CHUNK_BYTES // (dimensions * VALUE_BYTES) // _CHUNK_ROWS, 1) * _CHUNK_ROWS
    return Cut(at_once, chunk, -(-rows // (at_once * pieces)))
