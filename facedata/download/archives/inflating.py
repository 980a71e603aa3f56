"""Inflating: raw deflate with isal, and the gzip around it, with bounded memory."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from typing import NamedTuple

from isal import igzip_lib, isal_zlib

from facedata.download.archives.joined import BLOCK, JoinedParts
from facedata.download.archives.kinds import GZIP
from facedata.download.archives.safety import RatioLimit
from facedata.errors import ArchiveError

__all__ = ["DamagedDataError", "Inflater", "Piece", "gunzip", "plain"]

_CHUNK = 1 << 17  # what is inflated at once: it is still in the cache when it is checked
_AT_MOST = 1 << 20  # and handed on at once
_DAMAGED: type[Exception] = igzip_lib.error  # type: ignore[assignment]
_LONGEST_FIELD = 1 << 16  # of a gzip header
_log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Some of an archive's content, and how many bytes of its parts have been read for it."""

    chunks: list[bytes]
    position: int


class DamagedDataError(Exception):
    """Bytes that are not deflate data."""


class Inflater:
    """Raw deflate data to bytes, with their CRC-32.

    Attributes
    ----------
    crc, size : int
        Of all that came out.
    """

    def __init__(self) -> None:
        self._raw = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
        self.crc = self.size = 0

    @property
    def ended(self) -> bool:
        """Whether the data said that it ends."""
        return bool(self._raw.eof)

    @property
    def unused(self) -> bytes:
        """What was fed behind the end."""
        return bytes(self._raw.unused_data)

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """Inflate; yields lists of chunks of about 1 MiB, so that a bomb cannot fill the memory.

        Raises
        ------
        DamagedDataError
            Where it is not deflate data.
        """
        chunks: list[bytes] = []
        held = 0
        while not self._raw.eof:
            chunk = self._next(data)
            if not chunk:
                break
            data = b""
            chunks.append(chunk)
            held += len(chunk)
            if held >= _AT_MOST:
                yield chunks
                chunks, held = [], 0
            if self._raw.needs_input:
                break
        if chunks:
            yield chunks

    def _next(self, data: bytes) -> bytes:
        try:
            chunk: bytes = self._raw.decompress(data, _CHUNK)
        except _DAMAGED as error:
            raise DamagedDataError(str(error)) from error
        self.crc = isal_zlib.crc32(chunk, self.crc)
        self.size += len(chunk)
        return chunk


def plain(joined: JoinedParts, start: int) -> Iterator[Piece]:
    """The bytes of an archive that is not compressed, from `start` on."""
    position = start
    with joined:
        for block in joined.blocks(start, _AT_MOST):
            position += len(block)
            yield Piece([block], position)


class _Feed:
    """The compressed bytes in blocks, some of which can be given back.

    Giving back moves a place and copies nothing, or a file of very many gzip members would take for ever.
    """

    def __init__(self, joined: JoinedParts) -> None:
        self._blocks = joined.blocks(0, BLOCK)
        self._block, self._inside = b"", 0
        self.position = 0  # of the next byte
        self.joined = joined

    def block(self, most: int = BLOCK) -> bytes:
        """The next bytes, of any number up to `most`; none at the end."""
        if self._inside >= len(self._block):
            self._block, self._inside = next(self._blocks, b""), 0
        data = self._block[self._inside : self._inside + most]
        self._inside += len(data)
        self.position += len(data)
        return data

    def give_back(self, data: bytes) -> None:
        """Unread the bytes that came last."""
        if len(data) <= self._inside:
            self._inside -= len(data)
        else:
            self._block, self._inside = data + self._block[self._inside :], 0
        self.position -= len(data)

    def up_to(self, length: int) -> bytes:
        """So many bytes, or fewer at the end."""
        data = self.block(length)
        while len(data) < length and (more := self.block(length - len(data))):
            data += more
        return data

    def exactly(self, length: int) -> bytes:
        data = self.up_to(length)
        if len(data) < length:
            raise ArchiveError(self.joined.early_end())
        return data

    def string(self) -> None:
        """Pass over bytes up to a zero."""
        left = _LONGEST_FIELD
        while left > 0:
            data = self.block(left)
            if not data:
                raise ArchiveError(self.joined.early_end())
            text, zero, rest = data.partition(b"\0")
            if zero:
                self.give_back(rest)
                return
            left -= len(text)
        raise ArchiveError(f"{self.joined.place(self.position)}: a gzip header that does not end")


