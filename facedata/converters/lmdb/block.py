"""What a worker makes ready of its samples for the one process that writes the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from facedata.converters.lmdb.datum import LARGEST_LABEL, datum_parts
from facedata.dataset import BlockEncoder, Sample
from facedata.errors import RefusedSampleError
from facedata.images import known_extension
from facedata.jobs.buffers import ProcessAddress, SharedBuffer

__all__ = ["GENERATED", "KEYS", "LONGEST_KEY", "PATH", "SOURCE", "Block", "BlockMaker", "Records", "what_is_wrong_with"]

GENERATED, PATH, SOURCE = "generated", "path", "source"
KEYS = (GENERATED, PATH, SOURCE)
LONGEST_KEY = 511
"""Bytes; LMDB's own limit."""

_FIRST_BUFFER = 1 << 20
_spare_buffers: list[bytearray] = []
"""Kept for the next shard: fresh memory of this size costs more than filling it."""


class Records(NamedTuple):
    """What a block holds.

    Attributes
    ----------
    records : sequence of (bytes, memoryview)
        Key and value of each, the keys ascending.
    kv : memoryview
        The lines of the key-label file, in the order of the samples.
    """

    records: Sequence[tuple[bytes, memoryview]]
    kv: memoryview


@dataclass(frozen=True)
class Block:
    """The records of one shard, all of their bytes behind each other.

    Attributes
    ----------
    data : SharedBuffer
        The values in the order of the samples; the keys, ascending, with newlines between; where the value of each key
        begins, and its size; the lines of the key-label file.
    records : int
    ends : mapping
        Where each of these parts ends.
    """

    data: SharedBuffer
    records: int
    ends: Mapping[str, int]

    def unpack(self, into: memoryview) -> Records:
        """Take the data, which can be done once, into memory of at least ``data.size`` bytes."""
        self.data.take(into)
        ends = self.ends
        keys = bytes(into[ends["values"] : ends["keys"]]).split(b"\n")
        table = np.frombuffer(into[ends["keys"] : ends["table"]], np.int64).reshape(2, -1)
        begins, sizes = table.tolist()
        values = [into[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
        records = list(zip(keys, values, strict=True)) if self.records else []
        return Records(records, into[ends["table"] : ends["kv"]])


class BlockMaker(BlockEncoder):
    """The `BlockEncoder` of a shard.

    Parameters
    ----------
    layout : str
        Of the values, see `encode_datum`.
    prefix : str or None
        What generated keys begin with; None where the keys are those of the samples.
    keep_undecodable : bool
        Take what does not begin like an image.
    receiver : ProcessAddress, optional
        Where the writer is.
    """

    def __init__(
        self, layout: str, prefix: str | None, *, keep_undecodable: bool = False, receiver: ProcessAddress | None = None
    ) -> None:
        self._layout, self._prefix, self._keep_undecodable = layout, prefix, keep_undecodable
        self._receiver = receiver
        self._buffer = _spare_buffers.pop() if _spare_buffers else bytearray(_FIRST_BUFFER)
        self._end = 0
        self._keys: list[bytes] = []
        self._ends: list[int] = []
        self._lines: list[bytes] = []

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Make a record ready.

        Raises
        ------
        RefusedSampleError
            Where its bytes begin like no image, or its label or its key cannot be written.
        """
        if not self._keep_undecodable:
            known_extension(sample.image)
        label = sample.label
        if not 0 <= label <= LARGEST_LABEL:
            raise RefusedSampleError(f"its label is {label}; a Datum holds labels from 0 to {LARGEST_LABEL}")
        if self._prefix is not None:
            number = f"{index}_{face}" if face else index
            key = f"{self._prefix}_{label}_{number}".encode("utf-8", "surrogateescape")
        else:
            if (wrong := what_is_wrong_with(sample.key)) is not None:
                raise RefusedSampleError(wrong)
            key = sample.key.encode("utf-8", "surrogateescape")
        for part in datum_parts(sample, self._layout):
            self._append(part)
        self._ends.append(self._end)
        self._keys.append(key)
        self._lines.append(b"%b %d\n" % (key, label))

    def _append(self, data: bytes) -> None:
        begin, self._end = self._end, self._end + len(data)
        if self._end > len(self._buffer):
            self._buffer += bytes(max(self._end, 2 * len(self._buffer)) - len(self._buffer))
        self._buffer[begin : self._end] = data

    def block(self) -> Block:
        """All records; LMDB is fastest, and packs its pages best, where the keys ascend."""
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        begins = np.array([0, *self._ends], np.int64)
        table = np.stack([begins[:-1], np.diff(begins)])[:, order]
        ends = {"values": self._end}
        for name, data in (
            ("keys", b"\n".join([self._keys[place] for place in order])),
            ("table", table.tobytes()),
            ("kv", b"".join(self._lines)),
        ):
            self._append(data)
            ends[name] = self._end
        with memoryview(self._buffer)[: self._end] as view:
            block = Block(SharedBuffer(view, self._receiver), len(order), ends)
        _spare_buffers.append(self._buffer)
        return block


def what_is_wrong_with(key: str) -> str | None:
    """Why a key cannot be one of LMDB and of a key-label file; None where it can."""
    if not key:
        return "its key is empty"
    if key.split(None, 1) != [key]:
        return "its key has a space or a line break, where readers of key-label files cut the line"
    try:
        size = len(key.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "its key cannot be written as UTF-8"
    return f"its key has {size} bytes; LMDB takes {LONGEST_KEY}" if size > LONGEST_KEY else None
