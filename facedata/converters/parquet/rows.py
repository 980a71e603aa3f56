"""From the rows of an Arrow record batch to samples, keys and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.converters.parquet.columns import Columns
from facedata.dataset import Sample
from facedata.errors import SampleError
from facedata.images import LARGEST_IMAGE

__all__ = ["Part", "Rows", "keys_of", "labels_of", "rows_between", "samples_of"]

Rows = range | NDArray[np.int64]
"""Numbers of rows, counted over all files of a dataset; they never descend."""

_LANDMARKS = (5, 2)


def rows_between(rows: Rows, begin: int, end: int) -> Rows:
    """Those of `rows` from `begin` on and before `end`."""
    if isinstance(rows, range):
        low = max(rows.start, begin)
        return range(low, max(min(rows.stop, end), low))
    low, high = np.searchsorted(rows, [begin, end])
    return rows[low:high]


class Part(NamedTuple):
    """Some rows of a row group.

    Attributes
    ----------
    path : str
        The file.
    columns : Columns
    rows : range or ndarray of int64
        The rows that are wanted.
    begin : int
        The row that the batch begins with.
    batch : pyarrow.RecordBatch or None
        None where the rows cannot be read.
    reason : str
        Why they cannot.
    """

    path: str
    columns: Columns
    rows: Rows
    begin: int
    batch: Any
    reason: str = ""

    def values(self, array: Any) -> list[Any]:
        """What an array of the batch holds for the rows, as Python objects."""
        if isinstance(self.rows, range):
            return list(array.slice(self.rows.start - self.begin, len(self.rows)).to_pylist())
        return [array[row - self.begin].as_py() for row in self.rows.tolist()]


def samples_of(part: Part) -> Iterator[Sample | SampleError]:
    """The sample of each row, or the error in its place."""
    if part.batch is None:
        yield from (SampleError(part.path, str(row), part.reason) for row in part.rows)
        return
    columns, batch = part.columns, part.batch
    images, labels = part.values(columns.image.of(batch)), part.values(columns.label.of(batch))
    landmarks: Sequence[Any] = [None] * len(images)
    if columns.landmarks is not None:
        landmarks = part.values(columns.landmarks.of(batch))
    for key, image, label, points in zip(keys_of(part), images, labels, landmarks, strict=True):
        if image and len(image) <= LARGEST_IMAGE and label is not None and 0 <= label <= LARGEST_LABEL:
            yield Sample(key, label, image, None if points is None else _as_landmarks(points))
        else:
            yield SampleError(part.path, key, _reason(image, label, columns))


def _reason(image: bytes | None, label: int | None, columns: Columns) -> str:
    if not image:
        outside = "; only images that are in the file itself are read" if columns.image.member and image is None else ""
        return f"the column {columns.image.path} holds no image{outside}"
    if len(image) > LARGEST_IMAGE:
        return f"the image is {len(image)} bytes long; one is taken to be at most {LARGEST_IMAGE}"
    found = "no label" if label is None else f"the label {label}"
    return f"the column {columns.label.path} holds {found}; expected an integer from 0 to {LARGEST_LABEL}"


def _as_landmarks(points: Any) -> NDArray[np.float32] | None:
    """Ten numbers, in a row or in pairs; None where it is anything else: other programs keep 68 points, say."""
    try:
        array = np.array(points, np.float32)
    except (TypeError, ValueError):  # null among the numbers, pairs and triples
        return None
    return array.reshape(_LANDMARKS) if array.shape in (_LANDMARKS, (10,)) else None


def keys_of(part: Part) -> list[str]:
    """The key of each row; its number, where it has none or cannot be read."""
    if part.columns.key is None or part.batch is None:
        return list(map(str, part.rows))
    array = part.columns.key.of(part.batch)
    try:
        keys = part.values(array)
    except UnicodeDecodeError:
        keys = [_lenient(array[int(row) - part.begin]) for row in part.rows]
    if part.columns.extensions:
        keys = [key and key.rpartition(".")[0] for key in keys]
    return [key or str(row) for key, row in zip(keys, part.rows, strict=True)]


def _lenient(scalar: Any) -> str | None:
    """A string that is not the UTF-8 that it ought to be."""
    try:
        text: str | None = scalar.as_py()
    except UnicodeDecodeError:
        text = scalar.as_buffer().to_pybytes().decode(errors="replace")
    return text


def labels_of(part: Part) -> NDArray[np.int64]:
    """The label of each row, shape (rows,); -1 where it is none that a sample may have, or cannot be read."""
    if part.batch is None:
        return np.full(len(part.rows), -1, np.int64)
    labels = _integers(part.columns.label.of(part.batch))
    if isinstance(part.rows, range):
        return labels[part.rows.start - part.begin : part.rows.stop - part.begin]
    return labels[part.rows - part.begin]


def _integers(array: Any) -> NDArray[np.int64]:
    """Read from the buffers: pyarrow's own way to NumPy loads pandas, which takes longer than all the labels."""
    if str(array.type).startswith("dictionary<"):
        array = array.dictionary_decode()
    part = slice(array.offset, array.offset + len(array))
    validity, data = array.buffers()
    values = np.frombuffer(data, str(array.type))[part]
    good = (values >= 0) & (values <= LARGEST_LABEL)
    if validity is not None:
        good &= np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[part].astype(bool)
    return np.where(good, values.astype(np.int64), np.int64(-1))
