"""Feature sets on disk, as learn-to-cluster reads them: a matrix, a label for each row, and files of neighbours.

The matrix is float32, row by row, without a header. Such a file does not describe itself: a reader takes any bytes for
numbers. So its size is compared with rows and dimensions whenever it is opened, and the error guesses what is wrong.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import read_labels
from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError, OptionError
from facedata.files import StrPath, file_identity, opened_regular, read_exactly
from facedata.jobs.journal import refuse_unfinished
from facedata.matrix_size import NPY_MAGIC, VALUE_BYTES, size_problem

__all__ = [
    "BLOCK_BYTES",
    "CACHED_BYTES",
    "FLOATS",
    "NPY_MAGIC",
    "VALUE_BYTES",
    "FeatureSet",
    "FeatureSource",
    "Floats",
    "Matrix",
    "OpenedSet",
    "Rows",
    "bad_rows",
    "check_rows",
    "check_shape",
    "label_array",
    "labelled_rows",
    "open_feature_set",
    "open_matrix",
    "other_kind",
    "read_into",
    "rows_at_once",
    "size_and_head",
]

BLOCK_BYTES = 1 << 24
"""How much of a matrix is read at once, unless a row is larger."""
LARGEST_DIMENSIONS = 1 << 20

_ROWS_SHOWN = 5
_VALUES_EXAMINED = 1 << 16
_SENSIBLE = (1e-8, 1e6)  # the sizes that features have
_LIKELY, _CERTAIN = 0.9, 0.999  # the share of sensible values that float32 needs, and that another type needs
_OTHER_KINDS = {"float64": "<f8", "float16": "<f2", "big-endian float32": ">f4", "big-endian float64": ">f8"}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureSet:
    """The paths of the files of a set; raises `OptionError` if the name cannot be that of a file."""

    root: str
    """The folder that contains ``features/`` and ``labels/``."""
    name: str

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name or not self.name.isprintable():
            raise OptionError(f"--name '{self.name}': is not a file name: expected no slash and no dot at the start")

    @property
    def features(self) -> str:
        """The matrix: float32, row by row, no header."""
        return os.path.join(self.root, "features", f"{self.name}.bin")

    @property
    def labels(self) -> str:
        """The labels: a line for each row, -1 for unlabelled."""
        return os.path.join(self.root, "labels", f"{self.name}.meta")

    @property
    def label_array(self) -> str:
        """The same labels as ``.npy``, if they were asked for: int64, shape (rows,)."""
        return os.path.join(self.root, "labels", f"{self.name}.npy")

    @property
    def keys(self) -> str:
        """The keys: a line for each row that names its image."""
        return os.path.join(self.root, "features", f"{self.name}.keys.txt")

    def neighbours(self, method: str, k: int) -> str:
        """The nearest neighbours, under the name that learn-to-cluster looks for: ``faiss_k_80.npz``."""
        return os.path.join(self.root, "knns", self.name, f"{method}_k_{k}.npz")


def label_array(blocks: Iterable[NDArray[np.int64]], rows: int) -> Iterator[bytes]:
    """The content of a ``.npy`` with so many labels, a block at a time."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (rows,)})
    yield header.getvalue()
    for block in blocks:
        yield block.astype("<i8").tobytes()


