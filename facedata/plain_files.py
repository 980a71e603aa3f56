"""Opening files that are plain ones: a named pipe is not waited for, a folder or a device is called what it is."""

from __future__ import annotations

import errno
import os
import stat

from facedata.errors import InputError, input_error

__all__ = ["kind_name", "open_plain_file"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
