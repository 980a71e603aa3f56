"""The entries of a landmark file: one a line of a text file, or one a file of a folder; listed once, read on demand."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.dialects import find_dialect, parse_plain_numbers
from facedata.align.landmark_files.keys import plain_keys, text_of_key
from facedata.align.landmark_files.lines import LONGEST_LINE, Dialect, Entry, LineError, mostly_fractions
from facedata.columns import whole_lines
from facedata.errors import EmptyDatasetError, FormatError, InputError, input_error, is_transient
from facedata.files import combined_identity, file_identity, opened_regular, read_small

__all__ = ["EntryStore", "ReadEntry", "open_folder", "open_text_file"]

ReadEntry = Callable[[int], Entry]
"""Reads the entry at a reference: its key, and what reads its face; both raise `LineError`."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_EXAMINED = 100  # entries whose faces are read when a file is opened
_READ_AHEAD, _READ_ALONE = 1 << 18, 1 << 13  # bytes read at a line that follows the one before, and at any other
_EXTENSION = ".txt"  # of the files in a folder
_IDENTIFIED_FILES = 16
_NAMES_TOGETHER = 1 << 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EntryStore(ABC):
    """The entries of a landmark file, each known by a reference; picklable."""

    path: str
    dialect: Dialect

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What distinguishes this input from another, as JSON values."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        """Plain keys and references of all entries, in order, block by block."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[ReadEntry]:
        """Open the files."""

    @abstractmethod
    def names(self, references: Iterable[int]) -> Iterator[str]:
        """The keys of entries as the file has them."""

    @abstractmethod
    def place(self, reference: int) -> str:
        """Where an entry is, for messages."""

    def part(self, references: NDArray[np.int64]) -> tuple[EntryStore, NDArray[np.int64]]:
        """A store of these entries (-1: none) that need not have any others, and their references in it."""
        return self, references


def _check_first_faces(path: str, faces: Iterable[tuple[str, Callable[[], Face | None]]], relative: bool) -> None:
    """Refuse a file if all of its first entries, given with their places, are wrong, or if most have fractions."""
    found, errors = [], []
    for place, read_face in faces:
        try:
            found.append(read_face())
        except LineError as error:
            errors.append(f"{place}: {error}")
    if errors and not found:
        more = f"; the first {len(errors)} entries are all wrong" if errors[1:] else ""
        raise FormatError(f"{path}: {errors[0]}{more}")
    if not relative and mostly_fractions(face.landmarks for face in found if face is not None):
        raise FormatError(
            f"{path}: most coordinates are between about 0 and 1, like fractions of the image's width and height; "
            "expected pixels: multiply x by the width and y by the height of each image"
        )


# A text file


