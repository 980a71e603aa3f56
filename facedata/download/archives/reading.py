"""Reading archives as a stream: parts joined into one file, decompression, and the members of a tar archive.

The members of a zip archive are read in `zip`, with the same parts.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from isal import igzip_lib

from facedata.download.archives.parts import GZIP, Archive
from facedata.errors import ArchiveError, FormatError, UnsafeArchiveError, input_error
from facedata.files import open_regular, opened_regular
from facedata.tar_format import BLOCK, END, FILE, FOLDER, SPARSE, padded, read_heading
from facedata.text import counted

__all__ = [
    "CHUNK",
    "MAX_RATIO",
    "RATIO_FROM",
    "Event",
    "JoinedParts",
    "Member",
    "check_ratio",
    "decompress",
    "folder_refusal",
    "quoted",
    "read_tar",
]

CHUNK = 1 << 20
"""The most bytes of decompressed data that are yielded at once."""

_BLOCK = 1 << 18  # fills the decompressor at full speed and stays in the CPU's second cache
_SMALL = 1 << 15

_LONGEST_GZIP_HEADER = 1 << 17  # its extra field and its name have 64 KiB at most, if they are sane
_VOLUME_LABEL = b"V"
_MAGIC = b"ustar"
_TAPE_RECORD = 20 * BLOCK  # the last record of an archive may be filled up with anything
_REFUSALS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"D": "a folder of an incremental backup",
    b"M": "the rest of a file that began in another volume",
    SPARSE: "a sparse file; unpack it with GNU tar",
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", FOLDER, b"6")  # whatever their size field says
_log = logging.getLogger(__name__)

MAX_RATIO = 200.0
"""How many times larger than its archive the content may be.

