"""A column of lists of floats in a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.parquet.library import first_line, import_pyarrow, open_parquet
from facedata.errors import FacedataError, FormatError, OptionError
from facedata.features.sources.base import FLOATS, FeatureSource, Rows, check_shape, rows_at_once
from facedata.text import listed

__all__ = ["ParquetColumn", "open_parquet_column"]

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ParquetColumn(FeatureSource):
    """A column of lists of floats, all of the same length."""

    column: str

    def blocks(self) -> Iterator[Rows]:
        """All rows in order."""
        first = 0
        for lists in _batches(self.path, self.column, rows_at_once(self.dimensions * FLOATS[self.dtype])):
            lengths = _lengths(lists)
            wrong = np.flatnonzero(lengths != self.dimensions)
            if len(wrong):
                length = int(lengths[wrong[0]])
                found = "null" if length < 0 else f"{length:,} values"
                raise FormatError(
                    f"{self.title}: row {first + int(wrong[0]):,} has {found}, the first row {self.dimensions:,}; rows "
                    "count from 0"
                )
            values = lists.flatten()
            if values.null_count:
                nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
                raise FormatError(f"{self.title}: row {first + int(nulls[0]) // self.dimensions:,} contains a null")
            yield values.to_numpy(zero_copy_only=False).reshape(-1, self.dimensions)
            first += len(lists)
        if first != self.rows:
            raise FormatError(f"{self.title}: has {first:,} rows, but its footer says {self.rows:,}: it is damaged")


def _lengths(lists: Any) -> NDArray[np.int64]:
    """How many values each list has, -1 for null."""
    fixed = import_pyarrow().types.is_fixed_size_list(lists.type)
    lengths = lists.type.list_size if fixed else np.diff(lists.offsets.to_numpy())
    return np.where(lists.is_null().to_numpy(zero_copy_only=False), -1, lengths)


def _batches(path: str, column: str, rows: int) -> Iterator[Any]:
    """The column in pieces of at most so many rows, none of them empty."""
    with open_parquet(path) as file:
        try:
            for batch in file.iter_batches(rows, columns=[column], use_threads=False):
                if batch.num_columns != 1:
                    raise FormatError(f"{path}: has more than one column '{column}'")
                if batch.num_rows:
                    yield batch.column(0)
        except FacedataError:
            raise
        except Exception as error:  # pyarrow raises many kinds of errors; all of them are about this file
            raise FormatError(f"{path}: column '{column}' cannot be read: {first_line(error)}") from error


def open_parquet_column(path: str, column: str | None = None) -> ParquetColumn:
    """Open a matrix in a Parquet file.

    Parameters
    ----------
    path : str
    column : str, optional
        A column of lists, or of lists of a fixed size, of half, single or double floats; needed only if there are
        several.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    InputError
        If the file cannot be read.
    FormatError
        If it is damaged.
    OptionError
        If there is no such column, or there are several and none is named.
    """
    with open_parquet(path) as file:
        types = {field.name: _float_type(field.type) for field in file.schema_arrow}
        rows = int(file.metadata.num_rows)
    fitting = [name for name, dtype in types.items() if dtype is not None]
    name = fitting[0] if column is None and len(fitting) == 1 else column
    dtype = types.get(name) if name is not None else None
    if name is None or dtype is None:
        columns = listed(fitting, _SHOWN, quote="") or "none"
        if column is None:
            raise OptionError(f"{path}: give --column; columns of lists of floats: {columns}")
        if column not in types:
            raise OptionError(f"{path}: has no column '{column}'; columns of lists of floats: {columns}")
        raise OptionError(f"{path}: column '{column}' does not contain lists of floats; columns that do: {columns}")
    title = f"{path}, column '{name}'"
    check_shape(title, rows, 1)
    first = next(_batches(path, name, 1), None)
    dimensions = 0 if first is None else int(_lengths(first)[0])
    if dimensions < 0:
        raise FormatError(f"{title}: row 0 has null; expected a list of floats in each row")
    check_shape(title, rows, dimensions)
    return ParquetColumn(path=path, title=title, rows=rows, dimensions=dimensions, dtype=dtype, column=name)


def _float_type(kind: Any) -> str | None:
    """The type of the values, if `kind` is a type of lists of floats."""
    types = import_pyarrow().types
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return None
    return f"float{kind.value_type.bit_width}" if types.is_floating(kind.value_type) else None
