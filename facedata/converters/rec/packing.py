"""Packing images into a record file: workers make blocks of records ready, a single writer appends these to the file.

The writer's files lie in the folder `BUILDING` until the set is complete: the records, and beside them the offsets and
labels of all images (8 and 4 bytes an image), from which index, identity records and counts follow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.recordio import (
    CHUNK_HEADER_SIZE,
    IMAGE_HEADER_SIZE,
    LARGEST_LABEL,
    MAGIC,
    MAXIMUM_LENGTH,
    encode_record,
    padded,
)
from facedata.dataset import BlockEncoder, OrderedWriter, Sample
from facedata.errors import OutputMismatchError, RefusedSampleError, output_error
from facedata.files import write_fully
from facedata.images import known_extension
from facedata.jobs.buffers import ProcessAddress, SharedBuffer

__all__ = ["BUILDING", "BlockWriter", "BuildFiles", "RecordBlock", "RecordEncoder"]

BUILDING = ".facedata-building"

_HEADERS = CHUNK_HEADER_SIZE + IMAGE_HEADER_SIZE
_LARGEST_IMAGE = MAXIMUM_LENGTH - IMAGE_HEADER_SIZE
_ID_WORD = 4  # where in a record its key stands, in words of 4 bytes, the low half first
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_headers = struct.Struct("<IIIf16x")
_padding = struct.Struct("4x")

_FIRST_BUFFER = 1 << 20
_WORDS_AT_ONCE = 1 << 16
_spare_buffers: list[bytearray] = []
"""Kept for the next shard: fresh memory of this size costs more than filling it."""


@dataclass(frozen=True)
class BuildFiles:
    """Where the files of a set lie while it is built in `folder`."""

    folder: str

    def path(self, name: str) -> str:
        """The file that will be published under `name`."""
        return os.path.join(self.folder, name)

    @property
    def records(self) -> str:
        """The record file."""
        return self.path("train.rec")

    @property
    def list(self) -> str:
        """The lines of the list."""
        return self.path("train.lst")

    @property
    def offsets(self) -> str:
        """Where each image record begins, and behind the last where it ends; int64."""
        return self.path("offsets")

    @property
    def labels(self) -> str:
        """The label of each image; int32."""
        return self.path("labels")


@dataclass(frozen=True)
class RecordBlock:
    """The records of a shard, their keys still missing: samples may fail, so a worker cannot know them.

    Attributes
    ----------
    data : SharedBuffer
        The records.
    ends : ndarray of shape (N,), int64
        Where each ends in `data`.
    labels : ndarray of shape (N,), int32
    names : list of bytes
        The text of each in the list; empty where there is to be none.
    """

    data: SharedBuffer
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    names: list[bytes]


class RecordEncoder(BlockEncoder):
    """Makes the block of one shard ready, in a worker.

    Parameters
    ----------
    listed : bool
        Whether there is to be a list.
    keep_undecodable : bool
        Take what does not begin like an image too.
    receiver : ProcessAddress, optional
        Where the writer is.
    """

    def __init__(self, *, listed: bool, keep_undecodable: bool, receiver: ProcessAddress | None = None) -> None:
        self._listed, self._keep_undecodable, self._receiver = listed, keep_undecodable, receiver
        self._buffer = _spare_buffers.pop() if _spare_buffers else bytearray(_FIRST_BUFFER)
        self._end = 0
        self._ends: list[int] = []
        self._labels: list[int] = []
        self._names: list[bytes] = []

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Append the record of a sample.

        Raises
        ------
        RefusedSampleError
            Where its bytes begin like no image, or its label, its size or, with a list, its key cannot be written.
        """
        label, image = sample.label, sample.image
        if not self._keep_undecodable:
            known_extension(image)
        _check(label, image)
        if self._listed:
            self._names.append(_list_name(sample.key))
        length, begin = IMAGE_HEADER_SIZE + len(image), self._end
        end = begin + CHUNK_HEADER_SIZE + padded(length)
        if end > len(self._buffer):
            self._buffer += bytes(max(end, 2 * len(self._buffer)) - len(self._buffer))
        buffer = self._buffer
        _padding.pack_into(buffer, end - 4)  # what an earlier shard left there
        _headers.pack_into(buffer, begin, MAGIC, length, 0, label)
        buffer[begin + _HEADERS : begin + CHUNK_HEADER_SIZE + length] = image
        self._labels.append(label)
        self._ends.append(end)
        self._end = end

    def block(self) -> RecordBlock:
        """All of the shard's records."""
        data, ends = self._data()
        _spare_buffers.append(self._buffer)
        return RecordBlock(data, ends, np.array(self._labels, np.int32), self._names)

    def _data(self) -> tuple[SharedBuffer, NDArray[np.int64]]:
        """The records, and where each ends; one that holds the magic word, which is rare, is split as it must be."""
        ends = np.array(self._ends, np.int64)
        with memoryview(self._buffer)[: self._end] as view:
            magic = _words_equal_to_magic(view)
            if len(magic) == len(ends):
                return SharedBuffer(view, self._receiver), ends
            begins = np.append(0, ends)[:-1]
            inside = np.diff(np.searchsorted(magic, np.append(begins, self._end))) > 1
            records = [bytes(view[begin:end]) for begin, end in zip(begins.tolist(), self._ends, strict=True)]
        for place in np.flatnonzero(inside).tolist():
            records[place] = _split(records[place])
        ends = np.cumsum([len(record) for record in records], dtype=np.int64)
        return SharedBuffer(memoryview(b"".join(records)), self._receiver), ends


