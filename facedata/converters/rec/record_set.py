"""Opening record sets: finding the files, reading or rebuilding the index, checking both, and finding the dialect."""

from __future__ import annotations

import logging
import math
import os
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.recordio import (
    ADVICE,
    INSIGHTFACE,
    LARGEST_LABEL,
    PLAIN,
    ImageRecord,
    RecordIndex,
    RecordReader,
    damage_mark,
    in_key_order,
    read_index,
    unpack_image_record,
    write_index,
)
from facedata.converters.rec.source import RecSource
from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    InputError,
    InputNotFoundError,
    InputPermissionError,
    OutputExistsError,
    input_error,
)
from facedata.files import file_identity, is_file, kind_name, remove_stale_temporaries

__all__ = [
    "IndexSummary",
    "RecordFiles",
    "check_offsets",
    "find_dialect",
    "find_record_files",
    "float32_error",
    "index_records",
    "open_record_set",
]

Progress = Callable[[int, int], None]

_LARGEST_KEY = 1 << 40
_CACHE_HEADER = 1 << 12
_LAST_KEYS = 16  # in a damaged set, not each of the last records need be readable
_MORE_ADVICE = f"{ADVICE}; if records are missing too, --salvage reads the others"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordFiles:
    """The files of a record set; `index` and `property` are None if there is no such file."""

    records: str
    index: str | None
    property: str | None


def find_record_files(path: str | os.PathLike[str]) -> RecordFiles:
    """Find ``train.rec`` (or the only ``.rec``) of a folder, or the files of a ``.rec``; else raise `InputError`."""
    records = os.fspath(path)
    try:
        if os.path.isdir(records):
            names = sorted(name for name in os.listdir(records) if name.endswith(".rec"))
            if not names:
                message = "no .rec file in this folder; expected train.rec, with train.idx beside it"
                raise InputNotFoundError(f"{records}: {message}")
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
    has_index, has_property = os.path.lexists(index), is_file(declared)
    return RecordFiles(records, index if has_index else None, declared if has_property else None)


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
            index = _load_cached(cache, int(identity["size"]))
        else:
            from facedata.converters.rec.walk import walk_records

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
    facts = {"dialect": dialect, "records": len(index), "index": images.digest()}
    rebuilt = None if cache is None else (cache, index)
    classes = _declared_classes(files.property) or classes
    return RecSource(files.records, images, identity, facts, classes, trusted, rebuilt)


