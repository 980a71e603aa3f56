"""Files that appear whole or not at all, and the identity of input files."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from facedata.errors import input_error

__all__ = ["atomic_writer", "file_identity", "remove_stale_temporaries", "temporary_name", "write_fully"]

_TEMPORARY = ".facedata-temporary-"
_BLOCKS = 16
_BLOCK_SIZE = 1 << 16


def temporary_name(path: str | os.PathLike[str]) -> str:
    """A hidden name beside `path` that no other process on any machine uses."""
    folder, name = os.path.split(os.fspath(path))
    return os.path.join(folder, f"{_TEMPORARY}{name}-{socket.gethostname()}-{os.getpid()}")


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files in `folder` whose process, of this machine, is no more: what kill -9 left behind."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_TEMPORARY)]
    for name in names:
        rest, _, pid = name.rpartition("-")
        if pid.isdigit() and rest.endswith(f"-{socket.gethostname()}") and not _runs(int(pid)):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    try:
        with open(
            f"/proc/{pid}/stat", "rb"
        ) as file:  # "pid (name) state": a zombie has ended, though nobody asked for it
            return file.read(4096).rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return True


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The bytes are on the disk before the name is. After an error nothing is left behind.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_fully(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`: a disk that fills up takes a part of it without an error, and fails the next write."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def file_identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What tells a file from another without reading all of it: its size, and a digest of samples.

    Hashed are up to 16 blocks of 64 KiB, spread evenly, the first and the last among them. Independent of the
    file's path and times, so that a copy on another machine is the same input.

    Raises
    ------
    InputError
        Where the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(digest_size=16)
            last = max(size - _BLOCK_SIZE, 0)
            for offset in sorted({last * block // (_BLOCKS - 1) for block in range(_BLOCKS)}):
                digest.update(os.pread(file.fileno(), _BLOCK_SIZE, offset))
    except OSError as error:
        raise input_error(error, path) from error
    return {"size": size, "digest": digest.hexdigest()}