def _words_equal_to_magic(view: memoryview) -> NDArray[np.int64]:
    """The offsets of all magic words at multiples of 4 bytes, which are the only ones that count."""
    words = np.frombuffer(view, "<u4")
    parts = range(0, len(words), _WORDS_AT_ONCE)
    found = [np.flatnonzero(words[begin : begin + _WORDS_AT_ONCE] == MAGIC) + begin for begin in parts]
    return np.concatenate([np.empty(0, np.int64), *found]) * 4


def _check(label: int, image: bytes) -> None:
    if not 0 <= label <= LARGEST_LABEL:
        raise RefusedSampleError(
            f"label {label}: records hold labels in float32, which is exact only from 0 to {LARGEST_LABEL:,}; "
            "--relabel numbers them anew, from 0"
        )
    if not 0 < len(image) <= _LARGEST_IMAGE:
        raise RefusedSampleError(f"an image of {len(image)} bytes: a record holds 1 to {_LARGEST_IMAGE:,}")


def _split(record: bytes) -> bytes:
    length = _headers.unpack_from(record)[1]
    return encode_record(record[CHUNK_HEADER_SIZE : CHUNK_HEADER_SIZE + length])


def _list_name(key: str) -> bytes:
    if "\t" in key or "\n" in key or "\r" in key:
        raise RefusedSampleError(f"key {key!r}: a list cannot hold a tab or the end of a line; leave out --list")
    try:
        return key.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise RefusedSampleError(f"key {key!r}: is no text that a list can hold; leave out --list") from error


class BlockWriter(OrderedWriter):
    """Appends blocks to the files of a set, and the keys to its records.

    Parameters
    ----------
    files : BuildFiles
    ends : mapping
        What `write` returned for each shard that is done; what lies behind these is cut off.
    first_key : int
        The key of the first image; the others count on from there.
    listed : bool
        Whether to write a list.

    Raises
    ------
    OutputMismatchError
        Where a file is shorter than `ends` say.
    OutputError
        Where the files cannot be written.
    """

    def __init__(
        self, files: BuildFiles, ends: Mapping[int, Mapping[str, Any]], *, first_key: int, listed: bool
    ) -> None:
        self.done = next(shard for shard in range(len(ends) + 1) if shard not in ends)
        self.unrecorded: Sequence[Mapping[str, Any]] = ()
        end = ends[self.done - 1] if self.done else {"images": 0, "records": 0, "list": 0}
        self._images, self._first_key = int(end["images"]), first_key
        self._scratch = np.empty(0, "<u4")
        with ExitStack() as stack:
            self._records = stack.enter_context(_Growing(files.records, int(end["records"])))
            self._offsets = stack.enter_context(_Growing(files.offsets, 8 * (self._images + 1) if self.done else 0))
            self._labels = stack.enter_context(_Growing(files.labels, 4 * self._images))
            self._list = stack.enter_context(_Growing(files.list, int(end["list"]))) if listed else None
            if not self.done:
                self._offsets.append(bytes(8))
            self._stack = stack.pop_all()

    def write(self, shard: int, block: RecordBlock) -> Mapping[str, Any]:
        """Append a block; returns how far the files then are."""
        first_key = self._first_key + self._images
        keys = np.arange(first_key, first_key + len(block.ends))
        base = self._records.end
        self._records.append(self._with_keys(block, keys))
        self._offsets.append((block.ends + base).tobytes())
        self._labels.append(block.labels.tobytes())
        if self._list is not None:
            lines = zip(keys.tolist(), block.labels.tolist(), block.names, strict=True)
            self._list.append(b"".join([b"%d\t%d\t%b\n" % line for line in lines]))
        self._images += len(block.ends)
        end = 0 if self._list is None else self._list.end
        return {"images": self._images, "records": self._records.end, "list": end}

    def _with_keys(self, block: RecordBlock, keys: NDArray[np.int64]) -> memoryview:
        """The block's bytes with each record's key in the image header; good until the next call."""
        if self._scratch.nbytes < block.data.size:
            self._scratch = np.empty(block.data.size // 4, "<u4")
        words = self._scratch[: block.data.size // 4]
        block.data.take(words.data.cast("B"))
        places = np.concatenate([[0], block.ends[:-1] >> 2])[: len(keys)] + _ID_WORD
        words[places], words[places + 1] = keys & 0xFFFFFFFF, keys >> 32
        return words.data.cast("B")

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Nothing: what the journal does not know of is cut off by the next writer."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Growing:
    """A file that is appended to; what lies behind `end` when it is opened is cut off."""

    def __init__(self, path: str, end: int) -> None:
        self._path, self.end = path, end
        try:
            self._descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            raise output_error(error, path) from error
        size = os.fstat(self._descriptor).st_size
        if size < end:
            os.close(self._descriptor)
            raise OutputMismatchError(
                f"{path}: has {size} bytes, but {end} were written by earlier runs of this job: it was changed, or the "
                "machine lost power; --overwrite starts afresh"
            )
        os.ftruncate(self._descriptor, end)
        os.lseek(self._descriptor, end, os.SEEK_SET)

    def append(self, data: bytes | memoryview) -> None:
        try:
            write_fully(self._descriptor, data)
        except OSError as error:
            raise output_error(error, self._path) from error
        self.end += len(data)

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
