"""The files of a Parquet dataset, and what their footers say of their row groups."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.parquet.columns import find_columns
from facedata.converters.parquet.library import first_line, open_parquet
from facedata.errors import FormatError, InputError, InputNotFoundError, input_error
from facedata.files import file_identity
from facedata.text import natural_sort

__all__ = ["RowGroups", "find_files", "identity_of_files", "read_row_groups", "recognises"]

_EXTENSION = ".parquet"
_MAGIC = b"PAR1"
_ALWAYS_BELIEVED = 1 << 20  # rows; images that are all the same may take less than a byte each
_SUBFOLDER = "data"  # where the Hub of Hugging Face has them


@dataclass(frozen=True)
class RowGroups:
    """Row groups of one or more files, in order; all arrays of shape (G,), int64.

    Attributes
    ----------
    file : ndarray
        Which file each is in.
    number : ndarray
        Which of its file's row groups it is.
    begin, end : ndarray
        Its first row, and the one behind its last, counted over all files of the dataset.
    size : ndarray
        Its bytes, not compressed; nearly all of them are images.
    """

    file: NDArray[np.int64]
    number: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file)

    def between(self, first: int, last: int) -> RowGroups:
        """Those that hold the rows `first` to `last`."""
        low = int(np.searchsorted(self.end, first, side="right"))
        part = slice(low, int(np.searchsorted(self.begin, last, side="right")))
        return RowGroups(self.file[part], self.number[part], self.begin[part], self.end[part], self.size[part])

    def typical_sizes(self) -> NDArray[np.int64]:
        """About how many bytes an image takes in each."""
        sizes: NDArray[np.int64] = self.size // np.maximum(self.end - self.begin, 1)
        return sizes


def recognises(path: str) -> bool:
    """Whether `path` is a Parquet file, or a folder of such."""
    if os.path.isdir(path):
        with suppress(InputError):  # a folder inside that may not be looked at makes no dataset of this format
            return any(map(_list_files, (path, os.path.join(path, _SUBFOLDER))))
        return False
    return os.path.isfile(path) and (path.endswith(_EXTENSION) or _begins_like_one(path))


def _begins_like_one(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _list_files(folder: str) -> list[str]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(_EXTENSION) and not name.startswith(".")]
    except OSError as error:
        raise input_error(error, folder) from error
    return [os.path.join(folder, name) for name in natural_sort(names)]


def find_files(path: str) -> list[str]:
    """The files of the dataset at `path`, in natural order of their names.

    Parameters
    ----------
    path : str
        A file; a folder with ``*.parquet``, or with a folder ``data`` that has them; or a pattern of file names.

    Raises
    ------
    InputNotFoundError
        Where there is none.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        if not glob.has_magic(path):
            return [path]  # whoever opens it says what is wrong
        if files := natural_sort(glob.glob(path)):
            return files
        raise InputNotFoundError(f"{path}: no file fits this pattern") from None
    if not is_folder:
        return [path]
    subfolder = os.path.join(path, _SUBFOLDER)
    files = _list_files(path) or (_list_files(subfolder) if os.path.isdir(subfolder) else [])
    if not files:
        raise InputNotFoundError(f"{path}: there is no file *{_EXTENSION} in it, nor in {subfolder}")
    return files


def read_row_groups(paths: Sequence[str]) -> RowGroups:
    """What the footers of the files say; row groups without rows are left out.

    Raises
    ------
    InputError
        Where a file cannot be read.
    FormatError
        Where one is no whole Parquet file, lacks a column, or its footer contradicts itself.
    """
    tables = [np.empty((0, 4), np.int64)]
    for number, path in enumerate(paths):
        table = _read_footer(path)
        file, places = np.full(len(table), number), np.arange(len(table))
        tables.append(np.column_stack([file, places, table])[table[:, 0] > 0])
    files, numbers, rows, sizes = np.concatenate(tables).T
    ends = rows.cumsum()
    return RowGroups(files, numbers, ends - rows, ends, sizes)


def _read_footer(path: str) -> NDArray[np.int64]:
    """Rows and bytes of each row group of a file, shape (G, 2).

    What the footer says of single columns is not looked at: damage there makes pyarrow end the process.
    """
    with open_parquet(path) as file:
        find_columns(file.schema_arrow, path)
        try:
            metadata = file.metadata
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            table = np.array([(group.num_rows, group.total_byte_size) for group in groups], np.int64).reshape(-1, 2)
            rows = int(metadata.num_rows)
        except Exception as error:  # pyarrow raises whatever it likes; each is about this footer
            raise FormatError(f"{path}: its footer is damaged: {first_line(error)}") from error
    size = os.path.getsize(path)
    _check_counts(path, table, rows, size)
    if not table[:, 1].any():  # some writers leave this out
        table[:, 1] = table[:, 0] * (size // max(rows, 1))
    return table


def _check_counts(path: str, table: NDArray[np.int64], rows: int, size: int) -> None:
    """Rows take memory in many a place, so a footer that makes them up is not believed."""
    counted = sum(table[:, 0].tolist())  # of Python's integers, which cannot overflow
    if (table < 0).any() or counted != rows:
        raise FormatError(f"{path}: its footer is damaged: it says {rows} rows, its row groups have {counted}")
    if rows > max(size, _ALWAYS_BELIEVED):
        raise FormatError(f"{path}: its footer is damaged: it says {rows} rows, and the file has only {size} bytes")


def identity_of_files(paths: Sequence[str]) -> dict[str, Any]:
    """What tells these files from others, without reading all of them or saying where they lie."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    for path in paths:
        one: Mapping[str, Any] = file_identity(path)
        digest.update(json.dumps(one, sort_keys=True).encode())
        size += int(one["size"])
    return {"files": len(paths), "size": size, "digest": digest.hexdigest()}
