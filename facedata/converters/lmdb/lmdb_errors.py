"""Errors of LMDB, made ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from facedata.errors import OutputError, output_error
from facedata.files import temporary_name, write_fully

__all__ = ["as_output_errors"]

_MEGABYTE = 1 << 20
_TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


@contextmanager
def as_output_errors(path: str, needed: Callable[[], int]) -> Iterator[None]:
    """Turn an error of LMDB met while writing `path` into an `OutputError`.

    Parameters
    ----------
    path : str
    needed : callable
        How many bytes were to be written, about. LMDB makes the same error of a write that was cut short and of
        one that failed; writing as much beside it tells whether the disk is full.
    """
    import lmdb

    try:
        yield
    except lmdb.MemoryError as error:
        raise OutputError(f"{path}: LMDB cannot map it: {error}; is the address space limited (ulimit -v)?") from error
    except lmdb.Error as error:
        told = str(error)
        code = next((code for code in _TOLD if os.strerror(code) in told), None)
        if code == errno.EIO:
            code = _errno_of_writing(path, needed())
        if code is None:
            raise OutputError(f"{path}: LMDB cannot write it: {error}") from error
        raise output_error(OSError(code, os.strerror(code)), path) from error


def _errno_of_writing(path: str, size: int) -> int:
    """What the system says when so many bytes are written beside `path`."""
    probe = temporary_name(path)
    try:
        with open(probe, "wb", buffering=0) as file:
            for _ in range(0, size + _MEGABYTE, _MEGABYTE):
                write_fully(file.fileno(), bytes(_MEGABYTE))
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        with suppress(OSError):
            os.unlink(probe)
    return errno.EIO
