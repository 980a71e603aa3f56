"""`FolderSource`: the images of a folder of class folders, in natural order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import read_class_names_in
from facedata.converters.folder.scan import has_image, is_hidden, scan_folder
from facedata.converters.image_files import ImageFiles, estimated_size
from facedata.dataset import Sample, Source
from facedata.errors import SampleError
from facedata.images import LARGEST_IMAGE

__all__ = ["FolderSource", "open_source", "recognises"]

_CHECKPOINT = 64
_FOLDERS_TO_LOOK_AT = 1000
_BLOCK = 1 << 16


@dataclass(frozen=True)
class FolderSource(Source):
    """The images of a folder, as samples in the natural order of class folders and file names.

    A file name costs its own length and one byte; all else is kept for each class.

    Attributes
    ----------
    root : str
    folders : tuple of str
        The class folders.
    class_labels : ndarray of shape (C,), int64
        The label of each class folder.
    runs, run_folders : ndarray of shape (R,), int64
        Images from position ``runs[i]`` on lie in the class folder ``run_folders[i]``.
    names : bytes
        The file names, one behind the other.
    lengths : ndarray of shape (N,), uint8
        How long each name is.
    facts : mapping
        The identity of the whole folder.
    """

    root: str
    folders: tuple[str, ...]
    class_labels: NDArray[np.int64]
    runs: NDArray[np.int64]
    run_folders: NDArray[np.int64]
    names: bytes | bytearray
    lengths: NDArray[np.uint8]
    facts: Mapping[str, Any]

    keys_are_paths = True

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, part: slice) -> FolderSource:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"a source is sliced in steps of 1, not {step}")
        stop = max(start, stop)
        begin = self._name_begins(np.array([start, stop]))
        first = int(np.searchsorted(self.runs, start, side="right")) - 1
        last = int(np.searchsorted(self.runs, stop, side="left"))
        runs = np.maximum(self.runs[max(first, 0) : last] - start, 0)
        names = bytes(memoryview(self.names)[int(begin[0]) : int(begin[1])])
        return self._only(runs, self.run_folders[max(first, 0) : last], names, self.lengths[start:stop])

    def take(self, positions: NDArray[np.int64]) -> FolderSource:
        """The images at `positions`."""
        positions = np.asarray(positions, np.int64)
        folders = self._folders_of(positions)
        runs = np.flatnonzero(np.diff(folders, prepend=-1))
        begins, lengths = self._name_begins(positions), self.lengths[positions]
        view = memoryview(self.names)
        pairs = zip(begins.tolist(), lengths.tolist(), strict=True)
        return self._only(runs, folders[runs], b"".join(view[b : b + n] for b, n in pairs), lengths)

    def _only(
        self, runs: NDArray[np.int64], run_folders: NDArray[np.int64], names: bytes, lengths: NDArray[np.uint8]
    ) -> FolderSource:
        """A part of the images, with the folders that these lie in and no others."""
        used, renumbered = np.unique(run_folders, return_inverse=True)
        return replace(
            self,
            folders=tuple(self.folders[folder] for folder in used.tolist()),
            class_labels=self.class_labels[used],
            runs=runs,
            run_folders=renumbered.astype(np.int64),
            names=names,
            lengths=lengths.copy(),
        )

    def _folders_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.run_folders[np.searchsorted(self.runs, positions, side="right") - 1]
        return found

    def _name_begins(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the names of the images at `positions` begin: a sum of lengths from the checkpoint before each."""
        table, checkpoints = self._checkpoints
        rows, places = np.divmod(positions, _CHECKPOINT)
        inside = np.zeros(len(positions), np.int64)
        partial = np.flatnonzero(places)
        for begin in range(0, len(partial), _BLOCK):
            some = partial[begin : begin + _BLOCK]
            sums = np.cumsum(table[rows[some]], axis=1, dtype=np.int64)
            inside[some] = sums[np.arange(len(some)), places[some] - 1]
        begins: NDArray[np.int64] = checkpoints[rows] + inside
        return begins

    @cached_property
    def _checkpoints(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The lengths in rows, and where the names of each row begin."""
        table = np.pad(self.lengths, (0, -len(self.lengths) % _CHECKPOINT)).reshape(-1, _CHECKPOINT)
        return table, np.concatenate([[0], np.cumsum(table.sum(axis=1, dtype=np.int64))])

    def read(self) -> Iterator[Sample | SampleError]:
        """Every image in order, or the error in its place."""
        with ImageFiles(self.root) as files:
            for folder, label, name in self._entries():
                image = files.read(folder, name)
                key = f"{folder}/{name}"
                yield SampleError(self.root, key, image) if isinstance(image, str) else Sample(key, label, image)

    def _entries(self) -> Iterator[tuple[str, int, str]]:
        """Class folder, label and file name of each image."""
        ends = np.append(self.runs, len(self))[1:].tolist()
        begin = 0
        for first, end, number in zip(self.runs.tolist(), ends, self.run_folders.tolist(), strict=True):
            folder, label = self.folders[number], int(self.class_labels[number])
            for length in self.lengths[first:end].tolist():
                yield folder, label, os.fsdecode(bytes(self.names[begin : begin + length]))
                begin += length

    def identity(self) -> Mapping[str, Any]:
        """How many images and classes there are, and digests of all names and of a few files."""
        return self.facts

    def locate(self, position: int) -> tuple[str, int | None]:
        """The file."""
        folder, _, name = next(self[position : position + 1]._entries())
        return os.path.join(self.root, folder, name), None

    def places(self) -> Mapping[str, bool]:
        """The folder."""
        return {self.root: True}

    def keys(self) -> Iterator[str]:
        """``class folder/file name`` of each image."""
        return (f"{folder}/{name}" for folder, _, name in self._entries())

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The label of each image's class folder."""
        for begin in range(0, len(self), _BLOCK):
            yield self.class_labels[self._folders_of(np.arange(begin, min(begin + _BLOCK, len(self))))]

    def size(self) -> int:
        """The mean size of 64 images, times the number of images."""
        return estimated_size(self)

    def sizes(self) -> NDArray[np.int32]:
        """The size of every file, 0 for what is not there; asks the file system for each."""
        return np.fromiter(map(self._size, self._entries()), np.int32, len(self))

    def _size(self, entry: tuple[str, int, str]) -> int:
        folder, _, name = entry
        try:
            return min(os.stat(os.path.join(self.root, folder, name)).st_size, LARGEST_IMAGE)
        except (OSError, ValueError):
            return 0

    def class_names(self) -> Mapping[int, str]:
        """What ``classes.txt`` in the folder says, or else the names of the class folders."""
        names = dict(zip(self.class_labels.tolist(), self.folders, strict=True))
        told: Mapping[int, str] = read_class_names_in(self.root) or {}
        return {label: told.get(label, name) for label, name in names.items()}

    def declared_classes(self) -> int:
        """The largest label and 1: the folders are all there is to say how many classes there are."""
        return int(self.class_labels.max(initial=-1)) + 1


def open_source(path: str) -> FolderSource:
    """Scan the folder at `path`.

    Raises
    ------
    InputError
        Where it cannot be read.
    EmptyDatasetError
        Where there is no image in any class folder.
    FormatError
        Where two class folders stand for the same label.
    """
    scanned = scan_folder(path)
    source = FolderSource(
        path,
        scanned.folders,
        scanned.labels,
        scanned.firsts,
        np.arange(len(scanned.folders)),
        scanned.names,
        np.frombuffer(scanned.lengths, np.uint8),
        {},
    )
    return replace(source, facts=scanned.identity(source))


def recognises(path: str) -> bool:
    """Whether `path` is a folder with a folder that holds an image."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        folders = (entry.path for entry in entries if not is_hidden(entry.name) and entry.is_dir())
        looked_at = (folder for folder, _ in zip(folders, range(_FOLDERS_TO_LOOK_AT), strict=False))
        return any(has_image(folder) for folder in looked_at)
