"""Opening a record set: finding its files, telling its dialect from its content, checking that it hangs together."""

from __future__ import annotations

import logging
import math
import os
import stat
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.index import MEND, RecordIndex, read_index
from facedata.converters.rec.recordio import LARGEST_LABEL, ImageRecord, RecordReader, unpack_image_record
from facedata.converters.rec.source import RecSource
from facedata.converters.rec.walk import walk_records
from facedata.dataset import Source, WrappedSource
from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    InputNotFoundError,
    InputPermissionError,
    input_error,
    output_error,
)
from facedata.files import atomic_writer, file_identity

__all__ = [
    "INSIGHTFACE",
    "PLAIN",
    "OpenOptions",
    "RebuiltSource",
    "RecordFiles",
    "RecordSet",
    "find_record_files",
    "open_record_set",
]

INSIGHTFACE = "insightface"
PLAIN = "plain"
_LARGEST_KEY = 1 << 40
_LAST_KEYS = 16  # in a damaged set not each of the last records need be readable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordFiles:
    """The files of a record set; `index` is None where there is none, `property` likewise."""

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
        Take what can be read of a damaged file, whatever its index says: walk through it from record to record; its
        damaged places become samples that fail by name.
    rebuild_index : bool
        Walk through the records even where there is an index file.
    cache_folder : path, optional
        Where rebuilt indexes of earlier runs may lie.
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
        How many classes it declares, in its ``property`` file or its meta record.
    rebuilt : RecordIndex, optional
        The index of all records, where it was rebuilt.
    rebuilt_name : str
        The file name under which it is kept beside a job.
    """

    files: RecordFiles
    dialect: str
    source: RecSource
    classes: int | None
    rebuilt: RecordIndex | None
    rebuilt_name: str

    def save_rebuilt(self, folder: Path) -> None:
        """Keep a rebuilt index in `folder`, for later runs."""
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
    """Find ``train.rec`` (or the only ``.rec``) of a set folder, or take the path of a ``.rec`` itself.

    Raises
    ------
    InputError
        Where there is nothing, no ``.rec``, more than one to choose from, or no permission to look.
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
    _check_regular(records)
    if not os.access(records, os.R_OK):
        raise InputPermissionError(f"{records}: no permission to read it; check its mode and owner")
    folder = os.path.dirname(records)
    index, declared = records.removesuffix(".rec") + ".idx", os.path.join(folder, "property")
    if os.path.lexists(index):
        _check_regular(index)
    return RecordFiles(
        folder,
        records,
        index if os.path.lexists(index) else None,
        declared if os.path.isfile(declared) else None,
    )


def _check_regular(path: str) -> None:
    """Refuse what is no regular file: reading a pipe or a device could wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise input_error(error, path) from error
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path}: is no regular file")


def open_record_set(path: str | os.PathLike[str], options: OpenOptions | None = None) -> RecordSet:
    """Open the record set at `path`.

    Raises
    ------
    InputError
        Where files are missing or cannot be read.
    EmptyDatasetError
        Where there is no image in it.
    FormatError
        Where index and records contradict each other.
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
        raise EmptyDatasetError(f"{files.index or files.records}: lists no record; {MEND}")
    with RecordReader(files.records) as reader:
        checks = _Checks(files, index, reader, options.salvage)
        if trusted is not None:
            checks.offsets_fit()
        dialect, images, classes = checks.dialect()
    if len(images) == 0:
        raise EmptyDatasetError(f"{files.records}: holds no image, only meta and identity records")
    told = {"dialect": dialect, "records": len(index), "index": images.digest()}
    declared = _declared_classes(files) or classes
    source = RecSource(files.records, images, identity, told, declared, trusted)
    return RecordSet(files, dialect, source, declared, index if trusted is None else None, rebuilt_name)


