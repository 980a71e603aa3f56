"""`LmdbSource`: the images of an LMDB database, in the order of its key-label file or of its keys."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL, LabelLines, read_label_lines
from facedata.converters.class_names import read_class_names_in
from facedata.converters.lmdb import CLASSES_SUFFIX, DATA, KV_SUFFIX, stem_of
from facedata.converters.lmdb.database import DatabaseReader, Record, leaf_pages, read_meta
from facedata.converters.lmdb.datum import CAFFE, parse_datum
from facedata.dataset import Sample, Source, label_of
from facedata.errors import FormatError, SampleError, TransientInputError
from facedata.files import file_identity, is_file, open_regular

__all__ = ["LmdbSource", "open_source"]

_AT_ONCE = 4096
_SAMPLED = 8
_PICKLES = [b"\x80" + bytes([protocol]) for protocol in range(2, 6)]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredOrder:
    """Some records in the order of the keys, in 16 bytes a leaf page.

    Attributes
    ----------
    pages, ends : ndarray of shape (L,), int64
        The leaf pages of the records, and the number of records of the database up to the end of each; `begin` are
        before the first.
    positions : range or ndarray of shape (N,), int64
        The records, counted in the whole database.
    """

    pages: NDArray[np.int64]
    ends: NDArray[np.int64]
    begin: int
    positions: range | NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice) -> StoredOrder:
        return self._only(self.positions[part])

    def take(self, positions: NDArray[np.int64]) -> StoredOrder:
        """The records at `positions` of these, in that order."""
        return self._only(np.asarray(self.positions, np.int64)[positions])

    def _only(self, positions: range | NDArray[np.int64]) -> StoredOrder:
        """Some records, with the pages that are needed for them alone."""
        if not len(positions):
            return StoredOrder(self.pages[:0], self.ends[:0], 0, range(0))
        ascending = isinstance(positions, range)
        low, high = (positions[0], positions[-1]) if ascending else (int(positions.min()), int(positions.max()))  # type: ignore[union-attr]
        first, last = np.searchsorted(self.ends, [low, high], side="right").tolist()
        begin = int(self.ends[first - 1]) if first else self.begin
        part = slice(first, last + 1)
        return StoredOrder(self.pages[part].copy(), self.ends[part].copy(), begin, positions)

    def place(self, position: int) -> tuple[int, int]:
        """The leaf page of one record, and its place there."""
        record = int(self.positions[position])
        which = int(self.ends.searchsorted(record, "right"))
        return self.pages.item(which), record - (self.ends.item(which - 1) if which else self.begin)

    def places(self) -> Iterator[tuple[int, int]]:
        """The leaf page of each record, and its place there."""
        begins = np.concatenate([[self.begin], self.ends[:-1]])
        for first in range(0, len(self), _AT_ONCE):
            positions = np.asarray(self.positions[first : first + _AT_ONCE], np.int64)
            which = np.searchsorted(self.ends, positions, side="right")
            yield from zip(self.pages[which].tolist(), (positions - begins[which]).tolist(), strict=True)


@dataclass(frozen=True)
class LmdbSource(Source):
    """The images of a database.

    Attributes
    ----------
    path : str
        The data file.
    order : LabelLines or StoredOrder
        The lines of the key-label file, which decide records, order and labels, whatever label a record itself has.
        Without such a file, all records in the order of their keys.
    file_identity, kv_identity : mapping
        Size and sampled digest of the data file, and of the key-label file if there is one.
    records : int
        Their number in the database.
    """

    path: str
    order: LabelLines | StoredOrder
    file_identity: Mapping[str, Any]
    kv_identity: Mapping[str, Any] | None
    records: int

    def __len__(self) -> int:
        return len(self.order)

    def sliced(self, part: slice) -> LmdbSource:
        """The samples of a slice."""
        return replace(self, order=self.order[part])

    def take(self, positions: NDArray[np.int64]) -> LmdbSource:
        """The records at `positions`."""
        return replace(self, order=self.order.take(positions))

    def identity(self) -> Mapping[str, Any]:
        """Size and sampled digest of the data file and of the key-label file."""
        kv = None if self.kv_identity is None else dict(self.kv_identity)
        return {"database": dict(self.file_identity), "key-label file": kv}

    def places(self) -> Mapping[str, bool]:
        """The data file, and the key-label file."""
        kv = {self.order.path: True} if isinstance(self.order, LabelLines) else {}
        return {self.path: True, **kv}

    def keys(self) -> Iterator[str]:
        """The keys of the key-label file, or of the database."""
        if isinstance(self.order, LabelLines):
            return (_as_text(os.fsencode(text)) for text in self.order.texts())
        return (_name(position, record) for position, record in enumerate(self._records(values=False)))

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels; without a key-label file every record is read."""
        if isinstance(self.order, LabelLines):
            for first in range(0, len(self), _AT_ONCE):
                yield self.order.labels[first : first + _AT_ONCE].astype(np.int64)
            return
        items = self.read()
        while block := list(islice(items, _AT_ONCE)):
            yield np.array(list(map(label_of, block)), np.int64)

    def size(self) -> int:
        """The share of these records in the data file."""
        return int(self.file_identity["size"]) * len(self) // max(self.records, 1)

    def sizes(self) -> NDArray[np.int32]:
        """The bytes of each value, which is not read for that; 0 if there is none."""
        return np.fromiter((record.size for record in self._records(values=False)), np.int32, len(self))

    def class_names(self) -> Mapping[int, str] | None:
        """The names in ``NAME_classes.txt`` beside the key-label file ``NAME_kv.txt``, as facedata writes both."""
        folder, name = os.path.split(self.order.path if isinstance(self.order, LabelLines) else "")
        stem = name.removesuffix(KV_SUFFIX)
        return read_class_names_in(folder, f"{stem}{CLASSES_SUFFIX}") if stem != name else None

    def declared_classes(self) -> int | None:
        """The largest label of the whole key-label file plus 1."""
        return self.order.classes if isinstance(self.order, LabelLines) else None

    def read(self) -> Iterator[Sample | SampleError]:
        """Every image in order, or the error in its place."""
        labels = self.order.labels.tolist() if isinstance(self.order, LabelLines) else repeat(None)
        for position, (record, label) in enumerate(zip(self._records(), labels, strict=False)):
            yield self._sample(position, record, label)

    def fetch(self, position: int) -> Sample | SampleError:
        """The image at `position`, or the error in its place; the files stay open."""
        if isinstance(self.order, LabelLines):
            record = self._opened.find(os.fsencode(self.order.text(position)))
            return self._sample(position, record, self.order.labels.item(position))
        return self._sample(position, self._opened.at(*self.order.place(position)), None)

    @cached_property
    def _opened(self) -> DatabaseReader:
        return DatabaseReader(self.path)

    def _sample(self, position: int, record: Record, label: int | None) -> Sample | SampleError:
        name = _name(position, record)
        if record.value is None:
            return SampleError(self.path, name, record.problem, None, record.transient)
        try:
            datum = parse_datum(record.value)
            found = datum.label if label is None else label
            if found is None:
                raise FormatError("the value holds no label; name the key-label file: lmdb:PATH@KEY_LABEL_FILE")
            if found < 0:
                raise FormatError(f"the label is {found}; expected 0 to {LARGEST_LABEL}")
            return Sample(name, found, datum.image, datum.landmarks)
        except FormatError as error:
            return SampleError(self.path, name, str(error))

    def _records(self, *, values: bool = True) -> Iterator[Record]:
        with DatabaseReader(self.path) as reader:
            if isinstance(self.order, LabelLines):
                records = (reader.find(os.fsencode(text), value=values) for text in self.order.texts())
            else:
                records = (reader.at(page, place, value=values) for page, place in self.order.places())
            for record in records:
                if record.transient and not values:  # else its key or its size would be missing without an error
                    raise TransientInputError(f"{self.path}: {record.problem}")
                yield record


