"""Opening a record set: finding its files, reading or rebuilding its index, checking both."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.dialect import SetChecker
from facedata.converters.rec.index import ADVICE, RecordIndex, damage_mark, read_index, write_index
from facedata.converters.rec.recordio import LARGEST_LABEL, RecordReader
from facedata.converters.rec.source import RecSource
from facedata.converters.rec.walk import walk_records
from facedata.dataset import Source, WrappedSource
from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    InputNotFoundError,
    InputPermissionError,
    OutputExistsError,
    input_error,
    output_error,
)
from facedata.files import atomic_writer, file_identity, kind_name

__all__ = [
    "IndexSummary",
    "OpenOptions",
    "RebuiltSource",
    "RecordFiles",
    "RecordSet",
    "find_record_files",
    "index_records",
    "open_record_set",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordFiles:
    """The files of a record set; `index` and `property` are None if there is no such file."""

    folder: str
    records: str
    index: str | None
    property: str | None


@dataclass(frozen=True)
class OpenOptions:
    """How to open record sets.

    Attributes
    ----------
    salvage : bool
        Read what can be read of a damaged file, whatever its index says: walk through it from record to record; its
        damaged places become samples that fail by name.
    rebuild_index : bool
        Walk through the records even if there is an index file.
    cache_folder : path, optional
        The folder that may hold rebuilt indexes of earlier runs.
    progress : callable, optional
        Called with bytes done and bytes in all while an index is rebuilt.
    """

    salvage: bool = False
    rebuild_index: bool = False
    cache_folder: Path | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class RecordSet:
    """One opened record set.

    Attributes
    ----------
    files : RecordFiles
    dialect : str
        ``"insightface"`` (with meta and identity records) or ``"plain"``.
    source : RecSource
        Its images in key order.
    classes : int or None
        The number of classes in its ``property`` file or its meta record.
    rebuilt : RecordIndex, optional
        The index of all records, if it was rebuilt.
    rebuilt_name : str
        The name of the file in which a job saves it.
    """

    files: RecordFiles
    dialect: str
    source: RecSource
    classes: int | None
    rebuilt: RecordIndex | None
    rebuilt_name: str

    def save_rebuilt(self, folder: Path) -> None:
        """Save a rebuilt index in `folder`, for later runs."""
        if self.rebuilt is None:
            return
        path = folder / self.rebuilt_name
        if not path.exists():
            try:
                with atomic_writer(path) as file:
                    np.savez(file, keys=np.asarray(self.rebuilt.keys, np.int64), offsets=self.rebuilt.offsets)
            except OSError as error:
                raise output_error(error, path) from error


class RebuiltSource(WrappedSource):
    """The images of a record set whose index was rebuilt, which is saved for later runs.

    Parameters
    ----------
    source : Source
    record_set : RecordSet
    folder : path
        Where the index is saved.
    """

    def __init__(self, source: Source, record_set: RecordSet, folder: Path) -> None:
        super().__init__(source)
        self._record_set, self._folder = record_set, folder

    def __getitem__(self, part: slice) -> Source:
        return self._source[part]  # workers get no index of the whole set

    def take(self, positions: NDArray[np.int64]) -> Source:
        """The images at `positions`."""
        return self._source.take(positions)

    def save_cache(self) -> None:
        """Save the index."""
        self._record_set.save_rebuilt(self._folder)


def find_record_files(path: str | os.PathLike[str]) -> RecordFiles:
    """Find ``train.rec`` (or the only ``.rec``) of a set folder, or the files of a ``.rec``.

    Raises
    ------
    InputError
        If there is no ``.rec``, more than one to choose from, or no permission to look.
    """
    path = os.fspath(path)
    try:
        if not os.path.isdir(path):
            os.stat(path)
            return _files_beside(path)
        names = sorted(name for name in os.listdir(path) if name.endswith(".rec"))
    except OSError as error:
        raise input_error(error, path) from error
    if "train.rec" in names:
        names = ["train.rec"]
    if not names:
        raise InputNotFoundError(f"{path}: no .rec file in this folder; expected train.rec, with train.idx beside it")
    if len(names) > 1:
        raise InputNotFoundError(
            f"{path}: no train.rec, and {len(names)} other .rec files ({', '.join(names[:3])}): name the one you mean"
        )
    return _files_beside(os.path.join(path, names[0]))


def _files_beside(records: str) -> RecordFiles:
    if not records.endswith(".rec"):
        raise FormatError(f"{records}: is neither a set folder nor a .rec file")
    index, declared = records.removesuffix(".rec") + ".idx", os.path.join(os.path.dirname(records), "property")
    for path in (records, index):  # reading a pipe or a device could wait forever
        if (path == records or os.path.lexists(path)) and not os.path.isfile(path):
            try:
                mode = os.stat(path).st_mode
            except OSError as error:
                raise input_error(error, path) from error
            raise FormatError(f"{path}: is {kind_name(mode)}, not a file")
    if not os.access(records, os.R_OK):
        raise InputPermissionError(f"{records}: no permission to read it; check its mode and owner")
    return RecordFiles(
        os.path.dirname(records),
        records,
        index if os.path.lexists(index) else None,
        declared if os.path.isfile(declared) else None,
    )


def open_record_set(path: str | os.PathLike[str], options: OpenOptions | None = None) -> RecordSet:
    """Open the record set at `path`.

    Raises
    ------
    InputError
        If files are missing or cannot be read.
    EmptyDatasetError
        If there is no image in it.
    FormatError
        If index and records contradict each other.
    """
    options = options or OpenOptions()
    files = find_record_files(path)
    identity = file_identity(files.records)
    if identity["size"] == 0:
        raise EmptyDatasetError(f"{files.records}: is empty (0 bytes)")
    rebuilt_name = f".facedata-index-{identity['digest']}{'-salvaged' if options.salvage else ''}.npz"
    trusted = None if options.rebuild_index or options.salvage else files.index
    index = _rebuilt_index(files, rebuilt_name, options) if trusted is None else read_index(trusted)
    if len(index) == 0:
        raise EmptyDatasetError(f"{files.index or files.records}: lists no record; {ADVICE}")
    with RecordReader(files.records) as reader:
        checker = SetChecker(reader, index, files.index, salvage=options.salvage)
        if trusted is not None:
            checker.check_offsets()
        dialect, images, classes = checker.dialect()
    if len(images) == 0:
        raise EmptyDatasetError(f"{files.records}: holds no image, only meta and identity records")
    facts = {"dialect": dialect, "records": len(index), "index": images.digest()}
    declared = _declared_classes(files) or classes
    source = RecSource(files.records, images, identity, facts, declared, trusted)
    return RecordSet(files, dialect, source, declared, index if trusted is None else None, rebuilt_name)


def _rebuilt_index(files: RecordFiles, name: str, options: OpenOptions) -> RecordIndex:
    if options.cache_folder is not None:
        cached = options.cache_folder / name
        if os.path.exists(cached):
            return _load_cached(cached)
    _log.info("%s: finding the records by walking through the file", files.records)
    walked = walk_records(files.records, salvage=options.salvage, progress=options.progress)
    if walked.damaged:
        _log.warning("%s: skipped %d damaged places", files.records, walked.damaged)
    return walked.index(files.records)


def _load_cached(path: Path) -> RecordIndex:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            keys, offsets = arrays["keys"], arrays["offsets"]
            whole = keys.dtype == offsets.dtype == np.int64 and keys.ndim == 1 and keys.shape == offsets.shape
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        whole = False
    if not whole:
        raise FormatError(
            f"{path}: this rebuilt index of an earlier run is corrupt; remove it, and run the command again"
        )
    if len(keys) and int(keys[-1]) - int(keys[0]) == len(keys) - 1:
        return RecordIndex(range(int(keys[0]), int(keys[-1]) + 1), offsets)
    return RecordIndex(keys, offsets)


def _declared_classes(files: RecordFiles) -> int | None:
    """The class count of the property file: ``num_classes,height,width`` on its first line."""
    if files.property is None:
        return None
    try:
        with open(files.property, "rb") as file:
            first = file.readline(200).split(b",")[0].strip()
    except OSError as error:
        raise input_error(error, files.property) from error
    if not first.isdigit() or not 0 < int(first) <= LARGEST_LABEL:
        _log.warning("%s: its first line is not num_classes,height,width; the file is ignored", files.property)
        return None
    return int(first)


@dataclass(frozen=True)
class IndexSummary:
    """The result of writing an index.

    Attributes
    ----------
    index : str
        The index file.
    records : int
        Its lines.
    damaged : int
        Damaged places that were skipped.
    replaced : bool
        Whether there was an index before.
    """

    index: str
    records: int
    damaged: int
    replaced: bool


def index_records(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    salvage: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Write the index beside a record file, in the order of the file.

    Parameters
    ----------
    path : str or path
        A set folder or a ``.rec`` file.
    overwrite : bool
        Replace an existing index.
    salvage : bool
        Skip damage; each damaged place gets a line too, so that reading it fails by name.
    dry_run : bool
        Walk through the file, but write nothing.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    OutputExistsError
        If there is an index and `overwrite` is not given.
    FormatError
        If the record file is damaged and `salvage` is not given.
    """
    files = find_record_files(path)
    target = files.index or files.records.removesuffix(".rec") + ".idx"
    if files.index is not None and not overwrite:
        raise OutputExistsError(f"{target}: already exists; give --overwrite to replace it")
    walked = walk_records(files.records, salvage=salvage, progress=progress)
    index = walked.index(files.records)
    if len(index) == 0:
        raise EmptyDatasetError(f"{files.records}: is empty (0 records)")
    if not dry_run:
        offsets = np.where(index.offsets < 0, damage_mark(index.offsets), index.offsets)
        in_file_order = offsets.argsort(kind="stable")
        first, keys = index.keys[0], index.keys
        ordered = (in_file_order + first) if isinstance(keys, range) else keys[in_file_order]
        write_index(target, ordered, offsets[in_file_order])
    return IndexSummary(target, len(index), walked.damaged, files.index is not None)
