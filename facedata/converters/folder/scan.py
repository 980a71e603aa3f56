"""Scanning a folder of class folders: which images there are, and which label each class folder gets."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.errors import EmptyDatasetError, FormatError, InputError, input_error
from facedata.files import file_identity
from facedata.images import IMAGE_EXTENSIONS
from facedata.text import natural_sort

if TYPE_CHECKING:
    from facedata.converters.folder.source import FolderSource

__all__ = ["ScannedFolder", "has_image", "is_hidden", "labels_of_folders", "scan_folder"]

_NUMBERED = re.compile(r"(?:id_)?(\d+)", re.ASCII)
_DIGITS = 18  # int() refuses some thousands
_ENTRIES_TO_LOOK_AT = 256
_COMMON = (".jpg", ".png")
_THREADS = 16
_WAITING = 3.0  # where a listing takes so many times the CPU's time, threads are faster than one process alone
_SAMPLED_FILES = 16
_AT_ONCE = 64  # folders that a thread lists in a row
_SHOWN = 3
_log = logging.getLogger(__name__)


def is_hidden(name: str) -> bool:
    """Whether it begins with a dot."""
    return name.startswith(".")


def _is_image_name(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def has_image(folder: str) -> bool:
    """Whether one of the first entries of `folder` has the name of an image."""
    with suppress(OSError), os.scandir(folder) as entries:
        some = (entry.name for entry, _ in zip(entries, range(_ENTRIES_TO_LOOK_AT), strict=False))
        return any(_is_image_name(name) and not is_hidden(name) for name in some)
    return False


@dataclass
class ScannedFolder:
    """What was found, class folder by class folder; see `FolderSource` for the shapes."""

    root: str
    folders: tuple[str, ...] = ()
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    firsts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    names: bytearray = field(default_factory=bytearray)
    lengths: bytearray = field(default_factory=bytearray)

    def identity(self, source: FolderSource) -> dict[str, Any]:
        """Counts; a digest of all names; and one of the content of files spread evenly, the first and the last too."""
        names = hashlib.blake2b(digest_size=16)
        for folder in self.folders:
            names.update(os.fsencode(folder) + b"\0")
        for text in (self.lengths, self.names):
            names.update(text)
        for numbers in (self.labels, self.firsts):
            names.update(numbers.data)
        content = hashlib.blake2b(digest_size=16)
        for position in sorted({(len(source) - 1) * part // (_SAMPLED_FILES - 1) for part in range(_SAMPLED_FILES)}):
            path, _ = source.locate(position)
            with suppress(InputError):  # it fails by name when it is read
                content.update(repr(file_identity(path) if os.path.isfile(path) else None).encode())
        counts = {"images": len(source), "classes": len(self.folders)}
        return {"folder": {**counts, "names": names.hexdigest(), "content": content.hexdigest()}}


@dataclass
class _Skipped:
    """What was passed over, to be told once."""

    counts: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    differ_in_case: list[str] = field(default_factory=list)

    def tell(self, root: str) -> None:
        if self.counts:
            told = ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()))
            _log.info("%s: passed over %s", root, told)
        if self.empty:
            _log.warning("%s: no image in the class folders %s; they get no label", root, _some(self.empty))
        if self.differ_in_case:
            _log.warning(
                "%s: names that differ in case alone: %s; they are kept apart here, but a file system that ignores "
                "case takes them for one",
                root,
                _some(self.differ_in_case),
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def scan_folder(root: str) -> ScannedFolder:
    """List every class folder of `root`.

    Raises
    ------
    InputError
        Where a folder cannot be listed.
    EmptyDatasetError
        Where there is no image in any class folder.
    FormatError
        Where two class folders stand for the same label.
    """
    skipped = _Skipped()
    folders = natural_sort(_class_folders(root, skipped))
    _note_case(folders, "", skipped)
    found = ScannedFolder(root)
    kept, firsts = [], []
    for folder, names in _list_all(root, folders, skipped):
        if not names:
            skipped.empty.append(folder)
            continue
        _note_case(names, f"{folder}/", skipped)
        kept.append(folder)
        firsts.append(len(found.lengths))
        encoded = os.fsencode("\0".join(names)).split(b"\0")
        found.names += b"".join(encoded)
        found.lengths += bytes(map(len, encoded))
    skipped.tell(root)
    if not kept:
        raise EmptyDatasetError(
            f"{root}: holds no image in any folder; expected one folder a class, with files that end in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    found.folders, found.firsts = tuple(kept), np.array(firsts, np.int64)
    found.labels = labels_of_folders(kept, root)
    return found


def _class_folders(root: str, skipped: _Skipped) -> list[str]:
    folders = []
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    skipped.counts["hidden entries"] += not entry.name.startswith(".facedata-")
                elif entry.is_dir():
                    folders.append(entry.name)
                elif _is_image_name(entry.name):
                    skipped.counts["images outside of class folders"] += 1
    except OSError as error:
        raise input_error(error, root) from error
    return folders


def _list_all(root: str, folders: Sequence[str], skipped: _Skipped) -> Iterator[tuple[str, list[str]]]:
    """Class folders in order, each with the names of its images in natural order."""
    for listed in _list_runs(root, [folders[first : first + _AT_ONCE] for first in range(0, len(folders), _AT_ONCE)]):
        for folder, names, counts in listed:
            skipped.counts += counts
            yield folder, names


_Listed = list[tuple[str, list[str], Counter[str]]]


def _list_runs(root: str, runs: Sequence[Sequence[str]]) -> Iterator[_Listed]:
    """List runs of folders: in threads where it is the file system that is waited for, which a first run shows."""
    if not runs:
        return
    begin, worked = time.perf_counter(), time.thread_time()
    yield _list_some(root, runs[0])
    waited = time.perf_counter() - begin > _WAITING * (time.thread_time() - worked)
    if not waited:
        yield from map(partial(_list_some, root), runs[1:])
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        for first in range(1, len(runs), _THREADS):  # a bounded number of lists in memory at once
            yield from threads.map(partial(_list_some, root), runs[first : first + _THREADS])


def _list_some(root: str, folders: Sequence[str]) -> _Listed:
    return [(folder, *_list_images(os.path.join(root, folder))) for folder in folders]


def _list_images(path: str) -> tuple[list[str], Counter[str]]:
    names, counts = [], Counter[str]()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith(_COMMON) and not is_hidden(entry.name) and not entry.is_dir():
                    names.append(entry.name)
                elif is_hidden(entry.name):
                    counts["hidden entries"] += 1
                elif not _is_image_name(entry.name):
                    counts["folders in class folders" if entry.is_dir() else "files that are no images"] += 1
                elif entry.is_dir():
                    counts["folders in class folders"] += 1
                else:  # a pipe or a broken link too: it fails by name when it is read
                    names.append(entry.name)
    except OSError as error:
        raise input_error(error, path) from error
    return natural_sort(names), counts


def _note_case(names: Sequence[str], before: str, skipped: _Skipped) -> None:
    if len(set(map(str.lower, names))) < len(names):
        seen: dict[str, str] = {}
        for name in names:
            if (first := seen.setdefault(name.lower(), name)) != name:
                skipped.differ_in_case.append(f"{before}{first}, {name}")


def labels_of_folders(folders: Sequence[str], root: str) -> NDArray[np.int64]:
    """The label of each class folder.

    ``id_<n>`` and names of digits alone keep their number; others are numbered as they come, behind the largest
    of these numbers.

    Parameters
    ----------
    folders : sequence of str
        In natural order.
    root : str
        For messages.

    Returns
    -------
    ndarray of shape (C,), int64

    Raises
    ------
    FormatError
        Where two folders stand for the same number.
    """
    numbers = [_number(folder) for folder in folders]
    too_large = [folder for folder, number in zip(folders, numbers, strict=True) if number > LARGEST_LABEL]
    if too_large:
        _log.warning(
            "%s: %s: these numbers are too large for a label (%d); such folders are numbered as names are",
            root,
            _some(too_large),
            LARGEST_LABEL,
        )
    numbers = [number if number <= LARGEST_LABEL else -1 for number in numbers]
    following = max(numbers, default=-1) + 1
    taken: dict[int, str] = {}
    for place, (folder, number) in enumerate(zip(folders, numbers, strict=True)):
        if number < 0:
            number, following = following, following + 1
            numbers[place] = number
        if number > LARGEST_LABEL:
            raise FormatError(
                f"{root}: the folder '{folder}' would get the label {number}, behind the largest number of a folder, "
                f"and labels end at {LARGEST_LABEL}; rename the folder with that number"
            )
        if number in taken:
            raise FormatError(
                f"{root}: the folders '{taken[number]}' and '{folder}' both stand for the label {number}, and two "
                "people must not share one; rename one of them"
            )
        taken[number] = folder
    return np.array(numbers, np.int64)


def _number(folder: str) -> int:
    """The number that the name of a folder keeps; -1 where it is a name."""
    match = _NUMBERED.fullmatch(folder)
    return -1 if match is None else int(match[1][-_DIGITS:]) if not match[1][:-_DIGITS].strip("0") else 1 << 62
