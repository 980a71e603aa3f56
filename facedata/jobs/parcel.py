"""Handing large bytes from a worker to the process that takes its results, past the pipe between the two.

Through the pipe, bytes are copied many times and move at half a gigabyte a second, with a core busy at either end. Here
the worker leaves them in memory that has no name (``memfd_create``), and the receiver opens it through ``/proc``.
Nothing is left behind, whoever is killed: the memory goes with the last descriptor. Where the two do not see each other
(another machine, another container, not Linux) the bytes go through the pipe.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from facedata.files import write_fully

__all__ = ["Parcel", "Place", "this_place"]

_SMALLEST = 1 << 16  # smaller ones go through the pipe at once
_left: list[int] = []
"""Descriptors of memory that was left for a receiver and may not have been taken yet."""
_left_lock = threading.Lock()


class Place(NamedTuple):
    """A process, and whence its ``/proc`` can be seen.

    Attributes
    ----------
    machine : str
        Differs between machines, and after each start of one.
    namespace : int
        Differs between containers that count their processes separately.
    process : int
    """

    machine: str
    namespace: int
    process: int


def this_place() -> Place | None:
    """Where this process is; None where it cannot be told, or there is no such memory."""
    try:
        return Place(*_surroundings(), os.getpid()) if hasattr(os, "memfd_create") else None
    except OSError:
        return None


@cache
def _surroundings() -> tuple[str, int]:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip(), os.stat("/proc/self/ns/pid").st_ino


@cache
def _sees(receiver: Place) -> bool:
    """Whether this process and `receiver` see each other: may one look into the other, so may that into this."""
    here = this_place()
    if here is None or here[:2] != receiver[:2]:
        return False
    try:
        os.listdir(f"/proc/{receiver.process}/fd")
    except OSError:
        return False
    return True


class _Left(NamedTuple):
    """Memory that a worker left: its process, its descriptor there, and what proves that it is the same."""

    process: int
    descriptor: int
    inode: int


class Parcel:
    """Bytes on their way to another process; to be taken there, once.

    Parameters
    ----------
    data : memoryview
        May be used for something else afterwards.
    receiver : Place, optional
        Who will take them; None where that is not known.
    """

    def __init__(self, data: memoryview, receiver: Place | None) -> None:
        self.size, self._descriptor = len(data), -1
        self._left = _leave(data) if receiver is not None and self.size >= _SMALLEST and _sees(receiver) else None
        self._data = bytes(data) if self._left is None else b""

    def __getstate__(self) -> tuple[int, _Left | None, bytes]:
        return self.size, self._left, self._data

    def __setstate__(self, state: tuple[int, _Left | None, bytes]) -> None:
        self._descriptor = -1
        self.size, self._left, self._data = state
        self._open()  # at once: should the worker die, the bytes stay

    def _open(self) -> None:
        if self._left is None or self._descriptor >= 0:
            return
        self._descriptor = os.open(f"/proc/{self._left.process}/fd/{self._left.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(self._descriptor)
        if (found.st_ino, found.st_size) != (self._left.inode, self.size):
            raise ConnectionError("what a worker left in memory is gone: it was killed")

    def take(self, into: memoryview) -> None:
        """Copy the bytes to the beginning of `into`, and give the memory back.

        Raises
        ------
        OSError
            Where the worker that left them is no more.
        """
        if self._left is None:
            into[: self.size] = self._data
            return
        self._open()
        done = 0
        while done < self.size:
            done += os.preadv(self._descriptor, [into[done : self.size]], done)
        os.ftruncate(self._descriptor, 0)  # which also tells the worker
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self._close()


def _leave(data: memoryview) -> _Left | None:
    """Copy `data` into memory for a receiver; None where there is none to be had."""
    with _left_lock:
        _left[:] = [descriptor for descriptor in _left if not _given_back(descriptor)]
        try:
            descriptor = os.memfd_create("facedata", os.MFD_CLOEXEC)
        except OSError:
            return None
        try:
            write_fully(descriptor, data)
        except OSError:
            os.close(descriptor)
            return None
        _left.append(descriptor)
        return _Left(os.getpid(), descriptor, os.fstat(descriptor).st_ino)


def _given_back(descriptor: int) -> bool:
    if os.fstat(descriptor).st_size:
        return False
    with suppress(OSError):
        os.close(descriptor)
    return True
