"""The parts of an archive as one file, without joining them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from facedata.download.archives.kinds import open_regular
from facedata.errors import ArchiveError, input_error

__all__ = ["JoinedParts"]

BLOCK = 1 << 18  # large enough for full speed of inflating, small enough for the second cache


class JoinedParts:
    """Reads the parts as if they were one file; one of them is open at a time.

    Parameters
    ----------
    parts : sequence of Path

    Attributes
    ----------
    size : int
        Bytes of all parts.
    begins : list of int
        Where each part begins.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = list(parts)
        sizes = [self._size(part) for part in parts]
        self.begins = [0, *accumulate(sizes)][:-1]
        self.size = sum(sizes)
        self._descriptor, self._open = -1, -1

    @staticmethod
    def _size(part: Path) -> int:
        descriptor = open_regular(part)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def __enter__(self) -> JoinedParts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the part that is open; reading opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._open = -1, -1

    def _part_of(self, offset: int) -> int:
        return max(bisect_right(self.begins, offset) - 1, 0)

    def place(self, offset: int) -> str:
        """Where a byte is, in words: ``byte 17 of glint360k_03 (byte 61200000017 of all parts)``."""
        number = self._part_of(min(offset, max(self.size - 1, 0)))
        part = self._parts[number]
        if len(self._parts) == 1:
            return f"byte {offset} of {part}"
        return f"byte {offset - self.begins[number]} of {part} (byte {offset} of all parts)"

    def cut_short(self) -> str:
        """Which part but the last is smaller than others: whoever splits a file makes all before the last alike."""
        sizes = [end - begin for begin, end in zip(self.begins, [*self.begins[1:], self.size], strict=True)]
        smaller = [number for number, size in enumerate(sizes[:-1]) if size < max(sizes)]
        if not smaller:
            return ""
        part, size = self._parts[smaller[0]], sizes[smaller[0]]
        return f"{part} has {size:,} bytes, others have {max(sizes):,}: it seems to be cut short"

    def early_end(self) -> str:
        """What to say where the bytes end and should not."""
        last = self._parts[-1]
        size = self.size - self.begins[-1]
        if len(self._parts) == 1:
            return (
                f"{last}: ends early, at byte {size}: the download was cut short, or it is the first of several parts "
                "and the others are missing; compare its size and checksum with the published ones, and fetch it again"
            )
        return (
            f"{last}: ends early, at byte {size} (byte {self.size} of all parts). It is the last part given: a later "
            "part may be missing, or one of the parts was cut short; compare the sizes and checksums of the parts "
            "('facedata verify-md5') and fetch the wrong one again"
        )

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; fewer than `length` only where the parts end."""
        pieces = []
        while length > 0 and offset < self.size:
            number = self._part_of(offset)
            piece = self._read_part(number, offset - self.begins[number], length)
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_part(self, number: int, offset: int, length: int) -> bytes:
        end = self.begins[number + 1] if number + 1 < len(self._parts) else self.size
        try:
            if number != self._open:
                self.close()
                self._descriptor, self._open = open_regular(self._parts[number]), number
            piece = os.pread(self._descriptor, min(length, end - self.begins[number] - offset), offset)
        except OSError as error:
            raise input_error(error, self._parts[number]) from error
        if not piece:
            raise ArchiveError(
                f"{self._parts[number]}: has become shorter while it was read; run again when it is whole"
            )
        return piece

    def blocks(self, start: int = 0, length: int = BLOCK) -> Iterator[bytes]:
        """All bytes from `start` on, in blocks."""
        while start < self.size:
            block = self.read(start, length)
            yield block
            start += len(block)