def _as_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _name(position: int, record: Record) -> str:
    return f"(record {position})" if record.key is None else _as_text(record.key)


def open_source(path: str) -> LmdbSource:
    """Open a database: a folder with ``data.mdb``, or a single file.

    Parameters
    ----------
    path : str
        ``PATH`` or ``PATH@KEY_LABEL_FILE``. Without the second, the key-label file beside the database with the same
        name counts: ``msceleb_kv.txt`` of ``msceleb.lmdb``. If there is none, the labels in the records count.

    Raises
    ------
    FormatError
        If a file is corrupt, or there are no labels.
    InputError
        If a file cannot be read.
    """
    path, kv = _split(path)
    data = os.path.join(path, DATA) if os.path.isdir(path) else path
    meta = read_meta(data)
    if meta.records == 0 or meta.root < 0:
        raise FormatError(f"{data}: the database is empty; expected records with images")
    if meta.flags:
        raise FormatError(
            f"{data}: the database is of an unusual kind (flags {meta.flags:#x}: DUPSORT or another order of keys); "
            "expected one image for each key"
        )
    identity = file_identity(data)
    if kv is not None:
        lines = read_label_lines(kv, "key")
        if len(lines) != meta.records:
            counts = f"names {len(lines)} images, but {data} holds {meta.records} records"
            _log.warning("%s: %s; is one of them truncated or of another dataset?", kv, counts)
        return LmdbSource(data, lines, identity, file_identity(kv), meta.records)
    order = StoredOrder(*leaf_pages(data, meta), 0, range(meta.records))
    source = LmdbSource(data, order, identity, None, meta.records)
    # look at a few records, so that a missing key-label file is not reported once for each image
    layouts, pickles = set(), 0
    for record in source.sliced(slice(_SAMPLED))._records():
        with suppress(FormatError):
            layouts.add(parse_datum(record.value or b"").layout)
        pickles += bytes((record.value or b"")[:2]) in _PICKLES
    with DatabaseReader(data) as reader:
        listed_keys = reader.find(b"__keys__").value is not None
    if not layouts and (pickles or listed_keys):
        what = "Python pickles" if pickles else "Python objects of pyarrow.serialize"
        raise FormatError(
            f"{path}: its values are {what}, as folder2lmdb (Efficient-PyTorch) writes them. facedata does not load "
            "them, since such values can run code; write the images into a folder for each class with the program "
            "that made the database, or convert the images that it was made from"
        )
    if layouts and CAFFE not in layouts:
        raise FormatError(
            f"{path}: its values hold no labels, and there is no key-label file "
            f"{os.path.basename(stem_of(path)) + KV_SUFFIX} beside it; name the key-label file: "
            f"lmdb:{path}@KEY_LABEL_FILE"
        )
    return source


def _split(path: str) -> tuple[str, str | None]:
    """The database and its key-label file; an ``@`` may belong to either name."""
    place = path.rfind("@")
    while place > 0 and not os.path.lexists(path):
        if os.path.lexists(path[:place]):
            kv = path[place + 1 :]
            os.close(open_regular(kv))
            return path[:place], kv
        place = path.rfind("@", 0, place)
    kv = stem_of(path) + KV_SUFFIX
    return path, kv if is_file(kv) else None