@dataclass(frozen=True)
class Matrix:
    """A matrix on disk whose size is right; picklable, opened again for each reading."""

    path: str
    rows: int
    dimensions: int

    def identity(self) -> dict[str, object]:
        """JSON values that distinguish this matrix from others, wherever it is stored."""
        return {"rows": self.rows, "dimensions": self.dimensions, **file_identity(self.path)}

    def block(self, begin: int, end: int) -> Floats:
        """The rows from `begin` up to `end`, shape (M, dimensions), in memory of their own.

        Raises `InputError` if they cannot be read; `FormatError` if the file has become shorter.
        """
        block = np.empty((end - begin, self.dimensions), "<f4")
        with opened_regular(self.path) as descriptor:
            read_into(descriptor, block, begin * self.dimensions * VALUE_BYTES, self.path)
        return block

    def blocks(self, at_once: int = BLOCK_BYTES) -> Iterator[tuple[int, Floats]]:
        """All rows in order, `at_once` bytes at a time: the number of the first row, and the rows."""
        step = max(at_once // (self.dimensions * VALUE_BYTES), 1)
        for begin in range(0, self.rows, step):
            yield begin, self.block(begin, min(begin + step, self.rows))

    def rows_at(self, rows: NDArray[np.int64]) -> Floats:
        """The rows with these numbers, shape (M, dimensions); fastest in order. Raises as `block`."""
        block = np.empty((len(rows), self.dimensions), "<f4")
        with opened_regular(self.path) as descriptor:
            for row, number in zip(block, rows.tolist(), strict=True):
                read_into(descriptor, row, number * self.dimensions * VALUE_BYTES, self.path)
        return block


class OpenedSet(NamedTuple):
    """A set whose matrix and labels fit each other."""

    files: FeatureSet
    matrix: Matrix


def read_into(descriptor: int, block: NDArray[Any], offset: int, title: str) -> None:
    """Fill a contiguous array with the bytes of an open file from `offset` on.

    Raises `FormatError` if the file ends before; the message begins with `title`.
    """
    view = block.reshape(-1).view(np.uint8).data
    while len(view):
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise FormatError(f"{title}: was cut short while it was being read, at byte {offset:,}")
        view, offset = view[count:], offset + count


def size_and_head(path: str) -> tuple[int, bytes]:
    """The size of a file in bytes, and its first 16 bytes.

    Raises `InputError` if it cannot be read.
    """
    with opened_regular(path) as descriptor:
        return os.fstat(descriptor).st_size, read_exactly(descriptor, 16, 0)


def open_feature_set(root: StrPath, name: str, dimensions: int | None = None) -> OpenedSet:
    """Open the set `name` in the folder `root`, and check that its files fit each other.

    Raises `InputError`, `FormatError` or `OptionError` as `open_matrix` and `labelled_rows`; also if the matrix
    belongs to a job that has not finished.
    """
    files = FeatureSet(os.fspath(root), name)
    if not os.path.lexists(files.features):
        raise InputNotFoundError(f"{files.features}: no such file; a set has features/NAME.bin and labels/NAME.meta")
    refuse_unfinished(files.features)
    rows = labelled_rows(files.labels, files.features) if os.path.lexists(files.labels) else None
    return OpenedSet(files, open_matrix(files.features, dimensions, rows, counted_in=files.labels))


def labelled_rows(labels: str, path: str) -> int:
    """How many rows the matrix at `path` must have: the lines of its labels.

    Raises `InputError` if they cannot be read; `FormatError` if there is none, or a line is not a label.
    """
    rows = sum(map(len, read_labels(labels)))
    if not rows:
        raise FormatError(f"{labels}: is empty; expected a label for each row of {path}")
    return rows


def open_matrix(path: StrPath, dimensions: int | None, rows: int | None = None, *, counted_in: str = "") -> Matrix:
    """Open a matrix, and check its size.

    Without `dimensions`, a row has the size of the matrix divided by `rows`; without `rows`, there are as many as fit.
    `counted_in` is the file in which the rows were counted, for messages.

    Raises `InputError` if it cannot be read; `FormatError` if its size is not rows * dimensions * 4 bytes, with a guess
    at the reason; `OptionError` if neither dimensions nor rows are given.
    """
    path = os.fspath(path)
    size, head = size_and_head(path)
    if dimensions is None:
        if rows is None:
            raise OptionError(f"{path}: has no header, and there is no .meta to count its rows by: give --dim")
        dimensions, rest = divmod(size, rows * VALUE_BYTES)
        if rest or not dimensions:
            raise FormatError(
                f"{path}: {size:,} bytes are not a whole number of float32 values for each of the {rows:,} lines of "
                f"{counted_in}; give --dim, and the error will say what is wrong"
            )
    if not 1 <= dimensions <= LARGEST_DIMENSIONS:
        raise FormatError(f"{path}: expected 1 to {LARGEST_DIMENSIONS:,} dimensions, found {dimensions:,}")
    wrong = size_problem(size, dimensions, rows, head)
    if wrong is not None:
        raise FormatError(f"{path}: {wrong}" + (f" ({rows:,} lines in {counted_in})" if counted_in and rows else ""))
    return Matrix(path, size // (dimensions * VALUE_BYTES), dimensions)


def other_kind(matrix: Matrix) -> str | None:
    """The type that the first values of a matrix look like, if they do not look like float32; else None."""
    block = matrix.block(0, min(max(_VALUES_EXAMINED // matrix.dimensions, 1), matrix.rows))
    if _sensible_share(block) >= _LIKELY:
        return None
    data = block.tobytes()
    for kind, code in _OTHER_KINDS.items():
        if len(data) % np.dtype(code).itemsize == 0 and _sensible_share(np.frombuffer(data, code)) >= _CERTAIN:
            return kind
    return None


def _sensible_share(values: NDArray[np.floating]) -> float:
    """The share of values that are zero or have a size that features have."""
    with np.errstate(all="ignore"):
        sizes = np.abs(values.astype(np.float64))
        return float(np.mean((sizes == 0) | (sizes > _SENSIBLE[0]) & (sizes < _SENSIBLE[1])))


def bad_rows(block: Floats, *, zero: bool = True) -> NDArray[np.bool_]:
    """Which rows of a block have values that are not finite or, unless `zero` is false, only zeros; shape (M,).

    A row of zeros has no direction, and becomes NaN when a reader normalises it.
    """
    bad = np.logical_not(np.isfinite(block).all(axis=1))
    if zero:
        bad |= (block == 0.0).all(axis=1)  # not any(): a signalling NaN would warn
    return bad


def check_rows(block: Floats, first: int, path: str, *, zero: bool = True) -> None:
    """Raise a `FormatError` that names the rows of a block that are not finite or, unless `zero` is false, all zero.

    `first` is the number of the first row of the block, of shape (M, D).
    """
    bad = np.flatnonzero(bad_rows(block, zero=zero))
    if not len(bad):
        return
    shown = []
    for row in bad[:_ROWS_SHOWN].tolist():
        kind = "NaN" if np.isnan(block[row]).any() else "infinite" if np.isinf(block[row]).any() else "all zero"
        shown.append(f"{first + row:,} ({kind})")
    rest = len(bad) - _ROWS_SHOWN
    more = f" and {rest:,} more up to row {first + len(block) - 1:,}" if rest > 0 else ""
    raise FormatError(f"{path}: row {', '.join(shown)}{more}: expected finite values, not all zero; rows count from 0")


FLOATS = {"float16": 2, "float32": 4, "float64": 8}
"""The types of values that are read, and their sizes in bytes."""

CACHED_BYTES = 1 << 22
"""How much of a source is read at once, unless a row is larger: small enough to stay in the processor's cache."""

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

        Raises `InputError` if the file cannot be read; `FormatError` if it is damaged, or a row differs from the others
        in length.
        """
        raise NotImplementedError


def rows_at_once(row_bytes: int, most: int = CACHED_BYTES) -> int:
    """How many rows of this size are read at once: at least one."""
    return max(most // row_bytes, 1)


def check_shape(title: str, rows: int | None, dimensions: int) -> None:
    """Raise an `EmptyDatasetError` if an array has no rows, a `FormatError` if they have an impossible length."""
    if rows == 0:
        raise EmptyDatasetError(f"{title}: has no rows")
    if not 1 <= dimensions <= LARGEST_DIMENSIONS:
        raise FormatError(f"{title}: expected 1 to {LARGEST_DIMENSIONS:,} values in a row, found {dimensions:,}")
