"""Sources of features: files of several kinds, each read in blocks of rows and never whole."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import whole_lines
from facedata.converters.parquet.library import import_pyarrow, iter_batches, open_parquet
from facedata.errors import EmptyDatasetError, FormatError, OptionError
from facedata.features.arrays import Header, StoredArray, check_matrix, is_torch_archive, open_npy, open_npz
from facedata.features.feature_set import (
    FLOATS,
    NPY_MAGIC,
    FeatureSource,
    Rows,
    check_shape,
    labelled_rows,
    open_matrix,
    other_kind,
    rows_at_once,
    size_and_head,
)
from facedata.files import StrPath
from facedata.identify import explained
from facedata.jobs.journal import refuse_unfinished
from facedata.text import listed

__all__ = ["open_features"]

_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_PICKLES = (".pkl", ".pickle")
_TORCH = (".pt", ".pth", ".ckpt")
_KINDS = {
    ".npy": "npy",
    ".npz": "npz",
    ".bin": "bin",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
}
_OPTION_OF = {"--dim": "bin", "--dtype": "bin", "--array": "npz", "--column": "parquet"}


def open_features(
    path: StrPath,
    *,
    dimensions: int | None = None,
    dtype: str | None = None,
    array: str | None = None,
    column: str | None = None,
) -> FeatureSource:
    """Open a matrix of features; the kind of the file is known by its first bytes, else by its name.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz``, ``.bin``, ``.parquet``, or ``.csv``, ``.tsv`` or ``.txt`` with numbers.
    dimensions : int, optional
        For ``.bin``: values in a row. Not needed if the ``.meta`` of the set, or one beside the file, shows how many
        rows there are.
    dtype : str, optional
        For ``.bin``: one of `FLOATS`, little-endian; by default float32, and then bytes that make sense only as
        another type are refused.
    array, column : str, optional
        For ``.npz``, the name of the array; for ``.parquet``, that of the column.

    Raises
    ------
    InputError, FormatError
        If the file cannot be read, or is not a matrix of floats; pickles, also of PyTorch, are never loaded.
    OptionError
        If an option does not apply to such a file, or one is missing.
    """
    path = os.fspath(path)
    with explained(path, "features", "features"):
        return _open(path, dimensions, dtype, array, column)


def _open(path: str, dimensions: int | None, dtype: str | None, array: str | None, column: str | None) -> FeatureSource:
    kind = _kind_of(path)
    given = {"--dim": dimensions, "--dtype": dtype, "--array": array, "--column": column}
    for option, value in given.items():
        if value is not None and _OPTION_OF[option] != kind:
            raise OptionError(
                f"{option} applies to .{_OPTION_OF[option]} files, but {path} is read as .{kind}: leave it out"
            )
    if kind == "npz":
        return open_npz(path, array)
    if kind == "bin":
        return _open_bin(path, dimensions, dtype)
    if kind == "parquet":
        return open_parquet_column(path, column)
    if kind == "csv":
        return open_text(path)
    opened = open_npy(path)
    check_matrix(opened)
    return opened


def _kind_of(path: str) -> str:
    extension = os.path.splitext(path)[1].lower()
    _, head = size_and_head(path)
    if extension in (*_PICKLES, *_TORCH):
        raise _pickle_error(path, torch=extension in _TORCH)
    if head.startswith(NPY_MAGIC):
        return "npy"
    if head.startswith(_ZIP) and extension != ".bin":
        if is_torch_archive(path):
            raise _pickle_error(path, torch=True)
        return "npz"
    if head.startswith(_PARQUET) and extension != ".bin":
        return "parquet"
    if extension not in _KINDS:
        raise FormatError(f"{path}: is not a known kind of file; expected one of {', '.join(_KINDS)}")
    return _KINDS[extension]


def _pickle_error(path: str, *, torch: bool) -> FormatError:
    target = f"{os.path.splitext(os.path.basename(path))[0]}.npy"
    loaded = f"torch.load({path!r}, map_location='cpu', weights_only=True).detach().float().numpy()"
    unpickled = f"pickle.load(open({path!r}, 'rb'))"
    return FormatError(
        f"{path}: is a pickle, which may run any program when it is loaded, so facedata never loads it. If you trust "
        f"it, these two lines of Python convert it:\n  import numpy, {'torch' if torch else 'pickle'}\n"
        f"  numpy.save({target!r}, {loaded if torch else unpickled})"
    )


def _open_bin(path: str, dimensions: int | None, dtype: str | None) -> StoredArray:
    """Open a matrix without a header, whose shape the options or the labels of its set must give."""
    refuse_unfinished(path)
    size, _ = size_and_head(path)
    if not size:
        raise EmptyDatasetError(f"{path}: is empty")
    labels = _labels_of(path)
    rows = labelled_rows(labels, path) if labels else None
    if dtype in (None, "float32"):
        matrix = open_matrix(path, dimensions, rows, counted_in=labels or "")
        # float64 of half as many rows has the same size
        if dtype is None and (kind := other_kind(matrix)) is not None:
            way = f"give --dtype {kind}, with the --dim of such rows"
            if kind not in FLOATS:
                code = f">f{FLOATS[kind.rpartition(' ')[2]]}"
                way = f"in Python: numpy.fromfile(name, '{code}').astype('<f4').tofile(other_name)"
            raise FormatError(
                f"{path}: expected float32, found bytes that make sense only as {kind}: {way}; or --dtype float32, to "
                "accept them as they are"
            )
        return _bin(path, matrix.rows, matrix.dimensions, "float32")
    assert dtype is not None
    if dimensions is None:
        raise OptionError(f"{path}: --dtype needs --dim too")
    check_shape(path, None, dimensions)
    row = dimensions * FLOATS[dtype]
    found = size // row if rows is None else rows
    if size != found * row or not found:
        expected, counted = f"{found * row:,}", f" ({rows:,} lines in {labels})"
        if rows is None:
            expected, counted = f"a multiple of {row:,}", ""
        raise FormatError(
            f"{path}: expected {expected} bytes for {dimensions:,} {dtype} a row, found {size:,}{counted}"
        )
    return _bin(path, found, dimensions, dtype)


def _bin(path: str, rows: int, dimensions: int, dtype: str) -> StoredArray:
    header = Header(np.dtype(dtype).newbyteorder("<"), (rows, dimensions), fortran=False, size=0)
    return StoredArray.of(path, path, header, 0)


def _labels_of(path: str) -> str | None:
    """The labels of the set ``ROOT/features/NAME.bin``, or else the ``.meta`` beside the file."""
    folder, name = os.path.split(path)
    stem = name.removesuffix(".bin")
    labels = os.path.join(folder, f"{stem}.meta")
    if os.path.basename(os.path.abspath(folder)) == "features" and stem != name:
        root = os.path.dirname(folder) if os.path.basename(folder) == "features" else os.path.join(folder, "..")
        labels = os.path.join(root, "labels", f"{stem}.meta")
    return labels if os.path.lexists(labels) else None


_LONGEST_LINE = 1 << 25  # a million numbers
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEPARATORS = (";", "\t", ",")  # the first of these that the first line contains; else spaces
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf|infinity)\s*", re.I | re.A)
_FEWEST_NUMBERED = 4  # columns called 0, 1, 2, 3 are a header; fewer may be a row
_SHOWN = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NumbersInText(FeatureSource):
    """Rows of numbers with a separator between them, the same number of values in each line."""

    header: bool
    """Whether the first line is one."""
    separator: str | None
    """None for spaces."""

    def blocks(self) -> Iterator[Rows]:
        """All rows in order."""
        for first, lines in _blocks_of_lines(self.path):
            if first == 1 and self.header:
                first, lines = 2, lines[1:]
            if lines:
                yield self._numbers(lines, first)

    def _numbers(self, lines: list[str], first: int) -> Rows:
        try:
            if all(map(str.strip, lines)):  # NumPy skips blank lines
                rows: Rows = np.loadtxt(lines, np.float64, comments=None, delimiter=self.separator, ndmin=2)
                if rows.shape == (len(lines), self.dimensions):
                    return rows
        except ValueError:
            pass
        for number, line in enumerate(lines, first):  # find the line that is wrong
            place = f"{self.path}: line {number:,}"
            if not line.strip():
                raise FormatError(f"{place} is blank, expected {self.dimensions:,} numbers")
            fields = line.split(self.separator)
            if len(fields) != self.dimensions:
                raise FormatError(f"{place} has {len(fields):,} values, the first row has {self.dimensions:,}")
            for column, field in enumerate(map(str.strip, fields), 1):
                if not _NUMBER.fullmatch(field):
                    shown = repr(field[:40]) if field else "empty"
                    raise FormatError(f"{place}, column {column:,} is {shown}, expected a number")
        raise FormatError(f"{self.path}: the lines from {first:,} on are not a table of numbers")


def _blocks_of_lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file, some MiB at a time: the number of the first, and the lines without their ends."""
    for first, offset, block in whole_lines(path, _LONGEST_LINE, "expected a row of numbers"):
        text = block.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else block
        yield first, text.replace(b"\r\n", b"\n").removesuffix(b"\n").decode("latin-1").split("\n")


