"""Feature matrices: float32, row by row, no header, as learn-to-cluster and its relatives read them.

Such a file says nothing of itself: its reader takes any bytes for numbers. So its size is checked against rows and
dimensions wherever one is opened, and where it is wrong the message guesses why; what is written has only finite rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError, input_error
from facedata.files import file_identity, open_regular

__all__ = ["BLOCK_BYTES", "VALUE_BYTES", "Matrix", "bad_rows", "check_rows", "open_matrix", "what_is_wrong"]

VALUE_BYTES = 4
BLOCK_BYTES = 1 << 24
"""Of a matrix that are read at once, unless a row is larger."""

_LARGEST_DIMENSIONS = 1 << 20
_USUAL = (64, 128, 256, 512, 1024, 2048)
_NPY = b"\x93NUMPY"
_NPY_HEADERS = (64, 80, 96, 112, 128)  # bytes; 128 since NumPy 1.14
_SHOWN = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """A matrix on disk whose size fits; picklable, read anew in each process.

    Attributes
    ----------
    path : str
    rows, dimensions : int
    """

    path: str
    rows: int
    dimensions: int

    def identity(self) -> dict[str, object]:
        """What tells it from another, as JSON values; independent of where it lies."""
        return {"rows": self.rows, "dimensions": self.dimensions, **file_identity(self.path)}

    def block(self, begin: int, end: int) -> Floats:
        """Rows from `begin` on and before `end`, shape (M, dimensions), in memory of their own.

        Raises
        ------
        InputError
            Where they cannot be read.
        FormatError
            Where the file has become shorter.
        """
        row = self.dimensions * VALUE_BYTES
        try:
            with open(self.path, "rb", buffering=0) as file:
                block = np.empty((end - begin, self.dimensions), "<f4")
                view, place = block.reshape(-1).view(np.uint8).data, begin * row
                while len(view):
                    read = os.preadv(file.fileno(), [view], place)
                    if not read:
                        raise FormatError(f"{self.path}: was cut short while it was being read, at byte {place:,}")
                    view, place = view[read:], place + read
        except OSError as error:
            raise input_error(error, self.path) from error
        return block

    def blocks(self, at_once: int = BLOCK_BYTES) -> Iterator[tuple[int, Floats]]:
        """All rows in order, so many bytes of them at a time: the number of the first, and the rows."""
        step = max(at_once // (self.dimensions * VALUE_BYTES), 1)
        for begin in range(0, self.rows, step):
            yield begin, self.block(begin, min(begin + step, self.rows))

    def mapped(self) -> Floats:
        """All rows as a read-only memory map, for libraries that want one array."""
        return np.memmap(self.path, "<f4", "r", shape=(self.rows, self.dimensions))


def open_matrix(
    path: str | os.PathLike[str], dimensions: int, rows: int | None = None, *, counted_in: str | None = None
) -> Matrix:
    """Open a matrix, its size checked.

    Parameters
    ----------
    path : path
    dimensions : int
        Values in a row.
    rows : int, optional
        How many there must be; by default as many as there are.
    counted_in : str, optional
        The file that says so, for messages.

    Raises
    ------
    InputError
        Where it cannot be read.
    FormatError
        Where its size is not rows * dimensions * 4 bytes; guesses why.
    """
    path = os.fspath(path)
    if not 1 <= dimensions <= _LARGEST_DIMENSIONS:
        raise FormatError(f"{path}: expected 1 to {_LARGEST_DIMENSIONS:,} dimensions, found {dimensions:,}")
    descriptor = open_regular(path)
    status = os.fstat(descriptor)
    try:
        head = os.pread(descriptor, 16, 0)
    finally:
        os.close(descriptor)
    wrong = what_is_wrong(status.st_size, dimensions, rows, head)
    if wrong is not None:
        where = "" if rows is None or counted_in is None else f" ({rows:,} lines in {counted_in})"
        raise FormatError(f"{path}: {wrong}{where}")
    return Matrix(path, status.st_size // (dimensions * VALUE_BYTES), dimensions)


def what_is_wrong(size: int, dimensions: int, rows: int | None, head: bytes = b"") -> str | None:
    """What the size of a matrix file says of it, with a guess; None where it fits.

    Parameters
    ----------
    size : int
        Bytes.
    dimensions : int
    rows : int, optional
        Where they are known.
    head : bytes
        The first 16 bytes of the file.
    """
    row = dimensions * VALUE_BYTES
    fits = size == rows * row if rows is not None else size > 0 and size % row == 0
    if fits and not head.startswith(_NPY):
        return None
    if head.startswith(_NPY):
        return "begins with a header of NumPy: it was saved by np.save; facedata pack-features takes it off"
    if rows is None:
        return f"{size:,} bytes are no whole number of rows of {dimensions:,} float32{_guess_alone(size, row)}"
    expected = rows * row
    return (
        f"expected {expected:,} bytes for {rows:,} rows of {dimensions:,} float32, found {size:,}"
        f"{_guess(size, expected, rows, row)}"
    )


def _guess_alone(size: int, row: int) -> str:
    fitting = [str(one) for one in _USUAL if size and size % (one * VALUE_BYTES) == 0 and one * VALUE_BYTES != row]
    if size and fitting:
        return f"; it would fit with {' or '.join(fitting[-2:])} dimensions"
    return "; was it cut short?" if size else ": it is empty"


def _guess(size: int, expected: int, rows: int, row: int) -> str:
    if size == 2 * expected:
        return ": twice that: is it float64?"
    if 2 * size == expected:
        return ": half of that: is it float16?"
    if size and size % (rows * VALUE_BYTES) == 0 and abs(size - expected) != row:
        return f": it would fit with {size // (rows * VALUE_BYTES):,} dimensions"
    if size - expected in _NPY_HEADERS and size - expected != row:
        return f": {size - expected} bytes too long: was it saved by np.save?"
    if size % row == 0:
        other = size // row
        return f": it has {other:,} rows, {abs(other - rows):,} {'more' if other > rows else 'fewer'}"
    return ": was it cut short?" if size < expected else ": is it of another set?"


def bad_rows(block: Floats, *, zero: bool = True) -> NDArray[np.bool_]:
    """Which rows of a block have values that are not finite or, unless `zero` is false, nothing but zeros; shape (M,).

    A zero row has no direction, and becomes NaN when a reader normalises it.
    """
    bad = np.logical_not(np.isfinite(block).all(axis=1))
    if zero:
        bad |= (block == 0.0).all(axis=1)  # not any(): signalling NaN would warn
    return bad


def check_rows(block: Floats, first: int, path: str, *, zero: bool = True) -> None:
    """Refuse rows that are not finite, or zero.

    Parameters
    ----------
    block : ndarray of shape (M, D)
    first : int
        The number of its first row, from 0.
    path : str
        For messages.
    zero : bool
        Whether rows of zeros are refused too.

    Raises
    ------
    FormatError
        Names the first of them, and what is in them.
    """
    bad = np.flatnonzero(bad_rows(block, zero=zero))
    if not len(bad):
        return
    told = [f"{first + row:,} ({_kind(block[row])})" for row in bad[:_SHOWN].tolist()]
    more = f" and {len(bad) - _SHOWN:,} more up to row {first + len(block) - 1:,}" if len(bad) > _SHOWN else ""
    raise FormatError(f"{path}: row {', '.join(told)}{more}: expected finite values, not all zero; rows count from 0")


def _kind(row: Floats) -> str:
    if np.isnan(row).any():
        return "NaN"
    return "infinite" if not np.isfinite(row).all() else "all zero"
