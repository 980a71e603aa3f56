"""Checks of what a file is made of, where nobody ever published its checksum.

They find a file that is cut short, empty, of another set or of another kind of number; they do not find a bit that
flipped. Facts: shared notes on RecordIO (MXNet) and on learn-to-cluster's features and labels.
"""

from __future__ import annotations

import os
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from facedata.columns import count_labels
from facedata.files import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FeatureMatrix", "Finding", "IndexLines", "LabelLines", "RecordFile", "Structure"]

_MAGIC = 0xCED7230A
_SAMPLES = 64
_parsing = threading.Lock()  # the parser of indexes changes the filter of warnings, which is everybody's


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check came to.

    Attributes
    ----------
    good : bool
    text : str
        What was found, and, where that is not good, what was expected.
    """

    good: bool
    text: str


class Structure(Protocol):
    """A check of a file's structure."""

    def check(self, path: str) -> Finding:
        """Look at the file at `path`. Raises `InputError` where it cannot be read."""


@dataclass(frozen=True)
class IndexLines:
    """A ``train.idx``: every line a key and an offset, no key twice.

    Parameters
    ----------
    lines : int, optional
        How many there are: images + people + 1 in a complete InsightFace set.
    """

    lines: int | None = None

    def check(self, path: str) -> Finding:
        """Count the lines."""
        lines = len(_offsets(path))
        return _compare(lines, self.lines, "lines")


@dataclass(frozen=True)
class RecordFile:
    """A ``train.rec``: its last record, by the index, ends where the file ends, and records begin where it says.

    Parameters
    ----------
    index : str
        The index file, relative to the folder of the record file.
    lines : int, optional
        Lines of the index; without them any record file that fits its own index is good.
    """

    index: str = "train.idx"
    lines: int | None = None

    def check(self, path: str) -> Finding:
        """Look at the last record and at a few dozen others."""
        index = os.path.join(os.path.dirname(path), self.index)
        offsets = _offsets(index)
        counted = _compare(len(offsets), self.lines, "lines")
        if not counted.good or not len(offsets):
            return Finding(False, f"{self.index}: {counted.text}")
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            last = int(offsets.max())
            places = sorted({*offsets[:: -(-len(offsets) // _SAMPLES)].tolist(), last})
            for place in places:
                if place + 8 <= size and _word(file, place) is None:
                    return Finding(False, f"no record begins at byte {place:,}, where {self.index} has one")
            end = _end_of_record(file, last, size)
        return _compare_end(size, end, last, self.index)


@dataclass(frozen=True)
class FeatureMatrix:
    """Rows of float32 without a header, as learn-to-cluster has them.

    Parameters
    ----------
    dimensions : int
        Values in a row.
    rows : int, optional
        By default as many as the labels have lines.
    labels : str, optional
        The label file, relative to the folder of the matrix, by which rows are counted: ``../labels/part1_test.meta``.
    """

    dimensions: int
    rows: int | None = None
    labels: str | None = None

    def check(self, path: str) -> Finding:
        """Compare the size with rows * dimensions * 4 bytes; where it is another, guess why."""
        from facedata.features.matrix import what_is_wrong

        with _open(path) as file:
            size, head = os.fstat(file.fileno()).st_size, os.pread(file.fileno(), 16, 0)
        rows, source = self._rows(path)
        shape = f"rows of {self.dimensions:,} float32"
        if rows is None:
            wrong = what_is_wrong(size, self.dimensions, None, head)
            return Finding(wrong is None, f"{size:,} bytes are {shape}" if wrong is None else wrong)
        wrong = what_is_wrong(size, self.dimensions, rows, head)
        return Finding(wrong is None, f"{size:,} bytes, {rows:,} {shape}{source}" if wrong is None else wrong + source)

    def _rows(self, path: str) -> tuple[int | None, str]:
        if self.rows is not None or self.labels is None:
            return self.rows, ""
        labels = os.path.normpath(os.path.join(os.path.dirname(path), self.labels))
        lines, _ = count_labels(labels)
        return lines, f" as {os.path.basename(labels)} has lines"


@dataclass(frozen=True)
class LabelLines:
    """A ``.meta``: one whole number a line, -1 for unlabelled.

    Parameters
    ----------
    lines : int, optional
    classes : int, optional
        Different numbers other than -1.
    """

    lines: int | None = None
    classes: int | None = None

    def check(self, path: str) -> Finding:
        """Count lines and classes."""
        lines, classes = count_labels(path)
        counted = _compare(lines, self.lines, "lines")
        if not counted.good:
            return counted
        if self.classes is None:  # all may be unlabelled
            return Finding(True, f"{counted.text}, {classes:,} classes")
        found = _compare(classes, self.classes, "classes")
        return Finding(found.good, f"{counted.text}, {found.text}" if found.good else found.text)


def _compare(found: int, expected: int | None, what: str) -> Finding:
    if expected is None and found == 0:
        return Finding(False, f"has no {what}")  # no set is empty: what should be in it was lost
    if expected is None or found == expected:
        return Finding(True, f"{found:,} {what}")
    return Finding(False, f"expected {expected:,} {what}, found {found:,}")


def _compare_end(size: int, end: int | None, last: int, index: str) -> Finding:
    """What the end of the last record says about the size of the file."""
    if size <= last:
        return Finding(False, f"cut short: {index} has a record at byte {last:,}, the file ends at {size:,}")
    if end is None or end > size:
        ends = "" if end is None else f" and would end at {end:,}"
        return Finding(False, f"cut short: its last record begins at byte {last:,}{ends}, the file ends at {size:,}")
    if end < size:
        return Finding(False, f"its last record by {index} ends at byte {end:,}, the file at {size:,}")
    return Finding(True, f"its size fits {index}")


def _open(path: str) -> BinaryIO:
    descriptor = open_regular(path)
    return open(descriptor, "rb", buffering=0)


def _offsets(path: str) -> NDArray[np.int64]:
    """The offsets of an index, checked line by line; 17 million in about a second."""
    from facedata.converters.rec.index import read_index

    _open(path).close()  # no named pipe is waited for
    with _parsing:
        return read_index(path).offsets


def _word(file: BinaryIO, place: int) -> int | None:
    """The length word of the chunk that begins there, None where none does."""
    header = os.pread(file.fileno(), 8, place)
    if len(header) < 8:
        return None
    magic, word = struct.unpack("<II", header)
    return word if magic == _MAGIC else None


def _end_of_record(file: BinaryIO, place: int, size: int) -> int | None:
    """Where the record that begins there ends, its padding included; None where the file ends before."""
    while place + 8 <= size:
        word = _word(file, place)
        if word is None:
            return place
        flag, length = word >> 29, word & ((1 << 29) - 1)
        place += 8 + -(-length // 4) * 4
        if flag in (0, 3):  # whole, or the last part of one that was split
            return place
    return None