def open_text(path: str) -> NumbersInText:
    """Open a table of numbers separated by commas, semicolons, tabs or spaces; a first line of names is skipped.

    Raises `InputError` if the file cannot be read; `FormatError` if its first line is neither a row of numbers nor a
    header; `EmptyDatasetError` if it has no rows.
    """
    lines = list(islice(chain.from_iterable(lines for _, lines in _blocks_of_lines(path)), 2))
    if not lines:
        raise EmptyDatasetError(f"{path}: is empty")
    if any("\0" in line for line in lines):
        raise FormatError(f"{path}: is not text: it contains zero bytes")
    if not lines[0].strip():
        raise FormatError(f"{path}: line 1 is blank, expected numbers or a header")
    separator = next((separator for separator in _SEPARATORS if separator in lines[0]), None)
    check_shape(path, None, max(line.count(separator or " ") for line in lines) + 1)  # before they are cut
    header = _is_header(lines[0].split(separator), path)
    if header:
        if len(lines) == 1:
            raise EmptyDatasetError(f"{path}: has no rows after its header")
        _log.info("%s: line 1 is read as a header: %s", path, lines[0][:60])
    dimensions = len(lines[header].split(separator))
    check_shape(path, None, dimensions)
    return NumbersInText(
        path=path, title=path, rows=None, dimensions=dimensions, dtype="text", header=header, separator=separator
    )


