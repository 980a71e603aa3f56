"""Text files of ``text label`` lines: the lists of FaceX-Zoo and others, and the key-label files of FFC and LFS.

What a line says is kept as 12 bytes a line, its place and its label; the text is read again when it is wanted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from facedata.errors import EmptyDatasetError, FormatError, input_error

__all__ = ["LabelLines", "read_label_lines"]

_BLOCK = 1 << 22
_log = logging.getLogger(__name__)
_LARGEST_LABEL = (1 << 31) - 1
_LONGEST_LINE = 1 << 14  # longer than any path may be
_READ_AHEAD = 1 << 16


@dataclass(frozen=True)
class LabelLines:
    """The lines of one file.

    Attributes
    ----------
    path : str
    starts : ndarray of shape (N,), int64
        Byte offset of each line.
    labels : ndarray of shape (N,), int32
    classes : int
        The largest label of the whole file, and 1.
    """

    path: str
    starts: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: int = field(default=0)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: slice) -> LabelLines:
        return replace(self, starts=self.starts[part], labels=self.labels[part])

    def take(self, positions: NDArray[np.int64]) -> LabelLines:
        """The lines at `positions`, in that order."""
        return replace(self, starts=self.starts[positions], labels=self.labels[positions])

    def texts(self) -> Iterator[str]:
        """The text of each line: a path, a key.

        Raises
        ------
        InputError
            Where the file cannot be read any more.
        FormatError
            Where it is not the file any more whose lines these are.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise input_error(error, self.path) from error
        try:
            yield from self._texts(descriptor)
        except OSError as error:
            raise input_error(error, self.path) from error
        finally:
            os.close(descriptor)

    def _texts(self, descriptor: int) -> Iterator[str]:
        block, base = b"", 0
        for start, label in zip(self.starts.tolist(), self.labels.tolist(), strict=True):
            end = block.find(b"\n", start - base) if base <= start < base + len(block) else -1
            if end < 0:
                block, base = os.pread(descriptor, _READ_AHEAD, start), start
                end = block.find(b"\n")
                end = end if end >= 0 else len(block)
            line = block[start - base : end]
            text, _, number = line.rstrip(b"\r").rpartition(b" ")
            if number != b"%d" % label and not (_is_number(number) and int(number) == label):
                raise FormatError(f"{self.path}: byte {start}: the line was changed while it was being read")
            yield os.fsdecode(text)


def _is_number(text: bytes) -> bool:
    return 0 < len(text) <= 10 and text.isdigit()


def read_label_lines(path: str | os.PathLike[str], what: str = "path") -> LabelLines:
    """Read and check every line of a file.

    Parameters
    ----------
    path : str or path
    what : str
        What stands before the label, for messages.

    Raises
    ------
    FormatError
        Where a line is not ``text label``, one space between, the label an integer from 0; the message names the line.
    EmptyDatasetError
        Where there is no line.
    InputError
        Where the file cannot be read.
    """
    path = os.fspath(path)
    starts, labels = [], []
    try:
        with open(path, "rb") as file:
            for first_line, base, block in _blocks_of_lines(file, path):
                begins, numbers = _parse(block, path, first_line, what)
                starts.append(begins + base)
                labels.append(numbers)
    except OSError as error:
        raise input_error(error, path) from error
    if not starts:
        raise EmptyDatasetError(f"{path}: has no line; expected lines of '{what} label'")
    joined = np.concatenate(labels)
    return LabelLines(path, np.concatenate(starts), joined, int(joined.max()) + 1)


def _blocks_of_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, int, bytes]]:
    """Runs of whole lines, each ended by a newline: number of the first line, byte offset, bytes."""
    line, base, rest = 1, 0, b""
    while block := file.read(_BLOCK):
        block = rest + block
        cut = block.rfind(b"\n") + 1
        if cut == 0 and len(block) > _LONGEST_LINE:
            raise FormatError(f"{path}: line {line} is longer than {_LONGEST_LINE} bytes; this is no list of lines")
        if cut:
            yield line, base, block[:cut]
            line += block.count(b"\n", 0, cut)
            base += cut
        rest = block[cut:]
    if rest:
        _log.warning("%s: its last line, %d, does not end in a newline; was the file cut?", path, line)
        yield line, base, rest + b"\n"


def _parse(block: bytes, path: str, first_line: int, what: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where each line of the block begins, and its label."""
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(text == 10)
    begins = np.concatenate([[0], ends[:-1] + 1])
    tails = ends - (text[np.maximum(ends - 1, 0)] == 13)  # a line may end in CR LF
    spaces = np.flatnonzero(text == 32)
    first = np.searchsorted(spaces, begins)
    count = np.searchsorted(spaces, ends) - first
    space = spaces[np.minimum(first, max(len(spaces) - 1, 0))] if len(spaces) else np.zeros(len(ends), np.int64)
    digits = tails - space - 1
    good = (count == 1) & (space > begins) & (digits > 0) & (digits <= 10) & (ends - begins <= _LONGEST_LINE)
    labels = np.zeros(len(ends), np.int64)
    for place in range(int(digits[good].max(initial=0))):  # a digit of all labels at a time
        there = good & (place < digits)
        digit = text[np.where(there, space + 1 + place, 0)].astype(np.int64) - 48
        good &= ~there | ((digit >= 0) & (digit <= 9))
        labels = np.where(there, labels * 10 + digit, labels)
    good &= labels <= _LARGEST_LABEL
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        _refuse(block[begins[bad] : tails[bad]], path, first_line + bad, what)
    return begins.astype(np.int64), labels.astype(np.int32)


def _refuse(line: bytes, path: str, number: int, what: str) -> None:
    place, shown = f"{path}: line {number}", repr(line[:80].decode(errors="replace"))
    fields = line.split(b" ")
    if len(line) >= _LONGEST_LINE:
        raise FormatError(f"{place}: is longer than {_LONGEST_LINE} bytes; this is no list of '{what} label' lines")
    if not line.strip():
        raise FormatError(f"{place}: is blank; expected '{what} label'")
    if len(fields) != 2 or not fields[0]:
        found = f"{len(fields)} fields" if len(fields) != 2 else "nothing before the label"
        tab = "; it has a tab, but one space is what the readers of such files split at" if b"\t" in line else ""
        raise FormatError(f"{place}: expected '{what} label' with one space between, found {found}: {shown}{tab}")
    raise FormatError(f"{place}: the label is not an integer from 0 to {_LARGEST_LABEL}: {shown}")
