"""Passing large bytes from a worker to the process that takes its results, past the pipe between the two.

Through the pipe, bytes are copied many times and move at half a gigabyte a second, with a core busy at either end. Here
the worker puts them into memory without a name (``memfd_create``), and the receiver opens it through ``/proc``. The
kernel frees the memory with its last descriptor, whichever process is killed. If the two cannot see each other (another
machine, another container, not Linux), the bytes go through the pipe.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from facedata.files import boot_id, write_fully

__all__ = ["BlockBuffer", "ProcessAddress", "SharedBuffer", "this_process"]

_SMALLEST = 1 << 16  # smaller buffers go through the pipe
_shared: list[int] = []
"""Descriptors of memory that a receiver may not have taken yet."""
_shared_lock = threading.Lock()
_FIRST_SIZE = 1 << 20
_spare: list[bytearray] = []
"""Memory of earlier blocks: new memory of this size costs more than filling it."""


class ProcessAddress(NamedTuple):
    """A process, and from where its ``/proc`` can be seen.

    Attributes
    ----------
    machine : str
        The boot id, which differs between machines and after each start.
    namespace : int
        Differs between containers that count their processes separately.
    """

    machine: str
    namespace: int
    process: int


def this_process() -> ProcessAddress | None:
    """The address of this process; None if the system does not give one, or has no such memory."""
    try:
        return ProcessAddress(*_system(), os.getpid()) if hasattr(os, "memfd_create") else None
    except OSError:
        return None


@cache
def _system() -> tuple[str, int]:
    return boot_id(), os.stat("/proc/self/ns/pid").st_ino


@cache
def _can_see(receiver: ProcessAddress) -> bool:
    """Whether this process and `receiver` can open each other's descriptors: the permission is symmetric."""
    here = this_process()
    if here is None or here[:2] != receiver[:2]:
        return False
    try:
        os.listdir(f"/proc/{receiver.process}/fd")
    except OSError:
        return False
    return True


class MemFd(NamedTuple):
    """Memory of a worker: its process, its descriptor there, and the inode that proves that it is the same."""

    process: int
    descriptor: int
    inode: int


class SharedBuffer:
    """Bytes on their way to another process, which takes them once.

    Parameters
    ----------
    data : memoryview
        It is copied, and may be reused.
    receiver : ProcessAddress, optional
        The process that takes them; None if that is not known.

    Attributes
    ----------
    shared : MemFd or None
        The memory in which they lie; None if they go through the pipe.
    """

    def __init__(self, data: memoryview, receiver: ProcessAddress | None) -> None:
        self.size, self._descriptor = len(data), -1
        self.shared = _share(data) if receiver is not None and self.size >= _SMALLEST and _can_see(receiver) else None
        self._data = bytes(data) if self.shared is None else b""

    def __getstate__(self) -> tuple[int, MemFd | None, bytes]:
        return self.size, self.shared, self._data

    def __setstate__(self, state: tuple[int, MemFd | None, bytes]) -> None:
        self._descriptor = -1
        self.size, self.shared, self._data = state
        self._open()  # at once, so that the bytes stay if the worker dies

    def _open(self) -> None:
        if self.shared is None or self._descriptor >= 0:
            return
        self._descriptor = os.open(f"/proc/{self.shared.process}/fd/{self.shared.descriptor}", os.O_RDWR | os.O_CLOEXEC)
        found = os.fstat(self._descriptor)
        if (found.st_ino, found.st_size) != (self.shared.inode, self.size):
            raise ConnectionError("the shared memory of a worker is gone: it was killed")

    def take(self, into: memoryview) -> None:
        """Copy the bytes to the beginning of `into`, and free the memory.

        Raises
        ------
        OSError
            If the worker has been killed.
        """
        if self.shared is None:
            into[: self.size] = self._data
            return
        self._open()
        done = 0
        while done < self.size:
            done += os.preadv(self._descriptor, [into[done : self.size]], done)
        os.ftruncate(self._descriptor, 0)  # which the worker sees
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self._close()


def _share(data: memoryview) -> MemFd | None:
    """Copy `data` into memory for a receiver; None if there is none."""
    with _shared_lock:
        _shared[:] = [descriptor for descriptor in _shared if not _close_if_taken(descriptor)]
        try:
            descriptor = os.memfd_create("facedata", os.MFD_CLOEXEC)
        except OSError:
            return None
        try:
            write_fully(descriptor, data)
        except OSError:
            os.close(descriptor)
            return None
        _shared.append(descriptor)
        return MemFd(os.getpid(), descriptor, os.fstat(descriptor).st_ino)


def _close_if_taken(descriptor: int) -> bool:
    if os.fstat(descriptor).st_size:
        return False
    with suppress(OSError):
        os.close(descriptor)
    return True


class BlockBuffer:
    """A growing buffer for the block of a shard, whose memory the next block of this process reuses.

    Attributes
    ----------
    data : bytearray
        It may hold bytes of an earlier block, also before `end` until they are overwritten.
    end : int
        The number of bytes in use.
    """

    def __init__(self) -> None:
        self.data = _spare.pop() if _spare else bytearray(_FIRST_SIZE)
        self.end = 0

    def extend(self, size: int) -> int:
        """Make room for `size` more bytes; return where they begin."""
        begin, self.end = self.end, self.end + size
        if self.end > len(self.data):
            self.data += bytes(max(self.end, 2 * len(self.data)) - len(self.data))
        return begin

    def append(self, data: bytes) -> None:
        """Append bytes; as `extend`, but without its call, since this one is made for each part of each sample."""
        begin, self.end = self.end, self.end + len(data)
        if self.end > len(self.data):
            self.data += bytes(max(self.end, 2 * len(self.data)) - len(self.data))
        self.data[begin : self.end] = data

    def share(self, receiver: ProcessAddress | None) -> SharedBuffer:
        """Pass the bytes on and free the memory for the next block."""
        with memoryview(self.data)[: self.end] as view:
            shared = SharedBuffer(view, receiver)
        self.free()
        return shared

    def free(self) -> None:
        """Free the memory for the next block."""
        _spare.append(self.data)
