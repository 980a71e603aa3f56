"""The two files of a record set: MXNet RecordIO with an image header in each record, and the index of the records.

A chunk is a magic word, a word with 3 bits of `cflag` above 29 bits of length, the payload, and zeros up to a multiple
of 4. A payload that holds the magic word at a multiple of 4 is split there, without the magic: `cflag` is 1 for the
first part, 2 for parts between and 3 for the last; 0 is a record in one piece. Source: dmlc-core's ``recordio.h``
as described in docs/reference/formats.md; compared with MXNet 1.9.1 byte for byte in tests/compat.

The index, ``train.idx``, has one ``key<TAB>offset`` line per record. In memory it takes 8 bytes a record for the
offsets, and as much again for the keys if these have gaps.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import integers, whole_lines
from facedata.errors import FormatError, input_error
from facedata.files import atomic_writer, open_regular, output_errors, read_exactly
from facedata.images import LARGEST_IMAGE

__all__ = [
    "ADVICE",
    "CHUNK_HEADER_SIZE",
    "IMAGE_HEADER_SIZE",
    "INSIGHTFACE",
    "LARGEST_LABEL",
    "MAGIC",
    "MAGIC_BYTES",
    "MAXIMUM_LENGTH",
    "MOST_LABELS",
    "PLAIN",
    "ImageRecord",
    "IndexKeys",
    "RecordIndex",
    "RecordReader",
    "class_of",
    "damage_mark",
    "encode_record",
    "in_key_order",
    "pack_image_record",
    "padded",
    "read_index",
    "unpack_image_record",
    "write_index",
]

INSIGHTFACE, PLAIN = "insightface", "plain"
"""The dialects of record sets: with meta and identity records, or with images alone."""

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
CHUNK_HEADER_SIZE = 8
IMAGE_HEADER_SIZE = 24
MAXIMUM_LENGTH = (1 << 29) - 1
LARGEST_LABEL = 1 << 24
"""Above this, float32 does not hold every integer: a label may be rounded to another one."""
MOST_LABELS = 1 << 16
"""The most values in a label array; face sets have two, and lists of boxes some hundred."""

ADVICE = "give --rebuild-index to read without it, or rebuild it with facedata index-rec --overwrite"

IndexKeys = range | NDArray[np.int64]

_LARGEST_RECORD = IMAGE_HEADER_SIZE + 4 * MOST_LABELS + LARGEST_IMAGE
_LONGEST_LINE = 1 << 12
_DIGITS = 40  # more than any number here has; int() refuses some thousands
_LARGEST = np.iinfo(np.int64).max
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_chunk_header = struct.Struct("<II")
_image_header = struct.Struct("<IfQQ")


def padded(length: int) -> int:
    """`length` rounded up to a multiple of 4, in bytes."""
    return (length + 3) & ~3


def encode_record(payload: bytes) -> bytes:
    """Encode a payload of at most 2**29 - 1 bytes, the limit of the format, as the chunk or chunks of a record."""
    if len(payload) > MAXIMUM_LENGTH:
        raise FormatError(f"a record of {len(payload)} bytes: RecordIO holds at most {MAXIMUM_LENGTH}")
    parts, begin, found = [], 0, payload.find(MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            parts.append(payload[begin:found])
            begin = found + 4
        found = payload.find(MAGIC_BYTES, max(begin, found + 1))
    parts.append(payload[begin:])
    flags = [_WHOLE] if len(parts) == 1 else [_FIRST, *[_MIDDLE] * (len(parts) - 2), _LAST]
    return b"".join(
        _chunk_header.pack(MAGIC, flag << 29 | len(part)) + part + bytes(padded(len(part)) - len(part))
        for flag, part in zip(flags, parts, strict=True)
    )


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """The payload of an image record, decoded.

    Attributes
    ----------
    flag, labels : int, tuple of float
        The number of values in the label array, which are float32; 0 if there is a single label.
    id, id2 : int
        Two numbers chosen by the writer, usually the record's key and 0.
    image : bytes
        Empty in meta and identity records.
    """

    flag: int
    labels: tuple[float, ...]
    id: int
    id2: int
    image: bytes


def pack_image_record(record: ImageRecord) -> bytes:
    """Encode an image record: its 24 byte header, the label array if `flag` > 0, the image."""
    if record.flag == 0:
        return _image_header.pack(0, record.labels[0], record.id, record.id2) + record.image
    if record.flag != len(record.labels):
        raise ValueError(f"flag {record.flag} declares as many labels, but there are {len(record.labels)}")
    header = _image_header.pack(record.flag, 0.0, record.id, record.id2)
    return header + struct.pack(f"<{record.flag}f", *record.labels) + record.image


def unpack_image_record(payload: bytes) -> ImageRecord:
    """Decode the payload of an image record.

    Raises
    ------
    FormatError
        If it is shorter than its header says, or has more than `MOST_LABELS` labels.
    """
    if len(payload) < IMAGE_HEADER_SIZE:
        short = f"a record of {len(payload)} bytes is too short"
        raise FormatError(f"{short} for the {IMAGE_HEADER_SIZE} byte image header")
    flag, label, identifier, identifier2 = _image_header.unpack_from(payload)
    if flag == 0:
        return ImageRecord(0, (label,), identifier, identifier2, payload[IMAGE_HEADER_SIZE:])
    end = IMAGE_HEADER_SIZE + 4 * flag
    if end > len(payload):
        raise FormatError(f"the header declares {flag} labels, but the record has {len(payload)} bytes")
    if flag > MOST_LABELS:  # as Python numbers, each would take eight times as much memory
        raise FormatError(f"the header declares {flag:,} labels; at most {MOST_LABELS:,} are read")
    labels = struct.unpack_from(f"<{flag}f", payload, IMAGE_HEADER_SIZE)
    return ImageRecord(flag, labels, identifier, identifier2, payload[end:])


def class_of(record: ImageRecord) -> int:
    """The class of an image record, from 0 to 2**24: its label, or the first of its label array."""
    label = record.labels[0]
    if not math.isfinite(label) or label != int(label) or label < 0:
        raise FormatError(f"label {label:g} is not an integer from 0")
    if label > LARGEST_LABEL:
        raise FormatError(f"label {label:.0f} is above {LARGEST_LABEL}, above which float32 labels are rounded")
    return int(label)


class RecordReader:
    """Reads single records of a ``.rec`` file at given offsets.

    Every length is checked against the file's size before anything of that length is read. If a `descriptor` is
    given, the reader uses it and leaves it open.
    """

    def __init__(self, path: str | os.PathLike[str], descriptor: int | None = None) -> None:
        self.path = os.fspath(path)
        self._owned = descriptor is None
        self._descriptor = open_regular(self.path) if descriptor is None else descriptor
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            os.close(self._descriptor)

    def read(self, offset: int) -> tuple[bytes, int]:
        """The payload of the record at `offset`, and the offset after it; `FormatError` if it is not complete."""
        flag, length = self.chunk(offset)
        if flag not in (_WHOLE, _FIRST):
            raise FormatError(f"here is part {flag} of a split record, not the beginning of a record")
        _check_length(length)
        payload, end = self._payload(offset, length), offset + CHUNK_HEADER_SIZE + padded(length)
        if flag == _WHOLE:
            return payload, end
        joined = bytearray(payload)  # not a list: empty parts would take more memory than they hold
        while flag != _LAST:
            flag, length = self.chunk(end)
            if flag not in (_MIDDLE, _LAST):
                raise FormatError(f"the split record is not continued at byte {end}: a new record begins there")
            _check_length(len(joined) + len(MAGIC_BYTES) + length)
            joined += MAGIC_BYTES
            joined += self._payload(end, length)
            end += CHUNK_HEADER_SIZE + padded(length)
        return bytes(joined), end

    def chunk(self, offset: int) -> tuple[int, int]:
        """`cflag` and payload length of the chunk at `offset`, checked against the file's size."""
        if not 0 <= offset <= self.size - CHUNK_HEADER_SIZE:
            raise FormatError(f"offset {offset} lies past the end of the file ({self.size} bytes)")
        header = self._take(CHUNK_HEADER_SIZE, offset)
        if len(header) < CHUNK_HEADER_SIZE:
            raise FormatError(f"the file ends inside the record's header at byte {offset}")
        magic, word = _chunk_header.unpack(header)
        if magic != MAGIC:
            expected = f"expected the magic 0x{MAGIC:08x}"
            raise FormatError(f"no record begins at byte {offset}: found 0x{magic:08x}, {expected}")
        flag, length = word >> 29, word & MAXIMUM_LENGTH
        if flag > _LAST:
            raise FormatError(f"cflag {flag} at byte {offset} is not one of 0 to 3")
        if offset + CHUNK_HEADER_SIZE + length > self.size:
            raise FormatError(
                f"the record at byte {offset} has {length} bytes, but the file ends {self.size - offset - 8} bytes "
                "after its header: the file is truncated or the length is wrong"
            )
        return flag, length

    def _take(self, length: int, offset: int) -> bytes:
        try:
            return read_exactly(self._descriptor, length, offset)
        except OSError as error:
            raise input_error(error, self.path) from error

    def _payload(self, offset: int, length: int) -> bytes:
        payload = self._take(length, offset + CHUNK_HEADER_SIZE)
        if len(payload) < length:
            raise FormatError(f"the file ends inside the record at byte {offset}")
        inside = payload.find(MAGIC_BYTES)
        while inside > 0 and inside % 4:
            inside = payload.find(MAGIC_BYTES, inside + 1)
        if inside >= 0:  # a writer would have split the record there
            raise FormatError(
                f"the record at byte {offset} has {length} bytes, but another begins at byte "
                f"{offset + CHUNK_HEADER_SIZE + inside}: the length is wrong, or bytes are missing"
            )
        return payload


