"""The index of a record file: ``train.idx``, one ``key<TAB>offset`` line per record, read, checked, written, rebuilt.

An index in memory is a `RecordIndex`: offsets in key order, 8 bytes a record, and the keys, which cost nothing where
they follow each other without a gap.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError, input_error, output_error
from facedata.files import atomic_writer

__all__ = ["IndexKeys", "RecordIndex", "read_index", "spoilt_mark", "write_index"]

_CHUNK = 1 << 24
_DIGITS = 40  # more than any number here has; int() refuses some thousands
_LARGEST = np.iinfo(np.int64).max
MEND = "--rebuild-index does without it, facedata index-rec --overwrite mends it"

IndexKeys = range | NDArray[np.int64]


@dataclass(frozen=True)
class RecordIndex:
    """Where each record lies.

    Attributes
    ----------
    keys : range or ndarray of shape (N,), int64
        Ascending, except in what `take` returns; a range where no key is left out.
    offsets : ndarray of shape (N,), int64
        Byte offset of each record, in key order; below 0 where the record is known to be spoilt, see `spoilt_mark`.
    """

    keys: IndexKeys
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, part: slice) -> RecordIndex:
        return RecordIndex(self.keys[part], self.offsets[part])

    def take(self, positions: NDArray[np.int64]) -> RecordIndex:
        """The entries at `positions`; their keys need not ascend any more."""
        keys = self.keys.start + positions if isinstance(self.keys, range) else self.keys[positions]
        return RecordIndex(keys, self.offsets[positions])

    def digest(self) -> str:
        """32 hexadecimal digits that tell this index from another."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr(self.keys).encode() if isinstance(self.keys, range) else self.keys.data)
        digest.update(np.ascontiguousarray(self.offsets).data)
        return digest.hexdigest()

    def position(self, key: int) -> int | None:
        """The place of `key` in the order of keys, or None where there is no such key."""
        if isinstance(self.keys, range):
            return self.keys.index(key) if key in self.keys else None
        place = int(np.searchsorted(self.keys, key))
        return place if place < len(self.keys) and self.keys[place] == key else None


