"""Walking through a tar archive that comes as a stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Literal

from facedata.download.archives.ahead import ReadAhead
from facedata.download.archives.inflating import Piece, gunzip, plain
from facedata.download.archives.joined import JoinedParts
from facedata.download.archives.members import Member
from facedata.download.archives.parts import Archive
from facedata.download.archives.safety import RatioLimit
from facedata.errors import ArchiveError, FormatError
from facedata.tar_format import BLOCK, END, FILE, FOLDER, SPARSE, padded, read_heading

__all__ = ["TarWalk"]

_DEPTH = 24  # pieces of about 300 kB, at most 1 MiB
_LABEL = b"V"
_MAGIC = b"ustar"
_TAPE_BLOCK = 20 * BLOCK  # bytes up to which the last block of an archive may be filled up with anything
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"D": "a folder of an incremental backup",
    b"M": "the rest of a file that began in another volume",
    SPARSE: "a sparse file; unpack it with GNU tar",
}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", FOLDER, b"6")  # whatever their size says
_log = logging.getLogger(__name__)


class _Ended(Exception):  # noqa: N818, a place and no failure
    """The stream has no more bytes."""


class _Stream:
    """Bytes that come once, by their offset from the beginning of the tar archive.

    Attributes
    ----------
    at : int
        The offset of the next byte.
    header : bytes
        The last block that was taken as a header.
    """

    def __init__(self, pieces: Iterator[Piece], at: int) -> None:
        self._pieces = pieces
        self._waiting: list[bytes] = []
        self._chunk, self._inside = b"", 0
        self.at, self.position = at, 0
        self.header = b""

    def _next_chunk(self) -> None:
        while not self._waiting:
            piece = next(self._pieces, None)
            if piece is None:
                raise _Ended
            self._waiting = piece.chunks[::-1]
            self.position = piece.position
        self._chunk, self._inside = self._waiting.pop(), 0

    def skip_to(self, at: int) -> None:
        """Drop what comes before `at`."""
        while at - self.at > len(self._chunk) - self._inside:
            self.at += len(self._chunk) - self._inside
            self._chunk, self._inside = b"", 0
            self._next_chunk()
        self._inside += at - self.at
        self.at = at

    def take(self, at: int, length: int) -> bytes:
        """The bytes at `at`, which must not lie behind; few enough to be held."""
        self.skip_to(at)
        data = self._chunk[self._inside : self._inside + length]
        self._passed(len(data))
        while len(data) < length:
            self._next_chunk()
            more = self._chunk[: length - len(data)]
            self._passed(len(more))
            data += more
        if length == BLOCK:
            self.header = data
        return data

    def _passed(self, length: int) -> None:
        self._inside += length
        self.at += length

    def blocks(self, length: int) -> Iterator[list[bytes]]:
        """The next `length` bytes, in lists of chunks as they come."""
        while length > 0:
            if self._inside >= len(self._chunk):
                self._next_chunk()
            chunks = [self._chunk[self._inside : self._inside + length]]
            size = len(chunks[0])
            self._inside += size
            while self._waiting and size + len(self._waiting[-1]) <= length:
                chunks.append(self._waiting.pop())
                size += len(chunks[-1])
            self.at += size
            length -= size
            yield chunks

    def rest(self) -> Iterator[bytes]:
        """All that comes now; `at` is where each chunk begins."""
        while True:
            yield self._chunk[self._inside :]
            self.at += len(self._chunk) - self._inside
            self._chunk, self._inside = b"", 0
            try:
                self._next_chunk()
            except _Ended:
                return


class TarWalk:
    """A walk through a tar archive, compressed or not.

    Parameters
    ----------
    archive : Archive
    mark : int
        Offset in the tar archive of the member to begin with.
    max_ratio : float
    look_up : callable
        Called now and then while the disk is slow; may raise.
    """

    def __init__(self, archive: Archive, mark: int, max_ratio: float, look_up: Callable[[], None]) -> None:
        self._joined = JoinedParts(archive.parts)
        self._name, self._compressed = archive.name, archive.kind == "tar.gz"
        self._trailing: list[str] = []  # where something else follows the gzip data
        if self._compressed:
            pieces = gunzip(self._joined, RatioLimit(archive.name, max_ratio), self._trailing)
        else:
            pieces = plain(self._joined, mark)
        self._ahead = ReadAhead(pieces, _DEPTH, look_up)
        self._stream = _Stream(iter(self._ahead), 0 if self._compressed else mark)
        self._mark, self._left = mark, 0

    @property
    def position(self) -> int:
        """Compressed bytes that have been read."""
        return self._stream.position

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()

    def members(self) -> Iterator[Member]:
        """Every member, to the end of the stream.

        Raises
        ------
        ArchiveError
            Where the archive is cut short or damaged.
        """
        at = self._mark
        while True:
            member = self._member(at)
            if member is None:
                break
            self._left = member.size if member.kind == "file" else 0
            at = member.mark
            yield member
        self._pass_over_rest(at)

    def blocks(self) -> Iterator[list[bytes]]:
        """The data of the member that came last."""
        try:
            yield from self._stream.blocks(self._left)
        except _Ended:
            raise self._early_end("in the data of a member") from None

    def _member(self, at: int) -> Member | None:
        try:
            name, kind, size, data_at = read_heading(self._stream.take, at)
            if kind == END:
                return None
            header = self._stream.header
            if header[156:157] == SPARSE:
                data_at = self._behind_sparse_map(header, data_at)
        except _Ended:
            self._ended(at)
            return None
        except FormatError as error:
            raise self._damaged(error) from error
        if kind in _WITHOUT_DATA:
            size = 0
        return _as_member(name, kind, size, header, data_at + padded(size))

    def _behind_sparse_map(self, header: bytes, at: int) -> int:
        """GNU tar's old sparse files have more blocks of their map between header and data."""
        more = header[482] != 0
        while more:
            more = self._stream.take(at, BLOCK)[504] != 0
            at += BLOCK
        return at

    def _ended(self, at: int) -> None:
        """The stream ended in a header, or where one was to come, or in the data of a member that was passed over."""
        if self._stream.at != at or not self._compressed or self._trailing:
            raise self._early_end("where a member's header should be") from None
        _log.warning("%s: has no end mark behind its last member; taken as whole, since its gzip data is", self._name)

    def _early_end(self, where: str) -> ArchiveError:
        if not self._compressed:
            return ArchiveError(self._joined.early_end())
        if self._trailing:
            return ArchiveError(
                f"{self._trailing[0]}: the gzip data ends here, the tar archive in it does not, and what follows is no "
                "gzip data: the parts are damaged here, or one is missing or in another order; compare their checksums "
                "('facedata verify-md5') and fetch the wrong one again"
            )
        return ArchiveError(
            f"{self._name}: its gzip data is whole, but the tar archive in it ends early, at byte {self._stream.at} "
            f"unpacked, {where}: it was cut short before it was compressed; fetch it from another place"
        )

    def _damaged(self, error: FormatError) -> ArchiveError:
        if self._compressed:
            place = f"{self._name}: unpacked, near {self._joined.place(self._stream.position)}: {error}"
        else:
            place = f"{self._joined.place(max(self._stream.at - BLOCK, 0))}: {error}"
        return ArchiveError(f"{place}; compare the checksums of the parts ('facedata verify-md5')")

    def _pass_over_rest(self, end: int) -> None:
        """Read to the end, which proves the compressed data; zeros at `end` were taken for the end mark."""
        told = False
        for chunk in self._stream.rest():
            behind = chunk.lstrip(b"\0")
            if not behind:
                continue
            if end == 0 or _MAGIC in chunk or self._stream.at + len(chunk.rstrip(b"\0")) > end + _TAPE_BLOCK:
                raise self._more_behind(end)
            if not told:
                told = True
                at = self._stream.at + len(chunk) - len(behind)
                _log.warning("%s: byte %d unpacked and what follows, behind the end mark, is ignored", self._name, at)

    def _more_behind(self, end: int) -> ArchiveError:
        """A tape block may be filled up with anything, but members behind zeros are not to be lost silently."""
        place = f"byte {end} unpacked" if self._compressed else self._joined.place(end)
        return ArchiveError(
            f"{self._name}: at {place} there are zeros, as at the end of a tar archive, but more than zeros follows: a "
            "download that left a hole (compare the checksums of the parts with 'facedata verify-md5', and fetch the "
            "wrong one again), or several archives joined into one (unpack them with: tar --ignore-zeros -xf FILE)"
        )


def _as_member(name: bytes, kind: bytes, size: int, header: bytes, mark: int) -> Member:
    is_file = kind in FILE
    what: Literal["file", "folder", "other"] = "file" if is_file else "other"
    reason = "" if is_file else _REFUSED.get(kind, f"of the unknown type {kind!r}")
    if kind == FOLDER or (is_file and name.endswith(b"/")):
        what, reason = "folder", ""
    elif kind == _LABEL:
        what, reason, name = "folder", "", b"."
    mode, modified = _octal(header[100:108]), _octal(header[136:148])
    return Member(os.fsdecode(name), what, reason, size, bool(mode & 0o100), modified, mark)


def _octal(field: bytes) -> int:
    """A number that does not matter much: 0 where it is not one."""
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else 0