class _LineReader:
    """Reads the line at any byte offset of an open file, quickly if lines follow each other."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._block, self._base = b"", 0

    def line(self, offset: int) -> bytes:
        """The line that begins at a byte offset, without its end."""
        start = offset - self._base
        end = self._block.find(b"\n", start) if 0 <= start < len(self._block) else -1
        if end < 0:
            follows = 0 <= start <= len(self._block) + _READ_ALONE
            self._block = os.pread(self._descriptor, _READ_AHEAD if follows else _READ_ALONE, offset)
            if not follows and b"\n" not in self._block:
                self._block = os.pread(self._descriptor, _READ_AHEAD, offset)
            self._base, start = offset, 0
            end = self._block.find(b"\n")
        return self._block[start : end if end >= 0 else len(self._block)].removesuffix(b"\r")


@dataclass(frozen=True)
class _TextFile(EntryStore):
    """The lines of a file; the reference of an entry is its byte offset."""

    stamp: tuple[int, int]  # when it was opened

    def identity(self) -> dict[str, Any]:
        return file_identity(self.path)

    @contextmanager
    def _unchanged(self) -> Iterator[int]:
        with opened_regular(self.path) as descriptor:
            if _stamp(descriptor) != self.stamp:
                raise FormatError(f"{self.path}: was changed while it was being read; run the command again")
            yield descriptor

    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        with self._unchanged():
            pass
        parse, header, keyed = self.dialect.parse, self.dialect.header, self.dialect.keyed
        for first, begins, lines in _read_lines(self.path):
            keys, kept = [], []
            skipped = max(header - first + 1, 0)
            for place, line in enumerate(lines[skipped:], skipped):
                try:
                    key = parse(line)[0]
                except LineError as error:
                    reason = error if line.strip() else "is blank"
                    where = f"{self.path}: line {first + place}"
                    raise FormatError(f"{where}: {reason}; the file is read as: {self.dialect.name}") from None
                if key is not None:
                    keys.append(key if keyed else b"%d" % (first + place - 1 - header))
                    kept.append(place)
            yield plain_keys(keys), begins[np.array(kept, np.int64)]

    @contextmanager
    def opened(self) -> Iterator[ReadEntry]:
        with self._unchanged() as descriptor:
            line, parse = _LineReader(descriptor).line, self.dialect.parse
            yield lambda offset: parse(line(offset))

    def names(self, references: Iterable[int]) -> Iterator[str]:
        with self.opened() as read_entry:
            for reference in references:
                yield text_of_key(read_entry(reference)[0] or b"")

    def place(self, reference: int) -> str:
        return f"{self.path}: byte {reference}"


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _read_lines(path: str) -> Iterator[tuple[int, NDArray[np.int64], list[bytes]]]:
    """The lines of a file in blocks: the number of the first, the byte offset of each, and the texts without ends.

    A byte order mark and blank lines at the end of the file are left out.
    """
    blank = 0  # the first of the blank lines that no other line has followed yet
    for first, offset, block in whole_lines(path, LONGEST_LINE):
        lines = block.split(b"\n")[:-1]
        lengths = np.fromiter(map(len, lines), np.int64, len(lines))
        if lengths.max() > LONGEST_LINE:
            number = first + int(lengths.argmax())
            raise FormatError(
                f"{path}: line {number:,} is longer than {LONGEST_LINE:,} bytes; is this a landmark file?"
            )
        begins = offset + np.cumsum(lengths + 1) - (lengths + 1)
        if first == 1 and block.startswith(_BYTE_ORDER_MARK):
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
            begins[0] += len(_BYTE_ORDER_MARK)
        if b"\r" in block:
            lines = [line.removesuffix(b"\r") for line in lines]
        while lines and (not lines[-1] or lines[-1].isspace()):
            lines.pop()
        if lines and blank:
            raise FormatError(f"{path}: line {blank}: is blank")
        if len(lines) < len(begins):
            blank = blank or first + len(lines)
        yield first, begins[: len(lines)], lines


def open_text_file(path: str) -> EntryStore:
    """Find the dialect of a landmark file and examine its first lines; raises as `open_landmarks`."""
    with opened_regular(path) as descriptor:
        stamp = _stamp(descriptor)
        cut = stamp[0] > 0 and os.pread(descriptor, 1, stamp[0] - 1) != b"\n"
    lines = list(islice(chain.from_iterable(lines for _, _, lines in _read_lines(path)), _EXAMINED + 1))
    if not lines:
        raise EmptyDatasetError(f"{path}: is empty; expected a landmark file")
    count = int(len(lines) > 1 and lines[0].strip().isdigit())  # of the lines, as CelebA writes it
    try:
        dialect = find_dialect(lines[count:])
    except LineError as error:
        raise FormatError(f"{path}: line {count + 1}: {error}") from None
    dialect = replace(dialect, header=dialect.header + count)
    numbered = list(enumerate(lines, 1))[dialect.header :]
    faces = ((f"line {number}", partial(_face_of_line, dialect, line)) for number, line in numbered)
    _check_first_faces(path, faces, dialect.relative)
    if cut and dialect.keyed:
        _log.warning("%s: its last line does not end in a newline; was the file cut?", path)
    return _TextFile(path, dialect, stamp)


def _face_of_line(dialect: Dialect, line: bytes) -> Face | None:
    return dialect.parse(line)[1]()


# A folder

_FOLDER = Dialect("folder of FaceX-Zoo landmark files", "x1 y1 x2 y2 ...", re.compile(b""), parse_plain_numbers)


@dataclass(frozen=True)
class _Folder(EntryStore):
    """FaceX-Zoo landmark files, one an image; the reference of an entry is the position of its file's name."""

    names_together: bytes = field(repr=False)  # in one text each name takes its length and 8 bytes
    ends: NDArray[np.int64] = field(repr=False)

    def with_files(self, names: Iterable[bytes]) -> _Folder:
        """The folder with these files, relative to it, and no others."""
        joined, ends = bytearray(), []
        for name in names:
            joined += name
            ends.append(len(joined))
        return replace(self, names_together=bytes(joined), ends=np.array(ends, np.int64))

    def _name(self, file: int) -> bytes:
        return self.names_together[self.ends[file - 1] if file else 0 : self.ends[file]]

    def identity(self) -> dict[str, Any]:
        names = hashlib.blake2b(self.names_together, digest_size=16)
        names.update(self.ends.data)
        examined = np.unique(np.linspace(0, len(self.ends) - 1, _IDENTIFIED_FILES).astype(np.int64)).tolist()
        files = [(text_of_key(self._name(file)), self.place(file)) for file in examined]
        content = combined_identity(
            (name, file_identity(path) if os.path.isfile(path) else None) for name, path in files
        )
        return {"files": len(self.ends), "names": names.hexdigest(), "content": content}

    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        for begin in range(0, len(self.ends), _NAMES_TOGETHER):
            references = np.arange(begin, min(begin + _NAMES_TOGETHER, len(self.ends)))
            yield plain_keys([self._name(file)[: -len(_EXTENSION)] for file in references.tolist()]), references

    @contextmanager
    def opened(self) -> Iterator[ReadEntry]:
        yield self._entry

    def _entry(self, reference: int) -> Entry:
        return self._name(reference)[: -len(_EXTENSION)], partial(_face_of_file, self.place(reference))

    def names(self, references: Iterable[int]) -> Iterator[str]:
        return (text_of_key(self._name(reference)) for reference in references)

    def place(self, reference: int) -> str:
        return os.path.join(self.path, text_of_key(self._name(reference)))

    def part(self, references: NDArray[np.int64]) -> tuple[EntryStore, NDArray[np.int64]]:
        kept, numbers = np.unique(references[references >= 0], return_inverse=True)
        renumbered = np.full(len(references), -1, np.int64)
        renumbered[references >= 0] = numbers
        return self.with_files(map(self._name, kept.tolist())), renumbered