def spoilt_mark(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The marks of records that are not whole although they can be read; applied twice, the offsets again."""
    return -1 - offsets


def read_index(path: str | os.PathLike[str]) -> RecordIndex:
    """Read an index file, check it, and put it in key order.

    17 million lines take about a second and 0.4 GB, most of it freed again.

    Raises
    ------
    FormatError
        Where a line is not ``key<TAB>offset`` or a key stands twice; the message names the line.
    InputError
        Where the file cannot be read.
    """
    try:
        keys, offsets = _parse(os.fspath(path))
    except OSError as error:
        raise input_error(error, path) from error
    return in_key_order(keys, offsets, os.fspath(path))


def in_key_order(keys: NDArray[np.uint32] | NDArray[np.int64], offsets: NDArray[np.int64], path: str) -> RecordIndex:
    """Sort by key, refuse a key that stands twice."""
    if len(keys) > 1 and keys[-1] < keys[0] and _ascending(keys[:-1]):  # InsightFace: key 0 stands last
        keys, offsets = np.roll(keys, 1), np.roll(offsets, 1)
    if not _ascending(keys):
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise FormatError(f"{path}: key {keys[twice[0]]} stands twice, so the index is damaged; {MEND}")
    if len(keys) and int(keys[-1]) - int(keys[0]) == len(keys) - 1:
        return RecordIndex(range(int(keys[0]), int(keys[-1]) + 1), offsets)
    return RecordIndex(keys.astype(np.int64), offsets)


def _ascending(values: NDArray[np.uint32] | NDArray[np.int64]) -> bool:
    return bool(np.all(values[1:] > values[:-1]))


def _parse(path: str) -> tuple[NDArray[np.uint32] | NDArray[np.int64], NDArray[np.int64]]:
    """Keys and offsets in file order."""
    lines = _count_lines(path)
    keys: NDArray[np.uint32] | NDArray[np.int64] = np.empty(lines, np.uint32)
    offsets = np.empty(lines, np.int64)
    filled, rest = 0, b""
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            block = rest + block
            cut = block.rfind(b"\n") + 1
            block, rest = block[:cut], block[cut:]
            if len(rest) > 64:
                raise _line_error(path, filled, block + rest)
            numbers = _parse_lines(path, block, filled)
            keys = _fill(keys, offsets, filled, numbers)
            filled += len(numbers)
    if rest.strip():
        numbers = _parse_lines(path, rest + b"\n", filled)
        keys = _fill(keys, offsets, filled, numbers)
        filled += 1
    return keys[:filled], offsets[:filled]


def _fill(
    keys: NDArray[np.uint32] | NDArray[np.int64],
    offsets: NDArray[np.int64],
    at: int,
    numbers: NDArray[np.int64],
) -> NDArray[np.uint32] | NDArray[np.int64]:
    if keys.dtype == np.uint32 and len(numbers) and numbers[:, 0].max() > np.iinfo(np.uint32).max:
        keys = keys.astype(np.int64)  # rare: half the memory is worth the other case
    keys[at : at + len(numbers)] = numbers[:, 0]
    offsets[at : at + len(numbers)] = numbers[:, 1]
    return keys


def _count_lines(path: str) -> int:
    lines, last = 0, b"\n"
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _parse_lines(path: str, block: bytes, lines_before: int) -> NDArray[np.int64]:
    """Numbers of shape (lines, 2) from whole lines."""
    block = block.replace(b"\r\n", b"\n") if b"\r" in block else block
    text = np.frombuffer(block, np.uint8)
    separators = text[text < ord("0")]
    even = len(separators) % 2 == 0 and bool((separators[::2] == 9).all() and (separators[1::2] == 10).all())
    if even:
        numbers = _numbers(block)
        if len(numbers) == len(separators) and numbers.max(initial=0) < _LARGEST and text.max(initial=0) <= ord("9"):
            return numbers.reshape(-1, 2)
    raise _line_error(path, lines_before, block)


def _numbers(block: bytes) -> NDArray[np.int64]:
    """The numbers up to the first that is none; one too large for int64 becomes its largest value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a bad number shows in how many there are
        try:
            return np.fromstring(block, np.int64, sep=" ")
        except ValueError:  # what NumPy announces to do instead of the warning
            return np.empty(0, np.int64)


def _line_error(path: str, lines_before: int, block: bytes) -> FormatError:
    """Find the line that is wrong, for the message."""
    lines = block.split(b"\n")
    for number, line in enumerate(lines, lines_before + 1):
        key, tab, offset = line.partition(b"\t")
        shown = "".join(chr(byte) if 32 <= byte < 127 or byte == 9 else f"\\x{byte:02x}" for byte in line[:60])
        if not (tab and key.isdigit() and offset.isdigit()):
            if not line and number == lines_before + len(lines):
                continue
            return FormatError(f"{path}: line {number} is '{shown}', expected key<TAB>offset; was it cut? {MEND}")
        if len(key) > _DIGITS or int(key) >= _LARGEST:
            return FormatError(f"{path}: line {number}: key {key[:_DIGITS].decode()} is too large; {MEND}")
        if len(offset) > _DIGITS or int(offset) >= _LARGEST:
            return FormatError(
                f"{path}: line {number}, key {key.decode()}: offset {offset[:_DIGITS].decode()} is what a failed write "
                f"leaves behind, no place in a file; {MEND}"
            )
    return FormatError(f"{path}: its lines are not key<TAB>offset; {MEND}")


def write_index(path: str | os.PathLike[str], keys: Sequence[int] | IndexKeys, offsets: NDArray[np.int64]) -> None:
    """Write an index file as MXNet does, in the order given; it appears whole or not at all.

    Raises
    ------
    OutputError
        Where it cannot be written.
    """
    try:
        with atomic_writer(path) as file:
            for begin in range(0, len(offsets), 1 << 16):
                part = slice(begin, begin + (1 << 16))
                pairs = zip(keys[part], offsets[part].tolist(), strict=True)
                file.write("".join([f"{key}\t{offset}\n" for key, offset in pairs]).encode())
    except OSError as error:
        raise output_error(error, path) from error
