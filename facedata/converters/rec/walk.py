"""Rebuilding an index by walking through a record file from chunk to chunk."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.recordio import (
    CHUNK_HEADER_SIZE,
    IMAGE_HEADER_SIZE,
    MAGIC,
    MAGIC_BYTES,
    MAXIMUM_LENGTH,
    RecordIndex,
    RecordReader,
    damage_mark,
    in_key_order,
    padded,
    unpack_image_record,
)
from facedata.errors import FormatError
from facedata.files import opened_regular, read_exactly

__all__ = ["WalkedRecords", "walk_records"]

_NEEDED = CHUNK_HEADER_SIZE + IMAGE_HEADER_SIZE
_LARGEST_ID = 1 << 62  # far above any real one: a larger id is damage
_chunk_header = struct.Struct("<II")
_record_id = struct.Struct("<Q")
_ID = CHUNK_HEADER_SIZE + 8


@dataclass
class WalkedRecords:
    """The records that a walk found, in file order.

    Attributes
    ----------
    offsets, identifiers : array of int64
        The offset of each record, and the `id` in its image header, -1 if there is none.
    damaged : int
        The number of damaged places that were skipped. Each is in `offsets` too, so that reading it fails by name.
    corrupt : array of int64
        Those of `offsets` whose record can be read, although the walk has shown that it is incomplete.
    """

    offsets: array[int] = field(default_factory=lambda: array("q"))
    identifiers: array[int] = field(default_factory=lambda: array("q"))
    damaged: int = 0
    corrupt: array[int] = field(default_factory=lambda: array("q"))

    def index(self, path: str) -> RecordIndex:
        """The index in key order; the keys are the ids in the records if these can be the original keys.

        Otherwise the keys count the records in file order, with key 0 for the meta record wherever it is.
        """
        offsets: NDArray[np.int64] = np.frombuffer(self.offsets, np.int64)
        if self.corrupt:
            offsets = offsets.copy()
            places = np.searchsorted(offsets, np.frombuffer(self.corrupt, np.int64))
            offsets[places] = damage_mark(offsets[places])
        ids: NDArray[np.int64] = np.frombuffer(self.identifiers, np.int64)
        if len(ids) and ids.min() < 0:
            ids = _with_gaps_filled(ids)
        place, end = _find_meta(path, ids, offsets)
        if _are_keys(ids, end):
            return in_key_order(ids, offsets, path)
        if place is not None:
            offsets = np.concatenate([offsets[place : place + 1], offsets[:place], offsets[place + 1 :]])
        return RecordIndex(range(len(offsets)), offsets)


def _with_gaps_filled(identifiers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give a damaged place the id after that of the record before it, or one after all; others keep theirs."""
    ids, known = identifiers.copy(), np.sort(identifiers)
    largest, last = int(known[-1]) if len(known) else -1, -1
    for place in np.flatnonzero(ids < 0).tolist():
        guess = int(ids[place - 1]) + 1 if place else 0
        at = int(np.searchsorted(known, guess))
        if guess <= last or (at < len(known) and known[at] == guess):
            guess = largest + 1
        ids[place], last, largest = guess, max(guess, last), max(guess, largest)
    return ids


def _are_keys(ids: NDArray[np.int64], end: float | None) -> bool:
    """Whether the ids in the records can be the original keys.

    InsightFace's dataset_clean.py and shuffle_rec.py number the keys again and leave the old ones in the records: in
    the first, ids exceed the keys that the meta record counts; in the second they are 1..N in random order.
    """
    ordered = np.sort(ids)
    if len(ids) == 0 or bool((ordered[1:] == ordered[:-1]).any()):
        return False
    if end is not None:
        return bool(ordered[-1] < end + np.spacing(np.float32(end)))
    shuffled = bool((ids[1:] < ids[:-1]).any())
    return not (shuffled and ordered[0] == 1 and ordered[-1] == len(ids))


