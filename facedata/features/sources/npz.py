"""Arrays in an ``.npz``: streamed out of the zip archive, checksums verified, pickles never loaded."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import EmptyDatasetError, FacedataError, FormatError, OptionError
from facedata.features.sources.base import FeatureSource, rows_at_once
from facedata.features.sources.npy import HEADER_BYTES, ArrayInFile, StoredArray, check_matrix, open_npy, read_header
from facedata.files import opened_regular, read_exactly
from facedata.text import listed

__all__ = ["ArrayInArchive", "is_torch_archive", "open_arrays", "open_npz"]

_SUFFIX = ".npy"
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_TAIL = 1 << 17  # the end record with the longest comment, and that of zip64
_LARGEST_DIRECTORY = 1 << 24  # bytes, for some hundred thousand names; all of it is read at once
_MOST_ARRAYS = 16
_SHOWN = 8
_LOCAL_HEADER = 30
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may unpack gigabytes of a kilobyte at once
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class ArrayInArchive(StoredArray):
    """An array in a member of a zip archive, in C order, read from front to back."""

    member: str

    def blocks(self, at_once: int | None = None) -> Iterator[NDArray[Any]]:
        """All rows in order."""
        step = at_once or rows_at_once(self.row_bytes)
        with _open_archive(self.path) as archive, archive.open(self.member) as stream:
            _read(stream, self.offset, self.title)
            for begin in range(0, self.rows, step):
                data = _read(stream, min(step, self.rows - begin) * self.row_bytes, self.title)
                yield np.frombuffer(data, self.header.dtype).reshape(-1, *self.header.shape[1:])


def _read(stream: IO[bytes], size: int, title: str) -> bytes:
    parts, left = [], size
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise FormatError(f"{title}: is cut short: {left:,} bytes are missing; copy or download it again")
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def _open_archive(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose directory is of a sensible size; every error of the zip becomes a `FormatError`."""
    with opened_regular(path) as descriptor:
        # zipfile reads the whole directory into memory, as large as the end records say
        size = os.fstat(descriptor).st_size
        tail = read_exactly(descriptor, _TAIL, max(size - _TAIL, 0))
        end, end_64 = tail.rfind(_END), tail.rfind(_END_64)
        directory = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
        directory = 0 if directory == 0xFFFFFFFF else directory
        if end_64 >= 0:
            directory = max(directory, int.from_bytes(tail[end_64 + 40 : end_64 + 48], "little"))
        if directory > _LARGEST_DIRECTORY:
            raise FormatError(
                f"{path}: its list of members has {directory:,} bytes; expected an archive of a few arrays"
            )
        try:
            with open(descriptor, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
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
        header = read_header(stream.read(HEADER_BYTES), member.file_size, title)
    if not header.fortran:
        return ArrayInArchive.of(path, title, header, header.size, member=name)
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
    return ArrayInFile.of(path, title, header, offset)


def is_torch_archive(path: str) -> bool:
    """Whether a zip archive was saved by PyTorch: it contains a pickle."""
    try:
        with _open_archive(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except FormatError:
        return False


def open_npz(path: str, array: str | None = None) -> FeatureSource:
    """Open a matrix of floats in an ``.npz``.

    Parameters
    ----------
    path : str
    array : str, optional
        Its name there; needed only if there are several.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If it is not an archive of arrays, or the array is not a matrix of floats.
    OptionError
        If there are several arrays and none is named, or there is none of that name.
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


def open_arrays(path: str) -> Mapping[str, StoredArray]:
    """Open the arrays of an ``.npz`` by name, or the one of an ``.npy`` under the empty name.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If it is not such a file, is damaged, or has something else in it than a few arrays of numbers.
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
