"""`ParquetSource`: the rows of one or more Parquet files, as samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL, UNLABELLED
from facedata.converters.class_names import read_class_names_in, refuse_mixed_splits
from facedata.converters.parquet.library import (
    FACEDATA_METADATA,
    HUGGINGFACE_METADATA,
    ColumnOptions,
    Columns,
    find_columns,
    find_files,
    iter_batches,
    open_parquet,
    read_metadata,
    read_row_groups,
)
from facedata.dataset import Sample, Source
from facedata.errors import FormatError, OptionError, SampleError, input_error, is_transient
from facedata.files import combined_identity, file_identity
from facedata.images import LARGEST_IMAGE
from facedata.text import counted, listed, natural_sort

__all__ = ["ParquetSource", "open_source"]

_BATCH_BYTES = 1 << 22
_BATCH_ROWS = 1 << 6  # few, since the footer counts an image that is repeated through a dictionary only once
_BATCH_ROWS_WITHOUT_IMAGES = 1 << 16
_MOST_DIGITS = 9
_MOST_CLASSES = 1 << 22  # if they are texts
_LARGEST_TEXTS = 1 << 28  # bytes of the names of all classes, or of the keys or labels of a batch
_INVALID = -2  # in the place of a label
_log = logging.getLogger(__name__)

Rows = range | NDArray[np.int64]
"""Numbers of rows, counted over all files of a dataset, ascending; a row may be repeated."""


class _Batch(NamedTuple):
    """Those `rows` of a row group that are wanted, in a record batch that begins with the row `begin`.

    There is no record batch if they cannot be read, but a `reason`. `numbers` are the labels of texts.
    """

    path: str
    columns: Columns
    rows: Rows
    begin: int
    record_batch: Any
    numbers: Mapping[str, int]
    reason: str = ""
    transient: bool = False

    def positions(self) -> slice | NDArray[np.int64]:
        """Where the wanted rows are in the record batch."""
        if isinstance(self.rows, range):
            return slice(self.rows.start - self.begin, self.rows.stop - self.begin)
        return self.rows - self.begin

    def values(self, array: Any) -> Iterator[Any]:
        """The values of an array of the record batch in the wanted rows, as Python objects.

        One after another, since a dictionary may have the same large image for each row.
        """
        positions = self.positions()
        wanted = array[positions] if isinstance(positions, slice) else map(array.__getitem__, positions.tolist())
        return (value.as_py() for value in wanted)


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
        Number, bytes and digest of all files of the dataset, and the columns that the user named.
    options : ColumnOptions
    numbers : mapping
        The labels of texts; empty if the labels are integers.
    labelled : bool
        Whether a row of the dataset has a label.
    """

    files: tuple[str, ...]
    groups: NDArray[np.void]
    rows: Rows
    files_identity: Mapping[str, Any]
    options: ColumnOptions = ColumnOptions()
    numbers: Mapping[str, int] = field(default_factory=dict)
    labelled: bool = True

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

    def number_texts(self) -> dict[str, int]:
        """The label of each text in the label column: the number that it is, or else its place in natural order."""
        found: set[str | None] = set()
        size = 0
        for batch in self._batches("label"):
            if batch.record_batch is not None and batch.columns.label is not None:
                array = batch.columns.label.values(batch.record_batch)
                encoded = array if hasattr(array, "dictionary") else array.dictionary_encode()
                new = {*_texts(encoded.dictionary)} - found
                size += sum(len(text or "") for text in new)
                found |= new
                if len(found) > _MOST_CLASSES or size > _LARGEST_TEXTS:
                    raise FormatError(
                        f"{batch.path}: the column {batch.columns.label.path} has {len(found):,} different texts or "
                        "more, too many or too long for labels; name another column with --label-column"
                    )
        texts = natural_sort(text for text in found if text)
        if all(text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS for text in texts):
            return {text: int(text) for text in texts}
        return {text: number for number, text in enumerate(texts)}

    def _batches(self, only: str | None) -> Iterator[_Batch]:
        """The rows as they are read: whole, or the ``"key"`` or the ``"label"`` alone."""
        groups = [group for group in range(len(self.groups)) if len(self._rows_in(group))]
        for number, groups_of_file in groupby(groups, self.groups["file"].item):
            path = self.files[number]
            with open_parquet(path) as file:
                columns = find_columns(file.schema_arrow, path, self.options)
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
            leaves = [columns.label if only == "label" else columns.key]  # batches without columns count the rows
        number, rows = int(self.groups["number"][group]), self._rows_in(group)
        columns_read = [leaf.path for leaf in leaves if leaf is not None]
        batches = iter_batches(file, path, max(batch_rows, 1), row_groups=[number], columns=columns_read)
        transient = False
        while len(rows):
            try:
                batch = next(batches, None)
                reason = "it has fewer rows than the footer says"
            except FormatError as error:
                batch, reason = None, str(error)
                too_large = isinstance(error.__cause__, MemoryError)
                if isinstance(error.__cause__, OSError) and (transient := is_transient(error.__cause__)) and only:
                    raise input_error(error.__cause__, path) from error
            else:
                too_large = batch is not None and batch.nbytes > _LARGEST_TEXTS
            if only is not None and too_large:
                advice = "" if only == "key" else ": name another column with --label-column, or give --labels none"
                raise FormatError(f"{path}: the {only}s from row {begin:,} on are too long to be {only}s{advice}")
            if batch is None:
                reason = f"row group {number} of the file cannot be read from this row on: {reason}"
                yield _Batch(path, columns, rows, begin, None, self.numbers, reason, transient)
                return
            found = _rows_between(rows, begin, begin + batch.num_rows)
            if len(found):
                yield _Batch(path, columns, found, begin, batch, self.numbers)
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
        """The labels that are texts, the Hugging Face class labels of the first file, or else our ``classes.txt``."""
        if self.numbers:
            words = not all(map(str.isdigit, self.numbers))
            return {number: name for name, number in self.numbers.items()} if words else None
        names, own = self._class_metadata()
        if names:
            return dict(enumerate(names))
        return read_class_names_in(os.path.dirname(self.files[0])) if "extensions" in own else None

    def declared_classes(self) -> int | None:
        """The number of classes that the source of facedata's own file declared, or that Hugging Face names."""
        if self.numbers or not self.labelled:
            return max(self.numbers.values(), default=-1) + 1
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
        label = find_columns(schema, self.files[0], self.options).label
        for name in ("info", "features", label and label.column, "names"):
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
        yield from (SampleError(batch.path, str(row), batch.reason, None, batch.transient) for row in batch.rows)
        return
    columns, record_batch = batch.columns, batch.record_batch
    images = batch.values(columns.image.values(record_batch))
    labels = _labels(batch, invalid=_INVALID).tolist()
    landmarks: Iterable[Any] = [None] * len(batch.rows)
    if columns.landmarks is not None:
        landmarks = batch.values(columns.landmarks.values(record_batch))
    for place, (key, image, label, points) in enumerate(zip(_keys(batch), images, labels, landmarks, strict=True)):
        if not image:
            reason = f"the column {columns.image.path} holds no image"
            if columns.image.member is not None and image is None:
                reason += "; images outside the Parquet file are not read"
        elif len(image) > LARGEST_IMAGE:
            reason = f"the image has {len(image):,} bytes; at most {LARGEST_IMAGE:,} are read"
        elif label == _INVALID and columns.label is not None:
            value = list(batch.values(columns.label.values(record_batch)))[place]
            column = f"the column {columns.label.path}"
            reason = f"{column} holds the label {value}; expected an integer from 0 to {LARGEST_LABEL}"
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
        keys = list(batch.values(array))
    except UnicodeDecodeError:  # strings of another writer that are not UTF-8
        all_keys = _texts(array)
        keys = [all_keys[int(row) - batch.begin] for row in batch.rows]
    if batch.columns.has_extensions:
        keys = [key and key.rpartition(".")[0] for key in keys]
    return [key or str(row) for key, row in zip(keys, batch.rows, strict=True)]


