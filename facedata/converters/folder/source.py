"""`FolderSource`: the images of a folder of class folders, in natural order; scanning it, and labels from its names."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.converters.class_names import read_class_names_in
from facedata.converters.image_files import ImageFileSource
from facedata.errors import EmptyDatasetError, FormatError, input_error
from facedata.images import IMAGE_EXTENSIONS
from facedata.text import listed, natural_sort

__all__ = ["FolderSource", "open_source", "recognises"]

_CHECKPOINT = 64
_BLOCK = 1 << 16
_NUMBERED = re.compile(r"(?:id_)?(\d+)", re.ASCII)
_MOST_DIGITS = 18  # int() refuses some thousands
_FOLDERS_TO_TRY, _ENTRIES_TO_TRY = 1000, 256
_COMMON = (".jpg", ".png")
_THREADS = 16
_WAITING = 3.0  # if listing takes this many times its CPU time, threads are faster
_FOLDERS_AT_ONCE = 64  # that a thread lists in a row
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSource(ImageFileSource):
    """The images of a folder, as samples in the natural order of class folders and file names.

    A file name takes its own length and one byte of memory; everything else is kept once for each class.

    Attributes
    ----------
    folders : tuple of str
        The class folders.
    class_labels : ndarray of shape (C,), int64
        The label of each class folder.
    runs, run_folders : ndarray of shape (R,), int64
        The images from position ``runs[i]`` on lie in the class folder ``run_folders[i]``.
    names : bytes
        The file names, one after the other.
    lengths : ndarray of shape (N,), uint8
        The length of each name.
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

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, positions: NDArray[np.int64]) -> FolderSource:
        """The images at `positions`, with their class folders and no others: a worker gets no more."""
        positions = np.asarray(positions, np.int64)
        lengths, folders = self.lengths[positions], self._folders_of(positions)
        names = memoryview(self.names)
        if len(positions) and bool((np.diff(positions) == 1).all()):
            begin, last = self._name_begins(positions[[0, -1]]).tolist()
            taken = bytes(names[begin : last + int(lengths[-1])])
        else:
            pairs = zip(self._name_begins(positions).tolist(), lengths.tolist(), strict=True)
            taken = b"".join(names[begin : begin + length] for begin, length in pairs)
        runs = np.flatnonzero(np.diff(folders, prepend=-1))
        used, renumbered = np.unique(folders[runs], return_inverse=True)
        return replace(
            self,
            folders=tuple(self.folders[folder] for folder in used.tolist()),
            class_labels=self.class_labels[used],
            runs=runs,
            run_folders=renumbered.astype(np.int64),
            names=taken,
            lengths=lengths,
        )

    def _folders_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.run_folders[np.searchsorted(self.runs, positions, side="right") - 1]
        return found

    def _name_begins(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the names of the images at `positions` begin: the sum of the lengths from the checkpoint before."""
        table, checkpoints = self._checkpoints
        rows, places = np.divmod(positions, _CHECKPOINT)
        inside = np.zeros(len(positions), np.int64)
        partial_rows = np.flatnonzero(places)
        for begin in range(0, len(partial_rows), _BLOCK):
            some = partial_rows[begin : begin + _BLOCK]
            sums = np.cumsum(table[rows[some]], axis=1, dtype=np.int64)
            inside[some] = sums[np.arange(len(some)), places[some] - 1]
        begins: NDArray[np.int64] = checkpoints[rows] + inside
        return begins

    @cached_property
    def _checkpoints(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The lengths in rows, and where the names of each row begin."""
        table = np.pad(self.lengths, (0, -len(self.lengths) % _CHECKPOINT)).reshape(-1, _CHECKPOINT)
        return table, np.concatenate([[0], np.cumsum(table.sum(axis=1, dtype=np.int64))])

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """Class folder, file name and label of each image."""
        ends = np.append(self.runs, len(self))[1:].tolist()
        begin = 0
        for first, end, number in zip(self.runs.tolist(), ends, self.run_folders.tolist(), strict=True):
            folder, label = self.folders[number], int(self.class_labels[number])
            for length in self.lengths[first:end].tolist():
                yield folder, os.fsdecode(bytes(self.names[begin : begin + length])), label
                begin += length

    def identity(self) -> Mapping[str, Any]:
        """The number of images and classes, and digests of all names and of the content of a few files."""
        return self.facts

    def places(self) -> Mapping[str, bool]:
        """The folder."""
        return {self.root: True}

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The label of each image's class folder."""
        for begin in range(0, len(self), _BLOCK):
            yield self.class_labels[self._folders_of(np.arange(begin, min(begin + _BLOCK, len(self))))]

    def class_names(self) -> Mapping[int, str]:
        """The names in ``classes.txt`` of the folder, or else the names of the class folders."""
        names = dict(zip(self.class_labels.tolist(), self.folders, strict=True))
        listed_names: Mapping[int, str] = read_class_names_in(self.root) or {}
        return {label: listed_names.get(label, name) for label, name in names.items()}

    def declared_classes(self) -> int:
        """The largest label plus 1: only the class folders say how many classes there are."""
        return int(self.class_labels.max(initial=-1)) + 1


def open_source(path: str) -> FolderSource:
    """Scan the folder at `path`.

    Raises
    ------
    InputError
        If a folder cannot be listed.
    EmptyDatasetError
        If no class folder holds an image.
    FormatError
        If two class folders have the same label.
    """
    skipped, empty, differ_in_case = Counter[str](), list[str](), list[str]()
    folders = natural_sort(_class_folders(path, skipped))
    differ_in_case += _different_in_case(folders, "")
    kept, firsts, names, lengths = [], [], bytearray(), bytearray()
    for folder, files, counts in _list_folders(path, folders):
        skipped += counts
        if not files:
            empty.append(folder)
            continue
        differ_in_case += _different_in_case(files, f"{folder}/")
        kept.append(folder)
        firsts.append(len(lengths))
        encoded = os.fsencode("\0".join(files)).split(b"\0")
        names += b"".join(encoded)
        lengths += bytes(map(len, encoded))
    if skipped:
        found = ", ".join(f"{count:,} {what}" for what, count in sorted(skipped.items()))
        _log.info("%s: skipped %s", path, found)
    if empty:
        _log.warning("%s: no image in the class folders %s; they get no label", path, listed(empty))
    if differ_in_case:
        _log.warning(
            "%s: names that differ only in case: %s; they stay separate here, but a file system that ignores case "
            "takes them for the same",
            path,
            listed(differ_in_case),
        )
    if not kept:
        raise EmptyDatasetError(
            f"{path}: no folder in it holds an image; expected one folder for each class, with files that end in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    labels, first_positions = _labels_of(kept, path), np.array(firsts, np.int64)
    source = FolderSource(
        path, tuple(kept), labels, first_positions, np.arange(len(kept)), names, np.frombuffer(lengths, np.uint8), {}
    )
    digest = hashlib.blake2b(b"".join(os.fsencode(folder) + b"\0" for folder in kept), digest_size=16)
    for data in (lengths, names, labels.data, first_positions.data):
        digest.update(data)
    totals = {"images": len(source), "classes": len(kept)}
    return replace(source, facts={"folder": {**totals, "names": digest.hexdigest(), "content": source.content()}})


def recognises(path: str) -> bool:
    """Whether `path` is a folder with a folder that holds an image."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        folders = (entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        return any(map(_holds_image, islice(folders, _FOLDERS_TO_TRY)))


def _holds_image(folder: str) -> bool:
    """Whether one of the first entries of `folder` has the name of an image."""
    with suppress(OSError), os.scandir(folder) as entries:
        names = (entry.name for entry in islice(entries, _ENTRIES_TO_TRY))
        return any(_is_image_name(name) and not name.startswith(".") for name in names)
    return False


def _is_image_name(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _class_folders(root: str, skipped: Counter[str]) -> list[str]:
    folders = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    skipped["hidden entries"] += not entry.name.startswith(".facedata-")
                elif entry.is_dir():
                    folders.append(entry.name)
                elif _is_image_name(entry.name):
                    skipped["images outside of class folders"] += 1
    except OSError as error:
        raise input_error(error, root) from error
    return folders


_Listed = tuple[str, list[str], Counter[str]]
"""A class folder, the names of its images in natural order, and what else is in it."""


def _list_folders(root: str, folders: Sequence[str]) -> Iterator[_Listed]:
    """List class folders in order; in threads if the file system is slow, which the first folders show."""
    runs = [folders[first : first + _FOLDERS_AT_ONCE] for first in range(0, len(folders), _FOLDERS_AT_ONCE)]
    list_run = partial(_list_run, root)
    begin, worked = time.perf_counter(), time.thread_time()
    for run in runs[:1]:
        yield from list_run(run)
    if time.perf_counter() - begin <= _WAITING * (time.thread_time() - worked):
        for run in runs[1:]:
            yield from list_run(run)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        for first in range(1, len(runs), _THREADS):  # a bounded number of lists in memory at once
            for listing in threads.map(list_run, runs[first : first + _THREADS]):
                yield from listing


def _list_run(root: str, folders: Sequence[str]) -> list[_Listed]:
    listings = []
    for folder in folders:
        names, counts = [], Counter[str]()
        path = os.path.join(root, folder)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        counts["hidden entries"] += 1
                    elif not name.endswith(_COMMON) and not _is_image_name(name):
                        counts["folders in class folders" if entry.is_dir() else "files that are not images"] += 1
                    elif entry.is_dir():
                        counts["folders in class folders"] += 1
                    else:  # a named pipe or a broken link too: it fails by name when it is read
                        names.append(name)
        except OSError as error:
            raise input_error(error, path) from error
        listings.append((folder, natural_sort(names), counts))
    return listings


def _different_in_case(names: Sequence[str], before: str) -> list[str]:
    """The pairs of names that differ only in case; `before` is shown before the first."""
    if len(set(map(str.lower, names))) == len(names):
        return []
    seen: dict[str, str] = {}
    firsts = ((seen.setdefault(name.lower(), name), name) for name in names)
    return [f"{before}{first}, {name}" for first, name in firsts if first != name]


def _labels_of(folders: Sequence[str], root: str) -> NDArray[np.int64]:
    """The label of each class folder, shape (C,).

    ``id_<n>`` and names of digits alone keep their number; others are numbered in order, after the largest of these.
    """
    numbers = [_number(folder) for folder in folders]
    too_large = [folder for folder, number in zip(folders, numbers, strict=True) if number > LARGEST_LABEL]
    if too_large:
        _log.warning(
            "%s: %s: these numbers are too large for a label (%d); such folders are numbered like names",
            root,
            listed(too_large),
            LARGEST_LABEL,
        )
    labels = [number if number <= LARGEST_LABEL else -1 for number in numbers]
    following = max(labels, default=-1) + 1
    taken: dict[int, str] = {}
    for place, folder in enumerate(folders):
        if labels[place] < 0:
            labels[place], following = following, following + 1
        label = labels[place]
        if label > LARGEST_LABEL:
            raise FormatError(
                f"{root}: the folder '{folder}' would get the label {label}, after the largest number of a folder, but "
                f"labels end at {LARGEST_LABEL}; rename the folder with that number"
            )
        if label in taken:
            raise FormatError(
                f"{root}: the folders '{taken[label]}' and '{folder}' both have the label {label}, and two people must "
                "not share one; rename one of them"
            )
        taken[label] = folder
    return np.array(labels, np.int64)


def _number(folder: str) -> int:
    """The number in the name of a folder; -1 if it is another name."""
    match = _NUMBERED.fullmatch(folder)
    if match is None:
        return -1
    return int(match[1][-_MOST_DIGITS:]) if not match[1][:-_MOST_DIGITS].strip("0") else 1 << 62
