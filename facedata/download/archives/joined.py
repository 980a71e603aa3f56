"""Reading the parts of an archive as one file, without joining them; decompressing, and reading ahead in a thread."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from facedata.errors import ArchiveError, input_error
from facedata.files import open_regular, opened_regular

__all__ = ["CHUNK", "JoinedParts", "decompress", "read_ahead"]

_T = TypeVar("_T")

CHUNK = 1 << 20
"""The most bytes of decompressed data that are yielded at once."""

_BLOCK = 1 << 18  # fills the decompressor at full speed and stays in the CPU's second cache
_SMALL = 1 << 15
_CHECK_EVERY = 0.2  # seconds


class JoinedParts:
    """Read several files as if they were one; one of them is open at a time.

    Parameters
    ----------
    parts : sequence of Path

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
        """Describe a part that is smaller than the others; empty if there is none before the last part.

        A program that splits a file makes all parts before the last equally large.
        """
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
    """Decompress `data` and the blocks that `read` returns, up to the end of the compressed data or of the blocks.

    Parameters
    ----------
    decompressor : isal.igzip_lib.IgzipDecompressor
        Its `eof` is false afterwards if the blocks ended first.
    data : bytes
        The first block.
    read : callable
        Returns the next block; an empty one at the end.

    Yields
    ------
    bytes
        At most `CHUNK` bytes, so that an archive made to fill the memory cannot.

    Raises
    ------
    isal.igzip_lib.IsalError
        If the data is damaged.
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


def read_ahead(items: Generator[_T], depth: int, check_stop: Callable[[], None]) -> Generator[_T]:
    """Iterate over a generator in a background thread, at most `depth` items ahead.

    Parameters
    ----------
    items : generator
        What it raises is raised here.
    depth : int
    check_stop : callable
        Called now and then while nothing comes; may raise.
    """
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        waiting: deque[Future[_T | None]] = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while True:
                while not wait([waiting[0]], _CHECK_EVERY).done:
                    check_stop()
                item = waiting.popleft().result()
                if item is None:
                    return
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
            items.close()
