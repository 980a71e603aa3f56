"""Writing record sets: ``train.rec`` and ``train.idx`` as MXNet writes them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.index import write_index
from facedata.converters.rec.recordio import (
    CHUNK_HEADER_SIZE,
    LARGEST_LABEL,
    MAGIC,
    ImageRecord,
    encode_record,
    pack_image_record,
)
from facedata.errors import EmptyDatasetError, FacedataError, FormatError, OptionError, output_error
from facedata.files import atomic_writer, temporary_name

__all__ = [
    "LARGEST_INSIGHTFACE_SET",
    "RANGE_RECORD",
    "InsightFaceWriter",
    "RecordWriter",
    "closing_records",
    "property_line",
]

LARGEST_INSIGHTFACE_SET = LARGEST_LABEL
"""Records; above it the meta record, which counts in float32, would be wrong."""

RANGE_RECORD = np.dtype(
    [("chunk", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("range", "<f4", 2)]
)
"""A whole record without an image, whose two labels are a range of keys: the first, and the one behind the last."""

_RANGES_AT_ONCE = 1 << 16


def closing_records(first_keys: NDArray[np.int64], images: int) -> Iterator[NDArray[Any]]:
    """What stands behind the images in the InsightFace dialect: a record for each identity, and the meta record.

    Parameters
    ----------
    first_keys : ndarray of shape (C,), int64
        The key of the first image of each identity, ascending.
    images : int
        Their keys are 1 to `images`.

    Yields
    ------
    ndarray of `RANGE_RECORD`
        Some of the records, as their bytes are in the file; the field ``id`` is their key.
    """
    first = images + 1
    ends = np.append(first_keys[1:], first)
    for begin in range(0, len(first_keys), _RANGES_AT_ONCE):
        part = slice(begin, begin + _RANGES_AT_ONCE)
        ranges = np.stack([first_keys[part], ends[part]], axis=1)
        yield _range_records(np.arange(len(ranges)) + first + begin, ranges)
    yield _range_records(np.zeros(1, np.int64), np.array([[first, first + len(first_keys)]]))


def _range_records(keys: NDArray[np.int64], ranges: NDArray[np.int64]) -> NDArray[Any]:
    records = np.zeros(len(keys), RANGE_RECORD)
    records["chunk"] = MAGIC, RANGE_RECORD.itemsize - CHUNK_HEADER_SIZE
    records["flag"], records["id"], records["range"] = 2, keys, ranges
    return records


def property_line(classes: int, size: tuple[int, int]) -> bytes:
    """What the file ``property`` holds; `size` is the height and width of the images."""
    return b"%d,%d,%d\n" % (classes, *size)


class RecordWriter:
    """Writes a ``.rec`` and its ``.idx``; both appear complete when the writer is closed without an error.

    Parameters
    ----------
    path : str or path
        The ``.rec`` file; the index goes beside it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._temporary = temporary_name(path)
        self._keys, self._offsets = array("q"), array("q")
        self._end = 0
        try:
            self._file: BinaryIO = open(self._temporary, "wb", buffering=1 << 20)  # noqa: SIM115, closed on exit
        except OSError as error:
            raise output_error(error, self.path) from error

    def __len__(self) -> int:
        return len(self._keys)

    def write(self, key: int, payload: bytes) -> int:
        """Append a record; returns its offset.

        Raises
        ------
        FormatError
            Where the payload is too long for the format.
        OutputError
            Where it cannot be written.
        """
        chunks, offset = encode_record(payload), self._end
        self._append(chunks)
        self._keys.append(key)
        self._offsets.append(offset)
        return offset

    def write_ranges(self, records: NDArray[Any]) -> None:
        """Append records that `closing_records` made, their ids being their keys."""
        offsets = np.arange(len(records), dtype=np.int64) * records.itemsize + self._end
        self._append(records.tobytes())
        self._keys.frombytes(records["id"].astype(np.int64).tobytes())
        self._offsets.frombytes(offsets.tobytes())

    def _append(self, chunks: bytes) -> None:
        try:
            self._file.write(chunks)
        except OSError as error:
            raise output_error(error, self.path) from error
        self._end += len(chunks)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                # records first: without an index they are still whole, an index without its records is nothing
                os.replace(self._temporary, self.path)
                write_index(self.path.removesuffix(".rec") + ".idx", self._keys, np.frombuffer(self._offsets, np.int64))
        except OSError as problem:
            raise output_error(problem, self.path) from problem
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)


class InsightFaceWriter:
    """Writes the InsightFace dialect: images from key 1, identity records behind them, the meta record 0 last.

    Samples must come grouped by label, labels ascending from 0 without a gap.

    Parameters
    ----------
    folder : str or path
        Gets ``train.rec``, ``train.idx`` and ``property``.
    size : tuple of int
        Height and width of the images, for ``property``.
    """

    def __init__(self, folder: str | os.PathLike[str], size: tuple[int, int]) -> None:
        self._folder, self._size = os.fspath(folder), size
        self._records = RecordWriter(os.path.join(self._folder, "train.rec"))
        self._first_keys: list[int] = []

    def write(self, label: int, image: bytes) -> int:
        """Append an image; returns its key.

        Raises
        ------
        OptionError
            Where the labels do not come in order.
        FormatError
            Where the set grows beyond what the dialect can count.
        """
        key = len(self._records) + 1
        if label == len(self._first_keys):
            self._first_keys.append(key)
        elif label != len(self._first_keys) - 1:
            raise OptionError(f"label {label} after {len(self._first_keys) - 1}: this dialect wants them in order")
        if key + len(self._first_keys) >= LARGEST_INSIGHTFACE_SET:
            raise FormatError(
                f"{self._records.path}: the InsightFace dialect counts records in float32, which is exact only up to "
                f"{LARGEST_INSIGHTFACE_SET:,}; write the plain dialect instead"
            )
        self._records.write(key, pack_image_record(ImageRecord(0, (float(label),), key, 0, image)))
        return key

    def __enter__(self) -> InsightFaceWriter:
        self._records.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_closing()
        except FacedataError as problem:
            self._records.__exit__(type(problem), problem, None)
            raise
        self._records.__exit__(kind, error, trace)
        if kind is None:
            with atomic_writer(os.path.join(self._folder, "property")) as file:
                file.write(property_line(len(self._first_keys), self._size))

    def _write_closing(self) -> None:
        if not self._first_keys:
            raise EmptyDatasetError(f"{self._records.path}: there is no image to write")
        for records in closing_records(np.array(self._first_keys, np.int64), len(self._records)):
            self._records.write_ranges(records)
