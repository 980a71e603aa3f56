"""`FolderSource`: the images of a folder, in natural order; scanning it, and labels from the names of class folders."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.converters.class_names import CLASSES, are_splits, class_labels, read_class_names_in
from facedata.converters.folder import NO_CLASS
from facedata.converters.image_files import LIST_ENDINGS, ImageFileSource
from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError, input_error, is_transient
from facedata.files import opened_regular, read_exactly
from facedata.images import IMAGE_EXTENSIONS, image_extension
from facedata.text import counted, listed, natural_sort, shared_prefix

__all__ = ["FolderSource", "accepts", "open_source", "recognises"]

_CHECKPOINT = 16
_BLOCK = 1 << 16
_ENCODING = sys.getfilesystemencoding()
_ENTRIES_TO_TRY, _FILES_TO_TRY, _FOLDERS_TO_TRY = 256, 16, 1024
_MOST_FOLDERS = 1 << 20  # of a class
_KINDS_SHOWN = 6
_LISTS_TO_TRY = 16
_SIGNATURE = 64
_OWN_FILES = frozenset({CLASSES, "failures.jsonl", "skipped.jsonl", "unused-landmarks.txt"})
"""Names of parts of a dataset, in lower case, which are not classes."""

_COMMON = (".jpg\0", ".png\0")  # how names end that are images without a further look
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
        The folders with images, relative to the root: class folders and those in them, or the root itself, "".
    class_labels : ndarray of shape (F,), int64
        The label of the images in each of these folders.
    runs, run_folders : ndarray of shape (R,), int64
        The images from position ``runs[i]`` on lie in the folder ``run_folders[i]``.
    names : bytes
        The file names, one after the other.
    lengths : ndarray of shape (N,), uint8
        The length of each name.
    facts : mapping
        The identity of the whole folder.
    single : bool
        Whether this is one image file, and not the folder that it lies in.
    """

    root: str
    folders: tuple[str, ...]
    class_labels: NDArray[np.int64]
    runs: NDArray[np.int64]
    run_folders: NDArray[np.int64]
    names: bytes | bytearray
    lengths: NDArray[np.uint8]
    facts: Mapping[str, Any]
    single: bool = False

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether there are class folders."""
        return bool((self.class_labels != UNLABELLED).any())

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, positions: NDArray[np.int64]) -> FolderSource:
        """The images at `positions`, with their folders and no others: a worker gets no more."""
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

    def entry(self, position: int) -> tuple[str, int]:
        """The key and the label of one image."""
        lengths, runs, checkpoints = self._opened
        checkpoint = position // _CHECKPOINT
        begin = checkpoints[checkpoint] + sum(lengths[checkpoint * _CHECKPOINT : position].tobytes())
        name = str(self.names[begin : begin + lengths[position]], _ENCODING, "surrogateescape")
        number = self.run_folders.item(bisect_right(runs, position) - 1)
        folder = self.folders[number]
        return f"{folder}/{name}" if folder else name, self.class_labels.item(number)

    @cached_property
    def _opened(self) -> tuple[memoryview, memoryview, memoryview]:
        """Lengths, runs and checkpoints for `entry`: a look at one number is faster than in an array."""
        return self.lengths.data, self.runs.data, self._checkpoints[1].data

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """Folder, file name and label of each image."""
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
        """The folder, or the one file."""
        return {self.locate(0)[0]: False} if self.single and len(self) else {self.root: not self.single}

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The label of each image's class folder."""
        for begin in range(0, len(self), _BLOCK):
            yield self.class_labels[self._folders_of(np.arange(begin, min(begin + _BLOCK, len(self))))]

    def class_names(self) -> Mapping[int, str] | None:
        """The names in ``classes.txt`` of the folder, or else the names of the class folders."""
        listed_names: Mapping[int, str] = read_class_names_in(self.root) or {}
        pairs = zip(self.class_labels.tolist(), self.folders, strict=True)
        names = {label: folder.partition("/")[0] for label, folder in pairs if label != UNLABELLED}
        return {label: listed_names.get(label, name) for label, name in names.items()} or None

    def declared_classes(self) -> int:
        """The largest label plus 1: only the class folders say how many classes there are."""
        return int(self.class_labels.max(initial=-1)) + 1


