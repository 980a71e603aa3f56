"""Arrays as NumPy saves them: ``.npy``, members of an ``.npz``, and ``.bin``; checked first, then read in blocks.

Archives are streamed, their checksums are verified, and pickles are never loaded.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from facedata.errors import EmptyDatasetError, FacedataError, FormatError, OptionError
from facedata.features.feature_set import (
    CACHED_BYTES,
    FLOATS,
    NPY_MAGIC,
    FeatureSource,
    check_shape,
    read_into,
    rows_at_once,
)
from facedata.files import opened_regular, read_exactly
from facedata.text import listed

__all__ = ["Header", "StoredArray", "check_matrix", "is_torch_archive", "open_arrays", "open_npy", "open_npz"]

_HEADER_BYTES = 10_012  # the longest header: 10,000 bytes of text, as in NumPy, after at most 12 of magic and length
_VERSION_1, _VERSIONS_2_AND_3 = ((1, 0),), ((2, 0), (3, 0))  # 3 differs in the names of fields alone
_MOST_AXES = 32
_LARGEST_NUMBER = 1 << 62
_COLUMN_BLOCK_BYTES = 1 << 25  # each column of a block is read by itself, so these blocks are larger

_SUFFIX = ".npy"
_LARGEST_READ = 1 << 24  # bytes; a directory of that size has some hundred thousand names
_MOST_ARRAYS = 16
_SHOWN = 8
_LOCAL_HEADER = 30
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may unpack gigabytes of a kilobyte at once
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class Header(NamedTuple):
    """The header of an ``.npy`` of plain numbers."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    """Whether the values of two axes or more are stored column by column."""
    size: int
    """Bytes of the header itself."""


def _read_header(head: bytes, size: int, title: str) -> Header:
    """Check a header against what may be in it, and against the `size` of header and values together."""
    version = tuple(head[6:8])
    if not head.startswith(NPY_MAGIC) or version not in _VERSION_1 + _VERSIONS_2_AND_3:
        raise FormatError(f"{title}: does not begin with a NumPy header; expected an array saved by np.save")
    length_bytes = 2 if version in _VERSION_1 else 4
    length = 8 + length_bytes + int.from_bytes(head[8 : 8 + length_bytes], "little")
    if length > min(len(head), _HEADER_BYTES - 4 + length_bytes):
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

    `rows` is the length of its first axis, `dimensions` the number of values along all others.
    """

    rows: int
    header: Header
    offset: int
    """The byte at which its values begin, in the file or in the member of an archive."""
    member: str | None = None
    """The member of an archive that has to be unpacked from front to back; None if the values lie in the file as is."""

    @classmethod
    def of(cls, path: str, title: str, header: Header, offset: int, member: str | None = None) -> Self:
        """An array that has this header; in Fortran order, it must be a matrix that lies in a file."""
        return cls(
            path=path,
            title=title,
            rows=header.shape[0] if header.shape else 0,
            dimensions=math.prod(header.shape[1:]),
            dtype=header.dtype.name,
            header=header,
            offset=offset,
            member=member,
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of everything along the first axis."""
        return self.dimensions * self.header.dtype.itemsize

    def blocks(self, at_once: int | None = None) -> Iterator[NDArray[Any]]:
        """All rows in order, `at_once` rows at a time, by default some MiB; see `FeatureSource.blocks`."""
        dtype, fortran = self.header.dtype, self.header.fortran
        step = at_once or rows_at_once(self.row_bytes, _COLUMN_BLOCK_BYTES if fortran else CACHED_BYTES)
        count = min(step, self.rows)
        if self.member is not None:
            with _open_archive(self.path) as archive, archive.open(self.member) as stream:
                _read(stream, self.offset, self.title)
                for begin in range(0, self.rows, step):
                    data = _read(stream, min(step, self.rows - begin) * self.row_bytes, self.title)
                    yield np.frombuffer(data, dtype).reshape(-1, *self.header.shape[1:])
            return
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
    """Raise a `FormatError` if an array is not a matrix of floats, an `EmptyDatasetError` if it has no rows."""
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


def open_npy(path: str) -> StoredArray:
    """Open an array of numbers of any shape, saved by ``np.save``.

    Raises `InputError` if the file cannot be read; `FormatError` if it is not such an array, its header is longer than
    10,000 bytes, or its size is not what its header says.
    """
    with opened_regular(path) as descriptor:
        header = _read_header(read_exactly(descriptor, _HEADER_BYTES, 0), os.fstat(descriptor).st_size, path)
    return StoredArray.of(path, path, header, header.size)


def _read(stream: IO[bytes], size: int, title: str) -> bytes:
    parts, left = [], size
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise FormatError(f"{title}: is cut short: {left:,} bytes are missing; copy or download it again")
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _ShortReads(io.FileIO):
    """A file that reads few bytes at once: zipfile reads a directory as large as the file says, and that is refused."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes or fewer; zipfile asks for all that follows only near the end of the file."""
        return super().read(size if size is None else min(size, _LARGEST_READ))


@contextmanager
def _open_archive(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose directory is of a sensible size; every error of the zip becomes a `FormatError`."""
    with opened_regular(path) as descriptor:
        try:
            with _ShortReads(descriptor, closefd=False) as file, zipfile.ZipFile(file) as archive:
                yield archive
        except FacedataError:  # some are ValueErrors too
            raise
        except _DAMAGE as error:
            raise FormatError(f"{path}: is not a complete .npz archive: {error}; copy or download it again") from error


def _open_member(archive: zipfile.ZipFile, path: str, name: str) -> StoredArray:
    """Read the header of an array; one that is not as large as its header says is refused unread."""
    title = f"{path}, array {name.removesuffix(_SUFFIX)[:80]!r}"
    member = archive.getinfo(name)
    if member.compress_type not in _METHODS:
        raise FormatError(
            f"{title}: is compressed in another way than np.savez_compressed does, and may unpack to any size at once; "
            "in Python: numpy.save(name, array)"
        )
    with archive.open(member) as stream:
        header = _read_header(stream.read(_HEADER_BYTES), member.file_size, title)
    if not header.fortran:
        return StoredArray.of(path, title, header, header.size, name)
    if member.compress_type != zipfile.ZIP_STORED:  # columns are read side by side, from a file as it is
        raise FormatError(
            f"{title}: is compressed, and stored column by column (Fortran order): it cannot be read row by row. In "
            f"Python: np.save('features.npy', np.load('{os.path.basename(path)}')['{name.removesuffix(_SUFFIX)}'])"
        )
    assert archive.fp is not None
    archive.fp.seek(member.header_offset)
    local = archive.fp.read(_LOCAL_HEADER)
    names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    offset = member.header_offset + _LOCAL_HEADER + names + header.size
    return StoredArray.of(path, title, header, offset)


def is_torch_archive(path: str) -> bool:
    """Whether a zip archive was saved by PyTorch: it contains a pickle."""
    try:
        with _open_archive(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except FormatError:
        return False


def open_npz(path: str, array: str | None = None) -> FeatureSource:
    """Open a matrix of floats in an ``.npz``.

    Raises `InputError` if the file cannot be read; `FormatError` if it is not an archive of arrays, or the array is not
    a matrix of floats; `OptionError` if there are several arrays and `array` does not name one of them.
    """
    with _open_archive(path) as archive:
        names = [name.removesuffix(_SUFFIX) for name in archive.namelist() if name.endswith(_SUFFIX)]
        if not names:
            raise EmptyDatasetError(f"{path}: contains no array; expected an archive saved by np.savez")
        if array is None and len(names) > 1:
            raise OptionError(f"{path}: contains several arrays; give --array: {listed(names, _SHOWN, quote='')}")
        if array is not None and array not in names:
            raise OptionError(f"{path}: contains no array '{array}'; it has {listed(names, _SHOWN, quote='')}")
        opened = _open_member(archive, path, (array if array is not None else names[0]) + _SUFFIX)
    check_matrix(opened)
    return opened


def open_arrays(path: str) -> dict[str, StoredArray]:
    """Open the arrays of an ``.npz`` by name, or the one of an ``.npy`` under the empty name.

    Raises `InputError` if the file cannot be read; `FormatError` if it is not such a file, is damaged, or has something
    else in it than a few arrays of numbers.
    """
    with opened_regular(path) as descriptor:
        head = read_exactly(descriptor, 2, 0)
    if head != b"PK":
        return {"": open_npy(path)}
    arrays: dict[str, StoredArray] = {}
    with _open_archive(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(_SUFFIX)
            if name == member or name in arrays or len(arrays) == _MOST_ARRAYS:
                raise FormatError(f"{path}: expected arrays of np.savez, found the member {member[:80]!r}")
            arrays[name] = _open_member(archive, path, member)
    return arrays
