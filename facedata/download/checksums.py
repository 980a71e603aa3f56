"""Checksums of files: each read once, only plain files opened."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple

from facedata.download.digest import Digest, new_hasher
from facedata.errors import input_error
from facedata.files import open_regular

__all__ = ["Hashed", "hash_file"]

_BLOCK = 1 << 20
_BLOCK_AHEAD = 4 << 20  # longer than the threads need to hand Python's lock to each other
_BLOCKS_AHEAD = 3
_SMALL = 1 << 17
_WORTH_A_THREAD = 16 << 20


class Hashed(NamedTuple):
    """What came of hashing a file.

    Attributes
    ----------
    digest : Digest
    status : os.stat_result
        Of the file, when the last byte had been read.
    steady : bool
        Whether nobody changed it meanwhile, as far as its size and times tell.
    ended_ns : int
        When the last byte had been read, in nanoseconds since 1970.
    """

    digest: Digest
    status: os.stat_result
    steady: bool
    ended_ns: int


def hash_file(
    path: str | os.PathLike[str],
    algorithm: str,
    *,
    advance: Callable[[int], None] | None = None,
    ahead: bool = False,
) -> Hashed:
    """Read a file once and hash it.

    Parameters
    ----------
    path : path
        A plain file, or a symbolic link to one.
    algorithm : str
        A key of `ALGORITHMS`.
    advance : callable, optional
        Called with the bytes of each block; what it raises ends the reading.
    ahead : bool
        Let a second thread read while this one hashes, where the file is large enough to be worth it.

    Raises
    ------
    InputError
        Where it cannot be read, or is not a plain file.
    """
    descriptor = open_regular(path)
    before = os.fstat(descriptor)
    try:
        hasher = new_hasher(algorithm)
        if before.st_size < _SMALL and len(whole := os.read(descriptor, _SMALL)) == before.st_size:
            hasher.update(whole)  # millions of small files are worth a short way
            if advance is not None:
                advance(len(whole))
        else:
            os.lseek(descriptor, 0, os.SEEK_SET)
            blocks = _blocks_ahead if ahead and before.st_size >= _WORTH_A_THREAD else _blocks
            _hash_blocks(hasher, blocks(descriptor), advance)
        after = os.fstat(descriptor)
    except OSError as error:
        raise input_error(error, path) from error
    finally:
        os.close(descriptor)
    steady = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    return Hashed(Digest(algorithm, hasher.hexdigest()), after, steady, time.time_ns())


def _hash_blocks(hasher: Any, blocks: Generator[memoryview, None, None], advance: Callable[[int], None] | None) -> None:
    with closing(blocks):
        for block in blocks:
            hasher.update(block)
            if advance is not None:
                advance(len(block))


def _blocks(descriptor: int) -> Generator[memoryview, None, None]:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while read := os.readv(descriptor, [buffer]):
        yield view[:read]


def _blocks_ahead(descriptor: int) -> Generator[memoryview, None, None]:
    """The blocks, read by a thread of their own while the caller hashes those before."""
    free: SimpleQueue[bytearray | None] = SimpleQueue()
    full: SimpleQueue[memoryview | OSError] = SimpleQueue()
    for _ in range(_BLOCKS_AHEAD):
        free.put(bytearray(_BLOCK_AHEAD))
    reader = threading.Thread(target=_read_ahead, args=(descriptor, free, full), daemon=True)
    reader.start()
    try:
        while block := full.get():
            if isinstance(block, OSError):
                raise block
            yield block
            free.put(block.obj)  # type: ignore[arg-type]
    finally:
        free.put(None)  # behind at most the few buffers that are free
        reader.join()


def _read_ahead(descriptor: int, free: SimpleQueue[bytearray | None], full: SimpleQueue[memoryview | OSError]) -> None:
    try:
        while (buffer := free.get()) is not None:
            read = os.readv(descriptor, [buffer])
            full.put(memoryview(buffer)[:read])
            if not read:
                break
    except OSError as error:
        full.put(error)
