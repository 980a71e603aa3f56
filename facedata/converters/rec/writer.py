"""Writing record sets: ``train.rec`` and ``train.idx`` as MXNet writes them."""

from __future__ import annotations

import os
from array import array
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

import numpy as np

from facedata.converters.rec.index import write_index
from facedata.converters.rec.recordio import LARGEST_LABEL, ImageRecord, encode_record, pack_image_record
from facedata.errors import EmptyDatasetError, FormatError, OptionError, output_error
from facedata.jobs.files import atomic_writer, temporary_name

__all__ = ["InsightFaceWriter", "RecordWriter"]

LARGEST_INSIGHTFACE_SET = LARGEST_LABEL
"""Records; above it the meta record, which counts in float32, would be wrong."""


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
        chunks = encode_record(payload)
        try:
            self._file.write(chunks)
        except OSError as error:
            raise output_error(error, self.path) from error
        offset = self._end
        self._keys.append(key)
        self._offsets.append(offset)
        self._end += len(chunks)
        return offset

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
        if kind is None and not self._first_keys:
            self._records.__exit__(EmptyDatasetError, None, None)
            raise EmptyDatasetError(f"{self._records.path}: there is no image to write")
        if kind is None:
            self._write_identities()
        self._records.__exit__(kind, error, trace)
        if kind is None:
            with atomic_writer(os.path.join(self._folder, "property")) as file:
                file.write(f"{len(self._first_keys)},{self._size[0]},{self._size[1]}\n".encode())

    def _write_identities(self) -> None:
        first, ends = len(self._records) + 1, [*self._first_keys[1:], len(self._records) + 1]
        for key, labels in enumerate(zip(self._first_keys, ends, strict=True), first):
            self._write_empty(key, labels)
        self._write_empty(0, (first, first + len(self._first_keys)))

    def _write_empty(self, key: int, labels: tuple[int, int]) -> None:
        self._records.write(key, pack_image_record(ImageRecord(2, (float(labels[0]), float(labels[1])), key, 0, b"")))