def _find_meta(path: str, ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> tuple[int | None, float | None]:
    """The place of the meta record, which has the id 0 or is the last, and the number of records that it counts."""
    zeros = np.flatnonzero(ids == 0)[:2].tolist()
    with RecordReader(path) as reader:
        for place in [*(zeros if len(zeros) == 1 else []), len(offsets) - 1]:
            try:
                record = unpack_image_record(reader.read(int(offsets[place]))[0])
            except (FormatError, IndexError):
                continue
            if record.flag == 2 and not record.image:
                return place, record.labels[1]
    return None, None


def walk_records(
    path: str | os.PathLike[str],
    *,
    salvage: bool = False,
    progress: Callable[[int, int], None] | None = None,
    block_size: int = 1 << 22,
) -> WalkedRecords:
    """Find every record of a ``.rec`` file.

    Parameters
    ----------
    salvage : bool
        Skip damage, to the next place where a record begins, instead of raising.
    progress : callable, optional
        Called with the bytes done and the bytes in all.
    block_size : int
        The file is read once, in order, in blocks of this many bytes; records longer than that are skipped.

    Raises
    ------
    FormatError
        At the first damage, with its place, unless `salvage`.
    InputError
        If the file cannot be read.
    """
    with opened_regular(path) as descriptor:
        walk = _Walk(descriptor, os.fspath(path), salvage, block_size)
        offset = 0
        while offset < walk.size:
            offset = walk.walk_block(offset)
            if progress:
                progress(min(offset, walk.size), walk.size)
        if walk.in_record:
            walk.note_damage(walk.size, "the file ends inside a split record")
    return walk.found


class _Walk:
    """One walk. `_block` is the part of the file in memory, `_base` its offset."""

    def __init__(self, descriptor: int, path: str, salvage: bool, block_size: int) -> None:
        self._descriptor, self._path, self._salvage, self._block_size = descriptor, path, salvage, block_size
        self.size = os.fstat(descriptor).st_size
        self.found = WalkedRecords()
        self.in_record = False
        self._base, self._block = 0, b""

    def _load(self, offset: int) -> None:
        """Load the headers at `offset`, and much after them."""
        end = self._base + len(self._block)
        if self._base <= offset and (offset + _NEEDED <= end or end == self.size):
            return
        self._base, self._block = offset, read_exactly(self._descriptor, max(self._block_size, _NEEDED), offset)
        if len(self._block) < min(self._block_size, self.size - offset):
            raise FormatError(f"{self._path}: the file became shorter while it was being read")

    def walk_block(self, begin: int) -> int:
        """Walk the records from `begin` that lie in the block; return where to continue."""
        self._load(begin)
        unpack, size, found = _chunk_header.unpack_from, self.size, self.found
        block, base = self._block, self._base
        limit = len(block) if base + len(block) >= size else len(block) - _NEEDED + 1
        at = begin - base
        while at < limit:
            if at + CHUNK_HEADER_SIZE > len(block):
                return self._resume(base + at)
            magic, word = unpack(block, at)
            flag, length = word >> 29, word & MAXIMUM_LENGTH
            begins = flag < 2
            fits = base + at + CHUNK_HEADER_SIZE + length <= size
            if magic != MAGIC or flag > 3 or begins == self.in_record or not fits:
                return self._resume(base + at)
            end = at + CHUNK_HEADER_SIZE + padded(length)
            inside = self._record_inside(base + at, base + end)
            if begins:
                identifier = _record_id.unpack_from(block, at + _ID)[0] if length >= IMAGE_HEADER_SIZE else _LARGEST_ID
                found.offsets.append(base + at)
                found.identifiers.append(identifier if identifier < _LARGEST_ID else -1)
            if inside is not None:
                found.corrupt.append(found.offsets[-1])
                self.in_record = False
                following = self._record_in(inside, size)
                return size if following is None else following
            self.in_record = flag in (1, 2)
            at = end
        return base + at

    def _resume(self, offset: int) -> int:
        """Note the damage at `offset`; return the next place at which a record may begin."""
        self.note_damage(offset, "no complete record begins or continues here: the file is truncated or damaged")
        if not self.in_record:
            self.found.offsets.append(offset)
            self.found.identifiers.append(-1)
        # the record that ends here is listed already, and a complete one may begin at this place
        found = self._record_in(offset, self.size, skip=0 if self.in_record else 1)
        self.in_record = False
        return self.size if found is None else found

    def _record_inside(self, offset: int, end: int) -> int | None:
        """Find another record that begins inside the chunk at `offset`, whose length is then wrong; note the damage."""
        in_memory = self._base <= offset and end + 3 <= self._base + len(self._block)
        if in_memory and self._block.find(MAGIC_BYTES, offset + 4 - self._base, end + 3 - self._base) < 0:
            return None
        inside = self._record_in(offset + CHUNK_HEADER_SIZE, end, inside_record=True)
        if inside is not None:
            self.note_damage(offset, f"the length is wrong, or bytes are missing: another begins at byte {inside}")
        return inside

    def note_damage(self, offset: int, what: str) -> None:
        """Count a damaged place; without salvage, raise."""
        self.found.damaged += 1
        if not self._salvage:
            raise FormatError(
                f"{self._path}: byte {offset} of {self.size}: {what}; the {len(self.found.offsets)} records before "
                "it are complete. Fetch the file again, or give --salvage to read what can be read"
            )

    def _record_in(self, begin: int, end: int, *, skip: int = 0, inside_record: bool = False) -> int | None:
        """The first place from `begin` (`skip` bytes more) to `end` where a record begins, or inside one may begin.

        Inside a record there is no magic word at a multiple of 4 bytes: the writer would have split it there. At other
        places there may be one, which counts as a record only if another record, or the end of the file, follows.
        """
        offset = begin + skip
        while offset < end:
            self._load(offset)
            block, base = self._block, self._base
            at = block.find(MAGIC_BYTES, offset - base)
            while at >= 0 and base + at < end:
                whole_words = (base + at - begin) % 4 == 0
                if inside_record and (whole_words or not self._salvage):
                    likely = whole_words  # elsewhere an image may hold any bytes, and its record is intact
                else:
                    likely = self._begins_record(base + at, whole_words=whole_words)
                if likely:
                    return base + at
                at = block.find(MAGIC_BYTES, at + 1)
            if base + len(block) >= self.size:
                return None
            offset = max(base + len(block) - len(MAGIC_BYTES) + 1, offset + 1)
        return None

    def _begins_record(self, offset: int, *, whole_words: bool) -> bool:
        header = read_exactly(self._descriptor, CHUNK_HEADER_SIZE, offset)
        if len(header) < CHUNK_HEADER_SIZE:
            return False
        word = _chunk_header.unpack(header)[1]
        length = word & MAXIMUM_LENGTH
        if word >> 29 > 1 or offset + CHUNK_HEADER_SIZE + length > self.size:
            return False
        after = offset + CHUNK_HEADER_SIZE + padded(length)
        return whole_words or after >= self.size or read_exactly(self._descriptor, 4, after) == MAGIC_BYTES
