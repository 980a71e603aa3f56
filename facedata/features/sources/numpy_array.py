"""Arrays of NumPy in a file: the header of ``np.save``, and the rows behind it in either order."""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError
from facedata.features.sources.source import FLOATS, Rows, check_shape, opened, rows_at_once

__all__ = [
    "MAGIC",
    "ArrayInFile",
    "Header",
    "check_float_matrix",
    "check_size",
    "fill",
    "open_npy",
    "read_header",
    "read_header_at",
]

MAGIC = b"\x93NUMPY"

_LONGEST_HEADER = 10_000  # as NumPy has it
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # by the version of the format
_LONG = re.compile(r"(?<=\d)L\b")  # Python 2 wrote its integers so
_TYPE = re.compile(r"([<>|=]?)([?a-zA-Z])(\d{0,6})")
_LARGEST_NUMBER = 1 << 62
_COLUMNS_AT_ONCE = 1 << 25  # bytes; each column of a block is read by itself, so blocks are larger


class Header(NamedTuple):
    """What the header of an array says.

    Attributes
    ----------
    dtype : dtype
    shape : tuple of int
    fortran : bool
        Whether the values lie column by column.
    size : int
        Bytes of the header itself.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    size: int

    @property
    def expected(self) -> int:
        """Bytes of header and values."""
        return self.size + self.dtype.itemsize * math.prod(self.shape)


def read_header(head: bytes, title: str) -> Header:
    """Read the header that `head` begins with.

    Parameters
    ----------
    head : bytes
        The beginning of the file: 10,012 bytes, or all that there are.
    title : str
        The file, for messages.

    Raises
    ------
    FormatError
        Where it is none, is longer than 10,000 bytes, or stands for something else than plain numbers.
    """
    width = _LENGTH_BYTES.get(head[6] if len(head) > 7 else 0)
    if not head.startswith(MAGIC) or width is None:
        raise FormatError(f"{title}: does not begin with a header of NumPy; expected an array saved by np.save")
    begin = 8 + width
    length = int.from_bytes(head[8:begin], "little")
    if length > _LONGEST_HEADER or begin + length > len(head):
        raise FormatError(f"{title}: its NumPy header is cut short, or longer than {_LONGEST_HEADER:,} bytes")
    said = _literal(_LONG.sub("", head[begin : begin + length].decode("latin-1")), title)
    shape, fortran = said["shape"], said["fortran_order"]
    whole = isinstance(shape, tuple) and all(type(one) is int and 0 <= one < _LARGEST_NUMBER for one in shape)
    if not whole or len(shape) > 32 or not isinstance(fortran, bool):
        raise FormatError(f"{title}: its NumPy header is damaged: shape {str(shape)[:80]}")
    return Header(_plain_type(said["descr"], title), shape, fortran, begin + length)


def _literal(text: str, title: str) -> dict[str, Any]:
    try:
        said = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        said = None
    if not isinstance(said, dict) or set(said) != {"descr", "fortran_order", "shape"}:
        raise FormatError(f"{title}: its NumPy header is damaged: {text[:60]!r}")
    return said


def _plain_type(described: object, title: str) -> np.dtype[Any]:
    """The type of plain numbers; nothing else is ever made of what a file says."""
    described = described if isinstance(described, str) else f"structure {described}"
    match = _TYPE.fullmatch(described)
    if match is not None and match[2] == "O":
        raise FormatError(
            f"{title}: holds Python objects, a pickle, which is never loaded; expected an array of float16, float32 or "
            "float64: rows of different lengths make such a one. In Python: np.save(name, np.stack(rows))"
        )
    if match is None or match[2] not in "?biufc":
        raise FormatError(f"{title}: expected an array of numbers, found the type {described[:60]!r}")
    try:
        dtype: np.dtype[Any] = np.dtype(described)
    except TypeError as error:
        raise FormatError(f"{title}: expected an array of numbers, found the type {described!r}") from error
    return dtype


def read_header_at(descriptor: int, offset: int, title: str) -> Header:
    """The header at a place of an open file; raises as `read_header`."""
    return read_header(os.pread(descriptor, _LONGEST_HEADER + 12, offset), title)


def check_float_matrix(header: Header, title: str) -> tuple[int, int]:
    """Rows and dimensions; refuses what is not a matrix of floats.

    Raises
    ------
    FormatError
        Where it has integers or another number of axes, or none or too many values in a row.
    EmptyDatasetError
        Where it has no row.
    """
    if header.dtype.name not in FLOATS:
        hint = "are these the labels? " if header.dtype.kind in "iub" else ""
        raise FormatError(
            f"{title}: expected float16, float32 or float64, found {header.dtype.name}: {hint}If they are features all "
            "the same, in Python: np.save(name, array.astype(np.float32))"
        )
    if len(header.shape) != 2:
        raise FormatError(
            f"{title}: expected a matrix of shape (rows, dimensions), found {header.shape}; in Python: "
            "np.save(name, array.reshape(len(array), -1))"
        )
    rows, dimensions = header.shape
    check_shape(title, rows, dimensions)
    return rows, dimensions


def check_size(header: Header, size: int, title: str) -> None:
    """Raise `FormatError` where an array with its header has not the bytes that the header says."""
    if size != header.expected:
        guess = "was it cut short?" if size < header.expected else "does more than one array lie in it?"
        raise FormatError(
            f"{title}: expected {header.expected:,} bytes for {header.dtype.name} of shape {header.shape} behind its "
            f"header, found {size:,}: {guess}"
        )


@dataclass(frozen=True)
class ArrayInFile:
    """A matrix that lies in a file as it is, in either order.

    Attributes
    ----------
    path, title : str
    offset : int
        The byte that its values begin at.
    rows, dimensions : int
    stored : str
        The type with its byte order, as NumPy writes it: ``<f4``.
    fortran : bool
        Whether the values lie column by column.
    """

    path: str
    title: str
    offset: int
    rows: int
    dimensions: int
    stored: str
    fortran: bool = False

    @property
    def dtype(self) -> str:
        """One of `FLOATS`."""
        return np.dtype(self.stored).name

    def blocks(self) -> Iterator[Rows]:
        """All rows in order."""
        with opened(self.path) as descriptor:
            yield from self._by_column(descriptor) if self.fortran else self._by_row(descriptor)

    def _by_row(self, descriptor: int) -> Iterator[Rows]:
        # read and not mapped: a mapped file that is cut short meanwhile kills the process
        row = self.dimensions * np.dtype(self.stored).itemsize
        step = rows_at_once(row)
        buffer = np.empty((min(step, self.rows), self.dimensions), self.stored)
        for begin in range(0, self.rows, step):
            block = buffer[: self.rows - begin]
            fill(descriptor, block, self.offset + begin * row, self.title)
            yield block

    def _by_column(self, descriptor: int) -> Iterator[Rows]:
        width = np.dtype(self.stored).itemsize
        step = rows_at_once(self.dimensions * width, _COLUMNS_AT_ONCE)
        buffer = np.empty((self.dimensions, min(step, self.rows)), self.stored)
        for begin in range(0, self.rows, step):
            block = buffer[:, : self.rows - begin]
            for column, values in enumerate(block):
                fill(descriptor, values, self.offset + (column * self.rows + begin) * width, self.title)
            yield block.T


def fill(descriptor: int, block: NDArray[Any], place: int, title: str) -> None:
    """Read the bytes of `block`, which lies in one piece, from a place of an open file on.

    Raises
    ------
    FormatError
        Where the file has become shorter.
    """
    view = block.reshape(-1).view(np.uint8).data
    while len(view):
        read = os.preadv(descriptor, [view], place)
        if not read:
            raise FormatError(f"{title}: was cut short while it was being read, at byte {place:,}")
        view, place = view[read:], place + read


def open_npy(path: str) -> ArrayInFile:
    """A matrix saved by ``np.save``: C or Fortran order, any byte order, float16, float32 or float64.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where it is no such matrix, or its size is not what its header says.
    """
    with opened(path) as descriptor:
        header = read_header_at(descriptor, 0, path)
        size = os.fstat(descriptor).st_size
    rows, dimensions = check_float_matrix(header, path)
    check_size(header, size, path)
    return ArrayInFile(path, path, header.size, rows, dimensions, header.dtype.str, header.fortran)
