"""What a worker makes ready of its samples for the one process that writes the database."""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import numpy as np

from facedata.converters.lmdb.datum import LARGEST_LABEL, encode_datum
from facedata.dataset import Sample
from facedata.errors import RefusedSampleError
from facedata.images import known_extension

__all__ = ["GENERATED", "KEYS", "LONGEST_KEY", "PATH", "SOURCE", "Block", "BlockMaker", "what_is_wrong_with"]

GENERATED, PATH, SOURCE = "generated", "path", "source"
KEYS = (GENERATED, PATH, SOURCE)
LONGEST_KEY = 511
"""Bytes; LMDB's own limit."""


class Block(NamedTuple):
    """The records of one shard in the order of their keys: few large objects, which go through a pipe fastest.

    Attributes
    ----------
    keys : bytes
        Each behind the other, with newlines between.
    sizes : bytes
        Of the values, in bytes, uint32.
    values : bytes
        Each behind the other.
    kv : bytes
        The lines of the key-label file, in the order of the samples.
    """

    keys: bytes
    sizes: bytes
    values: bytes
    kv: bytes

    def records(self) -> list[tuple[bytes, memoryview]]:
        """Key and value of each."""
        if not self.sizes:
            return []
        ends = np.frombuffer(self.sizes, np.uint32).cumsum(dtype=np.int64).tolist()
        view = memoryview(self.values)
        values = [view[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        return list(zip(self.keys.split(b"\n"), values, strict=True))


class BlockMaker:
    """The `BlockEncoder` of a shard.

    Parameters
    ----------
    layout : str
        Of the values, see `encode_datum`.
    prefix : str or None
        What generated keys begin with; None where the keys are those of the samples.
    keep_undecodable : bool
        Take what does not begin like an image.
    """

    def __init__(self, layout: str, prefix: str | None, keep_undecodable: bool) -> None:
        self._layout, self._prefix, self._keep_undecodable = layout, prefix, keep_undecodable
        self._records: list[tuple[bytes, bytes]] = []
        self._lines: list[bytes] = []

    def write(self, index: int, sample: Sample) -> None:
        """Make a record ready."""
        if not self._keep_undecodable:
            known_extension(sample.image)
        label = sample.label
        if not 0 <= label <= LARGEST_LABEL:
            raise RefusedSampleError(f"its label is {label}; a Datum holds labels from 0 to {LARGEST_LABEL}")
        if self._prefix is not None:
            key = f"{self._prefix}_{label}_{index}".encode("utf-8", "surrogateescape")
        else:
            if (wrong := what_is_wrong_with(sample.key)) is not None:
                raise RefusedSampleError(wrong)
            key = sample.key.encode("utf-8", "surrogateescape")
        self._records.append((key, encode_datum(sample, self._layout)))
        self._lines.append(b"%b %d\n" % (key, label))

    def block(self) -> Block:
        """All records; LMDB is fastest, and packs its pages best, where the keys ascend."""
        self._records.sort(key=itemgetter(0))
        keys = b"\n".join([key for key, _ in self._records])
        values = [value for _, value in self._records]
        sizes = np.fromiter(map(len, values), np.uint32, len(values))
        return Block(keys, sizes.tobytes(), b"".join(values), b"".join(self._lines))


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
