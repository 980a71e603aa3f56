"""The rows of a matrix at unit length: all of them in memory, or read again each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from facedata.features.matrix import Floats, Matrix, check_rows

__all__ = ["Base", "to_unit_length"]

_VALUES_AT_ONCE = 1 << 18
_BYTES_AT_ONCE = 1 << 22


def to_unit_length(block: Floats, first: int, path: str) -> Floats:
    """Divide each row by its length, in place; the same for a row whatever the others are.

    Parameters
    ----------
    block : ndarray of shape (M, D)
    first : int
        The number of its first row.
    path : str
        For messages.

    Raises
    ------
    FormatError
        Where a row is not finite or all zero; names it.
    """
    step = max(_VALUES_AT_ONCE // block.shape[1], 1)
    for begin in range(0, len(block), step):
        part = block[begin : begin + step]
        wide = part.astype(np.float64)  # the square of a float32 may be none
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            check_rows(part, first + begin, path)
        np.divide(wide, lengths[:, None], out=part, casting="same_kind")
    return block


class Base:
    """What rows are compared with: all rows of a matrix, at unit length.

    Parameters
    ----------
    matrix : Matrix
    chunk : int
        Rows that `chunks` gives at a time.
    resident : bool
        Whether `load` shall keep all of them in memory.
    """

    def __init__(self, matrix: Matrix, chunk: int, *, resident: bool) -> None:
        self.matrix, self._chunk, self._resident = matrix, chunk, resident
        self._all: Floats | None = None

    def load(self) -> None:
        """Read and check all rows, if they are to be kept."""
        if not self._resident or self._all is not None:
            return
        kept = np.empty((self.matrix.rows, self.matrix.dimensions), np.float32)
        for first, block in self.matrix.blocks(_BYTES_AT_ONCE):
            kept[first : first + len(block)] = to_unit_length(block, first, self.matrix.path)
        self._all = kept

    def check(self) -> None:
        """Read all rows once, and keep them if they are to be kept; raises where one is not finite or all zero."""
        self.load()
        if self._all is None:
            for first, block in self.matrix.blocks(_BYTES_AT_ONCE):
                to_unit_length(block, first, self.matrix.path)

    def rows(self, begin: int, end: int) -> Floats:
        """Rows from `begin` on and before `end`, shape (M, D)."""
        if self._all is not None:
            return self._all[begin:end]
        return to_unit_length(self.matrix.block(begin, end), begin, self.matrix.path)

    def chunks(self) -> Iterator[tuple[int, Floats]]:
        """All rows in order, a chunk at a time: the number of the first, and the rows."""
        for begin in range(0, self.matrix.rows, self._chunk):
            yield begin, self.rows(begin, min(begin + self._chunk, self.matrix.rows))

    def sample(self, most: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
        """So many rows drawn at random, or all: their numbers, in order, and the rows."""
        total = self.matrix.rows
        numbers = np.arange(total)
        if most < total:
            numbers = np.sort(np.random.RandomState(seed).choice(total, most, replace=False))  # frozen
        taken = [
            rows[numbers[slice(*np.searchsorted(numbers, (first, first + len(rows))))] - first]
            for first, rows in self.chunks()
        ]
        return numbers, np.concatenate(taken)
