"""The index of a record file: ``train.idx``, one ``key<TAB>offset`` line per record.

In memory it takes 8 bytes a record for the offsets, and as much again for the keys if these have gaps.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import integers, whole_lines
from facedata.errors import FormatError, output_error
from facedata.files import atomic_writer

__all__ = ["ADVICE", "IndexKeys", "RecordIndex", "damage_mark", "in_key_order", "read_index", "write_index"]

_LONGEST_LINE = 1 << 12
_DIGITS = 40  # more than any number here has; int() refuses some thousands
_LARGEST = np.iinfo(np.int64).max
ADVICE = "give --rebuild-index to read without it, or rebuild it with facedata index-rec --overwrite"

IndexKeys = range | NDArray[np.int64]


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
    return in_key_order(np.concatenate(keys), np.concatenate(offsets), os.fspath(path))


def in_key_order(keys: NDArray[np.uint32] | NDArray[np.int64], offsets: NDArray[np.int64], path: str) -> RecordIndex:
    """Sort by key; refuse a key that occurs twice."""
    if len(keys) > 1 and keys[-1] < keys[0] and _ascending(keys[:-1]):  # InsightFace: key 0 comes last
        keys, offsets = np.roll(keys, 1), np.roll(offsets, 1)
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
    """Write an index file as MXNet does, in the order given; it appears complete or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    keys = iter(keys)
    try:
        with atomic_writer(path) as file:
            for begin in range(0, len(offsets), 1 << 16):
                block = offsets[begin : begin + (1 << 16)].tolist()
                pairs = zip(islice(keys, len(block)), block, strict=True)
                file.write("".join([f"{key}\t{offset}\n" for key, offset in pairs]).encode())
    except OSError as error:
        raise output_error(error, path) from error
