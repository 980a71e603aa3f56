"""Reading a zip archive by the directory at its end, entry by entry, however long it is."""

from __future__ import annotations

import logging
import re
import stat
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from isal import igzip_lib, isal_zlib

from facedata.download.archives.parts import Archive
from facedata.download.archives.reading import (
    Event,
    JoinedParts,
    Member,
    check_ratio,
    decompress,
    folder_refusal,
    quoted,
)
from facedata.errors import ArchiveError, UnsafeArchiveError
from facedata.text import counted

__all__ = ["ZipReader"]

_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_end = struct.Struct("<4s4H2LH")
_end_64 = struct.Struct("<4sQ2H2L4Q")
_locator_64 = struct.Struct("<4sLQL")
_entry = struct.Struct("<4s2B5H3L5H2L")
_local = struct.Struct("<4s5H3L2H")
_LONGEST_FIELD = (1 << 16) - 1
_IN_EXTRA = 0xFFFFFFFF  # a size or offset that does not fit and is in the extra field instead
_DISK_IN_EXTRA = 0xFFFF
_ENCRYPTED, _UTF8 = 1, 0x800
_LARGE_VALUES, _TIMES, _UNICODE_NAME = 1, 0x5455, 0x7075  # kinds of extra fields
_BACKSLASH_SYSTEMS = (0, 10, 11, 14)  # MS-DOS and Windows
_WINDOW = 1 << 20
_CHECK_EVERY = 1 << 13  # entries: a directory of millions takes many seconds
_STORED, _DEFLATED = 0, 8
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES"}
_OLD_NAMES = "cp437"  # the code page of MS-DOS: what names are in if nothing else fits
_NAMES_TO_GUESS_FROM = 1 << 16  # bytes
_LIKELY = 0.6
_COMMON_LEADS = {  # the first bytes of the common characters; of these encodings the others have few in common
    "cp932": (range(0x88, 0x98), 0x40),
    "cp949": (range(0xB0, 0xC9), 0xA1),
    "gb18030": (range(0xB0, 0xD8), 0xA1),
    "big5": (range(0xA4, 0xC7), 0x40),
}
_CYRILLIC = r"[\u0410-\u042f]?[\u0430-\u044f\u0451]{2,}|[\u0410-\u042f]{3,}"
_ACCENTED = r"(?<=[A-Za-z])[À-ž](?![^\0-\x7f])|(?<![^\0-\x7f])[À-ž](?=[A-Za-z])"
_LETTERS = {
    "cp932": r"[ぁ-ヶー々・]",
    "cp866": _CYRILLIC,
    "cp1251": _CYRILLIC,
    "cp1252": _ACCENTED,
    "cp437": _ACCENTED,
    "cp850": _ACCENTED,
}
_ENCODINGS = (*_COMMON_LEADS, "cp866", "cp1251", "cp1252", "cp437", "cp850")
_log = logging.getLogger(__name__)
_REFUSED_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


