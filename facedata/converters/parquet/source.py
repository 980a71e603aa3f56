"""`ParquetSource`: the rows of Parquet files, as samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import read_class_names_in
from facedata.converters.parquet.columns import Columns, class_names_of, find_columns, own_facts
from facedata.converters.parquet.footers import RowGroups, find_files, identity_of_files, read_row_groups
from facedata.converters.parquet.library import first_line, open_parquet
from facedata.converters.parquet.rows import Part, Rows, keys_of, labels_of, rows_between, samples_of
from facedata.dataset import Sample, Source
from facedata.errors import OptionError, SampleError

__all__ = ["ParquetSource", "open_source"]

_BATCH_BYTES = 1 << 22
_BATCH_ROWS = 1 << 6  # few: the same image in a dictionary, many times over, counts once in the sizes of a file
_ROWS_WITHOUT_IMAGES = 1 << 16


@dataclass(frozen=True)
class ParquetSource(Source):
    """The rows of one or more Parquet files, as samples in their order.

    Read row group by row group, each in batches of a few megabytes however large it is. A damaged page costs the rest
    of its row group: nothing behind it there can be found without it.

    Attributes
    ----------
    files : tuple of str
    groups : RowGroups
        The row groups that hold the rows; nothing is kept for each row.
    rows : range or ndarray of shape (N,), int64
        Which rows, counted over all files of the dataset.
    facts : mapping
        What tells the dataset's files from others.
    """

    files: tuple[str, ...]
    groups: RowGroups
    rows: Rows
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> ParquetSource:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a source is sliced in steps of 1, not {step}")
        return self._only(self.rows[start : max(start, stop)])

    def take(self, positions: NDArray[np.int64]) -> ParquetSource:
        """The rows at `positions`.

        Raises
        ------
        OptionError
            Where these do not ascend.
        """
        positions = np.asarray(positions, np.int64)
        if (np.diff(positions) < 0).any():
            raise OptionError(
                f"{self.files[0]}: Parquet is read in its own order only; convert it to lmdb or webdataset first, "
                "which are read in any order"
            )
        return self._only(positions + self.rows.start if isinstance(self.rows, range) else self.rows[positions])

    def _only(self, rows: Rows) -> ParquetSource:
        """Some of the rows, with the row groups and the files that these lie in and no others."""
        if len(rows) == 0:
            return replace(self, files=(), groups=self.groups.between(0, -1), rows=range(0))
        groups = self.groups.between(int(rows[0]), int(rows[-1]))
        first, last = int(groups.file[0]), int(groups.file[-1])
        groups = replace(groups, file=groups.file - first)
        return replace(self, files=self.files[first : last + 1], groups=groups, rows=rows)

    def identity(self) -> Mapping[str, Any]:
        """Number, size and sampled digests of the files."""
        return {"parquet": dict(self.facts)}

    def locate(self, position: int) -> tuple[str, None]:
        """The file that the row is in."""
        group = int(np.searchsorted(self.groups.end, self.rows[position], side="right"))
        return self.files[int(self.groups.file[group])], None

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in order, or the error in its place.

        Raises
        ------
        InputError
            Where a file cannot be opened.
        """
        for part in self._parts(None):
            yield from samples_of(part)

    def places(self) -> Mapping[str, bool]:
        """The files."""
        return dict.fromkeys(self.files, True)

    def keys(self) -> Iterator[str]:
        """The key of every row; the images are not read."""
        for part in self._parts("key"):
            yield from keys_of(part)

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels, block by block, -1 for each that cannot be told; the images are not read."""
        return map(labels_of, self._parts("label"))

    def _parts(self, only: str | None) -> Iterator[Part]:
        """The rows as they are read: whole, or of a single one of the `Columns`."""
        for number, path in enumerate(self.files):
            low, high = np.searchsorted(self.groups.file, [number, number + 1]).tolist()
            wanted = {group: rows for group in range(low, high) if len(rows := self._rows_in(group))}
            if not wanted:
                continue
            with open_parquet(path) as file:
                columns = find_columns(file.schema_arrow, path)
                for group, rows in wanted.items():
                    yield from self._parts_of_group(file, columns, group, rows, only)

    def _rows_in(self, group: int) -> Rows:
        return rows_between(self.rows, int(self.groups.begin[group]), int(self.groups.end[group]))

    def _parts_of_group(self, file: Any, columns: Columns, group: int, rows: Rows, only: str | None) -> Iterator[Part]:
        path, number = self.files[int(self.groups.file[group])], int(self.groups.number[group])
        begin = int(self.groups.begin[group])
        leaves = columns.paths() if only is None else [columns.path_of(only)]
        batches = file.iter_batches(
            self._batch_rows(group, only), row_groups=[number], columns=leaves, use_threads=False
        )
        while len(rows):
            batch, reason = _next(batches)
            if batch is None:
                reason = f"row group {number} of the file cannot be read from here on: {reason}"
                yield Part(path, columns, rows, begin, None, reason)
                return
            found = rows_between(rows, begin, begin + batch.num_rows)
            if len(found):
                yield Part(path, columns, found, begin, batch)
            rows, begin = rows[len(found) :], begin + batch.num_rows

    def _batch_rows(self, group: int, only: str | None) -> int:
        """The same for any slice, so that damage hits the same rows whatever the slice."""
        if only is not None:
            return _ROWS_WITHOUT_IMAGES
        rows, size = int(self.groups.end[group] - self.groups.begin[group]), int(self.groups.size[group])
        return min(max(_BATCH_BYTES * rows // max(size, 1), 1), _BATCH_ROWS)

    def sizes(self) -> NDArray[np.int32]:
        """The mean size of the images of its row group, for each row."""
        sizes = np.minimum(self.groups.typical_sizes(), np.iinfo(np.int32).max).astype(np.int32)
        return np.repeat(sizes, self._rows_of_each_group())

    def size(self) -> int:
        """As the footers have it."""
        return int((self.groups.typical_sizes() * self._rows_of_each_group()).sum())

    def _rows_of_each_group(self) -> NDArray[np.int64]:
        return np.fromiter((len(self._rows_in(group)) for group in range(len(self.groups))), np.int64)

    def class_names(self) -> Mapping[int, str] | None:
        """Those of the Hugging Face class labels of the first file, or of the ``classes.txt`` that facedata wrote."""
        for path in self.files[:1]:
            with open_parquet(path) as file:
                names = class_names_of(file.schema_arrow, find_columns(file.schema_arrow, path).label)
                own = own_facts(file.schema_arrow)
            if names is not None:
                return dict(enumerate(names))
            return read_class_names_in(os.path.dirname(path)) if "extensions" in own else None
        return None

    def declared_classes(self) -> int | None:
        """As the first file says: facedata writes what its own source declared, Hugging Face names every class."""
        for path in self.files[:1]:
            with open_parquet(path) as file:
                names = class_names_of(file.schema_arrow, find_columns(file.schema_arrow, path).label)
                declared = own_facts(file.schema_arrow).get("classes")
            return (
                declared if type(declared) is int and 0 < declared <= 1 << 31 else None if names is None else len(names)
            )
        return None


def _next(batches: Iterator[Any]) -> tuple[Any, str]:
    """The next record batch, or None and the reason why there is none."""
    try:
        return next(batches), ""
    except StopIteration:
        return None, "it has fewer rows than the footer says"
    except Exception as error:  # pyarrow raises whatever it likes; each is about this row group
        return None, first_line(error)


def open_source(path: str) -> ParquetSource:
    """The rows of the Parquet files at `path`.

    Parameters
    ----------
    path : str
        A file; a folder with ``*.parquet``, or with a folder ``data`` that has them; or a pattern of file names. They
        are taken in the natural order of their names.

    Raises
    ------
    MissingExtraError
        Where pyarrow is not installed.
    InputError
        Where there is none, or one cannot be read.
    FormatError
        Where one is damaged, or has no image or label column.
    """
    files = tuple(find_files(path))
    groups = read_row_groups(files)
    rows = range(int(groups.end[-1]) if len(groups) else 0)
    return ParquetSource(files, groups, rows, identity_of_files(files))
