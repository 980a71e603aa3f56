"""What the readers of archives share: parts read as one file, decompression, and the members that are read."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from facedata.errors import ArchiveError, UnsafeArchiveError, input_error
from facedata.files import open_regular, opened_regular

__all__ = ["CHUNK", "MAX_RATIO", "RATIO_FROM", "Event", "JoinedParts", "Member", "check_ratio", "decompress", "quoted"]

CHUNK = 1 << 20
"""The most bytes of decompressed data that are yielded at once."""

_BLOCK = 1 << 18  # fills the decompressor at full speed and stays in the CPU's second cache
_SMALL = 1 << 15

MAX_RATIO = 200.0
"""How many times larger than its archive the content may be.

Images and features come to at most 2, lists of text to 10 or 20, NumPy arrays of few values to 100. Deflate cannot do
more than 1032, which an archive of zeros comes near to.
"""

RATIO_FROM = 1 << 30
"""Unpacked bytes from which on the ratio counts: fewer fill no disk, and the beginning of an archive may be zeros."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes
    ----------
    name : str
        As the archive has it.
    is_folder : bool
    refusal : str
        Why it is not unpacked, whatever its name is; empty if it can be.
    size : int
        Bytes of its data.
    executable : bool
    modified : float
        Seconds since 1970.
    mark : int
        Where a later run continues if this member is finished.
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

    Attributes
    ----------
    size : int
        Bytes of all parts.
    begins : list of int
        The offset at which each part begins.
    position : int
        The offset of the byte that `read` returns next.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = list(parts)
        sizes = []
        for part in parts:
            with opened_regular(part) as descriptor:
                sizes.append(os.fstat(descriptor).st_size)
        self.begins = [0, *accumulate(sizes)][:-1]
        self.size = sum(sizes)
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
            number = self._part_at(offset)
            part, begin = self._parts[number], self.begins[number]
            end = self.begins[number + 1] if number + 1 < len(self._parts) else self.size
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

    def _part_at(self, offset: int) -> int:
        return max(bisect_right(self.begins, offset) - 1, 0)

    def place(self, offset: int) -> str:
        """Describe an offset for a message: ``byte 17 of glint360k_03 (byte 61200000017 of all parts)``."""
        number = self._part_at(min(offset, max(self.size - 1, 0)))
        part = self._parts[number]
        if len(self._parts) == 1:
            return f"byte {offset} of {part}"
        return f"byte {offset - self.begins[number]} of {part} (byte {offset} of all parts)"

    def smaller_part(self) -> str:
        """Describe a part before the last that is smaller than others, as no program splits a file; else empty."""
        sizes = [end - begin for begin, end in zip(self.begins, [*self.begins[1:], self.size], strict=True)]
        for part, size in zip(self._parts[:-1], sizes[:-1], strict=True):
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

    Parameters
    ----------
    decompressor : isal.igzip_lib.IgzipDecompressor
        Its `eof` is false afterwards if the blocks ended first. It raises its error if the data is damaged.
    data : bytes
    read : callable

    Yields
    ------
    bytes
        At most `CHUNK` bytes, so that an archive made to fill the memory cannot.
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
