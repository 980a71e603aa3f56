"""Columns of integers in text files, read in blocks: learn-to-cluster's labels, ``text label`` lists, indexes."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import EmptyDatasetError, FormatError
from facedata.files import open_for, opened_regular, read_exactly, retried

LARGEST_LABEL = (1 << 31) - 1
"""The largest label of any format here: the label of a Caffe ``Datum`` is an int32."""
UNLABELLED = -1
"""The label of a sample that has none."""

_BLOCK = 1 << 22
_LONGEST_NUMBER = 64
LONGEST_LINE = 1 << 14
"""Bytes; longer than any path may be."""
_READ_AHEAD, _SHORT_LINE, _KEPT = 1 << 16, 1 << 8, 1 << 22
_TEXT_BLOCK, _MANY, _DENSE = 1 << 20, 1 << 10, 1 << 10
_NUMBER = re.compile(rb"\s*-?\d{1,18}\s*")
_log = logging.getLogger(__name__)


class Lines(NamedTuple):
    """A run of whole lines of a file.

    Attributes
    ----------
    first : int
        The number of the first line, from 1.
    offset : int
        The byte offset of the first line.
    block : bytes
        The lines, each ended by a newline.
    """

    first: int
    offset: int
    block: bytes


def whole_lines(
    path: str | os.PathLike[str], longest: int = LONGEST_LINE, advice: str = "is this a text file?"
) -> Iterator[Lines]:
    """Read a text file in blocks of whole lines, some MiB at a time; a last line without a newline gets one.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If a line is longer than `longest` bytes; `advice` ends the message.
    """
    path = os.fspath(path)
    first, offset, rest = 1, 0, b""
    with opened_regular(path) as descriptor:
        while data := retried(os.read, descriptor, _BLOCK):
            data = rest + data
            end = data.rfind(b"\n") + 1
            block, rest = data[:end], data[end:]
            if block:  # a wrong line in it is named first
                yield Lines(first, offset, block)
                first += block.count(b"\n")
                offset += len(block)
            if len(rest) > longest:
                raise FormatError(f"{path}: line {first:,} is longer than {longest:,} bytes; {advice}")
        if rest:
            yield Lines(first, offset, rest + b"\n")


def integers(block: bytes) -> NDArray[np.int64]:
    """The integers of a text, separated by white space, up to the first word that is not one.

    A number too large for int64 becomes the largest int64.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the caller counts the numbers and finds a bad one
        try:
            return np.fromstring(block, np.int64, sep=" ")
        except ValueError:  # what NumPy announces to do instead of the warning
            return np.empty(0, np.int64)


def read_labels(path: str | os.PathLike[str]) -> Iterator[NDArray[np.int64]]:
    """The labels of a ``.meta`` file, one integer a line, in blocks of up to some million lines.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If a line is not an integer; the message names it. A blank line is an error in learn-to-cluster's reader too.
    """
    for first, _, block in whole_lines(path, _LONGEST_NUMBER, "expected an integer"):
        lines = block.count(b"\n")
        text = np.frombuffer(block, np.uint8)
        plain = bool(((text >= 48) & (text <= 57) | (text == 45) | (text == 10)).all())
        numbers = integers(block) if plain and block[:1] != b"\n" and b"\n\n" not in block else np.empty(0, np.int64)
        if len(numbers) != lines or (abs(numbers) >= 10**18).any():  # the slow way, which names the line
            numbered = enumerate(block.removesuffix(b"\n").split(b"\n"), first)
            numbers = np.array([_integer(line, number, path) for number, line in numbered], np.int64)
        yield numbers


def _integer(line: bytes, number: int, path: str | os.PathLike[str]) -> int:
    if _NUMBER.fullmatch(line):
        return int(line)
    shown = "blank" if not line.strip() else repr(line[:40].decode("ascii", "backslashreplace"))
    raise FormatError(f"{os.fspath(path)}: line {number:,} is {shown}, expected an integer")


def count_labels(path: str | os.PathLike[str]) -> tuple[int, int]:
    """How many lines a ``.meta`` has, and how many different labels other than -1; raises as `read_labels`."""
    lines, classes = 0, np.empty(0, np.int64)
    for numbers in read_labels(path):
        lines += len(numbers)
        classes = np.union1d(classes, numbers)
    return lines, int((classes != UNLABELLED).sum())