def _face_of_file(path: str) -> Face | None:
    try:
        text = read_small(path, LONGEST_LINE)
    except InputError as error:  # of this image alone
        if is_transient(error):
            raise
        raise LineError(str(error).removeprefix(f"{path}: ")) from None
    return parse_plain_numbers(text.removeprefix(_BYTE_ORDER_MARK))[1]()


def open_folder(path: str) -> EntryStore:
    """List a folder of landmark files and the folders in it, and examine the first; raises as `open_landmarks`."""
    others = 0

    def landmark_files() -> Iterator[bytes]:
        nonlocal others
        for name in _walk(path):
            if name.endswith(_EXTENSION):
                yield os.fsencode(name)
            else:
                others += 1

    folder = _Folder(path, _FOLDER, b"", np.empty(0, np.int64)).with_files(landmark_files())
    if others:
        _log.info("%s: skipped %d files that do not end in %s", path, others, _EXTENSION)
    if not len(folder.ends):
        raise EmptyDatasetError(f"{path}: contains no file that ends in {_EXTENSION}; expected one for each image")
    first = map(folder.place, range(min(len(folder.ends), _EXAMINED)))
    _check_first_faces(path, ((os.path.relpath(file, path), partial(_face_of_file, file)) for file in first), False)
    return folder


def _walk(root: str) -> Iterator[str]:
    """Files below a folder, relative to it, sorted folder by folder; hidden files and folders are left out."""

    def refuse(error: OSError) -> None:
        raise input_error(error, error.filename) from error

    seen: set[tuple[int, int]] = set()  # links may lead in circles
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        for name in sorted(files):
            if not name.startswith("."):
                yield name if relative == "." else os.path.join(relative, name)