Images and features come to at most 2, lists of text to 10 or 20, NumPy arrays of few values to 100. Deflate cannot do
more than 1032, which an archive of zeros comes near to.
"""

RATIO_FROM = 1 << 30
"""Unpacked bytes from which on the ratio counts: fewer fill no disk, and the beginning of an archive may be zeros."""


class Member(NamedTuple):
    """A member of an archive.

    `refusal` says why it is not unpacked, whatever its name is; empty if it can be. `size` is in bytes, `modified` in
    seconds since 1970; a later run continues at `mark` if this member is finished.
    """

    name: str
    is_folder: bool
    refusal: str
    size: int
    executable: bool
    modified: float
    mark: int


Event = Member | bytes
"""What reading an archive yields: a member, then its data in chunks. Data before the first member is skipped."""


def folder_refusal(size: int) -> str:
    """Why a member whose name is that of a folder is not unpacked: it has data, which would be lost."""
    return f"the name of a folder, but {counted(size, 'byte')} of data" if size else ""


def check_ratio(archive: str, unpacked: int, packed: int, max_ratio: float) -> None:
    """Raise `UnsafeArchiveError` if an archive unpacks to too many bytes for its `packed` bytes."""
    if unpacked > RATIO_FROM and unpacked > max_ratio * packed:
        raise UnsafeArchiveError(
            f"{archive}: {packed} bytes unpack to {unpacked} bytes or more, {unpacked / max(packed, 1):.0f} times as "
            f"much, but at most {max_ratio:g} times is allowed: it looks like an archive made to fill the disk. What "
            "was unpacked is deleted. If you trust it, give a larger --max-ratio (deflate itself ends at 1032)"
        )


def quoted(name: str) -> str:
    """Quote a name from an archive for a message, without characters that a terminal would obey."""
    return repr(name) if name.isprintable() else ascii(name)


class JoinedParts:
    """Read several files as if they were one; one of them is open at a time.

    `size` counts the bytes of all parts, `begins` has the offset at which each begins, and `position` is the offset of
    the byte that `read` returns next.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = list(parts)
        sizes = []
        for part in parts:
            with opened_regular(part) as descriptor:
                sizes.append(os.fstat(descriptor).st_size)
        *self.begins, self.size = accumulate(sizes, initial=0)
        self.position = 0
        self._descriptor, self._open = -1, -1
        self._window, self._window_at = b"", 0

    def close(self) -> None:
        """Close the part that is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._open = -1, -1

    def read(self, length: int = _BLOCK) -> bytes:
        """Read the next `length` bytes; fewer only at the end of the last part."""
        data = self._read(self.position, length)
        self.position += len(data)
        return data

    def read_at(self, offset: int, length: int = _BLOCK) -> bytes:
        """Read `length` bytes at `offset`; fewer only at the end of the last part.

        Small pieces that follow each other are read together.
        """
        if length > _SMALL:
            return self._read(offset, length)
        begin = offset - self._window_at
        if not 0 <= begin <= begin + length <= len(self._window):
            self._window, self._window_at, begin = self._read(offset, _BLOCK), offset, 0
        return self._window[begin : begin + length]

    def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        while length > 0 and offset < self.size:
            number = bisect_right(self.begins, offset) - 1
            part, begin = self._parts[number], self.begins[number]
            end = [*self.begins, self.size][number + 1]
            try:
                if number != self._open:
                    self.close()
                    self._descriptor, self._open = open_regular(part), number
                piece = os.pread(self._descriptor, min(length, end - offset), offset - begin)
            except OSError as error:
                raise input_error(error, part) from error
            if not piece:
                raise ArchiveError(f"{part}: became shorter while it was read; run again when it is complete")
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def place(self, offset: int) -> str:
        """Describe an offset for a message: ``byte 17 of glint360k_03 (byte 61200000017 of all parts)``."""
        number = max(bisect_right(self.begins, min(offset, self.size - 1)) - 1, 0)
        part = self._parts[number]
        if len(self._parts) == 1:
            return f"byte {offset} of {part}"
        return f"byte {offset - self.begins[number]} of {part} (byte {offset} of all parts)"

    def smaller_part(self) -> str:
        """Describe a part before the last that is smaller than others, as no program splits a file; else empty."""
        sizes = [end - begin for begin, end in pairwise([*self.begins, self.size])]
        for part, size in zip(self._parts[:-1], sizes, strict=False):
            if size < max(sizes):
                return f"{part} has {size:,} bytes, others have {max(sizes):,}: it seems to be cut short"
        return ""

    def early_end(self) -> ArchiveError:
        """The error that the last part ends before the archive does."""
        last, size = self._parts[-1], self.size - self.begins[-1]
        if len(self._parts) == 1:
            return ArchiveError(
                f"{last}: ends early, at byte {size}: the download was cut short, or it is the first of several parts "
                "and the others are missing; compare its size and checksum with the published ones, and fetch it again"
            )
        return ArchiveError(
            f"{last}: ends early, at byte {size} (byte {self.size} of all parts). It is the last part given: a later "
            "part may be missing, or one of the parts was cut short; compare the sizes and checksums of the parts "
            "('facedata verify-md5') and fetch the wrong one again"
        )


def decompress(decompressor: Any, data: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    """Decompress `data` and the blocks that `read` returns, up to the end of the compressed data or an empty block.

    Yields at most `CHUNK` bytes at once, so that an archive made to fill the memory cannot. The `eof` of the isal
    `decompressor` is false afterwards if the blocks ended first; it raises its error if the data is damaged.
    """
    while not decompressor.eof:
        chunk = decompressor.decompress(data, CHUNK)
        data = b""
        if chunk:
            yield chunk
        elif decompressor.needs_input and not decompressor.eof:
            data = read()
            if not data:
                return


class _TarContent:
    """The bytes of the tar archive, decompressed if need be, which come once.

    `at` is the offset of the next byte in the tar archive, `header` the last block that was read as a header, and
    `trailing` the place at which data that is not gzip follows the gzip data.
    """

    def __init__(self, archive: Archive, parts: JoinedParts, mark: int, max_ratio: float) -> None:
        self._name, self._parts, self._max_ratio = archive.name, parts, max_ratio
        self.compressed = archive.kind == "tar.gz"
        if not self.compressed:
            parts.position = mark
        self.at = parts.position
        self.header, self.trailing = b"", ""
        self._chunks = self._gunzip() if self.compressed else iter(lambda: parts.read(CHUNK), b"")
        self._chunk, self._used = b"", 0

    def read(self, most: int = CHUNK) -> bytes:
        """Return the next bytes, of any number up to `most`; none at the end."""
        if self._used == len(self._chunk):
            self._chunk, self._used = next(self._chunks, b""), 0
        data = self._chunk[self._used : self._used + most]
        self._used += len(data)
        self.at += len(data)
        return data

    def data(self, length: int) -> Iterator[bytes]:
        """Yield the next `length` bytes in chunks."""
        while length > 0:
            chunk = self.read(length)
            if not chunk:
                raise EOFError
            length -= len(chunk)
            yield chunk

    def take(self, at: int, length: int) -> bytes:
        """Return `length` bytes at offset `at`, which must not lie before `self.at`; few enough to be held."""
        begin = self._used + at - self.at
        if begin + length <= len(self._chunk):
            data = self._chunk[begin : begin + length]
            self._used, self.at = begin + length, at + length
        else:
            for _ in self.data(at - self.at):
                pass
            data = b"".join(self.data(length))
        if length == BLOCK:
            self.header = data
        return data

    def _gunzip(self) -> Iterator[bytes]:
        """Decompress one or several gzip members; isal proves each by its CRC-32 and its size."""
        total, data = 0, b""
        while True:
            # isal cannot read a header that is cut in two
            while len(data) < _LONGEST_GZIP_HEADER and (more := self._parts.read()):
                data += more
            begin = self._parts.position - len(data)
            if begin > 0 and not data.startswith(GZIP):
                while data and not data.strip(b"\0"):  # zeros fill up the last tape record
                    data = self._parts.read()
                if data:
                    self.trailing = self._parts.place(begin)
                    _log.warning("%s: ignored the data after the end of the gzip data", self.trailing)
                return
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            try:
                for chunk in decompress(member, data, self._parts.read):
                    total += len(chunk)
                    check_ratio(self._name, total, self._parts.position, self._max_ratio)
                    yield chunk
            except igzip_lib.error as error:  # type: ignore[misc]
                raise self._damage(str(error)) from error
            if not member.eof:
                raise self._parts.early_end()
            data = member.unused_data

    def _damage(self, what: str) -> ArchiveError:
        end = self._parts.position
        if "checksum" in what:
            return ArchiveError(
                f"{self._parts.place(end)}: the gzip data that ends in the block before this place unpacks to bytes "
                "whose CRC-32 or number is not the one recorded: something before this place is wrong, and nothing in "
                "the archive says where. 'facedata verify-md5' on the parts finds the wrong one; fetch that one again"
            )
        hint = self._parts.smaller_part()
        begin = max(end - (1 << 18), 0)
        return ArchiveError(
            f"{self._parts.place(begin)}: the compressed data is damaged here, in these {end - begin:,} bytes or "
            f"shortly before ({what}); {hint}{'; ' if hint else ''}check that part ('facedata verify-md5') and fetch "
            "it again"
        )


def read_tar(archive: Archive, parts: JoinedParts, mark: int, max_ratio: float) -> Iterator[Event]:
    """Read a tar archive, compressed or not, to its end, which proves compressed data.

    It begins after the `Member.mark` of a member, which is an offset in the tar archive.

    Raises
    ------
    ArchiveError
        If the archive is cut short or damaged.
    UnsafeArchiveError
        If it unpacks to far too much.
    """
    content = _TarContent(archive, parts, mark, max_ratio)
    at, within = mark, "where a member's header should be"
    try:
        yield from content.data(mark - content.at)
        while True:
            name, kind, size, data_at = read_heading(content.take, at)
            if kind == END:
                break
            header = content.header
            if header[156:157] == SPARSE:  # GNU tar's old sparse files may have more blocks of their map
                more = header[482] != 0
                while more:
                    more = content.take(data_at, BLOCK)[504] != 0
                    data_at += BLOCK
            size = 0 if kind in _WITHOUT_DATA else size
            at = data_at + padded(size)
            is_folder = kind in (FOLDER, _VOLUME_LABEL) or (kind in FILE and name.endswith(b"/"))
            refusal = folder_refusal(size)
            if not is_folder:
                refusal = "" if kind in FILE else _REFUSALS.get(kind, f"a member of the unknown type {kind!r}")
            text = "." if kind == _VOLUME_LABEL else os.fsdecode(name)
            executable, modified = bool(_octal(header[100:108]) & 0o100), _octal(header[136:148])
            yield Member(text, is_folder, refusal, size, executable, modified, at)
            within = "in the data of a member"
            yield from content.data(size)
            within = "where a member's header should be"
    except FormatError as error:
        if isinstance(error, ArchiveError | UnsafeArchiveError):
            raise
        place = f"{archive.name}: unpacked, near " if content.compressed else ""
        place += parts.place(parts.position if content.compressed else max(content.at - BLOCK, 0))
        raise ArchiveError(f"{place}: {error}; compare the checksums of the parts ('facedata verify-md5')") from error
    except EOFError:
        if not content.compressed:
            raise parts.early_end() from None
        if content.trailing:
            raise ArchiveError(
                f"{content.trailing}: the gzip data ends here, but the tar archive in it does not, and what follows is "
                "not gzip data: the parts are damaged here, or one is missing or in another order; compare their "
                "checksums ('facedata verify-md5') and fetch the wrong one again"
            ) from None
        if content.at != at:
            raise ArchiveError(
                f"{archive.name}: its gzip data is complete, but the tar archive in it ends early, at byte "
                f"{content.at} unpacked, {within}: it was cut short before it was compressed; fetch it from another "
                "place"
            ) from None
        _log.warning("%s: has no end mark after its last member; taken as complete, as its gzip data is", archive.name)
    _check_rest(archive, parts, content, at)


def _octal(field: bytes) -> int:
    """Parse a number that is not essential: 0 if it is not one."""
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else 0


def _check_rest(archive: Archive, parts: JoinedParts, content: _TarContent, end: int) -> None:
    """Read to the end; the zeros at `end` were taken for the end mark.

    A tape record may be filled up with anything, but members after zeros must not be lost silently.
    """
    reported = False
    while chunk := content.read():
        rest = chunk.lstrip(b"\0")
        if not rest:
            continue
        if end == 0 or _MAGIC in chunk or content.at - len(chunk) + len(chunk.rstrip(b"\0")) > end + _TAPE_RECORD:
            place = f"byte {end} unpacked" if content.compressed else parts.place(end)
            raise ArchiveError(
                f"{archive.name}: at {place} there are zeros, as at the end of a tar archive, but more than zeros "
                "follows: a download that left a hole (compare the checksums of the parts with 'facedata verify-md5', "
                "and fetch the wrong one again), or several archives joined into one (unpack them with: "
                "tar --ignore-zeros -xf FILE)"
            )
        if not reported:
            reported = True
            at = content.at - len(rest)
            _log.warning("%s: ignored the data after the end mark, from byte %d unpacked on", archive.name, at)