@dataclass(frozen=True)
class LabelLines:
    """The ``text label`` lines of a file: the lists of FaceX-Zoo and others, the key-label files of FFC and LFS.

    Kept are 12 bytes a line, its offset and its label; the text is read again when it is wanted.

    Attributes
    ----------
    starts : ndarray of shape (N,), int64
        Byte offset of each line.
    labels : ndarray of shape (N,), int32
    classes : int
        The largest label of the whole file plus 1.
    cut : callable, optional
        Gives the text of a line, or raises ValueError, if the lines are not ``text label``.
    names : mapping, optional
        The name of each label, if the file has names.
    """

    path: str
    starts: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: int = 0
    cut: Callable[[bytes], str] | None = None
    names: Mapping[int, str] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # a worker does not need the names, and opens the file itself
        return {name: value for name, value in self.__dict__.items() if name != "_opened"} | {"names": None}

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: slice) -> LabelLines:
        return replace(self, starts=self.starts[part], labels=self.labels[part])

    def take(self, positions: NDArray[np.int64]) -> LabelLines:
        """The lines at `positions`, in that order."""
        return replace(self, starts=self.starts[positions], labels=self.labels[positions])

    def texts(self) -> Iterator[str]:
        """The text of each line before its label: a path, a key.

        Raises
        ------
        InputError
            If the file cannot be read any more.
        FormatError
            If its lines have changed.
        """
        span = int(self.starts[-1] - self.starts[0]) if len(self) else 0
        if self.cut is None and len(self) >= _MANY and span < _DENSE * len(self) and (np.diff(self.starts) > 0).all():
            yield from chain.from_iterable(self._blocks_of_texts())
            return
        block, base = b"", 0
        with opened_regular(self.path) as descriptor:
            for start, label in zip(self.starts.tolist(), self.labels.tolist(), strict=True):
                end = block.find(b"\n", start - base) if base <= start < base + len(block) else -1
                if end < 0:
                    block, base = read_exactly(descriptor, _READ_AHEAD, start), start
                    end = block.find(b"\n")
                    end = end if end >= 0 else len(block)
                yield self._text_of(block[start - base : end], start, label)

    def _blocks_of_texts(self) -> Iterator[list[str]]:
        """The texts of lines in the order of the file, many at once."""
        done = 0
        with opened_regular(self.path) as descriptor:
            while done < len(self):
                base = self.starts.item(done)
                block = read_exactly(descriptor, _TEXT_BLOCK, base)
                block = block[: block.rfind(b"\n") + 1] or block
                block = block if block.endswith(b"\n") else block + b"\n"
                end = max(int(np.searchsorted(self.starts, base + len(block))), done + 1)
                starts, labels = self.starts[done:end] - base, self.labels[done:end]
                done = end
                try:
                    begins, numbers = _label_column(Lines(1, base, block), self.path, "text")
                    places = np.searchsorted(begins, starts)
                    same = np.array_equal(begins[places], starts) and np.array_equal(numbers[places], labels)
                except (FormatError, IndexError):
                    same = False
                if same:
                    lines = os.fsdecode(block).split("\n")
                    chosen = lines[:-1] if len(begins) == len(places) else map(lines.__getitem__, places.tolist())
                    yield [line.partition(" ")[0] for line in chosen]
                else:  # which line was changed
                    pairs = zip(starts.tolist(), labels.tolist(), strict=True)
                    yield [self._text_of(block[s : block.find(b"\n", s)], base + s, label) for s, label in pairs]

    def text(self, position: int) -> str:
        """The text of one line, as in `texts`; the file stays open."""
        start, (descriptor, begin) = self.starts.item(position), self._opened
        line = begin[start : start + _SHORT_LINE] or os.pread(descriptor, _SHORT_LINE, start)
        line, newline, _ = line.partition(b"\n")
        if not newline:
            line = os.pread(descriptor, _READ_AHEAD, start).partition(b"\n")[0]
        return self._text_of(line, start, self.labels.item(position))

    @cached_property
    def _opened(self) -> tuple[int, bytes]:
        """The file, and its begin, or all of a small one."""
        descriptor = open_for(self, self.path)
        return descriptor, os.pread(descriptor, _KEPT, 0)

    def _text_of(self, line: bytes, start: int, label: int) -> str:
        try:
            return _text_before_label(line, label) if self.cut is None else self.cut(line)
        except ValueError:
            message = f"{self.path}: byte {start}: the line was changed while it was being read"
            raise FormatError(message) from None


