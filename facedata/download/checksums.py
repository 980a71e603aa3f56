"""Checksums of files: each read once, only plain files opened."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple

from facedata.download.digest import Digest, new_hasher
from facedata.errors import InputError, input_error

__all__ = ["Hashed", "hash_file", "kind_name", "open_plain_file"]

_BLOCK = 1 << 20
_BLOCK_AHEAD = 4 << 20  # longer than the threads need to hand Python's lock to each other
_BLOCKS_AHEAD = 3
_SMALL = 1 << 17
_WORTH_A_THREAD = 16 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
    descriptor, before = open_plain_file(path)
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


def open_plain_file(path: str | os.PathLike[str]) -> tuple[int, os.stat_result]:
    """Open for reading what is a plain file, so that a named pipe is not waited for; descriptor and status.

    Raises
    ------
    InputError
        Where it cannot be opened, or is something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise InputError(f"{os.fspath(path)}: is {_kind_of(path)}, not a file") from error
        raise input_error(error, path) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{os.fspath(path)}: is {kind_name(status.st_mode)}, not a file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def kind_name(mode: int) -> str:
    """What a file is that is not plain: ``a folder``, ``a named pipe``."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _kind_of(path: str | os.PathLike[str]) -> str:
    try:
        return kind_name(os.stat(path).st_mode)
    except OSError:
        return "something else"


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