class _Entry(NamedTuple):
    """An entry of the directory; `offset` is where its local header begins in the joined parts."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    offset: int
    system: int
    date: int
    clock: int
    extra: bytes
    encodings: tuple[str, ...]

    @property
    def known_name(self) -> str | None:
        """The name if it says that it is UTF-8, or has a copy that is; None if its encoding is not known."""
        copy = _extra_field(self.extra, _UNICODE_NAME)
        if copy[:1] == b"\1" and copy[1:5] == isal_zlib.crc32(self.raw_name).to_bytes(4, "little"):
            return copy[5:].decode(errors="surrogateescape")
        known = self.flags & _UTF8 or self.raw_name.isascii()
        return self.raw_name.decode(errors="surrogateescape") if known else None

    @property
    def name(self) -> str:
        """The name, decoded: in the first encoding that fits if it does not say its own."""
        text = self.known_name
        if text is None:
            text = next(text for code in self.encodings if (text := _decoded(self.raw_name, code)) is not None)
        if "\\" in text and "/" not in text and self.system in _BACKSLASH_SYSTEMS:
            text = text.replace("\\", "/")
        return text

    @property
    def is_folder(self) -> bool:
        """Whether its name ends in a slash; a folder by its mode alone has no data, which would be lost."""
        ends_in_slash = self.raw_name.endswith((b"/", b"\\")) and self.name.endswith("/")
        return ends_in_slash or (stat.S_ISDIR(self.mode) and not (self.size or self.crc))

    @property
    def refusal(self) -> str:
        """Why the entry is not unpacked."""
        if stat.S_IFMT(self.mode) in _REFUSED_KINDS:
            return _REFUSED_KINDS[stat.S_IFMT(self.mode)]
        if self.is_folder:
            return folder_refusal(self.size)
        if self.flags & _ENCRYPTED:
            return "encrypted; unpack it with a program that asks for the password, as 7z does"
        if self.method not in (_STORED, _DEFLATED):
            method = _METHODS.get(self.method, "unknown")
            return f"compressed with method {self.method} ({method}); unpack it with 7z"
        return ""

    @property
    def modified(self) -> float:
        """Seconds since 1970."""
        data = _extra_field(self.extra, _TIMES)
        if len(data) >= 5 and data[0] & 1:
            return float(int.from_bytes(data[1:5], "little", signed=True))
        day = (1980 + (self.date >> 9), self.date >> 5 & 15, self.date & 31)  # local time, in steps of two seconds
        try:
            return time.mktime((*day, self.clock >> 11, self.clock >> 5 & 63, 2 * (self.clock & 31), 0, 0, -1))
        except (OverflowError, ValueError):
            return 0.0


def _decoded(name: bytes, encoding: str) -> str | None:
    try:
        return name.decode(encoding)
    except UnicodeError:
        return None


def _guess_encoding(names: bytes) -> str | None:
    """The encoding in which most characters of these names are common ones, letter by letter or word by word.

    charset-normalizer, made for documents, takes most names of two or three Chinese characters for Korean.
    """

    def share_of_common(encoding: str) -> float:
        text = _decoded(names, encoding) or ""
        found = sum(len(match[0]) for match in re.finditer(_LETTERS.get(encoding, "(?!)"), text))
        foreign = [letter for letter in text if letter > "\x7f"]
        leads, trail = _COMMON_LEADS.get(encoding, (range(0), 0))
        codes = (letter.encode(encoding) for letter in foreign) if leads else ()
        found += sum(len(code) == 2 and code[0] in leads and code[1] >= trail for code in codes)
        return found / max(len(foreign), 1)

    best = max(_ENCODINGS, key=share_of_common)
    return best if share_of_common(best) >= _LIKELY else None


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """The first extra field of a kind; empty if there is none."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


