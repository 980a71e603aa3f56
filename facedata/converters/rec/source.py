"""`RecSource`: the images of one record file, read in large blocks, or one by one in any order.

`MXNetRecSource` reads them through MXNet itself, as a cross-check of this project's own reader.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.recordio import (
    CHUNK_HEADER_SIZE,
    IMAGE_HEADER_SIZE,
    LARGEST_LABEL,
    MAGIC,
    MAGIC_BYTES,
    MAXIMUM_LENGTH,
    MOST_LABELS,
    ImageRecord,
    RecordIndex,
    RecordReader,
    class_of,
    damage_mark,
    unpack_image_record,
)
from facedata.dataset import Sample, Source, WrappedSource, label_of
from facedata.errors import FormatError, InputError, MissingExtraError, SampleError, is_transient
from facedata.files import atomic_writer, open_for, opened_regular, output_errors

__all__ = ["MXNetRecSource", "RecSource", "check_mxnet", "import_mxnet_recordio"]

_BLOCK = 1 << 22
_LARGEST_GAP = 1 << 18  # records further apart are not read at once
_SHORTEST_RUN = 8  # fewer neighbours are read one by one: parsing a block costs as much as some records
_WINDOW = 1 << 16  # records whose order is examined together
_LARGEST_OFFSET = int(np.iinfo(np.int64).max)
_SLACK = 64  # vectorised header reads may look this far past the last record
_HEADERS = CHUNK_HEADER_SIZE + IMAGE_HEADER_SIZE
_HEADER_WORDS = _HEADERS // 4
_headers = struct.Struct("<IIIf16x")
_label = struct.Struct("<f")


@dataclass(frozen=True)
class RecSource(Source):
    """The image records of one ``.rec`` file, as samples in key order.

    Attributes
    ----------
    path : str
        The record file.
    index : RecordIndex
        Keys and offsets of the image records alone.
    file_identity : mapping
        Size and sampled digest of the record file.
    facts : mapping
        The other facts that decide which samples there are: ``dialect``, ``records`` (the number of all records) and
        ``index`` (a digest).
    classes : int, optional
        The number of classes that the property file or the meta record declares.
    index_file : str, optional
        The file that the index was read from, unless it was rebuilt.
    rebuilt : (path, RecordIndex), optional
        The rebuilt index of all records, and the file in which `save_cache` saves it; parts of the source do not
        carry it.
    """

    path: str
    index: RecordIndex
    file_identity: Mapping[str, Any]
    facts: Mapping[str, Any]
    classes: int | None = None
    index_file: str | None = None
    rebuilt: tuple[Path, RecordIndex] | None = field(default=None, repr=False, compare=False)

    may_have_values = True

    def __len__(self) -> int:
        return len(self.index)

    def sliced(self, part: slice) -> RecSource:
        """The samples of a slice."""
        return replace(self, index=self.index[part], rebuilt=None)

    def take(self, positions: NDArray[np.int64]) -> RecSource:
        """The records at `positions`."""
        return replace(self, index=self.index.take(positions), rebuilt=None)

    @property
    def dialect(self) -> str:
        """``"insightface"`` (with meta and identity records) or ``"plain"``."""
        return str(self.facts["dialect"])

    def identity(self) -> Mapping[str, Any]:
        """Size and sampled digest of the record file, its dialect and number of records."""
        return {"record file": dict(self.file_identity), **self.facts}

    def locate(self, position: int) -> tuple[str, int | None]:
        """The record file, and the offset of the record."""
        offset = self.index.offsets[position]
        return self.path, int(damage_mark(offset) if offset < 0 else offset)

    def places(self) -> Mapping[str, bool]:
        """The record file, and the files that belong to it."""
        others = (f"{self.path.removesuffix('.rec')}.idx", os.path.join(os.path.dirname(self.path), "property"))
        return {self.path: True, **{path: True for path in others if os.path.exists(path)}}

    def keys(self) -> Iterator[str]:
        """The keys as the index has them."""
        return map(str, self.index.keys)

    def size(self) -> int:
        """The share of these records in the file."""
        return int(self.file_identity["size"]) * len(self) // max(int(self.facts["records"]), 1)

    def sizes(self) -> NDArray[np.int32]:
        """The distance from each record to the next one in the file, headers included."""
        offsets = np.where(self.index.offsets < 0, damage_mark(self.index.offsets), self.index.offsets)
        order = np.argsort(offsets, kind="stable")
        sizes = np.empty(len(offsets), np.int32)
        sizes[order] = np.minimum(np.diff(offsets[order], append=int(self.file_identity["size"])), MAXIMUM_LENGTH)
        return sizes

    def class_names(self) -> Mapping[int, str] | None:
        """The names in a ``classes.txt`` that facedata wrote beside the ``train.rec``."""
        folder, name = os.path.split(self.path)
        if name != "train.rec" or not os.path.isfile(os.path.join(folder, "classes.txt")):
            return None
        from facedata.converters.class_names import read_class_names_in  # most sets have no names

        return read_class_names_in(folder)

    def declared_classes(self) -> int | None:
        """The number in the property file or the meta record."""
        return self.classes

    def describe(self) -> Mapping[str, Any]:
        """The dialect, and the index file or ``"rebuilt"``."""
        return {"dialect": self.dialect, "index": self.index_file or "rebuilt"}

    def save_cache(self) -> None:
        """Save a rebuilt index for later runs."""
        if self.rebuilt is not None and not self.rebuilt[0].exists():
            path, index = self.rebuilt
            with output_errors(path), atomic_writer(path, tidy=True) as file:
                np.savez(file, keys=np.asarray(index.keys, np.int64), offsets=index.offsets)

    def known_damage(self, position: int) -> SampleError | None:
        """The error of a record that a walk has shown to be corrupt; None if there is none known."""
        if self.index.offsets[position] >= 0:
            return None
        dataset, offset = self.locate(position)
        reason = "the record is incomplete: its length is wrong, or bytes are missing"
        return SampleError(dataset, str(self.index.keys[position]), reason, offset)

    def read(self) -> Iterator[Sample | SampleError]:
        """Every image in key order, or the error in its place."""
        with self._open() as (blocks, reader):
            for run, neighbours in _runs(self.index.offsets):
                if neighbours:
                    for first, block in blocks.read(run):
                        yield from self._samples(first, block, reader)
                else:
                    yield from self._lone_samples(run, blocks, reader)

    def fetch(self, position: int) -> Sample | SampleError:
        """The image at `position`, or the error in its place; the record file stays open."""
        blocks, reader = self._opened
        found = blocks.read_lone(str(self.index.keys[position]), self.index.offsets.item(position))
        return self._read_one(position, reader) if found is None else found

    @cached_property
    def _opened(self) -> tuple[_Blocks, RecordReader]:
        return self._readers(open_for(self, self.path))

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels of the images in blocks, -1 for each that cannot be read; images are not copied."""
        with self._open() as (blocks, reader):
            for run, neighbours in _runs(self.index.offsets):
                if neighbours:
                    for first, block in blocks.read(run):
                        labels = np.where(block.good, block.labels, -1)
                        for place in np.flatnonzero(~block.good).tolist():
                            labels[place] = label_of(self._read_one(first + place, reader))
                        yield labels
                else:
                    items = self._lone_samples(run, blocks, reader)
                    yield np.fromiter(map(label_of, items), np.int64, len(run))

    @contextmanager
    def _open(self) -> Iterator[tuple[_Blocks, RecordReader]]:
        with opened_regular(self.path) as descriptor:
            yield self._readers(descriptor)

    def _readers(self, descriptor: int) -> tuple[_Blocks, RecordReader]:
        typical_size = int(self.file_identity["size"]) // max(int(self.facts["records"]), 1)
        return _Blocks(descriptor, self.index.offsets, typical_size), RecordReader(self.path, descriptor)

    def _samples(self, first: int, block: _Block, reader: RecordReader) -> Iterator[Sample | SampleError]:
        keys = self.index.keys[first : first + len(block.good)]
        view = block.view
        columns = (block.good, block.labels, block.starts, block.stops, block.flags)
        rows = zip(keys, *(column.tolist() for column in columns), strict=True)
        for place, (key, good, label, start, stop, flag) in enumerate(rows):
            if good:
                image = bytes(view[start:stop])
                if flag < 2:
                    yield Sample(str(key), label, image)
                else:
                    yield Sample(str(key), label, image, None, _values_before(view, start, flag))
            else:
                yield self._read_one(first + place, reader)

    def _lone_samples(self, run: range, blocks: _Blocks, reader: RecordReader) -> Iterator[Sample | SampleError]:
        part = slice(run.start, run.stop)
        keys = np.asarray(self.index.keys[part], np.int64).tolist()
        for position, key, offset in zip(run, keys, self.index.offsets[part].tolist(), strict=True):
            found = blocks.read_lone(str(key), offset)
            yield self._read_one(position, reader) if found is None else found

    def _read_one(self, position: int, reader: RecordReader) -> Sample | SampleError:
        """Read one record, with every check and an exact reason if it fails."""
        key, offset = int(self.index.keys[position]), int(self.index.offsets[position])
        if (damage := self.known_damage(position)) is not None:
            return damage
        try:
            record = unpack_image_record(reader.read(offset)[0])
            if not record.image:
                raise FormatError("the record holds no image")
            return Sample(str(key), class_of(record), record.image, None, record.labels[1:] or None)
        except InputError as error:
            reason = str(error).removeprefix(f"{self.path}: ")
            return SampleError(self.path, str(key), reason, offset, is_transient(error))


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbouring records, read at once.

    `good` marks the simple ones: complete, in one piece, with an image and a valid label. `labels`, `starts` and
    `stops` (bytes in `view`) and `flags` are right only for these; the others are read one by one.
    """

    view: memoryview
    good: NDArray[np.bool_]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    flags: NDArray[np.int64]


def _values_before(data: bytes | memoryview, start: int, flag: int) -> tuple[float, ...]:
    """The label values after the first, of an array of `flag` values that ends at `start`."""
    return struct.unpack_from(f"<{flag - 1}f", data, start - 4 * (flag - 1))


def _runs(offsets: NDArray[np.int64]) -> Iterator[tuple[range, bool]]:
    """Cut positions into runs of neighbouring records, and the stretches of other records between them."""
    for first in range(0, len(offsets), _WINDOW):  # to keep memory bounded
        window = offsets[first : first + _WINDOW]
        steps = np.diff(window)
        ends = np.append(np.flatnonzero((steps <= 0) | (steps > _LARGEST_GAP)) + 1, len(window))
        long = np.diff(ends, prepend=0) >= _SHORTEST_RUN
        last_of_its_kind = np.append(long[1:] | long[:-1], [True])
        begin = first
        for place in np.flatnonzero(last_of_its_kind).tolist():
            end = first + int(ends[place])
            yield range(begin, end), bool(long[place])
            begin = end


class _Blocks:
    """Reads records: neighbours at once, or one alone."""

    def __init__(self, descriptor: int, offsets: NDArray[np.int64], typical_size: int) -> None:
        self._descriptor, self._offsets = descriptor, offsets
        # one read holds most lone records; a longer one is read again
        self._guess = (min(max(2 * typical_size, 1 << 12), _BLOCK) + _HEADERS) & ~3
        self._buffer = bytearray()

    def read(self, run: range) -> Iterator[tuple[int, _Block]]:
        """Blocks of a run of neighbours, each with the position of its first record."""
        offsets, begin, end = self._offsets, run.start, run.stop
        self._buffer = self._buffer or bytearray(_BLOCK + _LARGEST_GAP + self._guess + _SLACK)
        while begin < end:
            limit = min(int(offsets[begin]) + _BLOCK, _LARGEST_OFFSET)
            stop = max(int(np.searchsorted(offsets[begin:end], limit)), 1) + begin
            base, got = int(offsets[begin]), 0
            length = (int(offsets[stop]) if stop < end else int(offsets[stop - 1]) + self._guess) - base
            if base >= 0 and length <= len(self._buffer) - _SLACK:
                with suppress(OSError):  # each record is then read alone, so only those on the bad spot fail
                    got = os.preadv(self._descriptor, [memoryview(self._buffer)[:length]], base)
            yield begin, _parse_block(self._buffer, got, offsets[begin:stop] - base)
            begin = stop

    def read_lone(self, key: str, offset: int) -> Sample | None:
        """The sample of a record that is simple, as in `_Block`; None if it is not."""
        try:
            data = os.pread(self._descriptor, self._guess, offset) if offset >= 0 else b""
        except OSError:
            return None
        if len(data) < _HEADERS:
            return None
        magic, word, flag, label = _headers.unpack_from(data)
        start, stop = _HEADERS + 4 * flag, CHUNK_HEADER_SIZE + word  # a `cflag` makes `word` larger than any buffer
        if magic != MAGIC or flag > MOST_LABELS or not start < stop <= len(data):
            return None
        if flag:
            label = _label.unpack_from(data, _HEADERS)[0]
        if not 0 <= label <= LARGEST_LABEL or label != int(label):
            return None
        contains_magic = data.find(MAGIC_BYTES, CHUNK_HEADER_SIZE, stop) >= 0
        if contains_magic:
            return None
        return Sample(key, int(label), data[start:stop], None, _values_before(data, start, flag) if flag > 1 else None)


def _parse_block(buffer: bytearray, got: int, places: NDArray[np.int64]) -> _Block:
    """Read the headers of the records at `places` (bytes, shape (N,)) in the first `got` bytes of `buffer`."""
    words = np.frombuffer(buffer, "<u4")
    floats = words.view("<f4")
    reachable = (places % 4 == 0) & (places + _HEADERS <= got)
    at = np.where(reachable, places >> 2, 0)
    word, flag = words[at + 1], words[at + 2].astype(np.int64)
    starts = places + _HEADERS + 4 * flag
    stops = places + CHUNK_HEADER_SIZE + (word & MAXIMUM_LENGTH)
    label = np.where(flag > 0, floats[at + _HEADER_WORDS], floats[at + 3])
    with np.errstate(invalid="ignore"):
        labels = label.astype(np.int64)
        proper = (label >= 0) & (label <= LARGEST_LABEL) & (labels == label)
    good: NDArray[np.bool_] = (
        reachable & (words[at] == MAGIC) & (word >> 29 == 0) & (starts < stops) & (stops <= got) & proper
    )
    # a magic word inside a record means that its length is wrong, since a writer splits such a record
    magic = np.flatnonzero(words[: got >> 2] == MAGIC)
    good &= flag <= MOST_LABELS
    good &= np.searchsorted(magic, (stops + 3) >> 2) == np.searchsorted(magic, (places >> 2) + 1)
    return _Block(memoryview(buffer), good, labels, starts, stops, flag)


class MXNetRecSource(WrappedSource):
    """The samples of a `RecSource`, of which keys and offsets are used, read with ``MXIndexedRecordIO.read_idx``."""

    _source: RecSource

    def sliced(self, part: slice) -> MXNetRecSource:
        """The samples of a slice."""
        return MXNetRecSource(self._source.sliced(part))

    def take(self, positions: NDArray[np.int64]) -> MXNetRecSource:
        """The records at `positions`."""
        return MXNetRecSource(self._source.take(positions))

    def save_cache(self) -> None:
        """Save the rebuilt index of the wrapped source."""
        self._source.save_cache()

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in key order, or the error in its place."""
        recordio = import_mxnet_recordio()
        index = self._source.index
        # an empty index instead of MXNet's own, which takes 2 GB for 17 million lines
        reader = recordio.MXIndexedRecordIO(os.devnull, self._source.path, "r")
        try:
            reader.idx = dict(zip(map(int, index.keys), index.offsets.tolist(), strict=True))
            for place, (key, offset) in enumerate(reader.idx.items()):
                damage = self._source.known_damage(place)
                yield damage if damage is not None else self._read_one(recordio, reader, key, offset)
        finally:
            reader.close()

    def _read_one(self, recordio: Any, reader: Any, key: int, offset: int) -> Sample | SampleError:
        try:
            payload = reader.read_idx(key)
            if payload is None:
                raise FormatError(f"offset {offset} lies past the end of the file")
            header, image = recordio.unpack(payload)
            if not image:
                raise FormatError("the record holds no image")
            if header.flag > MOST_LABELS:
                raise FormatError(f"the header declares {header.flag:,} labels; at most {MOST_LABELS:,} are read")
            labels = (float(header.label),) if header.flag == 0 else tuple(map(float, header.label))
            record = ImageRecord(header.flag, labels, header.id, header.id2, image)
            return Sample(str(key), class_of(record), bytes(image), None, labels[1:] or None)
        except Exception as error:  # MXNet and struct raise many kinds of errors, each about this record
            # the first lines of MXNet's message are a traceback; some errors have no message
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            return SampleError(self._source.path, str(key), reason, offset)


def check_mxnet() -> None:
    """Check that MXNet can be loaded, without loading it: its threads would make forking workers unsafe."""
    if find_spec("mxnet") is None:
        raise MissingExtraError("--backend mxnet", "mxnet", "in an environment of Python 3.11")
    if tuple(map(int, np.__version__.split(".")[:2])) >= (1, 24):
        raise MissingExtraError("--backend mxnet", "mxnet", f"MXNet does not load with NumPy {np.__version__}")


def import_mxnet_recordio() -> Any:
    """Import MXNet's ``recordio``, or raise `MissingExtraError`."""
    try:
        from mxnet import recordio
    except Exception as error:  # a NumPy that is too new shows as AttributeError
        raise MissingExtraError("--backend mxnet", "mxnet", f"Python 3.11 and NumPy 1.23; {error}") from error
    return recordio