def _load_cached(path: Path, size: int) -> RecordIndex:
    """The rebuilt index of an earlier run, for a record file of `size` bytes."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            # an entry of an array has 8 bytes and its record no fewer, but a crafted file may unpack to any size
            if any(member.file_size > size + _CACHE_HEADER for member in arrays.zip.infolist()):
                raise ValueError(path)
            keys, offsets = arrays["keys"], arrays["offsets"]
            whole = keys.dtype == offsets.dtype == np.int64 and keys.ndim == 1 and keys.shape == offsets.shape
    except (OSError, ValueError, KeyError, EOFError, MemoryError, BadZipFile):
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


def check_offsets(reader: RecordReader, index: RecordIndex, place: str) -> None:
    """Check that every offset is inside the file, none occurs twice, and nothing follows the last record.

    Otherwise raises `FormatError`, which names the index file `place`.
    """
    offsets, size = index.offsets, reader.size
    outside = np.flatnonzero(offsets >= size)
    if len(outside):
        key = index.keys[int(outside[0])]
        raise FormatError(
            f"{place}: {len(outside)} of {len(offsets)} entries point past the end of {reader.path} ({size} bytes), "
            f"the first with key {key}, offset {offsets[outside[0]]}: the record file is truncated, or the index "
            "belongs to another file. Fetch it again, or give --salvage to read the rest"
        )
    if bool((offsets[2:] > offsets[1:-1]).all()) and offsets[0] not in offsets[-1:]:
        ascending = offsets[1:]  # only key 0 may lie anywhere else, in nearly every set
        at = int(np.searchsorted(ascending, offsets[0]))
        twice = at < len(ascending) and ascending[at] == offsets[0]
    else:
        ordered = np.sort(offsets)
        twice = bool((ordered[1:] == ordered[:-1]).any())
    if twice:
        raise FormatError(f"{place}: two keys have the same offset, so an image is missing; {ADVICE}")
    last = int(offsets.argmax())
    offset = int(offsets[last])
    try:
        _, end = reader.read(offset)
    except FormatError as error:
        raise FormatError(
            f"{reader.path}: its last record (key {index.keys[last]}, byte {offset}) cannot be read: {error}. Is the "
            f"file or the index truncated? Fetch them again, or give --salvage to read what can be read; {ADVICE}"
        ) from error
    if end < size:
        raise FormatError(
            f"{place}: lists {len(index)} records, the last of which ends at byte {end}, but {reader.path} has "
            f"{size - end} bytes more: the index is truncated or belongs to another file; {ADVICE}"
        )


def find_dialect(
    reader: RecordReader, index: RecordIndex, place: str, *, salvage: bool
) -> tuple[str, RecordIndex, int | None]:
    """Find the dialect, the index of the images alone, and the number of classes if identity records give it.

    With `salvage` the file may be damaged. Raises `FormatError` if the meta record contradicts the index.
    """
    meta = _record(reader, index, 0)
    last = int(index.keys[-1])
    if meta is None:
        if not any(_is_identity(reader, index, int(key)) for key in index.keys[-_LAST_KEYS:]):
            return PLAIN, index, None
        _log.warning("%s: the meta record, key 0, is missing or corrupt; searching for identities", place)
        identities = _search_identities(reader, index)
    elif meta.image or meta.flag < 2:
        return PLAIN, index, None
    elif meta.labels[0] == last + 1 and not _is_identity(reader, index, last):
        identities = len(index)  # images alone, and a meta record that says so
    elif salvage:
        identities = _search_identities(reader, index)
    else:
        identities = _announced_identities(reader, index, place, *meta.labels[:2])
    first = int(index.keys[0] == 0)
    # in a damaged file, images may follow the place that bisection found
    later = range(identities, len(index)) if salvage else ()
    late = [at for at in later if not _is_identity(reader, index, int(index.keys[at]))]
    if not late:
        return INSIGHTFACE, index[first:identities], (len(index) - identities) or None
    kept = np.concatenate([np.arange(first, identities), late])
    keys: NDArray[np.int64] = np.asarray(index.keys, np.int64)
    return INSIGHTFACE, RecordIndex(keys[kept], index.offsets[kept]), None


def _search_identities(reader: RecordReader, index: RecordIndex) -> int:
    """Bisect to the first identity record, if the meta record is unreliable: they have the last keys."""
    places = range(len(index))
    return bisect_left(places, True, key=lambda at: bool(_is_identity(reader, index, int(index.keys[at]))))


def _announced_identities(reader: RecordReader, index: RecordIndex, place: str, first: float, end: float) -> int:
    """The place of the first identity record, which the meta record gives in float32: above 2**24 it may be off."""
    if not (math.isfinite(first) and math.isfinite(end) and 1 <= first <= end <= _LARGEST_KEY):
        raise FormatError(
            f"{reader.path}: key 0 is a meta record that says identity records have the keys {first:g} to {end:g}, "
            "which is impossible; the file is corrupt or of an unknown dialect"
        )
    first, end, keys = int(first), int(end), index.keys
    if abs(len(keys) - end) > float32_error(end):
        raise FormatError(
            f"{place}: has {len(keys)} records, but its meta record counts {end} ({first - 1} images, "
            f"{end - first} people and itself): lines are missing or too many; {_MORE_ADVICE}"
        )
    if not isinstance(keys, range):
        missing = int(keys[int(np.flatnonzero(np.diff(keys) > 1)[0])]) + 1
        raise FormatError(f"{place}: key {missing} is missing, although the meta record counts it; {_MORE_ADVICE}")
    slack = float32_error(first)
    candidates = sorted(range(first - slack, first + slack + 1), key=lambda key: abs(key - first))
    for unknown in (set(), {None}):  # a corrupt record at the boundary decides nothing
        for key in candidates:
            before, after = _is_identity(reader, index, key - 1), _is_identity(reader, index, key)
            if before in {False, *unknown} and after in {True, *unknown}:
                return keys.index(key)
    raise FormatError(
        f"{reader.path}: its meta record says that identity records begin at key {first}, but the records around that "
        f"key do not: the index belongs to another file or is corrupt; {ADVICE}"
    )


def _is_identity(reader: RecordReader, index: RecordIndex, key: int) -> bool | None:
    """Whether `key` is an identity record; None if it is the meta record or cannot be read."""
    record = _record(reader, index, key) if key != 0 else None
    return None if record is None else record.flag >= 2 and not record.image


def _record(reader: RecordReader, index: RecordIndex, key: int) -> ImageRecord | None:
    at = index.position(key)
    try:
        return None if at is None else unpack_image_record(reader.read(int(index.offsets[at]))[0])
    except FormatError:
        return None


def float32_error(value: int) -> int:
    """By how much a count may be off after it was stored as float32."""
    return 0 if value < 1 << 24 else int(np.spacing(np.float32(value)) / 2) or 1


@dataclass(frozen=True)
class IndexSummary:
    """The index file that was written, its lines, the damaged places skipped, and whether it replaced another one.

    If `up_to_date`, the index was right already, and nothing was written.
    """

    index: str
    records: int
    damaged: int
    replaced: bool
    up_to_date: bool = False


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
    overwrite, dry_run : bool
        Replace an existing index; walk through the file, but write nothing.
    salvage : bool
        Skip damage; each damaged place gets a line too, so that reading it fails by name.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    OutputExistsError
        If there is an index that does not list the same records, and `overwrite` is not given.
    FormatError
        If the record file is damaged and `salvage` is not given.
    InputUnfinishedError
        If the records belong to a job that has not finished.
    """
    from facedata.converters.rec.walk import walk_records
    from facedata.jobs.journal import refuse_unfinished

    refuse_unfinished(path)
    files = find_record_files(path)
    target = files.index or files.records.removesuffix(".rec") + ".idx"
    walked = walk_records(files.records, salvage=salvage, progress=progress)
    index = walked.index(files.records)
    if len(index) == 0:
        raise EmptyDatasetError(f"{files.records}: is empty (0 records)")
    offsets = np.where(index.offsets < 0, damage_mark(index.offsets), index.offsets)
    if files.index is not None and not overwrite:
        there = np.empty(0, np.int64)
        with suppress(FormatError):  # other keys are as good: a shuffled set keeps old ones in its records
            there = np.sort(read_index(target).offsets)
        if not np.array_equal(there, np.sort(offsets)):
            raise OutputExistsError(
                f"{target}: already exists, but does not list the {len(index):,} records of {files.records}; give "
                "--overwrite to replace it"
            )
        return IndexSummary(target, len(index), walked.damaged, replaced=False, up_to_date=True)
    if not dry_run:
        remove_stale_temporaries(os.path.dirname(target) or ".")
        in_file_order = offsets.argsort(kind="stable")
        write_index(target, index.take(in_file_order).keys, offsets[in_file_order])
    return IndexSummary(target, len(index), walked.damaged, files.index is not None)
