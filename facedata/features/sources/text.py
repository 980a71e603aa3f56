"""A table of numbers as text: ``.csv`` and the like, a row a line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from facedata.errors import EmptyDatasetError, FormatError
from facedata.features.sources.source import Rows, check_shape, opened

__all__ = ["NumbersInText", "open_text"]

_BLOCK = 1 << 22
_LONGEST_LINE = 1 << 25  # a million numbers
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEPARATORS = (";", "\t", ",")  # whichever is in the first line; else spaces
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf|infinity)\s*", re.I | re.A)
_FEWEST_NUMBERED = 4  # columns of which names 0, 1, 2, 3 are taken for names
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NumbersInText:
    """Numbers with a separator between them, as many in each line.

    Attributes
    ----------
    path : str
    offset : int
        The byte that the first row begins at.
    lines_before : int
        Above it: a header or none.
    separator : str, optional
        None for spaces.
    dimensions : int
    """

    path: str
    offset: int
    lines_before: int
    separator: str | None
    dimensions: int
    rows: None = None
    dtype: str = "text"

    @property
    def title(self) -> str:
        """The file."""
        return self.path

    def blocks(self) -> Iterator[Rows]:
        """All rows in order."""
        line = 1 + self.lines_before
        with opened(self.path) as descriptor:
            for block in _whole_lines(descriptor, self.offset, self.path):
                lines = block.decode("latin-1").split("\n")
                yield self._numbers(lines, line)
                line += len(lines)

    def _numbers(self, lines: list[str], first: int) -> Rows:
        try:
            if all(map(str.strip, lines)):  # blank lines would be passed over
                rows: Rows = np.loadtxt(lines, np.float64, comments=None, delimiter=self.separator, ndmin=2)
                if rows.shape == (len(lines), self.dimensions):
                    return rows
        except ValueError:
            pass
        for number, line in enumerate(lines, first):
            self._check_line(line, number)
        raise FormatError(f"{self.path}: the lines from {first:,} on are no table of numbers")

    def _check_line(self, line: str, number: int) -> None:
        place = f"{self.path}: line {number:,}"
        if not line.strip():
            raise FormatError(f"{place} is blank, expected {self.dimensions:,} numbers")
        fields = line.split(self.separator)
        wrong = next((column for column, field in enumerate(fields, 1) if not _NUMBER.fullmatch(field)), None)
        if len(fields) != self.dimensions:
            raise FormatError(f"{place} has {len(fields):,} values, the first row has {self.dimensions:,}")
        if wrong is not None:
            shown = repr(fields[wrong - 1].strip()[:40]) if fields[wrong - 1].strip() else "empty"
            raise FormatError(f"{place}, column {wrong:,} is {shown}, expected a number")


def _whole_lines(descriptor: int, place: int, path: str) -> Iterator[bytes]:
    """Runs of whole lines, the last line break taken off."""
    parts: list[bytes] = []  # of a line that has not ended yet
    size = 0
    while block := os.pread(descriptor, _BLOCK, place):
        place += len(block)
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            yield b"".join([*parts, head]).replace(b"\r\n", b"\n").removesuffix(b"\r")
            parts, size = [], 0
        parts.append(tail)
        size += len(tail)
        if size > _LONGEST_LINE:
            raise FormatError(f"{path}: a line has more than {_LONGEST_LINE:,} bytes; expected a row of numbers a line")
    if size:
        yield b"".join(parts).replace(b"\r\n", b"\n").removesuffix(b"\r")


def open_text(path: str) -> NumbersInText:
    """A table of numbers: commas, semicolons, tabs or spaces between them; a first line of names is passed over.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where its first line is no row of numbers and no header.
    EmptyDatasetError
        Where there is no row in it.
    """
    with opened(path) as descriptor:
        mark = len(_BYTE_ORDER_MARK) if os.pread(descriptor, 3, 0) == _BYTE_ORDER_MARK else 0
        first, second_at = _line_at(descriptor, mark, path)
        second, _ = _line_at(descriptor, second_at, path)
    if not first.strip():
        if second_at == mark:
            raise EmptyDatasetError(f"{path}: is empty")
        raise FormatError(f"{path}: line 1 is blank, expected numbers or a header")
    separator = next((one for one in _SEPARATORS if one in first), None)
    header = _is_header(first.split(separator), path)
    row = second if header else first
    if not row:
        raise EmptyDatasetError(f"{path}: has no row behind its header")
    if header:
        _log.info("%s: line 1 is taken for a header: %s", path, first[:60])
    check_shape(path, None, len(row.split(separator)))
    return NumbersInText(path, second_at if header else mark, int(header), separator, len(row.split(separator)))


def _line_at(descriptor: int, place: int, path: str) -> tuple[str, int]:
    """The line that begins at a place, and where the next begins."""
    line, begin = b"", place
    while b"\n" not in line[-_BLOCK:] and (block := os.pread(descriptor, _BLOCK, place)):
        line, place = line + block, place + len(block)
        if len(line) > _LONGEST_LINE + _BLOCK:
            raise FormatError(f"{path}: a line has more than {_LONGEST_LINE:,} bytes; expected a row of numbers a line")
    text, newline, _ = line.partition(b"\n")
    if b"\0" in text:
        raise FormatError(f"{path}: is no text: it has zero bytes in it")
    return text.removesuffix(b"\r").decode("latin-1"), begin + len(text) + len(newline)


def _is_header(fields: list[str], path: str) -> bool:
    numbers = [bool(_NUMBER.fullmatch(field)) for field in fields]
    if len(fields) >= _FEWEST_NUMBERED and [field.strip() for field in fields] == list(map(str, range(len(fields)))):
        return True  # pandas calls columns so that have no names
    if not fields[0].strip() and len(fields) > 1:
        raise FormatError(
            f"{path}: line 1 begins with an empty name: the first column is a count of the rows, as pandas writes it; "
            "write the file without it: to_csv(name, index=False)"
        )
    if any(numbers) and not all(numbers):
        wrong = numbers.index(False)
        raise FormatError(
            f"{path}: line 1, column {wrong + 1:,} is {fields[wrong].strip()[:40]!r}, expected a number, or a header "
            "of names alone"
        )
    return bool(fields[0].strip()) and not any(numbers)
