"""Writing a record set: workers encode records, one process appends them, and the set is completed after the last.

The files lie in a hidden folder until the set is complete: the records, the lines of the list, and the offsets
(int64, where each image record begins, and where the last one ends) and labels (int32) of all images, from which index,
identity records and counts follow.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES, write_class_names
from facedata.converters.rec.recordio import (
    CHUNK_HEADER_SIZE,
    IMAGE_HEADER_SIZE,
    INSIGHTFACE,
    LARGEST_LABEL,
    MAGIC,
    MAXIMUM_LENGTH,
    ImageRecord,
    RecordReader,
    encode_record,
    pack_image_record,
    padded,
    unpack_image_record,
    write_index,
)
from facedata.dataset import BlockEncoder, OrderedWriter, Sample, known_extension
from facedata.errors import FormatError, InputError, OptionError, OutputMismatchError, RefusedSampleError, is_transient
from facedata.files import atomic_writer, open_own, output_errors, write_fully
from facedata.images import image_size
from facedata.jobs.buffers import BlockBuffer, ProcessAddress, SharedBuffer

__all__ = ["BlockWriter", "RecordBlock", "RecordEncoder", "check_count", "complete_set", "count_people"]

LARGEST_INSIGHTFACE_SET = LARGEST_LABEL
"""In records; above it the meta record, which counts in float32, would be wrong."""

_HEADERS = CHUNK_HEADER_SIZE + IMAGE_HEADER_SIZE
_LARGEST_IMAGE = MAXIMUM_LENGTH - IMAGE_HEADER_SIZE
_WORDS_AT_ONCE = 1 << 16
_headers = struct.Struct("<IIIf16x")
_KEY_WORD = 4  # where in a record its key stands, in words of 4 bytes, the low half first
_RANGE_RECORD = np.dtype(
    [("chunk", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("range", "<f4", 2)]
)  # a whole record without an image, whose two labels are a range of keys: the first, and the one after the last
_RANGES_AT_ONCE = 1 << 12
_USUAL_SIZE = (112, 112)
_SAMPLED_SIZES = 64
_LABELS_AT_ONCE = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordBlock:
    """The records of a shard, still without keys: samples may fail, so a worker cannot know the keys.

    `ends` says where each record ends in `data`; `names` has its text in the list, if there is a list. `first` takes
    the place of the first record if that is the first of a plain set.
    """

    data: SharedBuffer
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    names: list[bytes]
    first: bytes | None = None


class RecordEncoder(BlockEncoder):
    """Encodes the records of a shard in a worker, for the writer in the process `receiver`.

    With `label_array` a label is the array ``[label, 0]``, unless the sample has values of its own. With `scalar_first`
    such an array is not in the first record: readers would take that for the meta record of the InsightFace dialect.
    """

    def __init__(
        self,
        *,
        listed: bool,
        keep_undecodable: bool,
        label_array: bool = False,
        scalar_first: bool = False,
        receiver: ProcessAddress | None = None,
    ) -> None:
        self._listed, self._keep_undecodable, self._receiver = listed, keep_undecodable, receiver
        self._label_array, self._scalar_first = label_array, scalar_first
        self._first: bytes | None = None
        self._buffer = BlockBuffer()
        self._ends: list[int] = []
        self._labels: list[int] = []
        self._names: list[bytes] = []

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Encode a sample; refuse what does not begin like an image, and a label, size or key that does not fit."""
        label, image = sample.label, sample.image
        if not self._keep_undecodable:
            known_extension(image)
        if not 0 <= label <= LARGEST_LABEL:
            raise RefusedSampleError(
                f"label {label}: records hold labels in float32, which is exact only from 0 to {LARGEST_LABEL:,}; "
                "--relabel numbers them again, from 0"
            )
        values = (0.0,) if sample.values is None and self._label_array else sample.values
        flag = 0 if values is None else 1 + len(values)
        array = b"" if values is None else struct.pack(f"<{flag}f", label, *values)
        if not 0 < len(image) <= _LARGEST_IMAGE - len(array):
            raise RefusedSampleError(f"an image of {len(image)} bytes: a record holds 1 to {_LARGEST_IMAGE:,}")
        if self._listed:
            self._names.append(_list_name(sample.key))
        if values == (0.0,) and self._scalar_first and not self._ends:
            self._first = encode_record(pack_image_record(ImageRecord(0, (label,), 0, 0, image)))
        length = IMAGE_HEADER_SIZE + len(array) + len(image)
        begin = self._buffer.extend(CHUNK_HEADER_SIZE + padded(length))
        data, end = self._buffer.data, self._buffer.end
        data[end - 4 : end] = bytes(4)  # an earlier shard may have left bytes there
        _headers.pack_into(data, begin, MAGIC, length, flag, 0 if flag else label)
        image_begin = begin + _HEADERS + len(array)
        data[begin + _HEADERS : image_begin] = array
        data[image_begin : begin + CHUNK_HEADER_SIZE + length] = image
        self._labels.append(label)
        self._ends.append(end)

    def block(self) -> RecordBlock:
        """All records; a record that holds the magic word, which is rare, is split as it must be."""
        ends, labels = np.array(self._ends, np.int64), np.array(self._labels, np.int32)
        with memoryview(self._buffer.data)[: self._buffer.end] as view:
            words = np.frombuffer(view, "<u4")  # only a magic word at a multiple of 4 bytes counts
            parts = range(0, len(words), _WORDS_AT_ONCE)
            found = [np.flatnonzero(words[begin : begin + _WORDS_AT_ONCE] == MAGIC) + begin for begin in parts]
            magic = np.concatenate([np.empty(0, np.int64), *found]) * 4
            del words
            if len(magic) == len(ends):
                records = None
            else:
                begins = np.append(0, ends)[:-1]
                inside = np.diff(np.searchsorted(magic, np.append(begins, self._buffer.end))) > 1
                records = [bytes(view[begin:end]) for begin, end in zip(begins.tolist(), self._ends, strict=True)]
        if records is None:
            return RecordBlock(self._buffer.share(self._receiver), ends, labels, self._names, self._first)
        self._buffer.free()
        for place in np.flatnonzero(inside).tolist():
            length = _headers.unpack_from(records[place])[1]
            records[place] = encode_record(records[place][CHUNK_HEADER_SIZE : CHUNK_HEADER_SIZE + length])
        ends = np.cumsum([len(record) for record in records], dtype=np.int64)
        data = SharedBuffer(memoryview(b"".join(records)), self._receiver)
        return RecordBlock(data, ends, labels, self._names, self._first)