def open_source(path: str, *, labels: str | None = None) -> FolderSource:
    """Scan the folder at `path`, or take the one image file at `path`.

    Parameters
    ----------
    labels : str, optional
        ``"folders"``: each folder is a class, and its folders belong to it; ``"none"``: no image has a label, wherever
        it lies. Without it, a folder that holds images but no folders of images is unlabelled, and folders called
        train, val and so on are refused, since they are not classes.

    Raises
    ------
    InputError
        If a folder cannot be listed, or a link in it leads nowhere.
    EmptyDatasetError
        If there is no image.
    FormatError
        If two class folders have the same label, or the folders are splits of a dataset.
    """
    if os.path.isfile(path):
        return _single_image(path)
    listings = _list_run(path, [""], deep=False)
    _, loose, skipped, folders, lists = listings[0]
    folders = natural_sort(folders)
    differ_in_case = _different_in_case(folders, "")
    scan = _Scan()
    empty = []
    for folder in _list_folders(path, folders):
        found = len(scan.lengths)
        for name, files, counts, *_ in folder:
            skipped += counts
            differ_in_case += _different_in_case(files, f"{name}/")
            scan.add(name, files)
        if found == len(scan.lengths):
            empty.append(folder[0][0])
    unlabelled = labels == "none" or (labels is None and len(loose) > len(scan.lengths))
    if unlabelled:
        differ_in_case += _different_in_case(loose, "")
        scan.add("", loose)
    elif loose:
        _log.warning(
            "%s: skipped %s outside of the class folders: %s; --labels none takes all images, without labels",
            path,
            counted(len(loose), "image"),
            listed(loose),
        )
    _warn_of_skipped(path, skipped)
    if empty and not unlabelled:
        _log.warning("%s: no image in the class folders %s; they get no label", path, listed(empty))
    if differ_in_case:
        _log.warning(
            "%s: names that differ only in case: %s; they stay separate here, but a file system that ignores case "
            "takes them for the same",
            path,
            listed(differ_in_case),
        )
    if not scan.folders:
        what = f"folder with images, but {counted(len(loose), 'image')} outside of folders" if loose else "image"
        raise EmptyDatasetError(f"{path}: holds no {what}; expected images, or one folder of images for each class")
    if labels is None:
        _warn_of_lists(path, lists)
    classes = list(dict.fromkeys(folder.partition("/")[0] for folder in scan.folders))
    inner = {folder.split("/", 2)[1] for folder in scan.folders if "/" in folder}
    holder = len(classes) == 1 and len(inner) > 1 and classes[0] not in scan.folders
    if labels is None and not unlabelled and (holder or are_splits(classes)):
        what = "which looks like a folder of class folders" if holder else "not a class, but a part of a dataset"
        what = what if len(classes) == 1 else "not classes, but parts of a dataset"
        raise FormatError(
            f"{path}: holds {listed(classes, 9)}, {what}; name {'it' if holder else 'the parts that you want'} "
            f"({' '.join(os.path.join(path, name) for name in classes[:3])}), or take each as a class with --labels "
            "folders"
        )
    named = [] if unlabelled else [name for name in classes if name != NO_CLASS]
    numbers = dict(zip(named, class_labels(named, path).tolist(), strict=True))
    source = scan.source(path, {name: numbers.get(name, UNLABELLED) for name in classes})
    count = counted(len(source), "image")
    if source.labelled:
        deeper = " and the folders in them" if len(scan.folders) > len(classes) else ""
        _log.info("%s: %s in %s%s", path, count, counted(len(named), "class folder"), deeper)
    elif labels is None:
        mixed = len(loose) < len(source)
        where = "most of them outside of folders (--labels folders takes the others)" if mixed else "no class folders"
        _log.info("%s: %s, %s: unlabelled", path, count, where)
    return source