def _check_length(length: int) -> None:
    if length > _LARGEST_RECORD:
        raise FormatError(f"the record has {length:,} bytes or more; at most {_LARGEST_RECORD:,} are read")


@dataclass(frozen=True)
class RecordIndex:
    """The offset of each record, in key order.

    Attributes
    ----------
    keys : range or ndarray of shape (N,), int64
        Ascending, except in what `take` returns; a range if there are no gaps.
    offsets : ndarray of shape (N,), int64
        Byte offset of each record; below 0 if the record is known to be corrupt, see `damage_mark`.
    """

    keys: IndexKeys
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, part: slice) -> RecordIndex:
        return RecordIndex(self.keys[part], self.offsets[part])

    def take(self, positions: NDArray[np.int64]) -> RecordIndex:
        """The entries at `positions`; their keys need not ascend."""
        keys = self.keys.start + positions if isinstance(self.keys, range) else self.keys[positions]
        return RecordIndex(keys, self.offsets[positions])

    def digest(self) -> str:
        """32 hexadecimal digits that identify this index."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr(self.keys).encode() if isinstance(self.keys, range) else self.keys.data)
        digest.update(np.ascontiguousarray(self.offsets).data)
        return digest.hexdigest()

    def position(self, key: int) -> int | None:
        """The place of `key` in the order of keys; None if there is no such key."""
        if isinstance(self.keys, range):
            return self.keys.index(key) if key in self.keys else None
        place = int(np.searchsorted(self.keys, key))
        return place if place < len(self.keys) and self.keys[place] == key else None


def damage_mark(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets as marks of records that can be read but are corrupt; applied twice, it gives the offsets again."""
    return -1 - offsets


