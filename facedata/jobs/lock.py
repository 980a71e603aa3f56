"""Locks that keep two runs from writing the same shards, on one machine or on several that share a file system."""

from __future__ import annotations

import os
from pathlib import Path

from facedata.files import lock_region

__all__ = ["ShardLock"]

_FINISHING = 1 << 40  # the byte that stands for publishing the result, far behind those of the shards


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
        lock_region(self._descriptor, self._path.parent, shards.start, len(shards))

    def take_finishing(self) -> None:
        """Lock the right to publish the result; waits for the other part that is at it."""
        lock_region(self._descriptor, self._path.parent, _FINISHING, 1, wait=True)
