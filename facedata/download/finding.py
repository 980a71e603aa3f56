"""Files below a folder: walking it in a fixed order, and finding a file by its name, wherever it lies."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from facedata.files import kind_name

__all__ = ["HashedNames", "NameIndex", "shared_suffix", "walk_files"]

HIDDEN, PARTIAL = ".facedata", ".part"
_FOLDER_BITS = 28
_FEW = 1 << 17

Complaint = Callable[[str, str, bool], None]
"""Called with a path, why it is left out, and whether that is because it is no file."""


def walk_files(root: str, below: str = "", complain: Complaint | None = None) -> Iterator[str]:
    """The plain files below a folder, and links to such, in the order of the bytes of their paths.

    Left out are facedata's own hidden files and folders (``.facedata*``) and what is still being fetched (``*.part``).
    Links to folders are not followed.

    Parameters
    ----------
    root : str
    below : str
        Only what lies in this folder, a path relative to `root`.
    complain : callable, optional
        Called with the path of all else that is left out, the reason, and whether that is because it is no file.

    Yields
    ------
    str
        Paths relative to `root`.
    """
    below = below.rstrip("/")
    waiting = [f"{below}/" if below else ""]
    while waiting:
        path = waiting.pop()
        if path.endswith("/") or not path:
            waiting.extend(reversed(_listing(root, path, complain)))
        else:
            yield path


def _listing(root: str, folder: str, complain: Complaint | None) -> list[str]:
    """The paths in a folder, those of folders with a slash behind them, which is how their bytes compare."""
    place, paths = os.path.join(root, folder), []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(HIDDEN) or entry.name.endswith(PARTIAL):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    paths.append(f"{folder}{entry.name}/")
                elif _is_file(entry):
                    paths.append(f"{folder}{entry.name}")
                elif complain is not None:
                    complain(entry.path, f"it is {_kind(entry)}", not _dangles(entry))
    except OSError as error:
        if complain is not None:
            complain(place, error.strerror or str(error), False)
    paths.sort(key=os.fsencode)
    return paths


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a plain file or a link to one; a link in a circle is none, and no reason to miss its neighbours."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _dangles(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads nowhere: that should be a file, and is lost."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "a link to a folder" if os.path.isdir(entry.path) else "a link that leads to no file"
    return kind_name(entry.stat(follow_symlinks=False).st_mode)


class HashedNames:
    """A set of names at 8 bytes each: what was added is found, and what was not hardly ever."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._sorted = True

    def add(self, name: str) -> None:
        """Add a name."""
        self._hashes.append(_hash(name))
        self._sorted = False

    def __contains__(self, name: str) -> bool:
        if not self._sorted:
            _sort(self._hashes)
            self._sorted = True
        value = _hash(name)
        place = bisect_left(self._hashes, value)
        return place < len(self._hashes) and self._hashes[place] == value


class NameIndex:
    """Where the files of a name lie: 16 bytes a file and the path of each folder.

    Parameters
    ----------
    root : str
    paths : iterable of str
        What is below it, relative to it.
    """

    def __init__(self, root: str, paths: Iterable[str]) -> None:
        self._root = root
        self._folders: list[str] = []
        self._names, self._pairs = array("Q"), array("Q")  # of names, and of names with their folder's name
        for path in paths:
            self._add(path)
        _sort(self._names)
        _sort(self._pairs)

    def _add(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if not self._folders or self._folders[-1] != folder:
            self._folders.append(folder)
        number = len(self._folders) - 1
        self._names.append(_head(name) | number)
        self._pairs.append(_head(f"{folder.rpartition('/')[2]}/{name}") | number)

    def count(self, end: str) -> int:
        """About how many files `find` would look at."""
        _, first, last = self._range(end)
        return last - first

    def find(self, end: str) -> list[str]:
        """The paths, relative to the root, of the files of that name, or of that folder's name and name."""
        entries, first, last = self._range(end)
        name = end.rpartition("/")[2]
        folders = (self._folders[entry & ((1 << _FOLDER_BITS) - 1)] for entry in entries[first:last])
        paths = dict.fromkeys(os.path.join(folder, name) for folder in folders)  # two hashes may be the same
        return [path for path in paths if os.path.isfile(os.path.join(self._root, path))]

    def _range(self, end: str) -> tuple[array[int], int, int]:
        entries, head = self._pairs if "/" in end else self._names, _head(end)
        return entries, bisect_left(entries, head), bisect_left(entries, head + (1 << _FOLDER_BITS))


def shared_suffix(first: str, second: str) -> int:
    """How many names, from the end, two paths share."""
    pairs = zip(reversed(first.split("/")), reversed(second.split("/")), strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count


def _hash(name: str) -> int:
    return hash(name) & ((1 << 64) - 1)


def _head(name: str) -> int:
    """The hash of a name in the upper bits, room for the number of a folder in the lower."""
    return _hash(name) >> _FOLDER_BITS << _FOLDER_BITS


def _sort(values: array[int]) -> None:
    """Sort in place: NumPy does it without a Python number for each, and is not worth loading for a few."""
    if len(values) < _FEW:
        values[:] = array("Q", sorted(values))
    else:
        import numpy as np

        np.frombuffer(values, np.uint64).sort()
