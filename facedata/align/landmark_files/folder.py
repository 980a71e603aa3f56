"""`LandmarkFolder`: a folder of FaceX-Zoo landmark files, one an image, that mirrors the folder of the images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.facexzoo import PlainNumbers
from facedata.align.landmark_files.keys import KeyForm, plain_key, text_of_key
from facedata.align.landmark_files.lines import BYTE_ORDER_MARK, LONGEST_LINE, open_regular
from facedata.align.landmark_files.matched import ReadEntry
from facedata.align.landmark_files.parsing import LineError
from facedata.align.landmark_files.sampling import check_first_faces
from facedata.errors import EmptyDatasetError, InputError, input_error
from facedata.files import file_identity

__all__ = ["LandmarkFolder", "open_landmark_folder"]

_EXTENSION = ".txt"
_SAMPLED = 100
_IDENTIFIED = 16
_BLOCK = 1 << 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Names:
    """File names, one behind the other: each costs its length and 8 bytes."""

    texts: bytes | bytearray
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> bytes:
        begin = int(self.ends[place - 1]) if place else 0
        return bytes(self.texts[begin : int(self.ends[place])])

    def only(self, places: NDArray[np.int64]) -> _Names:
        """These names alone."""
        return _join_names([self[place] for place in places.tolist()])


def _join_names(names: Sequence[bytes]) -> _Names:
    return _Names(b"".join(names), np.cumsum(np.fromiter(map(len, names), np.int64, len(names))))


@dataclass(frozen=True)
class LandmarkFolder:
    """The files; the reference of an entry is its number, in the order of the names.

    Attributes
    ----------
    path : str
    names : _Names
        Relative to the folder.
    """

    path: str
    names: _Names = field(repr=False)
    format: str = "folder of FaceX-Zoo landmark files"
    keyed: bool = True
    numbered: bool = False

    def identity(self) -> dict[str, Any]:
        """How many files, a digest of their names, and one of the content of a few."""
        names = hashlib.blake2b(self.names.texts, digest_size=16)
        names.update(self.names.ends.data)
        content = hashlib.blake2b(digest_size=16)
        for place in np.unique(np.linspace(0, len(self.names) - 1, _IDENTIFIED).astype(np.int64)).tolist():
            path = _path_of(self.path, self.names[place])
            content.update(repr(file_identity(path) if os.path.isfile(path) else None).encode())
        return {"files": len(self.names), "names": names.hexdigest(), "content": content.hexdigest()}

    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        """Names without their extension, and numbers."""
        for begin in range(0, len(self.names), _BLOCK):
            numbers = np.arange(begin, min(begin + _BLOCK, len(self.names)))
            yield [_key_of(self.names[place]) for place in numbers.tolist()], numbers

    def key_at(self, reference: int) -> str:
        """The name of a file."""
        return text_of_key(self.names[reference])

    def keys_at(self, references: NDArray[np.int64]) -> Iterator[str]:
        """The names of files."""
        return map(self.key_at, references.tolist())

    def reader(self, form: KeyForm) -> _Reader:
        """What reads the files."""
        return _Reader(self.path, self.names, form)


@dataclass(frozen=True)
class _Reader:
    """Reads files and the face in each; see `EntryReader`."""

    path: str
    names: _Names = field(repr=False)
    form: KeyForm
    relative: bool = False

    def part(self, references: NDArray[np.int64]) -> tuple[_Reader, NDArray[np.int64]]:
        there, numbers = np.unique(references[references >= 0], return_inverse=True)
        renumbered = np.full(len(references), -1, np.int64)
        renumbered[references >= 0] = numbers
        return _Reader(self.path, self.names.only(there), self.form), renumbered

    @contextmanager
    def open(self) -> Iterator[ReadEntry]:
        yield self._read

    def _read(self, reference: int, check: int) -> Face | None:
        name = self.names[reference]
        if crc32(self.form.of_file(_key_of(name))) != check:
            return None  # another key with the same hash
        try:
            return _read_face(self.path, name)
        except LineError as error:
            raise LineError(f"{_path_of(self.path, name)}: {error}") from None


def _key_of(name: bytes) -> bytes:
    return plain_key(name[: -len(_EXTENSION)])


def _path_of(folder: str, name: bytes) -> str:
    return os.path.join(folder, text_of_key(name))


def _read_face(folder: str, name: bytes) -> Face:
    path = _path_of(folder, name)
    try:
        with open_regular(path) as descriptor:
            text = os.pread(descriptor, LONGEST_LINE + 1, 0)
    except InputError as error:  # this one image suffers, not the others
        raise LineError(str(error).removeprefix(f"{path}: ")) from None
    if len(text) > LONGEST_LINE:
        raise LineError(f"is longer than {LONGEST_LINE} bytes; this is no file of landmarks")
    return PlainNumbers().face(text.removeprefix(BYTE_ORDER_MARK))


def open_landmark_folder(path: str) -> LandmarkFolder:
    """List a folder and the folders in it, and look at the first files.

    Raises
    ------
    InputError
        Where a folder cannot be listed.
    EmptyDatasetError
        Where there is no file that ends in ``.txt``.
    FormatError
        Where none of the first 100 can be used.
    """
    texts, ends, others = bytearray(), [], 0
    for name in _walk(path):
        if not name.endswith(_EXTENSION) or name == _EXTENSION:
            others += 1
            continue
        texts += os.fsencode(name)
        ends.append(len(texts))
    if others:
        _log.info("%s: passed over %d files that do not end in %s", path, others, _EXTENSION)
    if not ends:
        raise EmptyDatasetError(f"{path}: holds no file that ends in {_EXTENSION}; expected one for each image")
    names = _Names(texts, np.array(ends, np.int64))
    first = [names[place] for place in range(min(len(names), _SAMPLED))]
    check_first_faces(path, {text_of_key(name): partial(_read_face, path, name) for name in first}, relative=False)
    return LandmarkFolder(path, names)


def _walk(root: str) -> Iterator[str]:
    """Files below a folder, relative to it, sorted folder by folder; those in hidden folders are left out."""
    seen: set[tuple[int, int]] = set()  # links may lead in circles
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        files, folders = _list(os.path.join(root, folder), seen)
        yield from (os.path.join(folder, name) for name in sorted(files))
        waiting += [os.path.join(folder, name) for name in sorted(folders, reverse=True)]


def _list(path: str, seen: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            return files, folders
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise input_error(error, path) from error
    return files, folders
