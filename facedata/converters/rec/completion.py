"""Completing a record set from its packed images: identity and meta records, index, property, the names of classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.index import write_index
from facedata.converters.rec.packing import BuildFiles
from facedata.converters.rec.record_set import INSIGHTFACE
from facedata.converters.rec.recordio import RecordReader, unpack_image_record
from facedata.converters.rec.writer import LARGEST_INSIGHTFACE_SET, RANGE_RECORD, closing_records, property_line
from facedata.errors import FormatError, InputError, OptionError, OutputMismatchError
from facedata.files import atomic_writer

__all__ = ["CLASSES", "check_count", "complete_set", "count_people"]

CLASSES = "classes.txt"
_USUAL_SIZE = (112, 112)
_SIZES_LOOKED_AT = 64
_LABELS_AT_ONCE = 1 << 20

_log = logging.getLogger(__name__)


def check_count(place: str, images: int, people: int) -> None:
    """Raise where the InsightFace dialect cannot count so many records.

    Raises
    ------
    OptionError
    """
    if images + people + 1 > LARGEST_INSIGHTFACE_SET:
        raise OptionError(
            f"{place}: the insightface style counts its records (images, people and the meta record) in float32, which "
            f"is exact only up to {LARGEST_INSIGHTFACE_SET:,}, and there are more; --style plain has no such limit"
        )


def count_people(labels: NDArray[np.int32]) -> int:
    """How many different labels there are, with a byte for each possible one."""
    met = np.zeros(int(labels.max()) + 1, bool)
    for begin in range(0, len(labels), _LABELS_AT_ONCE):
        met[labels[begin : begin + _LABELS_AT_ONCE]] = True
    return int(met.sum())


def complete_set(
    files: BuildFiles, labels: NDArray[np.int32], *, style: str, listed: bool, names: Mapping[int, str] | None
) -> None:
    """Write all that follows from the images, where these lie; what an earlier try wrote is written over.

    Parameters
    ----------
    files : BuildFiles
        With the records of the images, their offsets and labels.
    labels : ndarray of shape (N,), int32
    style : str
    listed : bool
        Whether there is a list.
    names : mapping of int to str, optional
        What the classes are called.

    Raises
    ------
    OutputMismatchError
        Where the records are damaged.
    OutputError
        Where a file cannot be written.
    """
    offsets: NDArray[np.int64] = np.memmap(files.offsets, np.int64, "r")
    _write_property(files, labels, offsets)
    if style == INSIGHTFACE:
        _close_insightface(files, labels, offsets)
    else:
        _append(files.records, int(offsets[-1]), [])
        write_index(files.path("train.idx"), range(len(labels)), offsets[:-1])
    if listed:
        with open(files.list, "r+b") as file:
            os.fsync(file.fileno())
    if names is not None:
        from facedata.converters.class_names import write_class_names

        write_class_names(files.path(CLASSES), names)


def _close_insightface(files: BuildFiles, labels: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
    first_keys, images, end = _first_keys(files, labels), len(labels), int(offsets[-1])
    people = len(first_keys)
    check_count(files.folder, images, people)
    _append(files.records, end, closing_records(first_keys, images))
    behind = end + RANGE_RECORD.itemsize * np.arange(1, people + 1)
    write_index(files.path("train.idx"), _MetaLast(images + people + 1), np.concatenate([offsets, behind]))


def _first_keys(files: BuildFiles, labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """The key of the first image of each label."""
    steps = np.diff(labels)
    if (steps < 0).any():
        raise FormatError(f"{files.folder}: the labels of the input were changed while it was being read")
    return np.append(0, np.flatnonzero(steps) + 1) + 1


def _append(path: str, end: int, closing: Iterable[NDArray[Any]]) -> None:
    """Write records from `end` on, and see all of the file on the disk."""
    with open(path, "r+b") as file:
        file.truncate(end)
        file.seek(end)
        for records in closing:
            file.write(records.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _write_property(files: BuildFiles, labels: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
    """The size of the first image that has one; some of the others are looked at too."""
    places = np.unique(np.linspace(0, len(labels) - 1, _SIZES_LOOKED_AT).astype(np.int64))
    with RecordReader(files.records) as reader:
        found = [_size_of(reader, offset) for offset in offsets[places].tolist()]
    sizes = [size for size in found if size is not None] or [_USUAL_SIZE]
    if len(set(sizes)) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(set(sizes))[:3])
        folder = os.path.dirname(files.folder)
        _log.warning("%s: the images have different sizes (%s); property says that of the first", folder, shown)
    with atomic_writer(files.path("property")) as file:
        file.write(property_line(int(labels.max()) + 1, sizes[0]))


def _size_of(reader: RecordReader, offset: int) -> tuple[int, int] | None:
    from facedata.images import image_size

    try:
        size = image_size(unpack_image_record(reader.read(offset)[0]).image)
    except InputError as error:
        raise OutputMismatchError(f"{reader.path}: was damaged: {error}; --overwrite starts afresh") from error
    return None if size is None else (size[0], size[1])


class _MetaLast(Sequence[int]):
    """The keys of an InsightFace set in the order of the file: 1, 2, ..., and 0. An array would take 8 bytes each."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: Any) -> Any:
        keys = [*range(1, self._count)[part]]
        return [*keys, 0] if part.stop >= self._count else keys
