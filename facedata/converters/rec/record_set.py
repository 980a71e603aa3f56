"""Opening record sets: finding the files, reading or rebuilding the index, checking both; writing a missing index."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from facedata.converters.rec.dialect import check_offsets, find_dialect
from facedata.converters.rec.index import ADVICE, RecordIndex, damage_mark, in_key_order, read_index, write_index
from facedata.converters.rec.recordio import LARGEST_LABEL, RecordReader
from facedata.converters.rec.source import RecSource
from facedata.converters.rec.walk import walk_records
from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    InputError,
    InputNotFoundError,
    InputPermissionError,
    OutputExistsError,
    input_error,
)
from facedata.files import file_identity, kind_name

__all__ = ["IndexSummary", "RecordFiles", "find_record_files", "index_records", "open_record_set"]

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordFiles:
    """The files of a record set; `index` and `property` are None if there is no such file."""

    records: str
    index: str | None
    property: str | None


def find_record_files(path: str | os.PathLike[str]) -> RecordFiles:
    """Find ``train.rec`` (or the only ``.rec``) of a set folder, or the files of a ``.rec``.

    Raises
    ------
    InputError
        If there is no ``.rec``, more than one to choose from, or no permission to look.
    """
    records = os.fspath(path)
    try:
        if os.path.isdir(records):
            names = sorted(name for name in os.listdir(records) if name.endswith(".rec"))
            if not names:
                raise InputNotFoundError(
                    f"{records}: no .rec file in this folder; expected train.rec, with train.idx beside it"
                )
            if len(names) > 1 and "train.rec" not in names:
                raise InputNotFoundError(
                    f"{records}: no train.rec, and {len(names)} other .rec files ({', '.join(names[:3])}): "
                    "name the one you mean"
                )
            records = os.path.join(records, "train.rec" if "train.rec" in names else names[0])
        index, declared = records.removesuffix(".rec") + ".idx", os.path.join(os.path.dirname(records), "property")
        for file in (records, index):  # reading a pipe or a device could wait forever
            if (file == records or os.path.lexists(file)) and not os.path.isfile(file):
                raise FormatError(f"{file}: is {kind_name(os.stat(file).st_mode)}, not a file")
    except InputError:
        raise
    except OSError as error:
        raise input_error(error, error.filename or records) from error
    if not records.endswith(".rec"):
        raise FormatError(f"{records}: is neither a set folder nor a .rec file")
    if not os.access(records, os.R_OK):
        raise InputPermissionError(f"{records}: no permission to read it; check its mode and owner")
    return RecordFiles(
        records,
        index if os.path.lexists(index) else None,
        declared if os.path.isfile(declared) else None,
    )


def open_record_set(
    path: str | os.PathLike[str],
    *,
    salvage: bool = False,
    rebuild_index: bool = False,
    cache_folder: Path | None = None,
    progress: Progress | None = None,
) -> RecSource:
    """Open the record set at `path`.

    Parameters
    ----------
    path : str or path
        A set folder or a ``.rec`` file.
    salvage : bool
        Read what can be read of a damaged file, whatever its index says: walk through it from record to record; its
        damaged places become samples that fail by name.
    rebuild_index : bool
        Walk through the records even if there is an index file.
    cache_folder : path, optional
        The folder that may hold rebuilt indexes of earlier runs, and in which `RecSource.save_cache` saves this one.
    progress : callable, optional
        Called with bytes done and bytes in all while an index is rebuilt.

    Returns
    -------
    RecSource
        Its images in key order.

    Raises
    ------
    InputError
        If files are missing or cannot be read.
    EmptyDatasetError
        If there is no image in it.
    FormatError
        If index and records contradict each other.
    """
    files = find_record_files(path)
    identity = file_identity(files.records)
    if identity["size"] == 0:
        raise EmptyDatasetError(f"{files.records}: is empty (0 bytes)")
    trusted = None if rebuild_index or salvage else files.index
    cache = None
    if trusted is not None:
        index = read_index(trusted)
    else:
        if cache_folder is not None:
            cache = cache_folder / f".facedata-index-{identity['digest']}{'-salvaged' if salvage else ''}.npz"
        if cache is not None and cache.exists():
            index = _load_cached(cache)
        else:
            _log.info("%s: finding the records by walking through the file", files.records)
            walked = walk_records(files.records, salvage=salvage, progress=progress)
            if walked.damaged:
                _log.warning("%s: skipped %d damaged places", files.records, walked.damaged)
            index = walked.index(files.records)
    if len(index) == 0:
        raise EmptyDatasetError(f"{files.index or files.records}: lists no record; {ADVICE}")
    with RecordReader(files.records) as reader:
        if trusted is not None:
            check_offsets(reader, index, trusted)
        dialect, images, classes = find_dialect(reader, index, files.index or files.records, salvage=salvage)
    if len(images) == 0:
        raise EmptyDatasetError(f"{files.records}: holds no image, only meta and identity records")
    return RecSource(
        files.records,
        images,
        identity,
        {"dialect": dialect, "records": len(index), "index": images.digest()},
        _declared_classes(files.property) or classes,
        trusted,
        None if cache is None else (cache, index),
    )


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
    return in_key_order(keys, offsets, str(path))


def _declared_classes(path: str | None) -> int | None:
    """The class count of the property file: ``num_classes,height,width`` on its first line."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            first = file.readline(200).split(b",")[0].strip()
    except OSError as error:
        raise input_error(error, path) from error
    if not first.isdigit() or not 0 < int(first) <= LARGEST_LABEL + 1:
        _log.warning("%s: its first line is not num_classes,height,width; the file is ignored", path)
        return None
    return int(first)


@dataclass(frozen=True)
class IndexSummary:
    """The result of writing an index.

    Attributes
    ----------
    index : str
        The index file.
    records, damaged : int
        Its lines, and the damaged places that were skipped.
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
    progress: Progress | None = None,
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
        write_index(target, index.take(in_file_order).keys, offsets[in_file_order])
    return IndexSummary(target, len(index), walked.damaged, files.index is not None)
