"""Arrays in ``.npy`` and ``.npz`` files, several side by side, some rows at a time: never whole, never a pickle."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError
from facedata.features.sources.npz import open_archive
from facedata.features.sources.numpy_array import Header, check_size, read_header
from facedata.features.sources.source import opened

__all__ = ["StoredArray", "open_stored"]

_HEAD = 10_012  # the longest header of NumPy
_MOST_ARRAYS = 16
_SUFFIX = ".npy"
_AT_ONCE = 1 << 24


@dataclass
class StoredArray:
    """An array of numbers whose header has been read, and whose rows have not.

    Attributes
    ----------
    title : str
        For messages: the file, and the array in it.
    header : Header
    """

    title: str
    header: Header
    _stream: IO[bytes]
    _ahead: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """As its header says, and its size allows."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As its header says."""
        return self.header.dtype

    def rows(self, at_once: int) -> Iterator[NDArray[Any]]:
        """So many rows at a time, in order; can be gone through once.

        Raises
        ------
        FormatError
            Where the file is cut short or damaged, or lies column by column.
        """
        if self.header.fortran and len(self.shape) > 1:
            raise FormatError(f"{self.title}: lies column by column; save it from np.ascontiguousarray(array)")
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        for begin in range(0, self.shape[0], at_once):
            count = min(at_once, self.shape[0] - begin)
            yield np.frombuffer(self._read(count * row, begin), self.dtype).reshape(count, *self.shape[1:])
        self._stream.read(1)  # only at the end does an archive compare the checksum

    def _read(self, size: int, row: int) -> bytes:
        parts, self._ahead = [self._ahead[:size]], self._ahead[size:]
        left = size - len(parts[0])
        while left:
            part = self._stream.read(min(left, _AT_ONCE))
            if not part:
                raise FormatError(f"{self.title}: is cut short, at row {row:,} of {self.shape[0]:,}")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


@contextmanager
def open_stored(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """The arrays of a ``.npz`` by name, or the one of a ``.npy`` under the empty name.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where it is no such file, is damaged, or has something else in it than arrays of numbers.
    """
    with opened(path) as descriptor:
        if os.pread(descriptor, 2, 0) != b"PK":
            with open(descriptor, "rb", closefd=False) as file:
                yield {"": _array(path, file, os.fstat(descriptor).st_size)}
            return
    with open_archive(path) as archive, ExitStack() as stack:
        yield _members(path, archive, stack)


def _members(path: str, archive: zipfile.ZipFile, stack: ExitStack) -> dict[str, StoredArray]:
    arrays: dict[str, StoredArray] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(_SUFFIX)
        known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if name == member.filename or name in arrays or not known or len(arrays) == _MOST_ARRAYS:
            raise FormatError(f"{path}: expected arrays of np.savez, found the member {member.filename[:80]!r}")
        stream = stack.enter_context(archive.open(member))
        arrays[name] = _array(f"{path}, array {name[:80]!r}", stream, member.file_size)
    return arrays


def _array(title: str, stream: IO[bytes], size: int) -> StoredArray:
    """Refuses what is not as large as its header says: that is not read to find it out."""
    head = stream.read(_HEAD)
    header = read_header(head, title)
    check_size(header, size, title)
    return StoredArray(title, header, stream, head[header.size :])
