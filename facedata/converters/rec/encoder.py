"""Encoding images as records in the workers for the one process that writes the record file."""

from __future__ import annotations

import struct
from dataclasses import dataclass

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
from facedata.dataset import BlockEncoder, Sample
from facedata.errors import RefusedSampleError
from facedata.images import known_extension
from facedata.jobs.buffers import BlockBuffer, ProcessAddress, SharedBuffer

__all__ = ["RecordBlock", "RecordEncoder"]

_HEADERS = CHUNK_HEADER_SIZE + IMAGE_HEADER_SIZE
_LARGEST_IMAGE = MAXIMUM_LENGTH - IMAGE_HEADER_SIZE
_WORDS_AT_ONCE = 1 << 16
_headers = struct.Struct("<IIIf16x")
_padding = struct.Struct("4x")


@dataclass(frozen=True)
class RecordBlock:
    """The records of a shard, still without keys: samples may fail, so a worker cannot know the keys.

    Attributes
    ----------
    data : SharedBuffer
        The records.
    ends : ndarray of shape (N,), int64
        Where each ends in `data`.
    labels : ndarray of shape (N,), int32
    names : list of bytes
        The text of each in the list; empty if there is no list.
    """

    data: SharedBuffer
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    names: list[bytes]


class RecordEncoder(BlockEncoder):
    """Encodes the records of a shard.

    Parameters
    ----------
    listed : bool
        Whether there is a list.
    keep_undecodable : bool
        Accept bytes that do not begin like an image.
    receiver : ProcessAddress, optional
        The process of the writer.
    """

    def __init__(self, *, listed: bool, keep_undecodable: bool, receiver: ProcessAddress | None = None) -> None:
        self._listed, self._keep_undecodable, self._receiver = listed, keep_undecodable, receiver
        self._buffer = BlockBuffer()
        self._ends: list[int] = []
        self._labels: list[int] = []
        self._names: list[bytes] = []

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Encode a sample.

        Raises
        ------
        RefusedSampleError
            If it does not begin like an image, or its label, its size or, with a list, its key cannot be written.
        """
        label, image = sample.label, sample.image
        if not self._keep_undecodable:
            known_extension(image)
        if not 0 <= label <= LARGEST_LABEL:
            raise RefusedSampleError(
                f"label {label}: records hold labels in float32, which is exact only from 0 to {LARGEST_LABEL:,}; "
                "--relabel numbers them again, from 0"
            )
        if not 0 < len(image) <= _LARGEST_IMAGE:
            raise RefusedSampleError(f"an image of {len(image)} bytes: a record holds 1 to {_LARGEST_IMAGE:,}")
        if self._listed:
            self._names.append(_list_name(sample.key))
        length = IMAGE_HEADER_SIZE + len(image)
        begin = self._buffer.extend(CHUNK_HEADER_SIZE + padded(length))
        data, end = self._buffer.data, self._buffer.end
        _padding.pack_into(data, end - 4)  # an earlier shard may have left bytes there
        _headers.pack_into(data, begin, MAGIC, length, 0, label)
        data[begin + _HEADERS : begin + CHUNK_HEADER_SIZE + length] = image
        self._labels.append(label)
        self._ends.append(end)

    def block(self) -> RecordBlock:
        """All records; a record that holds the magic word, which is rare, is split as it must be."""
        ends, labels = np.array(self._ends, np.int64), np.array(self._labels, np.int32)
        with memoryview(self._buffer.data)[: self._buffer.end] as view:
            magic = _magic_words(view)
            if len(magic) > len(ends):
                begins = np.append(0, ends)[:-1]
                inside = np.diff(np.searchsorted(magic, np.append(begins, self._buffer.end))) > 1
                records = [bytes(view[begin:end]) for begin, end in zip(begins.tolist(), self._ends, strict=True)]
                for place in np.flatnonzero(inside).tolist():
                    length = _headers.unpack_from(records[place])[1]
                    records[place] = encode_record(records[place][CHUNK_HEADER_SIZE : CHUNK_HEADER_SIZE + length])
                ends = np.cumsum([len(record) for record in records], dtype=np.int64)
                data = SharedBuffer(memoryview(b"".join(records)), self._receiver)
        if len(magic) > len(labels):
            self._buffer.free()
        else:
            data = self._buffer.share(self._receiver)
        return RecordBlock(data, ends, labels, self._names)


def _magic_words(view: memoryview) -> NDArray[np.int64]:
    """The offsets of all magic words at multiples of 4 bytes, the only ones that count."""
    words = np.frombuffer(view, "<u4")
    parts = range(0, len(words), _WORDS_AT_ONCE)
    found = [np.flatnonzero(words[begin : begin + _WORDS_AT_ONCE] == MAGIC) + begin for begin in parts]
    return np.concatenate([np.empty(0, np.int64), *found]) * 4


def _list_name(key: str) -> bytes:
    if "\t" in key or "\n" in key or "\r" in key:
        raise RefusedSampleError(f"key {key!r}: a list cannot hold a tab or a line break; leave out --list")
    try:
        return key.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise RefusedSampleError(f"key {key!r}: cannot be written as text in a list; leave out --list") from error
