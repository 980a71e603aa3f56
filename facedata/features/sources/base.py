"""What all sources of features have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import EmptyDatasetError, FormatError
from facedata.features.feature_set import LARGEST_DIMENSIONS

__all__ = ["BLOCK_BYTES", "FLOATS", "FeatureSource", "Rows", "check_shape", "rows_at_once"]

FLOATS = {"float16": 2, "float32": 4, "float64": 8}
"""The types of values that are read, and their sizes in bytes."""

BLOCK_BYTES = 1 << 22
"""How much of an array is read at once, unless a row is larger: small enough to stay in the processor's cache."""

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """A matrix of features in a file of any kind, read in blocks of rows; the file is opened again for each reading."""

    path: str
    title: str
    """The file, and which part of it, for messages."""
    rows: int | None
    """None if only reading the rows shows how many there are."""
    dimensions: int
    dtype: str
    """The stored type: one of `FLOATS`, or ``text``."""

    def blocks(self) -> Iterator[Rows]:
        """All rows in order, in blocks of shape (M, dimensions), in the type and byte order of the file.

        A block is valid until the next one is requested, which may be read into the same memory.

        Raises
        ------
        InputError
            If the file cannot be read.
        FormatError
            If it is damaged, or a row differs from the others in length.
        """
        raise NotImplementedError


def rows_at_once(row_bytes: int, most: int = BLOCK_BYTES) -> int:
    """How many rows of this size are read at once: at least one."""
    return max(most // row_bytes, 1)


def check_shape(title: str, rows: int | None, dimensions: int) -> None:
    """Raise an `EmptyDatasetError` if an array has no rows, a `FormatError` if they have an impossible length."""
    if rows == 0:
        raise EmptyDatasetError(f"{title}: has no rows")
    if not 1 <= dimensions <= LARGEST_DIMENSIONS:
        raise FormatError(f"{title}: expected 1 to {LARGEST_DIMENSIONS:,} values in a row, found {dimensions:,}")
