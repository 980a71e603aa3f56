"""Whether the disk has room for what is still to come."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from facedata.errors import DiskFullError

__all__ = ["DiskLedger"]


class DiskLedger:
    """What is still to be written, file by file, against what is free.

    Parameters
    ----------
    reserve : int
        Bytes to leave free on each disk.
    """

    def __init__(self, reserve: int) -> None:
        self._reserve, self._lock = reserve, threading.Lock()
        self._to_come: dict[Path, int] = {}

    def expect(self, files: Mapping[Path, int]) -> None:
        """Note how many bytes are still to come for each of `files`.

        Raises
        ------
        DiskFullError
            Where all that is still to come does not fit; nothing is noted then.
        """
        with self._lock:
            to_come = {**self._to_come, **files}
            for folder in {_existing(path.parent) for path in files}:
                device = os.stat(folder).st_dev
                needed = sum(size for path, size in to_come.items() if os.stat(_existing(path.parent)).st_dev == device)
                free = shutil.disk_usage(folder).free
                if needed + self._reserve > free:
                    raise DiskFullError(_message(folder, needed, self._reserve, free))
            self._to_come = to_come

    def forget(self, path: Path) -> None:
        """Nothing more is to come for this file."""
        with self._lock:
            self._to_come.pop(path, None)

    def came(self, path: Path, left: int) -> None:
        """Note how many bytes are still to come, fewer than before."""
        with self._lock:
            if path in self._to_come:
                self._to_come[path] = left


def _existing(folder: Path) -> Path:
    while not _exists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # a name that is too long, or no permission to look: making it will tell
        return False


def _message(folder: Path, needed: int, reserve: int, free: int) -> str:
    besides = f" and {reserve:,} to be left free" if reserve else ""
    return (
        f"{folder}: the disk has {free:,} bytes free, and {needed:,} are still to be fetched{besides}; "
        "free some space and run the same command again, what is fetched already is kept"
    )
