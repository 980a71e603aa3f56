"""`TextFile`: landmarks in the lines of one file, of whatever dialect."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.dialects import find_dialect
from facedata.align.landmark_files.keys import KeyForm, plain_key, text_of_key
from facedata.align.landmark_files.lines import (
    FileStamp,
    LineReader,
    check_stamp,
    open_regular,
    read_lines,
    stamp_of,
)
from facedata.align.landmark_files.matched import ReadEntry
from facedata.align.landmark_files.parsing import Dialect, LineError
from facedata.align.landmark_files.sampling import check_first_faces
from facedata.errors import EmptyDatasetError, FormatError
from facedata.files import file_identity

__all__ = ["TextFile", "open_text_file"]

_SAMPLED = 101
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFile:
    """A file of landmarks; the reference of an entry is its byte offset.

    Attributes
    ----------
    path : str
    dialect : Dialect
    stamp : FileStamp
        Of when it was opened.
    """

    path: str
    dialect: Dialect
    stamp: FileStamp

    @property
    def format(self) -> str:
        """The dialect's name."""
        return self.dialect.name

    @property
    def keyed(self) -> bool:
        """As the dialect has it."""
        return self.dialect.keyed

    @property
    def numbered(self) -> bool:
        """As the dialect has it."""
        return self.dialect.numbered

    def identity(self) -> dict[str, Any]:
        """Size and sampled digest."""
        return file_identity(self.path)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file, still the one that it was."""
        with open_regular(self.path) as descriptor:
            check_stamp(descriptor, self.stamp, self.path)
            yield descriptor

    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        """Keys and byte offsets of the lines with landmarks."""
        with self.opened() as descriptor:
            for number, begins, lines in read_lines(descriptor, self.path):
                head = max(self.dialect.header - number + 1, 0)
                keys = self._keys(lines[head:], number + head)
                with_landmarks = np.fromiter((key is not None for key in keys), np.bool_, len(keys))
                yield [key for key in keys if key is not None], begins[head:][with_landmarks]

    def _keys(self, lines: Sequence[bytes], number: int) -> list[bytes | None]:
        keys: list[bytes | None] = []
        key_of: Callable[[bytes], bytes | None] = self.dialect.key
        try:
            for line in lines:
                key = key_of(line)
                keys.append(key if key is None else plain_key(key))
        except LineError as error:
            reason = str(error) if lines[len(keys)].strip() else "is blank"
            raise FormatError(
                f"{self.path}: line {number + len(keys)}: {reason}; this is read as {self.format}"
            ) from None
        if not self.dialect.keyed:
            first = number - 1 - self.dialect.header
            return [b"%d" % position for position in range(first, first + len(lines))]
        return keys

    def key_at(self, reference: int) -> str:
        """The key in the line at a byte offset."""
        return next(self.keys_at(np.array([reference], np.int64)))

    def keys_at(self, references: NDArray[np.int64]) -> Iterator[str]:
        """The keys in the lines at byte offsets."""
        with self.opened() as descriptor:
            reader = LineReader(descriptor, self.path)
            for reference in references.tolist():
                yield text_of_key(self.dialect.key(reader.line(reference)) or b"")

    def reader(self, form: KeyForm) -> _Reader:
        """What reads the lines."""
        return _Reader(self, form)


@dataclass(frozen=True)
class _Reader:
    """Reads lines and their faces; see `EntryReader`."""

    file: TextFile
    form: KeyForm

    @property
    def relative(self) -> bool:
        return self.file.dialect.relative

    def part(self, references: NDArray[np.int64]) -> tuple[_Reader, NDArray[np.int64]]:
        return self, references

    @contextmanager
    def open(self) -> Iterator[ReadEntry]:
        with self.file.opened() as descriptor:
            yield _EntriesOf(self.file, self.form, LineReader(descriptor, self.file.path)).read


class _EntriesOf:
    """The entries of an open file."""

    def __init__(self, file: TextFile, form: KeyForm, lines: LineReader) -> None:
        self._path, self._dialect, self._form, self._lines = file.path, file.dialect, form, lines

    def read(self, reference: int, check: int) -> Face | None:
        line = self._lines.line(reference)
        try:
            if self._dialect.keyed and not self._is_checked(line, check):
                return None  # another key with the same hash
            return self._dialect.face(line)
        except LineError as error:
            raise LineError(f"{self._path}: byte {reference}: {error}") from None

    def _is_checked(self, line: bytes, check: int) -> bool:
        key = self._dialect.key(line)
        return key is not None and crc32(self._form.of_file(plain_key(key))) == check


class _Head(NamedTuple):
    lines: list[bytes]
    stamp: FileStamp
    cut: bool


def open_text_file(path: str) -> TextFile:
    """Find the dialect of a file and look at its first lines.

    Raises
    ------
    FormatError
        Where it is of no known dialect, or none of its first 100 lines can be used.
    EmptyDatasetError
        Where there is no line of landmarks.
    InputError
        Where it cannot be read.
    """
    head = _read_head(path)
    if not head.lines:
        raise EmptyDatasetError(f"{path}: is empty; expected a file of landmarks")
    try:
        dialect = find_dialect(head.lines)
    except LineError as error:
        raise FormatError(f"{path}: line 1: {error}") from None
    numbered = list(enumerate(head.lines, 1))[dialect.header :]
    check_first_faces(
        path, {f"line {number}": partial(dialect.face, line) for number, line in numbered}, dialect.relative
    )
    if head.cut and dialect.keyed:
        _log.warning("%s: its last line does not end in a newline; was the file cut?", path)
    return TextFile(path, dialect, head.stamp)


def _read_head(path: str) -> _Head:
    with open_regular(path) as descriptor:
        stamp = stamp_of(descriptor)
        lines = list(islice((line for block in read_lines(descriptor, path) for line in block.texts), _SAMPLED))
        cut = stamp.size > 0 and os.pread(descriptor, 1, stamp.size - 1) != b"\n"
    return _Head(lines, stamp, cut)
