"""What every source of features has, and the bounds of what is read of one at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from facedata.errors import EmptyDatasetError, FacedataError, FormatError, input_error
from facedata.files import open_regular

__all__ = ["BLOCK_BYTES", "FLOATS", "FeatureSource", "Rows", "check_shape", "opened", "rows_at_once"]

BLOCK_BYTES = 1 << 22
"""Of an array that are read at once, unless a row is larger: few enough to stay in the processor's cache."""

FLOATS = {"float16": 2, "float32": 4, "float64": 8}
"""The types that features are read of, and the bytes of a value."""

_LARGEST_DIMENSIONS = 1 << 20

Rows = NDArray[np.floating[Any]]


class FeatureSource(Protocol):
    """A matrix of features in a file of any kind, read in blocks of rows; the file is opened anew for each reading."""

    @property
    def path(self) -> str:
        """The file."""
        ...

    @property
    def title(self) -> str:
        """The file, and what of it, for messages."""
        ...

    @property
    def rows(self) -> int | None:
        """How many there are; None where only reading them tells."""
        ...

    @property
    def dimensions(self) -> int:
        """Values in a row."""
        ...

    @property
    def dtype(self) -> str:
        """As stored: one of `FLOATS`, or ``text``."""
        ...

    def blocks(self) -> Iterator[Rows]:
        """All rows in order, some at a time: shape (M, dimensions), in the type and byte order of the file.

        A block is good until the next is asked for, which may be read into the same memory.

        Raises
        ------
        InputError
            Where the file cannot be read.
        FormatError
            Where it is damaged, or a row is not like the others.
        """
        ...


def rows_at_once(row_bytes: int, most: int = BLOCK_BYTES) -> int:
    """How many rows of so many bytes are read at once, at least one."""
    return max(most // row_bytes, 1)


def check_shape(title: str, rows: int | None, dimensions: int) -> None:
    """Refuse an array that has no rows, or rows of an impossible length.

    Raises
    ------
    EmptyDatasetError
    FormatError
    """
    if rows == 0:
        raise EmptyDatasetError(f"{title}: has no row")
    if not 1 <= dimensions <= _LARGEST_DIMENSIONS:
        raise FormatError(f"{title}: expected 1 to {_LARGEST_DIMENSIONS:,} values in a row, found {dimensions:,}")


@contextmanager
def opened(path: str) -> Iterator[int]:
    """The descriptor of a plain file; an OSError met while it is read becomes an `InputError`."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    except OSError as error:
        if isinstance(error, FacedataError):
            raise
        raise input_error(error, path) from error
    finally:
        os.close(descriptor)