class _Scan:
    """What a scan has found so far: the folders with images, and the names of the images."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.firsts: list[int] = []
        self.names, self.lengths = bytearray(), bytearray()

    def add(self, folder: str, files: Sequence[str]) -> None:
        if files:
            self.folders.append(folder)
            self.firsts.append(len(self.lengths))
            text = "".join(files)
            self.names += os.fsencode(text)
            plain = text.isascii()  # one byte a letter
            self.lengths += bytes(map(len, files if plain else map(os.fsencode, files)))

    def source(self, root: str, labels: Mapping[str, int]) -> FolderSource:
        """The source; `labels` has the label of each class, which is the first part of a folder's path."""
        numbers = np.array([labels[folder.partition("/")[0]] for folder in self.folders], np.int64)
        firsts = np.array(self.firsts, np.int64)
        lengths = np.frombuffer(self.lengths, np.uint8)
        source = FolderSource(
            root, tuple(self.folders), numbers, firsts, np.arange(len(firsts)), self.names, lengths, {}
        )
        digest = hashlib.blake2b(b"".join(os.fsencode(folder) + b"\0" for folder in self.folders), digest_size=16)
        for data in (self.lengths, self.names, numbers.data, firsts.data):
            digest.update(data)
        totals = {"images": len(source), "classes": len(set(labels.values()) - {UNLABELLED})}
        return replace(source, facts={"folder": {**totals, "names": digest.hexdigest(), "content": source.content()}})


def _single_image(path: str) -> FolderSource:
    """The source of one image file."""
    if not _is_image(path):
        raise FormatError(f"{path}: is neither a folder of images nor an image")
    scan = _Scan()
    scan.add("", [os.path.basename(path)])
    return replace(scan.source(os.path.dirname(path) or ".", {"": UNLABELLED}), single=True)


def _warn_of_skipped(root: str, skipped: Counter[str]) -> None:
    """Say what in a folder is not taken, by kind."""
    hidden = skipped.pop("", 0)
    if hidden:
        _log.info("%s: skipped %s", root, counted(hidden, "hidden entry", "hidden entries"))
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common(_KINDS_SHOWN))
        others = f" and {len(skipped) - _KINDS_SHOWN} other kinds" if len(skipped) > _KINDS_SHOWN else ""
        count = counted(skipped.total(), "file that is not an image", "files that are not images")
        _log.warning("%s: skipped %s: %s%s", root, count, kinds, others)


def _warn_of_lists(root: str, names: Sequence[str]) -> None:
    """Name the lists in a folder that give labels which its class folders do not."""
    from facedata.converters.list_files import first_rows

    found = []
    for path in (os.path.join(root, name) for name in natural_sort(names)):
        labels: dict[str, str] = {}
        rows = [(key, label) for key, label in first_rows(path) if label is not None]
        differ = any(labels.setdefault(key[: key.find("/") + 1], label) != label for key, label in rows)
        if differ and os.path.lexists(os.path.join(root, rows[0][0])):
            found.append(path)
    if found:
        _log.warning("%s: %s may have its labels; to take them, name list:%s", root, listed(found), found[0])


def recognises(path: str) -> bool:
    """Whether `path` is a folder with folders that hold an image, a few levels deep."""
    folders, tried = _images_and_folders(path)[1], 0
    while folders and tried < _FOLDERS_TO_TRY:
        inner = []
        for folder in folders[: _FOLDERS_TO_TRY - tried]:
            image, found = _images_and_folders(folder)
            if image:
                return True
            inner += found
            tried += 1
        folders = inner
    return False


def accepts(path: str) -> bool:
    """Whether `path` is an image, or a folder of images without class folders."""
    return _images_and_folders(path)[0] if os.path.isdir(path) else _is_image(path)


def _images_and_folders(root: str) -> tuple[bool, list[str]]:
    """Whether one of the first entries of a folder is an image, and the folders among them."""
    image, folders, tried = False, [], 0
    with suppress(OSError), os.scandir(root) as entries:
        for entry in islice(entries, _ENTRIES_TO_TRY):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif not image and _has_image_name(entry.name):
                image = True
            elif not image and tried < _FILES_TO_TRY:
                image, tried = _is_image(entry.path), tried + 1
    return image, folders


