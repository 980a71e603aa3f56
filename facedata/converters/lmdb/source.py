"""`LmdbSource`: the images of an LMDB database, in the order of its key-label file or of its keys."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LabelLines, read_label_lines
from facedata.converters.lmdb.database import DatabaseReader, Record, check_database
from facedata.converters.lmdb.datum import CAFFE, LARGEST_LABEL, Datum, parse_datum
from facedata.converters.lmdb.names import KV_SUFFIX, data_file, kv_beside, stem_of
from facedata.converters.lmdb.order import StoredOrder, stored_order
from facedata.dataset import Sample, Source
from facedata.errors import FormatError, SampleError, input_error
from facedata.files import file_identity

__all__ = ["LmdbSource", "open_source"]

_AT_A_TIME = 4096
_log = logging.getLogger(__name__)
_LOOKED_AT = 8


@dataclass(frozen=True)
class LmdbSource(Source):
    """The images of a database.

    Attributes
    ----------
    path : str
        The data file.
    order : LabelLines or StoredOrder
        The lines of the key-label file: which records there are, in which order and with which labels, whatever
        label a record itself has. Without such a file: all records in the order of their keys.
    file_identity : mapping
        Size and sampled digest of the data file.
    kv_identity : mapping, optional
        The same of the key-label file.
    records : int
        How many there are in the database.
    """

    path: str
    order: LabelLines | StoredOrder
    file_identity: Mapping[str, Any]
    kv_identity: Mapping[str, Any] | None
    records: int

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> LmdbSource:
        return replace(self, order=self.order[part])

    def take(self, positions: NDArray[np.int64]) -> LmdbSource:
        """The records at `positions`."""
        return replace(self, order=self.order.take(positions))

    def identity(self) -> Mapping[str, Any]:
        """Size and sampled digest of the data file and of the key-label file."""
        kv = None if self.kv_identity is None else dict(self.kv_identity)
        return {"database": dict(self.file_identity), "key-label file": kv}

    def locate(self, position: int) -> tuple[str, None]:
        """The data file; where a record lies in it is LMDB's own affair."""
        return self.path, None

    def places(self) -> Mapping[str, bool]:
        """The data file, and the key-label file."""
        kv = {self.order.path: True} if isinstance(self.order, LabelLines) else {}
        return {self.path: True, **kv}

    def keys(self) -> Iterator[str]:
        """The keys, of the key-label file or of the database."""
        if isinstance(self.order, LabelLines):
            return map(_as_text, map(os.fsencode, self.order.texts()))
        return (self._name(position, record) for position, record in enumerate(self._records(values=False)))

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels; without a key-label file every record is looked at."""
        if isinstance(self.order, LabelLines):
            for first in range(0, len(self), _AT_A_TIME):
                yield self.order.labels[first : first + _AT_A_TIME].astype(np.int64)
            return
        items = self.read()
        while block := list(islice(items, _AT_A_TIME)):
            yield np.array([item.label if isinstance(item, Sample) else -1 for item in block], np.int64)

    def size(self) -> int:
        """The part of the data file that these records are."""
        return int(self.file_identity["size"]) * len(self) // max(self.records, 1)

    def sizes(self) -> NDArray[np.int32]:
        """The bytes of each value, told without reading it; 0 where there is none."""
        return np.fromiter((record.size for record in self._records(values=False)), np.int32, len(self))

    def declared_classes(self) -> int | None:
        """As many as the key-label file has room for: its largest label, and 1."""
        return self.order.classes if isinstance(self.order, LabelLines) else None

    def read(self) -> Iterator[Sample | SampleError]:
        """Every image in order, or the error in its place.

        Raises
        ------
        InputError
            Where a file cannot be read any more.
        FormatError
            Where the key-label file was changed.
        """
        labels = self.order.labels.tolist() if isinstance(self.order, LabelLines) else repeat(None)
        for position, (record, label) in enumerate(zip(self._records(), labels, strict=False)):
            yield self._sample(position, record, label)

    def _sample(self, position: int, record: Record, label: int | None) -> Sample | SampleError:
        name = self._name(position, record)
        if record.value is None:
            return SampleError(self.path, name, record.problem)
        try:
            datum = parse_datum(record.value)
            return Sample(name, _own_label(datum) if label is None else label, datum.image, datum.landmarks)
        except FormatError as error:
            return SampleError(self.path, name, str(error))

    def _name(self, position: int, record: Record) -> str:
        return f"(record {position})" if record.key is None else _as_text(record.key)

    def _records(self, *, values: bool = True) -> Iterator[Record]:
        with DatabaseReader(self.path) as reader:
            if isinstance(self.order, LabelLines):
                for text in self.order.texts():
                    yield reader.find(os.fsencode(text), value=values)
            else:
                for page, place in self.order.places():
                    yield reader.at(page, place, value=values)


def _as_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _own_label(datum: Datum) -> int:
    """The label that a record itself has."""
    if datum.label is None:
        raise FormatError("the value holds no label; name the key-label file that does: lmdb:PATH@KEY_LABEL_FILE")
    if datum.label < 0:
        raise FormatError(f"the label is {datum.label}, where one from 0 to {LARGEST_LABEL} is expected")
    return datum.label


def open_source(path: str) -> LmdbSource:
    """The images of a database: a folder with ``data.mdb``, or a single file.

    Parameters
    ----------
    path : str
        ``PATH`` or ``PATH@KEY_LABEL_FILE``. Without the second, the key-label file is that beside the database which
        has its name: ``msceleb_kv.txt`` of ``msceleb.lmdb``. If there is none, the labels in the records count.

    Raises
    ------
    FormatError
        Where a file is damaged, or nothing tells the labels.
    InputError
        Where a file cannot be read.
    """
    path, kv = _split(path)
    data = data_file(path)
    meta = check_database(data)
    identity = file_identity(data)
    if kv is not None:
        lines = read_label_lines(kv, "key")
        if len(lines) != meta.records:
            _log.warning(
                "%s: names %d images, and %s holds %d records; was one of them cut, or does it belong to another?",
                kv,
                len(lines),
                data,
                meta.records,
            )
        return LmdbSource(data, lines, identity, file_identity(kv), meta.records)
    source = LmdbSource(data, stored_order(data, meta), identity, None, meta.records)
    _refuse_without_labels(source, path)
    return source


def _split(path: str) -> tuple[str, str | None]:
    """The database and its key-label file."""
    place = path.rfind("@")
    while place > 0 and not os.path.lexists(path):
        if os.path.lexists(path[:place]):
            kv = path[place + 1 :]
            _refuse_no_file(kv)
            return path[:place], kv
        place = path.rfind("@", 0, place)
    return path, kv_beside(path)


def input_paths(path: str) -> dict[str, bool]:
    """The paths that ``PATH`` or ``PATH@KEY_LABEL_FILE`` may stand for."""
    before, at, after = path.rpartition("@")
    return {path: True} if not at or os.path.lexists(path) else {before: True, after: True}


def _refuse_no_file(path: str) -> None:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise input_error(error, path) from error
    if not regular:
        raise FormatError(f"{path}: is not a regular file, where a key-label file is expected")


def _refuse_without_labels(source: LmdbSource, path: str) -> None:
    """Look at a few records, so that a missing key-label file is not told once for each image."""
    layouts = set()
    for record in source[:_LOOKED_AT]._records():
        with suppress(FormatError):
            layouts.add(parse_datum(record.value or b"").layout)
    if layouts and CAFFE not in layouts:
        usual = os.path.basename(stem_of(path)) + KV_SUFFIX
        raise FormatError(
            f"{path}: its values hold no labels, and there is no key-label file {usual} beside it; "
            f"name the key-label file: lmdb:{path}@KEY_LABEL_FILE"
        )
