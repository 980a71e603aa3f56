"""The files of a Parquet dataset, and the row groups in them."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from facedata.converters.parquet.library import find_columns, first_line, open_parquet
from facedata.errors import FormatError, InputError, InputNotFoundError, input_error
from facedata.text import natural_sort

__all__ = ["ROW_GROUP", "find_files", "read_row_groups", "recognises"]

_EXTENSION = ".parquet"
_MAGIC = b"PAR1"
_SUBFOLDER = "data"  # where datasets of the Hugging Face Hub have their files
_PLAUSIBLE_ROWS = 1 << 20  # in any file; with one image repeated, a row may take less than a byte

ROW_GROUP = np.dtype([(name, np.int64) for name in ("file", "number", "begin", "end", "size")])
"""A row group: the index of its file, its number in that file, its first row and the row after its last, counted over
all files of the dataset, and its bytes before compression, nearly all of them images."""


def find_files(path: str) -> list[str]:
    """The files of the dataset at `path`, in the natural order of their names.

    Parameters
    ----------
    path : str
        A file; a folder with ``*.parquet``, or with a folder ``data`` that has them; or a pattern of file names.

    Raises
    ------
    InputNotFoundError
        If there is none.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        if not glob.has_magic(path):
            return [path]  # opening it reports what is wrong
        if files := natural_sort(glob.glob(path)):
            return files
        raise InputNotFoundError(f"{path}: no file matches this pattern") from None
    if not is_folder:
        return [path]
    subfolder = os.path.join(path, _SUBFOLDER)
    files = _list_folder(path) or (_list_folder(subfolder) if os.path.isdir(subfolder) else [])
    if not files:
        raise InputNotFoundError(f"{path}: contains no *{_EXTENSION} file, and neither does {subfolder}")
    return files


def _list_folder(folder: str) -> list[str]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(_EXTENSION) and not name.startswith(".")]
    except OSError as error:
        raise input_error(error, folder) from error
    return [os.path.join(folder, name) for name in natural_sort(names)]


def recognises(path: str) -> bool:
    """Whether `path` is a Parquet file, or a folder of Parquet files."""
    if os.path.isdir(path):
        with suppress(InputError):  # a folder without permission to list it is not recognised
            return any(map(_list_folder, (path, os.path.join(path, _SUBFOLDER))))
        return False
    if path.endswith(_EXTENSION):
        return os.path.isfile(path)
    with suppress(OSError, ValueError):
        if os.path.isfile(path):
            with open(path, "rb", buffering=0) as file:
                return file.read(len(_MAGIC)) == _MAGIC
    return False


def read_row_groups(paths: Sequence[str]) -> NDArray[np.void]:
    """The row groups of the files, according to their footers; those without rows are left out.

    Returns
    -------
    ndarray of shape (G,), ROW_GROUP

    Raises
    ------
    InputError
        If a file cannot be read.
    FormatError
        If it is not a complete Parquet file, lacks a column, or its footer contradicts itself.
    """
    tables = [np.empty(0, ROW_GROUP)]
    for index, path in enumerate(paths):
        with open_parquet(path) as file:
            find_columns(file.schema_arrow, path)
            metadata = file.metadata
            try:  # the metadata of single columns is not read: if it is damaged, pyarrow ends the process
                groups = enumerate(map(metadata.row_group, range(metadata.num_row_groups)))
                # "end" holds the number of rows until all are known
                values = [(index, number, 0, group.num_rows, group.total_byte_size) for number, group in groups]
                table = np.array(values, ROW_GROUP)
                rows = int(metadata.num_rows)
            except Exception as error:  # pyarrow raises many kinds of errors; all of them are about this footer
                raise FormatError(f"{path}: its footer is damaged: {first_line(error)}") from error

        # rows take memory in many places, so an invented number of rows is refused
        size = os.path.getsize(path)
        counted = sum(table["end"].tolist())  # Python's integers do not overflow
        if (table["end"] < 0).any() or (table["size"] < 0).any() or counted != rows:
            raise FormatError(f"{path}: its footer is damaged: it says {rows} rows, but its row groups have {counted}")
        if rows > max(size, _PLAUSIBLE_ROWS):
            raise FormatError(f"{path}: its footer is damaged: it says {rows} rows, but the file has only {size} bytes")
        if not table["size"].any():  # some writers leave it out
            table["size"] = table["end"] * (size // max(rows, 1))
        tables.append(table[table["end"] > 0])

    joined = np.concatenate(tables)
    joined["end"] = joined["end"].cumsum()
    joined["begin"][1:] = joined["end"][:-1]
    return joined
