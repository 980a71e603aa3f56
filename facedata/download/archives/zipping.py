"""Walking through a zip archive by its directory."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from typing import Literal

from isal import isal_zlib

from facedata.download.archives.ahead import ReadAhead
from facedata.download.archives.inflating import DamagedDataError, Inflater
from facedata.download.archives.joined import BLOCK, JoinedParts
from facedata.download.archives.kinds import as_it_is
from facedata.download.archives.members import Member
from facedata.download.archives.parts import Archive
from facedata.download.archives.safety import RatioLimit
from facedata.download.archives.zip_directory import Entry, ZipDirectory
from facedata.errors import ArchiveError, UnsafeArchiveError

__all__ = ["ZipWalk"]

_DEPTH = 8  # batches of about 1 MiB
_BATCH = 1 << 20
_SMALL = 1 << 15
_ENTRY_COSTS = 512
_LOOK_EVERY = 1 << 13  # entries: a directory of millions takes many seconds
_local = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES"}
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}

_Event = tuple[Entry | None, list[bytes]]


class ZipWalk:
    """A walk through a zip archive, in the order of its directory.

    Parameters
    ----------
    archive : Archive
    mark : int
        Number of the entry to begin with.
    max_ratio : float
    look_up : callable
        Called now and then while the directory is read or the disk is slow; may raise.

    Attributes
    ----------
    size : int
        Bytes of all members from the mark on.
    """

    def __init__(self, archive: Archive, mark: int, max_ratio: float, look_up: Callable[[], None]) -> None:
        self._name, self._mark = archive.name, mark
        self._joined = JoinedParts(archive.parts)
        self.position = 0
        self._window, self._window_at = b"", 0
        with self._joined:
            self.size = _check_sizes(archive.name, ZipDirectory(self._joined), mark, max_ratio, look_up)
        self._ahead = ReadAhead(self._batches(), _DEPTH, look_up)
        self._events = (event for batch in self._ahead for event in batch)
        self._next: _Event | None = None

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()

    def members(self) -> Iterator[Member]:
        """Every member, to the end of the directory.

        Raises
        ------
        ArchiveError
            Where a member is damaged.
        """
        number = self._mark
        while (event := self._next or next(self._events, None)) is not None:
            self._next = None
            entry, _ = event
            if entry is not None:
                number += 1
                self.position = min(entry.offset, self._joined.size)
                yield _as_member(entry, number)
        self.position = self._joined.size

    def blocks(self) -> Iterator[list[bytes]]:
        """The data of the member that came last."""
        for event in self._events:
            if event[0] is not None:
                self._next = event
                return
            yield event[1]

    def _batches(self) -> Iterator[list[_Event]]:
        """Entries and their data, in another thread."""
        batch: list[_Event] = []
        held = 0
        with self._joined:
            for number, entry in enumerate(ZipDirectory(self._joined)):
                if number < self._mark:
                    if number % _LOOK_EVERY == 0:
                        yield []  # so that the thread can be ended meanwhile
                    continue
                if held >= _BATCH:  # also where no member has any data
                    yield batch
                    batch, held = [], 0
                batch.append((entry, []))
                held += _ENTRY_COSTS
                for chunks in self._data(entry):
                    batch.append((None, chunks))
                    held += sum(map(len, chunks))
                    if held >= _BATCH:
                        yield batch
                        batch, held = [], 0
        yield batch

    def _data(self, entry: Entry) -> Iterator[list[bytes]]:
        """The data of an entry, proven by its CRC-32 and size."""
        if _refusal(entry) or _is_folder(entry):
            return
        at = self._data_at(entry)
        crc = size = 0
        for chunks in self._inflated(entry, at) if entry.method == _DEFLATED else self._stored(entry, at):
            for chunk in chunks:
                crc, size = isal_zlib.crc32(chunk, crc), size + len(chunk)
            if size > entry.size:
                break
            yield chunks
        if (crc, size) != (entry.crc, entry.size):
            raise self._damaged(
                entry, at, f"expected {entry.size} bytes with the CRC-32 {entry.crc:08x}, found {size} with {crc:08x}"
            )

    def _data_at(self, entry: Entry) -> int:
        head = self._near(entry.offset, _local.size + len(entry.raw_name))
        if len(head) < _local.size or head[:4] != b"PK\x03\x04" or head[_local.size :] != entry.raw_name:
            raise self._damaged(entry, entry.offset, "its header is not there or has another name")
        _, _, flags, method, *_, name_length, extra_length = _local.unpack_from(head)
        if method != entry.method or flags & 1 or name_length != len(entry.raw_name):
            raise self._damaged(entry, entry.offset, "its header contradicts the directory")
        return entry.offset + len(head) + int(extra_length)

    def _near(self, at: int, length: int) -> bytes:
        """The bytes at `at`; small members that follow each other are read together."""
        begin = at - self._window_at
        if begin >= 0 and begin + length <= len(self._window):
            return self._window[begin : begin + length]
        if length > _SMALL:
            return self._joined.read(at, length)
        self._window, self._window_at = self._joined.read(at, BLOCK), at
        return self._window[:length]

    def _stored(self, entry: Entry, at: int) -> Iterator[list[bytes]]:
        end = at + entry.packed
        while at < end and (block := self._near(at, min(_BATCH, end - at))):
            yield [block]
            at += len(block)

    def _inflated(self, entry: Entry, at: int) -> Iterator[list[bytes]]:
        inflater, begin, end = Inflater(), at, at + entry.packed
        while not inflater.ended and at < end:
            block = self._near(at, min(BLOCK, end - at))
            if not block:
                break
            try:
                yield from inflater.feed(block)
            except DamagedDataError as error:
                raise self._damaged(entry, begin, "its compressed data is damaged") from error
            at += len(block)

    def _damaged(self, entry: Entry, at: int, what: str) -> ArchiveError:
        return ArchiveError(
            f"{self._joined.place(at)}: the member {as_it_is(entry.name)} of {self._name} begins here and is damaged: "
            f"{what}; check that part ('facedata verify-md5') and fetch it again"
        )


def _is_folder(entry: Entry) -> bool:
    return (entry.raw_name.endswith((b"/", b"\\")) and entry.name.endswith("/")) or stat.S_ISDIR(entry.mode)


def _refusal(entry: Entry) -> str:
    """Why the entry is not unpacked."""
    kind = stat.S_IFMT(entry.mode)
    if kind in _KINDS:
        return _KINDS[kind]
    if _is_folder(entry):
        return ""
    if entry.flags & 1:
        return "encrypted; unpack it with a program that asks for the password, as 7z does"
    if entry.method not in (_STORED, _DEFLATED):
        method = _METHODS.get(entry.method, "unknown")
        return f"compressed with method {entry.method} ({method}); unpack it with 7z"
    return ""


def _as_member(entry: Entry, mark: int) -> Member:
    reason = _refusal(entry)
    kind: Literal["file", "folder", "other"] = "other" if reason else "folder" if _is_folder(entry) else "file"
    return Member(entry.name, kind, reason, entry.size, bool(entry.mode & 0o100), entry.modified, mark)


def _check_sizes(name: str, directory: ZipDirectory, mark: int, max_ratio: float, look_up: Callable[[], None]) -> int:
    """Look through the whole directory before anything is unpacked; returns the bytes from `mark` on."""
    from array import array

    import numpy as np

    begins, ends = array("q"), array("q")
    size = packed = left = count = 0
    for count, entry in enumerate(directory, 1):
        if count % _LOOK_EVERY == 0:
            look_up()
        end = entry.offset + _local.size + len(entry.raw_name) + entry.packed
        if end > directory.begin:
            raise ArchiveError(
                f"{name}: the member {as_it_is(entry.name)} would end at byte {end}, in the directory, which begins at "
                f"byte {directory.begin}: the archive is damaged, or parts are missing or in another order"
            )
        begins.append(entry.offset)
        ends.append(end)
        size, packed = size + entry.size, packed + entry.packed
        left += entry.size if count > mark else 0
    if (count - directory.entries) % (1 << 16):
        raise ArchiveError(f"{name}: the zip directory has {count} entries and says {directory.entries}: it is damaged")
    RatioLimit(name, max_ratio).check(size, packed)
    order = np.argsort(np.frombuffer(begins, np.int64), kind="stable")
    if count > 1 and (np.frombuffer(ends, np.int64)[order[:-1]] > np.frombuffer(begins, np.int64)[order[1:]]).any():
        raise UnsafeArchiveError(
            f"{name}: members of it lie over each other, as in an archive made to fill the disk out of nearly nothing; "
            "nothing was unpacked"
        )
    return left
