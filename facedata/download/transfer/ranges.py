"""Which bytes of a file are there, and which connection fetches which."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["Ranges", "Segment", "Segments"]

SMALLEST = 4 << 20
"""A range is not cut into parts smaller than this, in bytes."""


class Ranges:
    """Half-open ranges of bytes, in order, apart from each other. Not safe for threads by itself."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ranges: list[list[int]] = []
        for first, end in ranges:
            self.add(first, end)

    def add(self, first: int, end: int) -> None:
        """Add the bytes from `first` to before `end`."""
        if first >= end:
            return
        at = bisect_left(self._ranges, first, key=lambda one: one[1])
        last = at
        while last < len(self._ranges) and self._ranges[last][0] <= end:
            first, end = min(first, self._ranges[last][0]), max(end, self._ranges[last][1])
            last += 1
        self._ranges[at:last] = [[first, end]]

    def pairs(self) -> list[tuple[int, int]]:
        """The ranges themselves."""
        return [(first, end) for first, end in self._ranges]

    def missing(self, total: int) -> list[tuple[int, int]]:
        """What lies between them, up to `total`."""
        gaps, position = [], 0
        for first, end in [*self.pairs(), (total, total)]:
            if first > position:
                gaps.append((position, min(first, total)))
            position = max(position, end)
        return [(first, end) for first, end in gaps if first < end]

    @property
    def front(self) -> int:
        """How many bytes are there from the beginning without a gap."""
        return self._ranges[0][1] if self._ranges and self._ranges[0][0] == 0 else 0

    @property
    def count(self) -> int:
        """Bytes in all."""
        return sum(end - first for first, end in self._ranges)


class Segment:
    """What one connection fetches: from `position` to before `end`; where the end is not known, it is None."""

    def __init__(self, position: int, end: int | None) -> None:
        self.position, self.end = position, end
        self.owned, self.being_written = False, False

    @property
    def left(self) -> int | None:
        """Bytes still to fetch, or None where nobody knows."""
        return None if self.end is None else max(self.end - self.position, 0)


class Segments:
    """The missing ranges of one file, given out to connections and cut in two where one is idle."""

    def __init__(self, missing: Iterable[tuple[int, int | None]]) -> None:
        self._lock = threading.Lock()
        self._segments = [Segment(first, end) for first, end in missing]

    def take(self) -> Segment | None:
        """A segment for a connection that has none: the first that nobody fetches, else half of the largest."""
        with self._lock:
            self._segments = [one for one in self._segments if one.left != 0 or one.being_written]
            free = [one for one in self._segments if not one.owned]
            segment = min(free, key=lambda one: one.position) if free else self._halve_largest()
            if segment is not None:
                segment.owned = True
            return segment

    def give_back(self, segment: Segment) -> None:
        """Let another connection have what is left of it: the one that fetches what lies before, if there is one."""
        with self._lock:
            segment.owned = False
            for before in self._segments:
                if before.owned and before.left and before.end == segment.position:
                    before.end, segment.end = segment.end, segment.position

    def room(self, segment: Segment, most: int) -> int:
        """How much of the segment may be read at once."""
        left = segment.left
        return most if left is None else min(left, most)

    def advance(self, segment: Segment, count: int) -> tuple[int, int]:
        """Note that `count` bytes came; returns where they belong, and how many of them still do."""
        with self._lock:
            position, left = segment.position, segment.left
            kept = count if left is None else min(count, left)
            segment.position += kept
            return position, kept

    @contextmanager
    def claim(self, segment: Segment, count: int) -> Iterator[tuple[int, int]]:
        """`advance` for as long as these bytes are being written; they are still to fetch where that fails."""
        with self._lock:
            segment.being_written = True
        position, kept = self.advance(segment, count)
        try:
            yield position, kept
        except BaseException:
            with self._lock:
                segment.position = position
            raise
        finally:
            with self._lock:
                segment.being_written = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to fetch, and all that came is written."""
        with self._lock:
            return all(one.left == 0 and not one.being_written for one in self._segments)

    @property
    def left(self) -> int:
        """Bytes still to fetch, those of segments with an end."""
        with self._lock:
            return sum(one.left or 0 for one in self._segments)

    def worth_helping(self) -> bool:
        """Whether one more connection would find something to do."""
        with self._lock:
            return any((one.left or 0) >= 2 * SMALLEST or not one.owned for one in self._segments if one.left != 0)

    def _halve_largest(self) -> Segment | None:
        largest = max(self._segments, key=lambda one: one.left or 0, default=None)
        if largest is None or largest.end is None or (largest.left or 0) < 2 * SMALLEST:
            return None
        middle = largest.position + (largest.end - largest.position) // 2
        half = Segment(middle, largest.end)
        largest.end = middle
        self._segments.append(half)
        return half