def _text_before_label(line: bytes, label: int) -> str:
    text, _, number = line.rstrip(b"\r").rpartition(b" ")
    if not (0 < len(number) <= 10 and number.isdigit() and int(number) == label):
        raise ValueError
    return os.fsdecode(text)


def read_label_lines(path: str | os.PathLike[str], what: str = "path") -> LabelLines:
    """Read and check every ``text label`` line of a file.

    Parameters
    ----------
    what : str
        What stands before the label, for messages.

    Raises
    ------
    FormatError
        If a line is not a text, one space and an integer from 0; the message names the line.
    EmptyDatasetError
        If there is no line.
    InputError
        If the file cannot be read.
    """
    path, starts, labels, end = os.fspath(path), [np.empty(0, np.int64)], [np.empty(0, np.int32)], 0
    for lines in whole_lines(path):
        begins, numbers = _label_column(lines, path, what)
        starts.append(begins + lines.offset)
        labels.append(numbers.astype(np.int32))
        end = lines.offset + len(lines.block)
    joined = np.concatenate(labels)
    if not len(joined):
        raise EmptyDatasetError(f"{path}: is empty; expected lines of '{what} label'")
    if end > os.stat(path).st_size:
        _log.warning("%s: its last line, %d, does not end in a newline; was the file cut?", path, len(joined))
    return LabelLines(path, np.concatenate(starts), joined, int(joined.max()) + 1)


def different_labels(path: str | os.PathLike[str], what: str = "key") -> NDArray[np.int64]:
    """The different labels of a file of ``text label`` lines, ascending; raises as `read_label_lines`."""
    found = np.empty(0, np.int64)
    for lines in whole_lines(path):
        found = np.union1d(found, _label_column(lines, os.fspath(path), what)[1])
    return found


def _label_column(lines: Lines, path: str, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each line of the block begins in it, and its label."""
    text = np.frombuffer(lines.block, np.uint8)
    ends = np.flatnonzero(text == 10)
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    tails = ends - (text[np.maximum(ends - 1, 0)] == 13)  # a line may end in CR LF
    spaces = np.flatnonzero(text == 32)
    first = np.searchsorted(spaces, begins)
    count = np.searchsorted(spaces, ends) - first
    space = spaces[np.minimum(first, max(len(spaces) - 1, 0))] if len(spaces) else np.zeros(len(ends), np.int64)
    digits = tails - space - 1
    good = (count == 1) & (space > begins) & (digits > 0) & (digits <= 10) & (ends - begins <= LONGEST_LINE)
    steps = np.zeros(len(text), np.int8)  # +1 where a label begins, -1 where it ends
    steps[space[good] + 1] = 1
    steps[tails[good]] = -1
    inside = np.cumsum(steps, dtype=np.int8).astype(bool)
    wrong = np.flatnonzero(inside & ((text < 48) | (text > 57)))
    good[np.searchsorted(ends, wrong)] = False
    labels = integers(np.where(inside, text, np.uint8(32)).tobytes()) if good.all() else np.empty(0, np.int64)
    if len(labels) == len(ends):
        good = labels <= LARGEST_LABEL
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        raise _label_line_error(lines.block[begins[bad] : tails[bad]], f"{path}: line {lines.first + bad}", what)
    return begins, labels


def _label_line_error(line: bytes, place: str, what: str) -> FormatError:
    shown, fields = repr(line[:80].decode(errors="replace")), line.split(b" ")
    if len(line) >= LONGEST_LINE:
        return FormatError(f"{place}: is longer than {LONGEST_LINE} bytes; expected '{what} label'")
    if not line.strip():
        return FormatError(f"{place}: is blank; expected '{what} label'")
    if len(fields) != 2 or not fields[0]:
        found = f"{len(fields)} fields" if len(fields) != 2 else "nothing before the label"
        tab = "; it has a tab, but readers of such files split at one space" if b"\t" in line else ""
        return FormatError(f"{place}: expected '{what} label' with one space between, found {found}: {shown}{tab}")
    return FormatError(f"{place}: the label is not an integer from 0 to {LARGEST_LABEL}: {shown}")