def _rebuilt_index(files: RecordFiles, name: str, options: OpenOptions) -> RecordIndex:
    if options.cache_folder is not None:
        cached = options.cache_folder / name
        if os.path.exists(cached):
            return _load_cached(cached)
    _log.info("%s: finding the records by walking through the file", files.records)
    walked = walk_records(files.records, salvage=options.salvage, progress=options.progress)
    if walked.damaged:
        _log.warning("%s: passed over %d damaged places", files.records, walked.damaged)
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
            f"{path}: this rebuilt index of an earlier run is damaged; remove it, and it is rebuilt again"
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
        _log.warning("%s: its first line is not num_classes,height,width; it is not used", files.property)
        return None
    return int(first)


class _Checks:
    """Finds out what an index and its records are, and whether they fit together."""

    def __init__(self, files: RecordFiles, index: RecordIndex, reader: RecordReader, salvage: bool) -> None:
        self._files, self._index, self._reader, self._salvage = files, index, reader, salvage
        self._where = files.index or files.records
        self._mend = f"{MEND}; if records are missing too, --salvage takes those that are there"

    def offsets_fit(self) -> None:
        """Every offset inside the file, none twice, and nothing behind the last record."""
        offsets, size = self._index.offsets, self._reader.size
        outside = np.flatnonzero(offsets >= size)
        if len(outside):
            key = self._index.keys[int(outside[0])]
            raise FormatError(
                f"{self._files.index}: {len(outside)} of {len(offsets)} entries point past the end of "
                f"{self._files.records} ({size} bytes), the first with key {key}, offset {offsets[outside[0]]}: the "
                "record file was cut, or the index belongs to another. Fetch it again, or give --salvage to take what "
                "can be read"
            )
        self._none_twice()
        self._last_record_ends_the_file(int(offsets.argmax()))

    def _none_twice(self) -> None:
        offsets = self._index.offsets
        if bool((offsets[2:] > offsets[1:-1]).all()) and offsets[0] not in offsets[-1:]:
            ascending = offsets[1:]  # only key 0 may lie anywhere else: so it is in nearly every set
            place = int(np.searchsorted(ascending, offsets[0]))
            twice = place < len(ascending) and ascending[place] == offsets[0]
        else:
            ordered = np.sort(offsets)
            twice = bool((ordered[1:] == ordered[:-1]).any())
        if twice:
            raise FormatError(f"{self._files.index}: two keys have the same offset, so an image is missing; {MEND}")

    def _last_record_ends_the_file(self, last: int) -> None:
        key, offset = self._index.keys[last], int(self._index.offsets[last])
        try:
            _, end = self._reader.read(offset)
        except FormatError as error:
            raise FormatError(
                f"{self._files.records}: its last record (key {key}, byte {offset}) is not whole: {error}. Was the "
                f"file or the index cut? Fetch them again, or: --salvage takes what can be read; {MEND}"
            ) from error
        if end < self._reader.size:
            raise FormatError(
                f"{self._files.index}: lists {len(self._index)} records, the last of which ends at byte {end}, but "
                f"{self._files.records} has {self._reader.size - end} bytes more: the index was cut or belongs to "
                f"another file; {MEND}"
            )

    def dialect(self) -> tuple[str, RecordIndex, int | None]:
        """The dialect, the index of the images alone, and the classes that identity records stand for."""
        meta = self._record(0)
        if meta is not None and (meta.image or meta.flag < 2):
            return PLAIN, self._index, None
        place = self._identities_begin(meta)
        if place is None:
            return PLAIN, self._index, None
        first = int(self._index.keys[0] == 0)
        late = self._images_behind(place) if self._salvage else []
        if not late:
            return INSIGHTFACE, self._index[first:place], (len(self._index) - place) or None
        kept = np.concatenate([np.arange(first, place), late])
        keys: NDArray[np.int64] = np.asarray(self._index.keys, np.int64)
        return INSIGHTFACE, RecordIndex(keys[kept], self._index.offsets[kept]), None

    def _identities_begin(self, meta: ImageRecord | None) -> int | None:
        """The place of the first identity record in the index; its length where a meta record stands alone."""
        last = int(self._index.keys[-1])
        if meta is None:
            if not any(self._is_identity(int(key)) for key in self._index.keys[-_LAST_KEYS:]):
                return None
            _log.warning("%s: the meta record, key 0, is missing or damaged; searching for the people", self._where)
            return self._search_identities()
        if meta.labels[0] == last + 1 and not self._is_identity(
            last
        ):  # images alone; some builders then put anything behind
            return len(self._index)
        if self._salvage:
            return self._search_identities()
        announced, end = self._announced(meta)
        self._counts_agree(announced, end)
        return self._index.keys.index(self._confirmed_identity(announced))  # type: ignore[union-attr]

    def _images_behind(self, place: int) -> list[int]:
        """Places of records that are no identity records, though bisection found these to begin at `place`."""
        keys = self._index.keys
        return [late for late in range(place, len(keys)) if not self._is_identity(int(keys[late]))]

    def _announced(self, meta: ImageRecord) -> tuple[int, int]:
        """The first identity key and the key behind the last one, as the meta record has them."""
        first, end = meta.labels[:2]
        if not (math.isfinite(first) and math.isfinite(end) and 1 <= first <= end <= _LARGEST_KEY):
            raise FormatError(
                f"{self._files.records}: key 0 is a meta record that says identity records have the keys {first:g} to "
                f"{end:g}, which cannot be; the file is damaged or of a dialect that is not known"
            )
        return int(first), int(end)

    def _search_identities(self) -> int:
        """Bisect to the first identity record, where the meta record cannot be relied on: they have the last keys."""
        keys = self._index.keys
        return bisect_left(range(len(keys)), True, key=lambda place: bool(self._is_identity(int(keys[place]))))

    def _counts_agree(self, first: int, end: int) -> None:
        keys = self._index.keys
        if abs(len(keys) - end) > _rounding(end):
            raise FormatError(
                f"{self._where}: has {len(keys)} records, but its meta record counts {end} ({first - 1} images, "
                f"{end - first} people and itself): lines are missing or too many; {self._mend}"
            )
        if not isinstance(keys, range):
            missing = int(keys[int(np.flatnonzero(np.diff(keys) > 1)[0])]) + 1
            raise FormatError(
                f"{self._where}: key {missing} is missing, though the meta record counts it; {self._mend}"
            )

    def _confirmed_identity(self, announced: int) -> int:
        """The key of the first identity record. The meta record says it in float32, so above 2**24 it may be off."""
        slack = _rounding(announced)
        candidates = sorted(range(announced - slack, announced + slack + 1), key=lambda key: abs(key - announced))
        for unknown in (set(), {None}):  # a damaged record at the boundary speaks neither for nor against it
            for key in candidates:
                before, after = self._is_identity(key - 1), self._is_identity(key)
                if before in {False, *unknown} and after in {True, *unknown}:
                    return key
        raise FormatError(
            f"{self._files.records}: its meta record says that identity records begin at key {announced}, but the "
            f"records around that key say otherwise: the index belongs to another file or is damaged; {MEND}"
        )

    def _is_identity(self, key: int) -> bool | None:
        """Whether `key` is an identity record; None where it is the meta record or cannot be read."""
        record = self._record(key) if key != 0 else None
        return None if record is None else record.flag >= 2 and not record.image

    def _record(self, key: int) -> ImageRecord | None:
        place = self._index.position(key)
        if place is None:
            return None
        try:
            return unpack_image_record(self._reader.read(int(self._index.offsets[place]))[0])
        except FormatError:
            return None


def _rounding(value: int) -> int:
    """By how much a count may be off after it was kept in float32."""
    return 0 if value < 1 << 24 else int(np.spacing(np.float32(value)) / 2) or 1