def read_index(path: str | os.PathLike[str]) -> RecordIndex:
    """Read an index file, check it, and put it in key order.

    17 million lines take about a second and 0.5 GB, most of it freed again.

    Raises
    ------
    FormatError
        If a line is not ``key<TAB>offset`` or a key occurs twice; the message names the line.
    InputError
        If the file cannot be read.
    """
    keys: list[NDArray[Any]] = [np.empty(0, np.uint32)]
    offsets: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for lines in whole_lines(path, _LONGEST_LINE):
        block = lines.block.replace(b"\r\n", b"\n") if b"\r" in lines.block else lines.block
        if not block.strip():
            continue
        text = np.frombuffer(block, np.uint8)
        separators = text[text < ord("0")]
        even = len(separators) % 2 == 0 and bool((separators[::2] == 9).all() and (separators[1::2] == 10).all())
        numbers = integers(block) if even and text.max() <= ord("9") else np.empty(0, np.int64)
        if len(numbers) != len(separators) or numbers.max() == _LARGEST:
            raise FormatError(f"{os.fspath(path)}: {_wrong_line(lines.first, block)}; {ADVICE}")
        narrow = numbers[::2].max() <= np.iinfo(np.uint32).max  # half the memory, in all but rare cases
        keys.append(numbers[::2].astype(np.uint32) if narrow else numbers[::2].copy())
        offsets.append(numbers[1::2].copy())
    all_keys = np.concatenate(keys)
    keys.clear()  # a hundred MB or more, as are the copies avoided below
    all_offsets = np.concatenate(offsets)
    offsets.clear()
    return in_key_order(all_keys, all_offsets, os.fspath(path))