def _list_name(key: str) -> bytes:
    if "\t" in key or "\n" in key or "\r" in key:
        raise RefusedSampleError(f"key {key!r}: a list cannot hold a tab or a line break; leave out --list")
    try:
        return key.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise RefusedSampleError(f"key {key!r}: cannot be written as text in a list; leave out --list") from error


class BlockWriter(OrderedWriter):
    """Appends blocks to the files of a set, and the keys to its records.

    Parameters
    ----------
    folder : str
        Of the build.
    ends : mapping
        What `write` returned for each shard that is done; bytes after these are removed.
    first_key : int
        The key of the first image; the keys of the others follow.
    listed : bool
        Whether to write a list.
    """

    def __init__(self, folder: str, ends: Mapping[int, Mapping[str, Any]], *, first_key: int, listed: bool) -> None:
        self.done = next(shard for shard in range(len(ends) + 1) if shard not in ends)
        end = ends[self.done - 1] if self.done else {"images": 0, "records": 0, "list": 0}
        self._images, self._first_key = int(end["images"]), first_key
        self._scratch = np.empty(0, "<u4")
        with ExitStack() as stack:

            def opened(name: str, size: int) -> _GrowingFile:
                return stack.enter_context(_GrowingFile(os.path.join(folder, name), size))

            self._records = opened("train.rec", int(end["records"]))
            self._offsets = opened("offsets", 8 * (self._images + 1) if self.done else 0)
            self._labels = opened("labels", 4 * self._images)
            self._list = opened("train.lst", int(end["list"])) if listed else None
            if not self.done:
                self._offsets.append(bytes(8))
            self._stack = stack.pop_all()

    def write(self, shard: int, block: RecordBlock) -> Mapping[str, Any]:
        """Append a block; return the ends of the files."""
        first_key = self._first_key + self._images
        keys = np.arange(first_key, first_key + len(block.ends))
        # the records, with the key of each in its header
        if self._scratch.nbytes < block.data.size:
            self._scratch = np.empty(block.data.size // 4, "<u4")
        words = self._scratch[: block.data.size // 4]
        block.data.take(words.data.cast("B"))
        ends = block.ends
        if block.first is not None and not self._images:
            words = np.concatenate([np.frombuffer(block.first, "<u4"), words[ends[0] >> 2 :]])
            ends = ends - ends[0] + len(block.first)
        places = np.concatenate([[0], ends[:-1] >> 2])[: len(keys)] + _KEY_WORD
        words[places], words[places + 1] = keys & 0xFFFFFFFF, keys >> 32
        offsets = ends + self._records.end
        self._records.append(words.data.cast("B"))
        self._offsets.append(offsets.tobytes())
        self._labels.append(block.labels.tobytes())
        if self._list is not None:
            lines = zip(keys.tolist(), block.labels.tolist(), block.names, strict=True)
            self._list.append(b"".join([b"%d\t%d\t%b\n" % line for line in lines]))
        self._images += len(block.ends)
        end = 0 if self._list is None else self._list.end
        return {"images": self._images, "records": self._records.end, "list": end}

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Nothing to do: the next writer removes what the journal does not list."""

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _GrowingFile:
    """A file that grows; bytes after `end` are removed when it is opened."""

    def __init__(self, path: str, end: int) -> None:
        self._path, self.end = path, end
        folder, name = os.path.split(path)
        with output_errors(path):
            self._descriptor = open_own(path, published=os.path.join(os.path.dirname(folder), name))
        size = os.fstat(self._descriptor).st_size
        if size < end:
            os.close(self._descriptor)
            raise OutputMismatchError(
                f"{path}: has {size} bytes, but earlier runs of this job wrote {end}: it was changed, or the machine "
                "lost power; --overwrite starts again"
            )
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)

    def append(self, data: bytes | memoryview) -> None:
        with output_errors(self._path):
            write_fully(self._descriptor, data)
        self.end += len(data)

    def __enter__(self) -> _GrowingFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def check_count(place: str, images: int, people: int) -> None:
    """Raise `OptionError` if the InsightFace dialect cannot count that many records."""
    if images + people + 1 > LARGEST_INSIGHTFACE_SET:
        raise OptionError(
            f"{place}: the insightface style counts its records (images, people and the meta record) in float32, which "
            f"is exact only up to {LARGEST_INSIGHTFACE_SET:,}, and there are more; --style plain has no such limit"
        )


def count_people(labels: NDArray[np.int32]) -> int:
    """The number of different labels, counted with one byte per possible label."""
    met = np.zeros(int(labels.max()) + 1, bool)
    for begin in range(0, len(labels), _LABELS_AT_ONCE):
        met[labels[begin : begin + _LABELS_AT_ONCE]] = True
    return int(met.sum())


def complete_set(
    folder: str, labels: NDArray[np.int32], *, style: str, listed: bool, names: Mapping[int, str] | None
) -> None:
    """Write everything that follows from the images beside them; files of an earlier try are written again.

    Parameters
    ----------
    folder : str
        Of the build, with the records of the images, their offsets and labels.
    labels : ndarray of shape (N,), int32
    style, listed : str, bool
        As in `RecSink`.
    names : mapping of int to str, optional
        The names of the classes.

    Raises
    ------
    OutputMismatchError
        If the records are corrupt.
    """
    records = os.path.join(folder, "train.rec")
    offsets: NDArray[np.int64] = np.memmap(os.path.join(folder, "offsets"), np.int64, "r")
    with atomic_writer(os.path.join(folder, "property")) as file:
        file.write(b"%d,%d,%d\n" % (int(labels.max()) + 1, *_usual_size(records, offsets)))
    images, end = len(labels), int(offsets[-1])
    keys: Iterable[int] = range(images)
    closing: Iterable[NDArray[Any]] = ()
    if style == INSIGHTFACE:
        steps = np.diff(labels)
        if (steps < 0).any():
            raise FormatError(f"{folder}: the labels of the input changed while it was being read")
        first_keys = np.append(0, np.flatnonzero(steps) + 1) + 1
        people = len(first_keys)
        check_count(folder, images, people)
        keys = chain(range(1, images + people + 1), [0])
        closing = _closing_records(first_keys, images)
        offsets = np.concatenate([offsets, end + _RANGE_RECORD.itemsize * np.arange(1, people + 1)])
    else:
        offsets = offsets[:-1]
    with open(records, "r+b") as file:
        file.truncate(end)
        file.seek(end)
        for part in closing:
            file.write(part.tobytes())
        file.flush()
        os.fsync(file.fileno())
    write_index(os.path.join(folder, "train.idx"), keys, offsets)
    if listed:
        with open(os.path.join(folder, "train.lst"), "r+b") as file:
            os.fsync(file.fileno())
    if names is not None:
        write_class_names(os.path.join(folder, CLASSES), names)


def _usual_size(path: str, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Height and width of the first image that has a size; warns if those of some others differ."""
    places = np.unique(np.linspace(0, len(offsets) - 2, _SAMPLED_SIZES).astype(np.int64))
    sizes = []
    with RecordReader(path) as reader:
        for offset in offsets[places].tolist():
            try:
                size = image_size(unpack_image_record(reader.read(offset)[0]).image)
            except InputError as error:
                if is_transient(error):
                    raise
                raise OutputMismatchError(f"{path}: is corrupt: {error}; --overwrite starts again") from error
            if size is not None:
                sizes.append((size[0], size[1]))
    if len(set(sizes)) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(set(sizes))[:3])
        folder = os.path.dirname(os.path.dirname(path))
        _log.warning("%s: the images have different sizes (%s); property has that of the first", folder, shown)
    return sizes[0] if sizes else _USUAL_SIZE


def _closing_records(first_keys: NDArray[np.int64], images: int) -> Iterator[NDArray[Any]]:
    """The records after the images, some at a time: the range of the keys of each identity, and that of the identities.

    `first_keys` (shape (C,), ascending) are those of the first image of each identity; images have the keys 1 to
    `images`.
    """
    end = images + 1
    bounds = np.append(first_keys, end)
    for begin in range(0, len(first_keys), _RANGES_AT_ONCE):
        part = bounds[begin : begin + _RANGES_AT_ONCE + 1]
        ranges = np.stack([part[:-1], part[1:]], axis=1)
        yield _range_records(np.arange(len(ranges)) + end + begin, ranges)
    yield _range_records(np.zeros(1, np.int64), np.array([[end, end + len(first_keys)]]))


def _range_records(keys: NDArray[np.int64], ranges: NDArray[np.int64]) -> NDArray[Any]:
    records = np.zeros(len(keys), _RANGE_RECORD)
    records["chunk"] = MAGIC, _RANGE_RECORD.itemsize - CHUNK_HEADER_SIZE
    records["flag"], records["id"], records["range"] = 2, keys, ranges
    return records
