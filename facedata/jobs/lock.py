"""Locks that keep two runs from writing the same shards, on one machine or on several that share a file system."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from facedata.errors import OutputLockedError

__all__ = ["ShardLock"]

_FINISHING = 1 << 40  # the byte that stands for publishing the result, far behind those of the shards
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_log = logging.getLogger(__name__)


class ShardLock:
    """A lock file with one byte a shard (POSIX record locks: the kernel drops them however the process ends).

    Parameters
    ----------
    path : path
        The lock file; made if it is not there, and left there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> ShardLock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def take(self, shards: range) -> None:
        """Lock `shards` until the lock is closed.

        Raises
        ------
        OutputLockedError
            Where another run has one of them.
        """
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, len(shards), shards.start)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise OutputLockedError(
                f"{self._path.parent}: another run is writing here; wait until it ends, or stop it, and run again"
            ) from error

    def take_finishing(self) -> None:
        """Lock the right to publish the result; waits for the other part that is at it."""
        self._lock(fcntl.LOCK_EX, 1, _FINISHING)

    def _lock(self, operation: int, length: int, start: int) -> None:
        if length == 0:  # to the kernel that would mean everything
            return
        try:
            fcntl.lockf(self._descriptor, operation, length, start)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _log.warning(
                "%s: this file system has no locks (%s); do not start the same job twice here",
                self._path,
                error.strerror,
            )
