"""`ParquetSource`: the rows of one or more Parquet files, as samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL, UNLABELLED
from facedata.converters.class_names import read_class_names_in
from facedata.converters.parquet.library import (
    FACEDATA_METADATA,
    HUGGINGFACE_METADATA,
    Columns,
    find_columns,
    find_files,
    first_line,
    open_parquet,
    read_metadata,
    read_row_groups,
)
from facedata.dataset import Sample, Source
from facedata.errors import OptionError, SampleError
from facedata.files import combined_identity, file_identity
from facedata.images import LARGEST_IMAGE

__all__ = ["ParquetSource", "open_source"]

_BATCH_BYTES = 1 << 22
_BATCH_ROWS = 1 << 6  # few, since the footer counts an image that is repeated through a dictionary only once
_BATCH_ROWS_WITHOUT_IMAGES = 1 << 16

Rows = range | NDArray[np.int64]
"""Numbers of rows, counted over all files of a dataset, ascending; a row may be repeated."""


class _Batch(NamedTuple):
    """Those `rows` of a row group that are wanted, in a record batch that begins with the row `begin`.

    There is no record batch if they cannot be read, but a `reason`.
    """

    path: str
    columns: Columns
    rows: Rows
    begin: int
    record_batch: Any
    reason: str = ""

    def positions(self) -> slice | NDArray[np.int64]:
        """Where the wanted rows are in the record batch."""
        if isinstance(self.rows, range):
            return slice(self.rows.start - self.begin, self.rows.stop - self.begin)
        return self.rows - self.begin

    def values(self, array: Any) -> list[Any]:
        """The values of an array of the record batch in the wanted rows, as Python objects."""
        positions = self.positions()
        if isinstance(positions, slice):
            return list(array[positions].to_pylist())
        return [array[position].as_py() for position in positions.tolist()]


@dataclass(frozen=True)
class ParquetSource(Source):
    """The rows of one or more Parquet files, as samples in their order.

    Files are read row group by row group, each in batches of a few megabytes. A damaged page fails the rest of its row
    group, because the pages after it cannot be found without it.

    Attributes
    ----------
    files : tuple of str
    groups : ndarray of shape (G,), ROW_GROUP
        The row groups that hold the rows; nothing is kept for each row.
    rows : range or ndarray of shape (N,), int64
        The rows, counted over all files of the dataset.
    files_identity : mapping
        Number, bytes and digest of all files of the dataset.
    """

    files: tuple[str, ...]
    groups: NDArray[np.void]
    rows: Rows
    files_identity: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def sliced(self, part: slice) -> ParquetSource:
        """The samples of a slice."""
        if part.step not in (None, 1):
            return self.take(np.arange(*part.indices(len(self))))
        return self._only(self.rows[part])

    def take(self, positions: NDArray[np.int64]) -> ParquetSource:
        """The rows at `positions`.

        Raises
        ------
        OptionError
            If the positions do not ascend.
        """
        positions = np.asarray(positions, np.int64)
        if (np.diff(positions) < 0).any():
            raise OptionError(
                f"{self.files[0]}: Parquet can only be read in its own order; convert it to lmdb or webdataset first, "
                "which can be read in any order"
            )
        return self._only(positions + self.rows.start if isinstance(self.rows, range) else self.rows[positions])

    def _only(self, rows: Rows) -> ParquetSource:
        """Some of the rows, with only the row groups and files that hold them."""
        if len(rows) == 0:
            return replace(self, files=(), groups=self.groups[:0], rows=range(0))
        first = np.searchsorted(self.groups["end"], rows[0], side="right")
        last = np.searchsorted(self.groups["begin"], rows[-1], side="right")
        groups = self.groups[first:last].copy()
        files = self.files[groups["file"][0] : groups["file"][-1] + 1]
        groups["file"] -= groups["file"][0]
        return replace(self, files=files, groups=groups, rows=rows)

    def identity(self) -> Mapping[str, Any]:
        """The number of files, their bytes, and a digest of samples of each."""
        return {"parquet": dict(self.files_identity)}

    def locate(self, position: int) -> tuple[str, None]:
        """The file of the row."""
        group = int(np.searchsorted(self.groups["end"], self.rows[position], side="right"))
        return self.files[int(self.groups["file"][group])], None

    def places(self) -> Mapping[str, bool]:
        """The files."""
        return dict.fromkeys(self.files, True)

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in order, or the error in its place.

        Raises
        ------
        InputError
            If a file cannot be opened.
        """
        for batch in self._batches(None):
            yield from _samples(batch)

    def keys(self) -> Iterator[str]:
        """The key of every row; the images are not read."""
        for batch in self._batches("key"):
            yield from _keys(batch)

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels in blocks, -1 for a row without a valid one; the images are not read."""
        return map(_labels, self._batches("label"))

    def _batches(self, only: str | None) -> Iterator[_Batch]:
        """The rows as they are read: whole, or the ``"key"`` or the ``"label"`` alone."""
        groups = [group for group in range(len(self.groups)) if len(self._rows_in(group))]
        for number, groups_of_file in groupby(groups, self.groups["file"].item):
            path = self.files[number]
            with open_parquet(path) as file:
                columns = find_columns(file.schema_arrow, path)
                for group in groups_of_file:
                    yield from self._batches_of_group(file, path, columns, group, only)

    def _rows_in(self, group: int) -> Rows:
        return _rows_between(self.rows, int(self.groups["begin"][group]), int(self.groups["end"][group]))

    def _batches_of_group(
        self, file: Any, path: str, columns: Columns, group: int, only: str | None
    ) -> Iterator[_Batch]:
        begin, end = int(self.groups["begin"][group]), int(self.groups["end"][group])
        if only is None:
            # the same for any slice, so that damage fails the same rows whatever the slice
            batch_rows = min(_BATCH_BYTES * (end - begin) // max(int(self.groups["size"][group]), 1), _BATCH_ROWS)
            leaves = [columns.image, columns.label, columns.key, columns.landmarks]
        else:
            batch_rows = _BATCH_ROWS_WITHOUT_IMAGES
            # without a column of keys, the label counts the rows
            leaves = [columns.label if only == "label" else columns.key or columns.label]
        number, rows = int(self.groups["number"][group]), self._rows_in(group)
        batches = file.iter_batches(
            max(batch_rows, 1),
            row_groups=[number],
            columns=[leaf.path for leaf in leaves if leaf is not None],
            use_threads=False,
        )
        while len(rows):
            try:
                batch = next(batches, None)
                reason = "it has fewer rows than the footer says"
            except Exception as error:  # pyarrow raises many kinds of errors; all of them are about this row group
                batch, reason = None, first_line(error)
            if batch is None:
                reason = f"row group {number} of the file cannot be read from this row on: {reason}"
                yield _Batch(path, columns, rows, begin, None, reason)
                return
            found = _rows_between(rows, begin, begin + batch.num_rows)
            if len(found):
                yield _Batch(path, columns, found, begin, batch)
            rows, begin = rows[len(found) :], begin + batch.num_rows

    def sizes(self) -> NDArray[np.int32]:
        """For each row, the mean size of an image of its row group."""
        means, rows = self._mean_sizes()
        return np.repeat(np.minimum(means, np.iinfo(np.int32).max).astype(np.int32), rows)

    def size(self) -> int:
        """The bytes of the images, according to the footers."""
        means, rows = self._mean_sizes()
        return int((means * rows).sum())

    def _mean_sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row group, the mean bytes of an image, and how many of the rows it holds."""
        rows = np.fromiter((len(self._rows_in(group)) for group in range(len(self.groups))), np.int64)
        return self.groups["size"] // (self.groups["end"] - self.groups["begin"]), rows

    def class_names(self) -> Mapping[int, str] | None:
        """The Hugging Face class labels of the first file, or the names in ``classes.txt`` if facedata wrote it."""
        names, own = self._class_metadata()
        if names:
            return dict(enumerate(names))
        return read_class_names_in(os.path.dirname(self.files[0])) if "extensions" in own else None

    def declared_classes(self) -> int | None:
        """The number of classes that the source of facedata's own file declared, or that Hugging Face names."""
        names, own = self._class_metadata()
        declared = own.get("classes")
        return declared if type(declared) is int and 0 < declared <= LARGEST_LABEL + 1 else len(names) or None

    def _class_metadata(self) -> tuple[list[str], Mapping[str, Any]]:
        """The names of a Hugging Face ``ClassLabel`` in the first file, and what facedata wrote about the file."""
        if not self.files:
            return [], {}
        with open_parquet(self.files[0]) as file:
            schema = file.schema_arrow
        value: Any = read_metadata(schema, HUGGINGFACE_METADATA)
        for name in ("info", "features", find_columns(schema, self.files[0]).label.column, "names"):
            value = value.get(name) if isinstance(value, dict) else None
        names = value if isinstance(value, list) and all(isinstance(name, str) for name in value) else []
        return names, read_metadata(schema, FACEDATA_METADATA)


