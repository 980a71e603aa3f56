"""Arrays that lie in a file as they are in memory: ``.npy``, members of an uncompressed ``.npz``, and ``.bin``."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError
from facedata.features.feature_set import NPY_MAGIC, read_into
from facedata.features.sources.base import BLOCK_BYTES, FLOATS, FeatureSource, check_shape, rows_at_once
from facedata.files import opened_regular, read_exactly

__all__ = [
    "HEADER_BYTES",
    "ArrayInFile",
    "Header",
    "StoredArray",
    "check_matrix",
    "open_npy",
    "read_header",
]

HEADER_BYTES = 10_012
"""The longest header that is read: 10,000 bytes of text, as in NumPy, after at most 12 bytes of magic and length."""

_VERSION_1, _VERSIONS_2_AND_3 = ((1, 0),), ((2, 0), (3, 0))  # 3 differs in the names of fields alone
_MOST_AXES = 32
_LARGEST_NUMBER = 1 << 62
_COLUMN_BLOCK_BYTES = 1 << 25  # each column of a block is read by itself, so these blocks are larger


class Header(NamedTuple):
    """The header of an ``.npy``.

    Attributes
    ----------
    dtype : dtype
        Of plain numbers.
    shape : tuple of int
    fortran : bool
        Whether the values of two axes or more are stored column by column.
    size : int
        Bytes of the header itself.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    size: int


def read_header(head: bytes, size: int, title: str) -> Header:
    """Read and check the header of an ``.npy``.

    Parameters
    ----------
    head : bytes
        The first `HEADER_BYTES` of the array, or all of it.
    size : int
        Bytes of header and values together.
    title : str
        The file, for messages.

    Raises
    ------
    FormatError
        If it is not a header, is longer than 10,000 bytes, describes anything but plain numbers, or does not fit
        `size`.
    """
    version = tuple(head[6:8])
    if not head.startswith(NPY_MAGIC) or version not in _VERSION_1 + _VERSIONS_2_AND_3:
        raise FormatError(f"{title}: does not begin with a NumPy header; expected an array saved by np.save")
    length_bytes = 2 if version in _VERSION_1 else 4
    length = 8 + length_bytes + int.from_bytes(head[8 : 8 + length_bytes], "little")
    if length > min(len(head), HEADER_BYTES - 4 + length_bytes):
        raise FormatError(f"{title}: its NumPy header is cut short, or longer than 10,000 bytes")
    read = np.lib.format.read_array_header_1_0 if version in _VERSION_1 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python 2, whose integers end in L; of deprecated types
            shape, fortran, dtype = read(io.BytesIO(head[8:length]))
    except Exception as error:  # a damaged literal raises nearly anything; all of it is about this header
        said = head[8 + length_bytes : length][:60].decode("latin-1")
        raise FormatError(f"{title}: its NumPy header is damaged: {said!r}") from error
    if dtype.hasobject:
        raise FormatError(
            f"{title}: holds Python objects, a pickle, which is never loaded; expected an array of float16, float32 or "
            "float64. Rows of different lengths give such an array. In Python: np.save(name, np.stack(rows))"
        )
    if dtype.kind not in "biufc":
        raise FormatError(f"{title}: expected an array of numbers, found the type {str(dtype)[:60]!r}")
    if len(shape) > _MOST_AXES or not all(0 <= axis < _LARGEST_NUMBER for axis in shape):
        raise FormatError(f"{title}: its NumPy header is damaged: shape {str(shape)[:80]}")
    expected = length + dtype.itemsize * math.prod(shape)
    if size != expected:
        guess = "was it cut short?" if size < expected else "does it contain more than one array?"
        raise FormatError(
            f"{title}: expected {expected:,} bytes for a header and {dtype.name} of shape {shape}, found {size:,}: "
            f"{guess}"
        )
    return Header(dtype, shape, fortran and len(shape) > 1, length)


@dataclass(frozen=True, kw_only=True)
class StoredArray(FeatureSource):
    """An array of numbers whose header has been read, and whose values have not.

    Attributes
    ----------
    rows, dimensions : int
        The length of the first axis, and the values along all others.
    header : Header
    offset : int
        The byte at which its values begin, in the file or in the member of an archive.
    """

    rows: int
    header: Header
    offset: int

    @classmethod
    def of(cls, path: str, title: str, header: Header, offset: int, **more: Any) -> Self:
        """An array that has this header."""
        rows = header.shape[0] if header.shape else 0
        dimensions, dtype = math.prod(header.shape[1:]), header.dtype.name
        known: dict[str, Any] = {"path": path, "title": title, "header": header, "offset": offset, **more}
        return cls(rows=rows, dimensions=dimensions, dtype=dtype, **known)

    @property
    def row_bytes(self) -> int:
        """Bytes of everything along the first axis."""
        return self.dimensions * self.header.dtype.itemsize

    def blocks(self, at_once: int | None = None) -> Iterator[NDArray[Any]]:
        """All rows in order, `at_once` rows at a time, by default some MiB; raises as `FeatureSource.blocks`."""
        raise NotImplementedError


class ArrayInFile(StoredArray):
    """An array that lies in a file as it is in memory; in Fortran order, it must be a matrix."""

    def blocks(self, at_once: int | None = None) -> Iterator[NDArray[Any]]:
        """All rows in order; a block is valid until the next one is requested."""
        dtype, fortran = self.header.dtype, self.header.fortran
        step = at_once or rows_at_once(self.row_bytes, _COLUMN_BLOCK_BYTES if fortran else BLOCK_BYTES)
        count = min(step, self.rows)
        # read and not mapped: a mapped file that is cut short meanwhile kills the process
        with opened_regular(self.path) as descriptor:
            if fortran:
                columns = np.empty((self.dimensions, count), dtype)
                for begin in range(0, self.rows, step):
                    block = columns[:, : self.rows - begin]
                    for column, values in enumerate(block):
                        place = self.offset + (column * self.rows + begin) * dtype.itemsize
                        read_into(descriptor, values, place, self.title)
                    yield block.T
            else:
                buffer = np.empty((count, *self.header.shape[1:]), dtype)
                for begin in range(0, self.rows, step):
                    block = buffer[: self.rows - begin]
                    read_into(descriptor, block, self.offset + begin * self.row_bytes, self.title)
                    yield block


def check_matrix(array: StoredArray) -> None:
    """Refuse an array that is not a matrix of floats.

    Raises
    ------
    FormatError
        If it has integers or another number of axes, or zero or too many values in a row.
    EmptyDatasetError
        If it has no rows.
    """
    if array.dtype not in FLOATS:
        hint = "are these the labels? " if array.header.dtype.kind in "iub" else ""
        raise FormatError(
            f"{array.title}: expected float16, float32 or float64, found {array.dtype}: {hint}If they are features "
            "nevertheless, in Python: np.save(name, array.astype(np.float32))"
        )
    if len(array.header.shape) != 2:
        raise FormatError(
            f"{array.title}: expected a matrix of shape (rows, dimensions), found {array.header.shape}; in Python: "
            "np.save(name, array.reshape(len(array), -1))"
        )
    check_shape(array.title, array.rows, array.dimensions)


def open_npy(path: str) -> ArrayInFile:
    """Open an array of numbers of any shape, saved by ``np.save``.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If it is not such an array, or its size is not what its header says.
    """
    with opened_regular(path) as descriptor:
        header = read_header(read_exactly(descriptor, HEADER_BYTES, 0), os.fstat(descriptor).st_size, path)
    return ArrayInFile.of(path, path, header, header.size)