def in_key_order(keys: NDArray[np.uint32] | NDArray[np.int64], offsets: NDArray[np.int64], path: str) -> RecordIndex:
    """Sort by key, which may change the arrays; refuse a key that occurs twice."""
    if len(keys) > 1 and keys[-1] < keys[0] and _ascending(keys[:-1]):  # InsightFace: key 0 comes last
        for values in (keys, offsets):
            first = values[-1]
            values[1:] = values[:-1]
            values[0] = first
    if not _ascending(keys):
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise FormatError(f"{path}: key {keys[twice[0]]} occurs twice, so the index is corrupt; {ADVICE}")
    if len(keys) and int(keys[-1]) - int(keys[0]) == len(keys) - 1:
        return RecordIndex(range(int(keys[0]), int(keys[-1]) + 1), offsets)
    return RecordIndex(keys.astype(np.int64), offsets)


def _ascending(values: NDArray[np.uint32] | NDArray[np.int64]) -> bool:
    return bool(np.all(values[1:] > values[:-1]))


def _wrong_line(first: int, block: bytes) -> str:
    for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), first):
        key, tab, offset = line.partition(b"\t")
        shown = "".join(chr(byte) if 32 <= byte < 127 or byte == 9 else f"\\x{byte:02x}" for byte in line[:60])
        if not (tab and key.isdigit() and offset.isdigit()):
            return f"line {number} is '{shown}', expected key<TAB>offset (truncated?)"
        if len(key) > _DIGITS or int(key) >= _LARGEST:
            return f"line {number}: key {key[:_DIGITS].decode()} is too large"
        if len(offset) > _DIGITS or int(offset) >= _LARGEST:
            shown = offset[:_DIGITS].decode()
            return f"line {number}, key {key.decode()}: invalid offset {shown} (left by a failed write)"
    return "its lines are not key<TAB>offset"


def write_index(path: str | os.PathLike[str], keys: Iterable[int], offsets: NDArray[np.int64]) -> None:
    """Write an index file as MXNet does, in the order given; it appears complete or not at all."""
    keys = iter(keys)
    with output_errors(path), atomic_writer(path) as file:
        for begin in range(0, len(offsets), 1 << 16):
            block = offsets[begin : begin + (1 << 16)].tolist()
            pairs = zip(islice(keys, len(block)), block, strict=True)
            file.write("".join([f"{key}\t{offset}\n" for key, offset in pairs]).encode())
