"""The directory at the end of a zip archive, read entry by entry, however long it is."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from facedata.download.archives.joined import JoinedParts
from facedata.errors import ArchiveError

__all__ = ["Entry", "ZipDirectory"]

_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_end = struct.Struct("<4s4H2LH")
_end_64 = struct.Struct("<4sQ2H2L4Q")
_locator_64 = struct.Struct("<4sLQL")
_entry = struct.Struct("<4s2B5H3L5H2L")
_LONGEST_COMMENT = (1 << 16) - 1
_IN_EXTRA = 0xFFFFFFFF  # a size or offset that stands in the extra field, since it does not fit
_UTF8 = 0x800
_TIMES = 0x5455
_BACKSLASH_SYSTEMS = (0, 10, 11, 14)  # MS-DOS and Windows
_WINDOW = 1 << 20


class Entry(NamedTuple):
    """One line of the directory; `offset` is where its local header lies in the joined parts."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int
    system: int
    stamp: tuple[int, int]
    extra: bytes

    @property
    def name(self) -> str:
        """The name, decoded: UTF-8 where it says so, and often where it does not; else of the code page of old DOS."""
        try:
            text = self.raw_name.decode()
        except UnicodeDecodeError:
            utf8 = self.flags & _UTF8
            text = self.raw_name.decode(errors="surrogateescape") if utf8 else self.raw_name.decode("cp437")
        if "\\" in text and "/" not in text and self.system in _BACKSLASH_SYSTEMS:
            text = text.replace("\\", "/")
        return text

    @property
    def modified(self) -> float:
        """Seconds since 1970."""
        for kind, data in _extras(self.extra):
            if kind == _TIMES and len(data) >= 5 and data[0] & 1:
                return float(int.from_bytes(data[1:5], "little", signed=True))
        return _clock(*self.stamp)


class ZipDirectory:
    """The directory of a zip archive in parts.

    Parameters
    ----------
    joined : JoinedParts

    Attributes
    ----------
    entries : int
        As the archive says, modulo 65536 in old archives.
    begin, end : int
        Where the directory lies.

    Raises
    ------
    ArchiveError
        Where it is not there, or bytes before it are missing.
    """

    def __init__(self, joined: JoinedParts) -> None:
        self._joined = joined
        end_at = self._find_end()
        _, disk, first_disk, _, self.entries, size, offset, _ = _end.unpack(joined.read(end_at, _end.size))
        before, has_64 = end_at, self._read_64(end_at)
        if has_64 is not None:
            before, disk, first_disk, self.entries, size, offset = has_64
        self._disks = joined.begins if disk > 0 and disk == len(joined.begins) - 1 else []
        self.begin, self.end = before - size, before
        self._shift = self.begin - self._on_disk(first_disk, offset)
        if self.begin < 0 or self._shift < 0:
            raise ArchiveError(
                f"{joined.place(end_at)}: the zip directory should lie at byte {offset}, which is {-self._shift} bytes "
                "behind where it is: so many bytes are missing. A part is missing or was cut short; compare the sizes "
                "and checksums of the parts, and fetch the wrong one again"
            )

    def _on_disk(self, disk: int, offset: int) -> int:
        """Archives that zip itself has split count from the beginning of a part."""
        return offset + (self._disks[disk] if disk < len(self._disks) else 0)

    def _find_end(self) -> int:
        size = self._joined.size
        begin = max(size - _end.size - _LONGEST_COMMENT, 0)
        tail = self._joined.read(begin, size - begin)
        at = tail.rfind(_END)
        while at >= 0:
            if at + _end.size <= len(tail) and at + _end.size + tail[at + 20] + 256 * tail[at + 21] <= len(tail):
                return begin + at
            at = tail.rfind(_END, 0, at)
        raise ArchiveError(f"{self._joined.early_end()} (a zip archive ends with its directory, which is not there)")

    def _read_64(self, end_at: int) -> tuple[int, int, int, int, int, int] | None:
        """The values of an archive of more than 4 GiB or 65535 entries."""
        locator_at = end_at - _locator_64.size
        data = self._joined.read(locator_at, _locator_64.size) if locator_at >= 0 else b""
        if data[:4] != _LOCATOR_64:
            return None
        at = locator_at - _end_64.size  # its place is told too, but wrong where something was put before the archive
        record = self._joined.read(at, _end_64.size) if at >= 0 else b""
        if record[:4] != _END_64:
            raise ArchiveError(f"{self._joined.place(max(at, 0))}: the end of the zip directory is damaged")
        _, _, _, _, disk, first_disk, _, entries, size, offset = _end_64.unpack(record)
        return at, disk, first_disk, entries, size, offset

    def __iter__(self) -> Iterator[Entry]:
        at, window, begin = self.begin, b"", self.begin
        while at < self.end:
            if at + _entry.size + 3 * _LONGEST_COMMENT > begin + len(window) < self.end:
                begin, window = at, self._joined.read(at, min(_WINDOW, self.end - at))
            entry, length = self._parse(window, at - begin, at)
            at += length
            yield entry

    def _parse(self, window: bytes, place: int, at: int) -> tuple[Entry, int]:
        if place + _entry.size > len(window) or window[place : place + 4] != b"PK\x01\x02":
            raise ArchiveError(f"{self._joined.place(at)}: the zip directory is damaged")
        fields = _entry.unpack_from(window, place)
        _, _, system, _, flags, method, clock, date, crc, packed, size, name_length, extra_length = fields[:13]
        comment_length, disk, _, attributes, offset = fields[13:]
        behind = place + _entry.size + name_length
        length = _entry.size + name_length + extra_length + comment_length
        if place + length > len(window):
            raise ArchiveError(f"{self._joined.place(at)}: the zip directory is damaged")
        name, extra = window[place + _entry.size : behind], window[behind : behind + extra_length]
        if _IN_EXTRA in (size, packed, offset) or disk == 0xFFFF:
            size, packed, offset, disk = _large(extra, size, packed, offset, disk)
        offset = (self._on_disk(disk, offset) if self._disks else offset) + self._shift
        stamp = (date, clock)
        return Entry(name, flags, method, crc, packed, size, attributes >> 16, offset, system, stamp, extra), length


def _extras(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        yield kind, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _large(extra: bytes, size: int, packed: int, offset: int, disk: int) -> tuple[int, int, int, int]:
    """The values that are too large for their own fields stand here, in this order."""
    values = [size, packed, offset]
    data = next((data for kind, data in _extras(extra) if kind == 1), b"")
    at = 0
    for number, value in enumerate(values):
        if value == _IN_EXTRA and at + 8 <= len(data):
            values[number] = int.from_bytes(data[at : at + 8], "little")
            at += 8
    if disk == 0xFFFF and at + 4 <= len(data):
        disk = int.from_bytes(data[at : at + 4], "little")
    return values[0], values[1], values[2], disk


def _clock(date: int, clock: int) -> float:
    """The time of a member: local time, in steps of two seconds."""
    parts = (1980 + (date >> 9), date >> 5 & 15, date & 31, clock >> 11, clock >> 5 & 63, 2 * (clock & 31), 0, 0, -1)
    try:
        return time.mktime(parts)
    except (OverflowError, ValueError):
        return 0.0
