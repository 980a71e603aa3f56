"""A file that one run at a time has open, though it may be renamed under the eyes of the others."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path

from facedata.errors import OutputError, OutputLockedError

__all__ = ["is_same", "open_locked", "sync_folder"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_log = logging.getLogger(__name__)


def open_locked(path: Path) -> int:
    """Open a file to read and write, made if it is not there, and lock it until it is closed; returns the descriptor.

    Raises
    ------
    OutputLockedError
        Where another run has it.
    OutputError
        Where it is not a regular file.
    OSError
        Where it cannot be opened; no link is followed.
    """
    while True:
        descriptor = os.open(path, _FLAGS, 0o666)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OutputError(f"{path}: is not a regular file; move it out of the way")
            _lock(descriptor, path)
            if is_same(path, status):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever had it before has just given it its final name


def _lock(descriptor: int, path: Path) -> None:
    try:
        # not lockf: that lock would go with the first of this process's descriptors of the file that is closed
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise OutputLockedError(
                f"{path}: another run is fetching this file; wait until it ends, or stop it, and run again"
            ) from error
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s: this file system has no locks; do not fetch the same file twice at once here", path)


def is_same(path: Path, status: os.stat_result) -> bool:
    """Whether the file of that name is the one that has this status."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), status)
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