class ZipReader:
    """Read a zip archive in the order of its directory; an `ArchiveError` if bytes of or before that are missing.

    `encoding` is that of the names that do not say theirs; if it is None, and they are not UTF-8, it is guessed.
    """

    def __init__(self, archive: Archive, parts: JoinedParts, encoding: str | None = None) -> None:
        self._name, self._parts, self._encoding = archive.name, parts, encoding
        self._encodings = (*([encoding] if encoding else []), "utf-8", _OLD_NAMES)
        end_at = self._find_end()
        _, disk, first_disk, _, entries, size, offset, _ = _end.unpack(parts.read_at(end_at, _end.size))
        self._end = end_at
        locator_at = end_at - _locator_64.size
        if locator_at >= 0 and parts.read_at(locator_at, _locator_64.size)[:4] == _LOCATOR_64:
            # more than 4 GiB or 65535 entries; the locator's own offset is wrong if something precedes the archive
            self._end = locator_at - _end_64.size
            record = parts.read_at(self._end, _end_64.size) if self._end >= 0 else b""
            if record[:4] != _END_64:
                raise ArchiveError(f"{parts.place(max(self._end, 0))}: the end of the zip directory is damaged")
            _, _, _, _, disk, first_disk, _, entries, size, offset = _end_64.unpack(record)
        self._entry_count = entries  # modulo 65536 in old archives
        self._begin = self._end - size
        # an archive that zip itself has split counts offsets from the beginning of a part
        self._disks = parts.begins if disk > 0 and disk == len(parts.begins) - 1 else []
        self._shift = self._begin - self._in_all_parts(first_disk, offset)
        if self._begin < 0 or self._shift < 0:
            raise ArchiveError(
                f"{parts.place(end_at)}: the zip directory should begin at byte {offset}, but begins {-self._shift} "
                "bytes before that: so many bytes are missing. A part is missing or was cut short; compare the sizes "
                "and checksums of the parts, and fetch the wrong one again"
            )

    def _in_all_parts(self, disk: int, offset: int) -> int:
        return offset + (self._disks[disk] if disk < len(self._disks) else 0)

    def _find_end(self) -> int:
        size = self._parts.size
        begin = max(size - _end.size - _LONGEST_FIELD, 0)
        tail = self._parts.read_at(begin, size - begin)
        at = tail.rfind(_END)
        while at >= 0:  # a comment may contain the same four bytes
            if at + _end.size <= len(tail) and at + _end.size + tail[at + 20] + 256 * tail[at + 21] <= len(tail):
                return begin + at
            at = tail.rfind(_END, 0, at)
        raise ArchiveError(f"{self._parts.early_end()} (a zip archive ends with its directory, which is missing)")

    def _entries(self) -> Iterator[_Entry]:
        """Parse the directory, holding one window of it."""
        window, window_at, at = b"", self._begin, self._begin
        while at < self._end:
            if at + _entry.size + 3 * _LONGEST_FIELD > window_at + len(window) < self._end:
                window, window_at = self._parts.read_at(at, min(_WINDOW, self._end - at)), at
            begin = at - window_at
            name_at = begin + _entry.size
            complete = name_at <= len(window) and window[begin : begin + 4] == b"PK\x01\x02"
            if complete:
                fields = _entry.unpack_from(window, begin)
                _, _, system, _, flags, method, clock, date, crc, packed, size, name_length, extra_length = fields[:13]
                comment_length, disk, _, attributes, offset = fields[13:]
                extra_at = name_at + name_length
                end = extra_at + extra_length + comment_length
                complete = end <= len(window)
            if not complete:
                raise ArchiveError(f"{self._parts.place(at)}: the zip directory is damaged")
            extra = window[extra_at : extra_at + extra_length]
            if _IN_EXTRA in (size, packed, offset) or disk == _DISK_IN_EXTRA:
                # the extra field has the values that do not fit, in this order
                large = _extra_field(extra, _LARGE_VALUES)
                values = [size, packed, offset]
                for number, value in enumerate(values):
                    if value == _IN_EXTRA and len(large) >= 8:
                        values[number], large = int.from_bytes(large[:8], "little"), large[8:]
                size, packed, offset = values
                if disk == _DISK_IN_EXTRA and len(large) >= 4:
                    disk = int.from_bytes(large[:4], "little")
            offset = (self._in_all_parts(disk, offset) if self._disks else offset) + self._shift
            name, mode = window[name_at:extra_at], attributes >> 16
            numbers = (flags, method, crc, packed, size, mode, offset, system, date, clock)
            yield _Entry(name, *numbers, extra, self._encodings)
            at = window_at + end

    def check(self, mark: int, max_ratio: float, check_stop: Callable[[], None]) -> int:
        """Check the whole directory before anything is unpacked; return the bytes of all members from `mark` on.

        Raises
        ------
        ArchiveError
            If the directory is damaged.
        UnsafeArchiveError
            If members overlap, or if they unpack to far too much.
        """
        import numpy as np

        begins, ends = array("q"), array("q")
        size = packed = left = count = unknown = misfits = 0
        names, example = bytearray(), None
        for count, entry in enumerate(self._entries(), 1):
            if count % _CHECK_EVERY == 0:
                check_stop()
            end = entry.offset + _local.size + len(entry.raw_name) + entry.packed
            if end > self._begin:
                raise ArchiveError(
                    f"{self._name}: the member {quoted(entry.name)} would end at byte {end}, in the directory, which "
                    f"begins at byte {self._begin}: the archive is damaged, or parts are missing or in another order"
                )
            if entry.known_name is None:
                unknown += 1
                if _decoded(entry.raw_name, self._encodings[0]) is None:
                    misfits, example = misfits + 1, example or entry
                    names += entry.raw_name + b"\n" if len(names) < _NAMES_TO_GUESS_FROM else b""
            begins.append(entry.offset)
            ends.append(end)
            size, packed = size + entry.size, packed + entry.packed
            left += entry.size if count > mark else 0
        if (count - self._entry_count) % (1 << 16):
            raise ArchiveError(
                f"{self._name}: the zip directory has {count} entries but declares {self._entry_count}: it is damaged"
            )
        check_ratio(self._name, size, packed, max_ratio)
        if example is not None:
            self._choose_encoding(bytes(names), example, misfits, unknown)
        order = np.argsort(np.frombuffer(begins, np.int64), kind="stable")
        if count > 1 and (np.frombuffer(ends, np.int64)[order[:-1]] > np.frombuffer(begins, np.int64)[order[1:]]).any():
            raise UnsafeArchiveError(
                f"{self._name}: members of it overlap, as in an archive made to fill the disk out of nearly nothing; "
                "nothing was unpacked"
            )
        return left

    def _choose_encoding(self, names: bytes, example: _Entry, misfits: int, unknown: int) -> None:
        """Choose how to read names that do not fit, and say so; `misfits` of the `unknown` names are such."""
        guess = None if self._encoding else _guess_encoding(names)
        if guess is not None:  # a third of the short names in GBK would do as UTF-8
            self._encodings = (guess, *self._encodings) if 2 * misfits > unknown else ("utf-8", guess, _OLD_NAMES)
        _log.warning(
            "%s: %s not in %s; read as %s, as in %s; if that is wrong, remove what was unpacked and name the encoding, "
            "as in --encoding shift_jis",
            self._name,
            counted(misfits, "name is", "names are"),
            self._encoding or "UTF-8",
            f"{guess} (a guess)" if guess else f"{_OLD_NAMES} for want of a better guess",
            quoted(example._replace(encodings=self._encodings).name),
        )

    def read(self, mark: int) -> Iterator[Event]:
        """Read the members from entry number `mark` on; an `ArchiveError` if a CRC-32 or size is wrong."""
        for number, entry in enumerate(self._entries()):
            if number < mark:
                if number % _CHECK_EVERY == 0:
                    yield b""  # lets the consumer stop meanwhile
                continue
            refusal, is_folder, executable = entry.refusal, entry.is_folder, bool(entry.mode & 0o100)
            self._parts.position = min(entry.offset, self._parts.size)
            yield Member(entry.name, is_folder, refusal, entry.size, executable, entry.modified, number + 1)
            if not refusal and not is_folder:
                yield from self._data(entry)
        self._parts.position = self._parts.size

    def _data(self, entry: _Entry) -> Iterator[bytes]:
        head = self._parts.read_at(entry.offset, _local.size + len(entry.raw_name))
        if len(head) < _local.size or head[:4] != b"PK\x03\x04" or head[_local.size :] != entry.raw_name:
            raise self._damaged(entry, "its header is missing or has another name")
        _, _, flags, method, *_, name_length, extra_length = _local.unpack_from(head)
        if method != entry.method or flags & _ENCRYPTED or name_length != len(entry.raw_name):
            raise self._damaged(entry, "its header contradicts the directory")
        at = entry.offset + len(head) + extra_length
        end = at + entry.packed

        def read_block() -> bytes:
            nonlocal at
            block = self._parts.read_at(at, min(1 << 18, end - at))
            at += len(block)
            return block

        crc = size = 0
        chunks = iter(read_block, b"")
        if entry.method == _DEFLATED:
            chunks = decompress(igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE), b"", read_block)
        try:
            for chunk in chunks:
                crc, size = isal_zlib.crc32(chunk, crc), size + len(chunk)
                if size > entry.size:
                    break
                yield chunk
        except igzip_lib.error as error:  # type: ignore[misc]
            raise self._damaged(entry, f"its compressed data is damaged ({error})") from error
        if (crc, size) != (entry.crc, entry.size):
            raise self._damaged(
                entry, f"expected {entry.size} bytes with the CRC-32 {entry.crc:08x}, found {size} with {crc:08x}"
            )

    def _damaged(self, entry: _Entry, what: str) -> ArchiveError:
        return ArchiveError(
            f"{self._parts.place(entry.offset)}: the member {quoted(entry.name)} of {self._name} begins here and is "
            f"damaged: {what}; check that part ('facedata verify-md5') and fetch it again"
        )
