"""One array of a ``.npz``: streamed out of the zip archive, its checksum verified, no pickle loaded."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from facedata.errors import EmptyDatasetError, FacedataError, FormatError, OptionError
from facedata.features.sources.numpy_array import ArrayInFile, Header, check_float_matrix, check_size, read_header
from facedata.features.sources.source import FeatureSource, Rows, opened, rows_at_once

__all__ = ["ArrayInArchive", "is_torch_archive", "open_archive", "open_npz"]

_EXTENSION = ".npy"
_HEAD = 10_012
_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"
_TAIL = 1 << 17  # the end record, with the longest comment, and that of zip64
_LARGEST_DIRECTORY = 1 << 24  # bytes, of some hundred thousand names; all of it is read at once
_SHOWN = 8
_LOCAL_HEADER = 30
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack all of what was read, gigabytes of a kilobyte
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class ArrayInArchive:
    """A matrix in a zip archive, its values row by row, read from front to back.

    Attributes
    ----------
    path, title, member : str
    header : Header
    """

    path: str
    title: str
    member: str
    header: Header

    @property
    def rows(self) -> int:
        """As the header of the array says."""
        return self.header.shape[0]

    @property
    def dimensions(self) -> int:
        """As the header of the array says."""
        return self.header.shape[1]

    @property
    def dtype(self) -> str:
        """One of `FLOATS`."""
        return self.header.dtype.name

    def blocks(self) -> Iterator[Rows]:
        """All rows in order."""
        row = self.dimensions * self.header.dtype.itemsize
        step = rows_at_once(row)
        with open_archive(self.path) as archive, archive.open(self.member) as stream:
            _read(stream, self.header.size, self.title)
            for begin in range(0, self.rows, step):
                data = _read(stream, min(step, self.rows - begin) * row, self.title)
                yield np.frombuffer(data, self.header.dtype).reshape(-1, self.dimensions)


@contextmanager
def open_archive(path: str) -> Iterator[zipfile.ZipFile]:
    """The archive, its directory bounded and checked; every error of the zip becomes a `FormatError`."""
    with opened(path) as descriptor:
        _check_directory(descriptor, path)
        try:
            with open(descriptor, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
                yield archive
        except FacedataError:
            raise
        except _DAMAGE as error:
            raise FormatError(f"{path}: is no whole archive of arrays: {error}; copy or download it again") from error


def _check_directory(descriptor: int, path: str) -> None:
    """Refuse a list of members that would fill the memory."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _TAIL, max(size - _TAIL, 0))
    listed = [int.from_bytes(tail[place + 12 : place + 16], "little") for place in _places(tail, _END)]
    listed = [one for one in listed if one != 0xFFFFFFFF]
    listed += [int.from_bytes(tail[place + 40 : place + 48], "little") for place in _places(tail, _END_64)]
    if max(listed, default=0) > _LARGEST_DIRECTORY:
        raise FormatError(f"{path}: its list of members has {max(listed):,} bytes; expected an archive of a few arrays")


def _places(tail: bytes, mark: bytes) -> Iterator[int]:
    place = tail.rfind(mark)  # the last is the one that counts
    if place >= 0:
        yield place


def _read(stream: IO[bytes], size: int, title: str) -> bytes:
    parts, left = [], size
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise FormatError(f"{title}: is cut short: {left:,} bytes are missing; copy or download it again")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def is_torch_archive(path: str) -> bool:
    """Whether a zip archive is one that PyTorch saved: it has a pickle in it."""
    try:
        with open_archive(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except FormatError:
        return False


def open_npz(path: str, array: str | None = None) -> FeatureSource:
    """A matrix out of a ``.npz``.

    Parameters
    ----------
    path : str
    array : str, optional
        Its name there; may be left out where there is only one.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where it is no archive of arrays, or the array is no matrix of floats.
    OptionError
        Where there are several and none is named, or there is none of that name.
    """
    with open_archive(path) as archive:
        member = _choose(path, array, archive.namelist())
        title = f"{path}, array '{member.removesuffix(_EXTENSION)}'"
        information = archive.getinfo(member)
        if information.compress_type not in _METHODS:
            raise FormatError(
                f"{title}: is compressed in another way than np.savez_compressed does it, and may unpack to any size "
                "at once; in Python: numpy.save(name, array)"
            )
        with archive.open(member) as stream:
            header = read_header(stream.read(_HEAD), title)
        check_float_matrix(header, title)
        check_size(header, information.file_size, title)
        if not header.fortran:
            return ArrayInArchive(path, title, member, header)
        return _by_column(archive, information, header, path, title)


def _by_column(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: Header, path: str, title: str) -> ArrayInFile:
    """Columns are read side by side, so they must lie in the archive as they are."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise FormatError(
            f"{title}: is compressed, and stored column by column (Fortran order): it cannot be read row by row. In "
            f"Python: np.save('features.npy', np.load('{os.path.basename(path)}')['{member.filename[:-4]}'])"
        )
    assert archive.fp is not None
    archive.fp.seek(member.header_offset)
    local = archive.fp.read(_LOCAL_HEADER)
    names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    offset = member.header_offset + _LOCAL_HEADER + names + header.size
    rows, dimensions = header.shape
    return ArrayInFile(path, title, offset, rows, dimensions, header.dtype.str, fortran=True)


def _choose(path: str, array: str | None, members: list[str]) -> str:
    arrays = [name for name in members if name.endswith(_EXTENSION)]
    if not arrays:
        raise EmptyDatasetError(f"{path}: holds no array; expected an archive saved by np.savez")
    if array is not None and f"{array}{_EXTENSION}" in arrays:
        return f"{array}{_EXTENSION}"
    if array is None and len(arrays) == 1:
        return arrays[0]
    names = ", ".join(name.removesuffix(_EXTENSION) for name in arrays[:_SHOWN])
    more = f" and {len(arrays) - _SHOWN:,} more" if len(arrays) > _SHOWN else ""
    wrong = "holds several arrays; say --array" if array is None else f"holds no array '{array}'"
    raise OptionError(f"{path}: {wrong}: {names}{more}")
