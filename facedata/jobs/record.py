"""Keeping what the shards of a job come to: in the journal, and for an output with a single writer first in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facedata.dataset import OrderedWriter
from facedata.jobs.journal import JobState, JournalWriter, ShardResult, done_entry
from facedata.jobs.progress import ProgressMeter

__all__ = ["JournalRecorder", "OrderedRecorder"]

_AHEAD = 2
_MOST_AHEAD = 16  # blocks in memory at once, however many workers there are


class JournalRecorder:
    """Records shards in the journal as they end, in any order."""

    def __init__(self, state: JobState, journal: JournalWriter, meter: ProgressMeter) -> None:
        self._state, self._journal, self._meter = state, journal, meter

    def has_room(self, shard: int) -> bool:
        """Always."""
        return True

    def add(self, shard: int, result: ShardResult) -> None:
        """Append the shard's line."""
        self._note(shard, result, self._journal.done(shard, result))

    def _note(self, shard: int, result: ShardResult, entry: Mapping[str, Any]) -> None:
        self._state.add(shard, entry)
        self._meter.add(result.samples, result.bytes, len(result.failures))

    def fail(self, shard: int, reason: str) -> bool:
        """Append a line that says so; the other shards do not need this one."""
        self._state.add(shard, self._journal.failed(shard, reason))
        return True

    def tick(self) -> None:
        """Let the clocks of the progress go on."""
        self._meter.tick()

    def counts(self) -> tuple[int, int]:
        """Shards done, and in all."""
        return sum(self._state.done), len(self._state.done)


class OrderedRecorder(JournalRecorder):
    """Gives the blocks of the shards to the writer in the order of the shards, then records these.

    A block that comes before its turn waits in memory, so few shards are begun ahead of the one whose turn it is.
    """

    def __init__(
        self, state: JobState, journal: JournalWriter, meter: ProgressMeter, writer: OrderedWriter, workers: int
    ) -> None:
        super().__init__(state, journal, meter)
        self._writer, self._next = writer, writer.done
        self._window = min(workers + _AHEAD, _MOST_AHEAD)
        self._early: dict[int, ShardResult] = {}

    def has_room(self, shard: int) -> bool:
        """Whether its turn is not far off."""
        return shard < self._next + self._window

    def add(self, shard: int, result: ShardResult) -> None:
        """Write the block if it is its turn, and those that waited for it."""
        self._early[shard] = result
        while (ready := self._early.pop(self._next, None)) is not None:
            end = self._writer.write(self._next, ready.block)
            entry = done_entry(self._next, ready, end)
            self._writer.commit(entry)
            self._journal.append(entry)
            self._note(self._next, ready, entry)
            self._next += 1

    def fail(self, shard: int, reason: str) -> bool:
        """Append a line that says so; what comes behind this shard cannot be written without it."""
        super().fail(shard, reason)
        return False