def _texts(array: Any) -> list[str | None]:
    """The texts of an array; bytes that are not UTF-8 are replaced."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        buffers = (value.as_buffer() for value in _decoded(array))
        return [None if buffer is None else buffer.to_pybytes().decode(errors="replace") for buffer in buffers]


def _labels(batch: _Batch, invalid: int = UNLABELLED) -> NDArray[np.int64]:
    """The label of each row, shape (rows,), int64; `invalid` if it is not valid, -1 if there is none."""
    if batch.record_batch is None or batch.columns.label is None:
        return np.full(len(batch.rows), UNLABELLED, np.int64)
    array = batch.columns.label.values(batch.record_batch)
    if batch.columns.texts:
        encoded = array if hasattr(array, "dictionary") else array.dictionary_encode()
        values, valid = _integers(encoded.indices)
        texts = _texts(encoded.dictionary)
        table = np.array([*(batch.numbers.get(text or "", UNLABELLED) for text in texts), UNLABELLED], np.int64)
        return table[np.where(valid, values, len(texts)).astype(np.int64)][batch.positions()]
    values, valid = _integers(_decoded(array))
    missing = ~valid | (values == UNLABELLED) | (values != values)  # the last is NaN
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
    good = (values >= 0) & (values <= LARGEST_LABEL) & (numbers == values)
    labels: NDArray[np.int64] = np.where(missing, UNLABELLED, np.where(good, numbers, invalid))
    return labels[batch.positions()]


def _integers(array: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The values of an array of numbers, and which of them are not null.

    Read from the buffers, because pyarrow's own conversion to NumPy loads pandas, which takes longer than all labels.
    """
    used = slice(array.offset, array.offset + len(array))
    validity, data = array.buffers()
    values = np.frombuffer(data, str(array.type))[used]
    if validity is None:
        return values, np.ones(len(values), np.bool_)
    return values, np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[used].astype(np.bool_)