def _is_header(fields: list[str], path: str) -> bool:
    fields = [field.strip() for field in fields]
    if len(fields) >= _FEWEST_NUMBERED and fields == list(map(str, range(len(fields)))):
        return True  # pandas' names for columns that have none
    if not fields[0] and len(fields) > 1:
        raise FormatError(
            f"{path}: line 1 begins with an empty name: the first column counts the rows, as pandas writes it; "
            "write the file without it: to_csv(name, index=False)"
        )
    numbers = [bool(_NUMBER.fullmatch(field)) for field in fields]
    if any(numbers) and not all(numbers):
        wrong = numbers.index(False)
        raise FormatError(
            f"{path}: line 1, column {wrong + 1:,} is {fields[wrong][:40]!r}, expected a number, or a header of names "
            "only"
        )
    return bool(fields[0]) and not any(numbers)


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
            for batch in iter_batches(file, path, rows, columns=[column]):
                if batch.num_columns != 1:
                    raise FormatError("there are several columns of that name")
                if batch.num_rows:
                    yield batch.column(0)
        except FormatError as error:
            raise FormatError(f"{path}: column '{column}' cannot be read: {error}") from error


def open_parquet_column(path: str, column: str | None = None) -> ParquetColumn:
    """Open a matrix in a Parquet file.

    `column` is one of lists, or of lists of a fixed size, of half, single or double floats; it is needed only if there
    are several.

    Raises `MissingExtraError` if pyarrow is not installed; `InputError` if the file cannot be read; `FormatError` if it
    is damaged; `OptionError` if there is no such column, or there are several and none is named.
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