def _has_image_name(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _is_image(path: str) -> bool:
    """Whether a file begins like an image."""
    try:
        with opened_regular(path) as descriptor:
            return image_extension(read_exactly(descriptor, _SIGNATURE, 0)) is not None
    except InputError as error:
        if is_transient(error):
            raise
        return False


class _Listed(NamedTuple):
    """A folder, its images in natural order, what else is in it by kind, its folders, and what may be lists."""

    folder: str
    images: list[str]
    skipped: Counter[str]
    folders: list[str]
    lists: list[str]


def _list_folders(root: str, folders: Sequence[str]) -> Iterator[list[_Listed]]:
    """List class folders in order; in threads if the file system is slow, which the first folders show."""
    runs = [folders[first : first + _FOLDERS_AT_ONCE] for first in range(0, len(folders), _FOLDERS_AT_ONCE)]

    def list_run(run: Sequence[str]) -> list[list[_Listed]]:
        return [_list_run(root, [folder]) for folder in run]

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


def _list_run(root: str, folders: Sequence[str], *, deep: bool = True) -> list[_Listed]:
    """List a folder, and the folders in it, each after the one that holds it, in natural order."""
    listings: list[_Listed] = []
    waiting = list(folders)
    while waiting:
        listing = _list_folder(root, waiting.pop())
        listings.append(listing)
        if len(listings) > _MOST_FOLDERS:
            raise FormatError(
                f"{os.path.join(root, folders[0])}: holds more than {_MOST_FOLDERS:,} folders; is it a loop?"
            )
        if deep:
            waiting += [f"{listing.folder}/{name}" for name in reversed(natural_sort(listing.folders))]
    return listings


def _list_folder(root: str, folder: str) -> _Listed:
    names: list[str] = []
    folders: list[str] = []
    lists: list[str] = []
    skipped = Counter[str]()
    path = os.path.join(root, folder) if folder else root
    try:
        others: list[os.DirEntry[str]] = []
        set_aside: Callable[[os.DirEntry[str]], object] = others.append
        with os.scandir(path) as entries:  # the loop over millions of files: nothing else is done in it
            files = [entry.name for entry in entries if entry.is_file() or set_aside(entry)]
        for entry in others:
            name = entry.name
            if name.startswith(".") and entry.is_dir() and _images_and_folders(entry.path)[0]:
                _log.warning("%s: hidden folder, whose images are not read; rename it if they belong here", entry.path)
            if name.startswith(".") or not entry.is_dir():
                image = name.startswith(".") or _has_image_name(name)
                if entry.is_symlink() and not image and not os.path.exists(entry.path):
                    target = os.readlink(entry.path)
                    raise InputNotFoundError(f"{entry.path}: is a link to {target}, which does not exist")
                files.append(name)  # a named pipe or a broken link like an image: it fails by name when it is read
                continue
            if entry.is_symlink():
                _refuse_loop(root, folder, entry.path)
            folders.append(name)
    except OSError as error:
        raise error if isinstance(error, InputError) else input_error(error, path) from error
    text = "\0".join(files) + "\0" * bool(files)
    if sum(map(text.count, _COMMON)) == len(files) and "\0." not in text and not text.startswith("."):
        names = files
    else:
        for name in files:
            if name.startswith("."):
                skipped[""] += not name.startswith(".facedata-")
            elif _has_image_name(name) or _is_image(os.path.join(path, name)):
                names.append(name)
            elif folder or name not in _OWN_FILES:
                extension = os.path.splitext(name)[1].lower()
                skipped[extension or "without an extension"] += 1
                if extension in LIST_ENDINGS and len(lists) < _LISTS_TO_TRY:
                    lists.append(name)
    return _Listed(folder, natural_sort(names), skipped, folders, lists)


def _refuse_loop(root: str, folder: str, link: str) -> None:
    """Raise if a link leads to a folder that it lies in."""
    target, parts = os.path.realpath(link), folder.split("/")
    above = (os.path.join(root, *parts[:count]) for count in range(len(parts) + 1))
    if target in map(os.path.realpath, above):
        raise FormatError(f"{link}: is a link to {target}, in which it lies itself: a loop; remove the link")


def _different_in_case(names: Sequence[str], before: str) -> list[str]:
    """The pairs of names that differ only in case; `before` is shown before the first."""
    if len(names) < 2:
        return []
    prefix = names[0][: shared_prefix(min(names), max(names))]
    text = "/".join(names).replace(prefix, "")
    if text == text.lower() or len(set(map(str.lower, names))) == len(names):  # the first is much faster
        return []
    seen: dict[str, str] = {}
    firsts = ((seen.setdefault(name.lower(), name), name) for name in names)
    return [f"{before}{first}, {name}" for first, name in firsts if first != name]
