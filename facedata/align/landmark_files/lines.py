"""Reading text files line by line: bounded, regular files only; and single lines again at their byte offsets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FacedataError, FormatError, input_error

__all__ = [
    "BYTE_ORDER_MARK",
    "LONGEST_LINE",
    "FileStamp",
    "LineReader",
    "Lines",
    "check_stamp",
    "open_regular",
    "read_lines",
    "stamp_of",
]

LONGEST_LINE = 1 << 16
"""Bytes; 106 points with all digits of a double take 5,000."""

_BLOCK = 1 << 20
_AHEAD = 1 << 18
_NEAR = 1 << 13
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"


class FileStamp(NamedTuple):
    """What shows that a file is still the one that was looked at."""

    size: int
    modified: int


class Lines(NamedTuple):
    """Some whole lines of a file.

    Attributes
    ----------
    number : int
        Of the first, from 1.
    begins : ndarray of shape (L,), int64
        Byte offset of each.
    texts : list of bytes
        Without their ends.
    """

    number: int
    begins: NDArray[np.int64]
    texts: list[bytes]


@contextmanager
def open_regular(path: str) -> Iterator[int]:
    """A descriptor of a regular file; every OSError inside becomes an `InputError`.

    Raises
    ------
    InputError
        Where it is not there or cannot be read.
    FormatError
        Where it is no regular file: a pipe would be waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # a NUL in the path
        raise FormatError(f"{path!r}: is no path: {error}") from error
    except OSError as error:
        raise input_error(error, path) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError(f"{path}: is no regular file; expected a file of landmarks, or a folder of such files")
        yield descriptor
    except OSError as error:
        raise error if isinstance(error, FacedataError) else input_error(error, path) from error
    finally:
        os.close(descriptor)


def stamp_of(descriptor: int) -> FileStamp:
    """The stamp of an open file."""
    status = os.fstat(descriptor)
    return FileStamp(status.st_size, status.st_mtime_ns)


def check_stamp(descriptor: int, stamp: FileStamp, path: str) -> None:
    """Raise `FormatError` where the file was changed."""
    if stamp_of(descriptor) != stamp:
        raise FormatError(f"{path}: was changed while it was being read; run the command again")


def read_lines(descriptor: int, path: str) -> Iterator[Lines]:
    """All lines of a file, a block of them at a time; a byte order mark at its start is no part of the first.

    Blank lines at the end of the file are left out.

    Parameters
    ----------
    descriptor : int
    path : str
        For messages.

    Raises
    ------
    FormatError
        Where a line is longer than `LONGEST_LINE`.
    """
    mark = os.pread(descriptor, len(BYTE_ORDER_MARK), 0) == BYTE_ORDER_MARK
    number, base, rest = 1, len(BYTE_ORDER_MARK) * mark, b""
    place = base
    end = _end_of_lines(descriptor)
    while data := os.pread(descriptor, min(_BLOCK, max(end - place, 0)), place):
        place += len(data)
        block = rest + data
        cut = block.rfind(b"\n") + 1
        if cut:
            lines = _cut_lines(block[:cut], number, base, path)
            yield lines
            number, base = number + len(lines.texts), base + cut
        rest = block[cut:]
        if len(rest) > LONGEST_LINE:
            raise _too_long(path, number)
    if rest:
        yield _cut_lines(rest + b"\n", number, base, path)


def _end_of_lines(descriptor: int) -> int:
    """Where the last line that is not blank ends, unless more than a block of blanks follows it."""
    size = os.fstat(descriptor).st_size
    begin = max(size - _BLOCK, 0)
    data = os.pread(descriptor, size - begin, begin)
    text = len(data.rstrip(_BLANKS))
    newline = data.find(b"\n", text)
    return begin + newline + 1 if text and newline >= 0 else size


def _cut_lines(block: bytes, number: int, base: int, path: str) -> Lines:
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
    begins = np.concatenate([[0], ends[:-1] + 1])
    longest = int(np.argmax(ends - begins))
    if ends[longest] - begins[longest] > LONGEST_LINE:
        raise _too_long(path, number + longest)
    return Lines(number, begins + base, block.replace(b"\r\n", b"\n").split(b"\n")[:-1])


def _too_long(path: str, number: int) -> FormatError:
    return FormatError(f"{path}: line {number} is longer than {LONGEST_LINE} bytes; this is no file of landmarks")


class LineReader:
    """Reads single lines: quick where they follow each other, and right anywhere.

    Parameters
    ----------
    descriptor : int
    path : str
        For messages.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor, self._path = descriptor, path
        self._block, self._base = b"", 0

    def line(self, begin: int) -> bytes:
        """The line that begins at a byte offset, without its end."""
        start = begin - self._base
        end = self._block.find(b"\n", start) if 0 <= start < len(self._block) else -1
        if end < 0:
            self._fill(begin)
            start, end = 0, self._block.find(b"\n")
            end = end if end >= 0 else len(self._block)
        if end > start and self._block[end - 1] == 13:
            end -= 1
        return self._block[start:end]

    def _fill(self, begin: int) -> None:
        ahead = 0 <= begin - self._base <= len(self._block) + _NEAR
        self._block = os.pread(self._descriptor, _AHEAD if ahead else _NEAR, begin)
        self._base = begin
        if not ahead and b"\n" not in self._block:
            self._block = os.pread(self._descriptor, _AHEAD, begin)