def gunzip(joined: JoinedParts, limit: RatioLimit, trailing: list[str]) -> Iterator[Piece]:
    """The content of a gzip file of one member or several, each proven by its CRC-32 and size.

    Parameters
    ----------
    joined : JoinedParts
    limit : RatioLimit
    trailing : list of str
        Gets the place where something else than gzip data and zeros follows, which is warned of.

    Raises
    ------
    ArchiveError
        Where the data is damaged or ends early, with the part and the offset.
    UnsafeArchiveError
        Where far more comes out than went in.
    """
    with joined:
        feed = _Feed(joined)
        while _next_member(feed, trailing):
            inflater = Inflater()
            while not inflater.ended:
                yield from _inflated(feed, inflater, limit)
            feed.give_back(inflater.unused)
            _check_trailer(feed, inflater)
            limit.forget(inflater.size)


def _inflated(feed: _Feed, inflater: Inflater, limit: RatioLimit) -> Iterator[Piece]:
    begin = feed.position
    block = feed.block()
    if not block:
        raise ArchiveError(feed.joined.early_end())
    before = inflater.size
    try:
        for chunks in inflater.feed(block):
            limit.check(inflater.size, feed.position)
            yield Piece(chunks, feed.position)
        if inflater.size == before:
            yield Piece([], feed.position)  # so that whoever waits can end it, though nothing comes out for long
    except DamagedDataError as error:
        raise _damaged(feed.joined, begin, feed.position) from error


def _damaged(joined: JoinedParts, begin: int, end: int) -> ArchiveError:
    cut = joined.cut_short()
    return ArchiveError(
        f"{joined.place(begin)}: the compressed data is damaged here, in these {end - begin:,} bytes or shortly before"
        f"; {cut}{'; ' if cut else ''}check that part ('facedata verify-md5') and fetch it again"
    )


def _next_member(feed: _Feed, trailing: list[str]) -> bool:
    """Read a gzip header; False at the end."""
    at = feed.position
    head = feed.up_to(10)
    if at > 0 and head[:3] != GZIP:
        if _pass_over_rest(feed, head):
            trailing.append(feed.joined.place(at))
            _log.warning("%s: what comes behind the end of the gzip data is ignored", trailing[0])
        return False
    if len(head) < 10:
        raise ArchiveError(feed.joined.early_end())
    flags = head[3]
    if flags & 4:
        feed.exactly(int.from_bytes(feed.exactly(2), "little"))
    for flag in (8, 16):
        if flags & flag:
            feed.string()
    if flags & 2:
        feed.exactly(2)
    return True


def _pass_over_rest(feed: _Feed, data: bytes) -> bool:
    """Whether there is more than zeros, which pad the last member to whole tape blocks."""
    while data and not data.strip(b"\0"):
        data = feed.block()
    return bool(data)


def _check_trailer(feed: _Feed, inflater: Inflater) -> None:
    crc, size = struct.unpack("<II", feed.exactly(8))
    if crc == inflater.crc and size == inflater.size & 0xFFFFFFFF:
        return
    raise ArchiveError(
        f"{feed.joined.place(max(feed.position - 8, 0))}: the gzip data up to here unpacks to {inflater.size} bytes "
        f"with the CRC-32 {inflater.crc:08x}, but {size} bytes (modulo 4 GiB) with {crc:08x} were packed: something is "
        "wrong before this place, and nothing in the archive says where. 'facedata verify-md5' on the parts finds the "
        "wrong one; fetch that one again"
    )