def _rows_between(rows: Rows, begin: int, end: int) -> Rows:
    """The rows from `begin` on and before `end`."""
    if isinstance(rows, range):
        low = max(rows.start, begin)
        return range(low, max(min(rows.stop, end), low))
    low, high = np.searchsorted(rows, [begin, end])
    return rows[low:high]


def _samples(batch: _Batch) -> Iterator[Sample | SampleError]:
    """The sample of each row, or the error in its place."""
    if batch.record_batch is None:
        yield from (SampleError(batch.path, str(row), batch.reason) for row in batch.rows)
        return
    columns, record_batch = batch.columns, batch.record_batch
    images, labels = (batch.values(leaf.values(record_batch)) for leaf in (columns.image, columns.label))
    landmarks: Sequence[Any] = [None] * len(images)
    if columns.landmarks is not None:
        landmarks = batch.values(columns.landmarks.values(record_batch))
    for key, image, label, points in zip(_keys(batch), images, labels, landmarks, strict=True):
        if not image:
            reason = f"the column {columns.image.path} holds no image"
            if columns.image.member is not None and image is None:
                reason += "; images outside the Parquet file are not read"
        elif len(image) > LARGEST_IMAGE:
            reason = f"the image has {len(image):,} bytes; at most {LARGEST_IMAGE:,} are read"
        elif label is None or not 0 <= label <= LARGEST_LABEL:
            found = "no label" if label is None else f"the label {label}"
            reason = f"the column {columns.label.path} holds {found}; expected an integer from 0 to {LARGEST_LABEL}"
        else:
            yield Sample(key, label, image, None if points is None else _landmarks(points))
            continue
        yield SampleError(batch.path, key, reason)