def _decoded(array: Any) -> Any:
    """The values of an array, which may be stored as indices into a dictionary."""
    return array.dictionary_decode() if str(array.type).startswith("dictionary<") else array


def open_source(
    path: str, *, image_column: str | None = None, label_column: str | None = None, labels: str | None = None
) -> ParquetSource:
    """Open the rows of the Parquet files at `path`.

    Parameters
    ----------
    path : str
        As for `find_files`.
    image_column, label_column : str, optional
        The names of these columns if they are not usual ones.
    labels : str, optional
        ``"none"``: no row has a label.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    InputError
        If there is no file, or one cannot be read.
    FormatError
        If a file is damaged, or has no image column, or a label column cannot be told; or if the files in a folder are
        parts of a dataset, as train and test.
    OptionError
        If `labels` is ``"folders"``.
    """
    if labels == "folders":
        raise OptionError("--labels folders does not apply to the format 'parquet', which has no folders")
    files = tuple(find_files(path))
    if os.path.isdir(path):
        refuse_mixed_splits("parquet", path, files)
    options = ColumnOptions(image_column, label_column, labels != "none")
    groups, columns = read_row_groups(files, options)
    rows = range(int(groups["end"][-1]) if len(groups) else 0)
    identities = [file_identity(file) for file in files]
    named = {"image column": image_column, "label column": label_column}
    identity = {
        "files": len(files),
        "size": sum(identity["size"] for identity in identities),
        "digest": combined_identity((str(identity["size"]), identity["digest"]) for identity in identities),
        **{what: name for what, name in named.items() if name is not None},
    }
    source = ParquetSource(files, groups, rows, identity, options)
    if columns[0].texts:
        source = replace(source, numbers=source.number_texts())
        if words := source.class_names():
            _log.info(
                "%s: %s, numbered in natural order: %s",
                path,
                counted(len(words), "class", "classes"),
                listed([*words.values()]),
            )
    labelled = any((block >= 0).any() for block in source.label_blocks())
    if not labelled and labels is None and len(rows):
        why = "without a label column" if columns[0].label is None else "without a label in any row"
        _log.info("%s: %s, %s: unlabelled", path, counted(len(rows), "image"), why)
    return replace(source, labelled=labelled)
