"""A table of numbers as text: ``.csv`` and the like, a row a line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from facedata.columns import whole_lines
from facedata.errors import EmptyDatasetError, FormatError
from facedata.features.sources.base import FeatureSource, Rows, check_shape

__all__ = ["NumbersInText", "open_text"]

_LONGEST_LINE = 1 << 25  # a million numbers
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEPARATORS = (";", "\t", ",")  # the first of these that the first line contains; else spaces
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf|infinity)\s*", re.I | re.A)
_FEWEST_NUMBERED = 4  # columns called 0, 1, 2, 3 are a header; fewer may be a row
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NumbersInText(FeatureSource):
    """Rows of numbers with a separator between them, the same number of values in each line.

    Attributes
    ----------
    header : bool
        Whether the first line is one.
    separator : str, optional
        None for spaces.
    """

    header: bool
    separator: str | None

    def blocks(self) -> Iterator[Rows]:
        """All rows in order."""
        for first, lines in _blocks_of_lines(self.path):
            if first == 1 and self.header:
                first, lines = 2, lines[1:]
            if lines:
                yield self._numbers(lines, first)

    def _numbers(self, lines: list[str], first: int) -> Rows:
        try:
            if all(map(str.strip, lines)):  # NumPy skips blank lines
                rows: Rows = np.loadtxt(lines, np.float64, comments=None, delimiter=self.separator, ndmin=2)
                if rows.shape == (len(lines), self.dimensions):
                    return rows
        except ValueError:
            pass
        for number, line in enumerate(lines, first):  # find the line that is wrong
            place = f"{self.path}: line {number:,}"
            if not line.strip():
                raise FormatError(f"{place} is blank, expected {self.dimensions:,} numbers")
            fields = line.split(self.separator)
            if len(fields) != self.dimensions:
                raise FormatError(f"{place} has {len(fields):,} values, the first row has {self.dimensions:,}")
            for column, field in enumerate(map(str.strip, fields), 1):
                if not _NUMBER.fullmatch(field):
                    shown = repr(field[:40]) if field else "empty"
                    raise FormatError(f"{place}, column {column:,} is {shown}, expected a number")
        raise FormatError(f"{self.path}: the lines from {first:,} on are not a table of numbers")


def _blocks_of_lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file, some MiB at a time: the number of the first, and the lines without their ends."""
    for first, offset, block in whole_lines(path, _LONGEST_LINE):
        text = block.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else block
        yield first, text.replace(b"\r\n", b"\n").removesuffix(b"\n").decode("latin-1").split("\n")


def open_text(path: str) -> NumbersInText:
    """Open a table of numbers separated by commas, semicolons, tabs or spaces; a first line of names is skipped.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If its first line is neither a row of numbers nor a header.
    EmptyDatasetError
        If it has no rows.
    """
    lines = list(islice(chain.from_iterable(lines for _, lines in _blocks_of_lines(path)), 2))
    if not lines:
        raise EmptyDatasetError(f"{path}: is empty")
    if any("\0" in line for line in lines):
        raise FormatError(f"{path}: is not text: it contains zero bytes")
    if not lines[0].strip():
        raise FormatError(f"{path}: line 1 is blank, expected numbers or a header")
    separator = next((separator for separator in _SEPARATORS if separator in lines[0]), None)
    header = _is_header(lines[0].split(separator), path)
    if header:
        if len(lines) == 1:
            raise EmptyDatasetError(f"{path}: has no rows after its header")
        _log.info("%s: line 1 is read as a header: %s", path, lines[0][:60])
    dimensions = len(lines[header].split(separator))
    check_shape(path, None, dimensions)
    return NumbersInText(
        path=path, title=path, rows=None, dimensions=dimensions, dtype="text", header=header, separator=separator
    )


def _is_header(fields: list[str], path: str) -> bool:
    fields = [field.strip() for field in fields]
    if len(fields) >= _FEWEST_NUMBERED and fields == list(map(str, range(len(fields)))):
        return True  # pandas' names for columns that have none
    if not fields[0] and len(fields) > 1:
        raise FormatError(
            f"{path}: line 1 begins with an empty name: the first column counts the rows, as pandas writes it; "
            "write the file without it: to_csv(name, index=False)"
        )
    numbers = [bool(_NUMBER.fullmatch(field)) for field in fields]
    if any(numbers) and not all(numbers):
        wrong = numbers.index(False)
        raise FormatError(
            f"{path}: line 1, column {wrong + 1:,} is {fields[wrong][:40]!r}, expected a number, or a header of names "
            "only"
        )
    return bool(fields[0]) and not any(numbers)