def _landmarks(points: Any) -> NDArray[np.float32] | None:
    """Ten numbers, flat or in pairs; None for anything else, such as 68 points of other programs."""
    try:
        array = np.array(points, np.float32)
    except (TypeError, ValueError):  # nulls among the numbers, or lists of different lengths
        return None
    return array.reshape(5, 2) if array.shape in ((5, 2), (10,)) else None


def _keys(batch: _Batch) -> list[str]:
    """The key of each row; the number of the row if it has none or cannot be read."""
    if batch.columns.key is None or batch.record_batch is None:
        return list(map(str, batch.rows))
    array = batch.columns.key.values(batch.record_batch)
    try:
        keys = batch.values(array)
    except UnicodeDecodeError:  # strings of another writer that are not UTF-8
        buffers = [_decoded(array)[int(row) - batch.begin].as_buffer() for row in batch.rows]
        keys = [None if buffer is None else buffer.to_pybytes().decode(errors="replace") for buffer in buffers]
    if batch.columns.has_extensions:
        keys = [key and key.rpartition(".")[0] for key in keys]
    return [key or str(row) for key, row in zip(keys, batch.rows, strict=True)]


def _labels(batch: _Batch) -> NDArray[np.int64]:
    """The label of each row, shape (rows,), int64; -1 if it is not valid or cannot be read.

    Read from the buffers, because pyarrow's own conversion to NumPy loads pandas, which takes longer than all labels.
    """
    if batch.record_batch is None:
        return np.full(len(batch.rows), UNLABELLED, np.int64)
    array = _decoded(batch.columns.label.values(batch.record_batch))
    used = slice(array.offset, array.offset + len(array))
    validity, data = array.buffers()
    values = np.frombuffer(data, str(array.type))[used]
    valid = (values >= 0) & (values <= LARGEST_LABEL)
    if validity is not None:
        valid &= np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[used].astype(bool)
    labels: NDArray[np.int64] = np.where(valid, values.astype(np.int64), np.int64(UNLABELLED))
    return labels[batch.positions()]


def _decoded(array: Any) -> Any:
    """The values of an array, which may be stored as indices into a dictionary."""
    return array.dictionary_decode() if str(array.type).startswith("dictionary<") else array


def open_source(path: str) -> ParquetSource:
    """Open the rows of the Parquet files at `path`.

    Parameters
    ----------
    path : str
        As for `find_files`.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    InputError
        If there is no file, or one cannot be read.
    FormatError
        If a file is damaged, or has no image or label column.
    """
    files = tuple(find_files(path))
    groups = read_row_groups(files)
    rows = range(int(groups["end"][-1]) if len(groups) else 0)
    identities = [file_identity(file) for file in files]
    identity = {
        "files": len(files),
        "size": sum(identity["size"] for identity in identities),
        "digest": combined_identity((str(identity["size"]), identity["digest"]) for identity in identities),
    }
    return ParquetSource(files, groups, rows, identity)
