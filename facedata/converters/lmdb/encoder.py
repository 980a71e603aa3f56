"""Encoding samples in the workers for the one process that writes the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facedata.columns import LARGEST_LABEL
from facedata.converters.lmdb.datum import datum_parts
from facedata.dataset import BlockEncoder, Sample
from facedata.errors import RefusedSampleError
from facedata.images import known_extension
from facedata.jobs.buffers import BlockBuffer, ProcessAddress, SharedBuffer

__all__ = ["LONGEST_KEY", "Block", "LmdbEncoder", "key_problem"]

LONGEST_KEY = 511
"""In bytes: LMDB's own limit."""


@dataclass(frozen=True)
class Block:
    """The encoded records of one shard.

    Attributes
    ----------
    data : SharedBuffer
        The values in the order of the samples; the keys, ascending, with newlines between; where the value of each key
        begins, and its size; the lines of the key-label file.
    records : int
        Their number.
    ends : mapping
        Where each of these parts ends.
    """

    data: SharedBuffer
    records: int
    ends: Mapping[str, int]

    def unpack(self, into: memoryview) -> tuple[Sequence[tuple[bytes, memoryview]], memoryview]:
        """Move the data, which can be done once, into memory of at least ``data.size`` bytes.

        Returns key and value of each record, the keys ascending, and the lines of the key-label file.
        """
        self.data.take(into)
        ends = self.ends
        keys = bytes(into[ends["values"] : ends["keys"]]).split(b"\n")
        begins, sizes = np.frombuffer(into[ends["keys"] : ends["table"]], np.int64).reshape(2, -1).tolist()
        values = [into[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
        records = list(zip(keys, values, strict=True)) if self.records else []
        return records, into[ends["table"] : ends["kv"]]


class LmdbEncoder(BlockEncoder):
    """Encodes the records of a shard.

    Parameters
    ----------
    layout : str
        Of the values, see `facedata.converters.lmdb.datum`.
    prefix : str or None
        The beginning of generated keys; None to keep the keys of the samples.
    keep_undecodable : bool
        Accept bytes that do not begin like an image.
    receiver : ProcessAddress, optional
        The process of the writer.
    """

    def __init__(
        self, layout: str, prefix: str | None, *, keep_undecodable: bool = False, receiver: ProcessAddress | None = None
    ) -> None:
        self._layout, self._prefix, self._keep_undecodable = layout, prefix, keep_undecodable
        self._receiver = receiver
        self._buffer = BlockBuffer()
        self._keys: list[bytes] = []
        self._ends: list[int] = []
        self._lines: list[bytes] = []

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Encode a sample.

        Raises
        ------
        RefusedSampleError
            If it does not begin like an image, or its label or its key cannot be written.
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
            if (problem := key_problem(sample.key)) is not None:
                raise RefusedSampleError(problem)
            key = sample.key.encode("utf-8", "surrogateescape")
        for part in datum_parts(sample, self._layout):
            self._buffer.append(part)
        self._ends.append(self._buffer.end)
        self._keys.append(key)
        self._lines.append(b"%b %d\n" % (key, label))

    def block(self) -> Block:
        """All records, in the order of their keys: so LMDB is fastest, and packs its pages best."""
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        begins = np.array([0, *self._ends], np.int64)
        table = np.stack([begins[:-1], np.diff(begins)])[:, order]
        ends = {"values": self._buffer.end}
        for name, data in (
            ("keys", b"\n".join([self._keys[place] for place in order])),
            ("table", table.tobytes()),
            ("kv", b"".join(self._lines)),
        ):
            self._buffer.append(data)
            ends[name] = self._buffer.end
        return Block(self._buffer.share(self._receiver), len(order), ends)


def key_problem(key: str) -> str | None:
    """Why a key cannot stand in LMDB or in a key-label file; None if it can."""
    if not key:
        return "its key is empty"
    if key.split(None, 1) != [key]:
        return "its key has a space or a line break, at which readers of key-label files split the line"
    try:
        size = len(key.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "its key cannot be written as UTF-8"
    return f"its key has {size} bytes; LMDB takes {LONGEST_KEY}" if size > LONGEST_KEY else None
