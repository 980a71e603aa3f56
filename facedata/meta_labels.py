"""``.meta`` files of labels, as learn-to-cluster has them: a whole number a line, -1 for unlabelled; read in blocks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from facedata.errors import FormatError, InputError, input_error
from facedata.plain_files import open_plain_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["UNLABELLED", "count_meta_labels", "read_meta_labels"]

UNLABELLED = -1
"""The label of what has none."""

_CHUNK = 1 << 24
_DIGITS = 18
_NUMBER = re.compile(rb"\s*-?\d{1,18}\s*")


def read_meta_labels(path: str | os.PathLike[str]) -> Iterator[NDArray[np.int64]]:
    """The labels of a ``.meta``, a block of some million lines at a time.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where a line is not a whole number, a blank one above all, which is an error in learn-to-cluster's reader too;
        names the line.
    """
    path, lines = os.fspath(path), 0
    try:
        descriptor, _ = open_plain_file(path)
        with open(descriptor, "rb", buffering=0) as file:
            for block in _whole_lines(file, path):
                numbers = _numbers(block, lines, path)
                lines += len(numbers)
                if len(numbers):
                    yield numbers
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise input_error(error, path) from error


def count_meta_labels(path: str | os.PathLike[str]) -> tuple[int, int]:
    """How many lines a ``.meta`` has, and how many different labels other than -1; raises as `read_meta_labels`."""
    import numpy as np

    lines, classes = 0, np.empty(0, np.int64)
    for numbers in read_meta_labels(path):
        lines += len(numbers)
        classes = np.union1d(classes, numbers)
    return lines, int((classes != UNLABELLED).sum())


def _whole_lines(file: BinaryIO, path: str) -> Iterator[bytes]:
    rest = b""
    while block := file.read(_CHUNK):
        lines, newline, rest = (rest + block).rpartition(b"\n")
        if len(rest) > _CHUNK:
            raise FormatError(f"{path}: a line has more than {_CHUNK:,} bytes, expected a whole number a line")
        yield lines + newline
    yield rest


def _numbers(block: bytes, before: int, path: str) -> NDArray[np.int64]:
    """The numbers of whole lines; the slow way only where a line is not as it should be."""
    import numpy as np

    if not block:
        return np.empty(0, np.int64)
    text = np.frombuffer(block, np.uint8)
    ends = text == 10
    plain = bool(((text >= 48) & (text <= 57) | (text == 45) | ends).all())
    if plain and block[:1] != b"\n" and b"\n\n" not in block:
        words = block.split()
        if max(map(len, words)) <= _DIGITS:  # the longest decides how much room each takes
            with suppress(ValueError, OverflowError):
                return np.array(words, dtype=np.bytes_).astype(np.int64)
    return np.array([_number(line, number, path) for number, line in _numbered(block, before)], np.int64)


def _numbered(block: bytes, before: int) -> Iterator[tuple[int, bytes]]:
    return enumerate(block.removesuffix(b"\n").split(b"\n"), before + 1)


def _number(line: bytes, number: int, path: str) -> int:
    if _NUMBER.fullmatch(line):
        return int(line)
    shown = "blank" if not line.strip() else repr(line[:40].decode("ascii", "backslashreplace"))
    raise FormatError(f"{path}: line {number:,} is {shown}, expected a whole number")
