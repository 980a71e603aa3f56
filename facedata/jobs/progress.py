"""How far a job is: numbers for whoever shows them. Nothing here prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Observer", "Progress", "ProgressMeter"]


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes
    ----------
    total : int
        Samples that this run is about, those done by earlier runs included.
    before : int
        Of these, done by earlier runs.
    done : int
        Delivered or failed so far, earlier runs included.
    bytes : int
        Written by this run.
    failures : int
    seconds : float
        Since this run began.
    """

    total: int
    before: int
    done: int
    bytes: int
    failures: int
    seconds: float

    @property
    def rate(self) -> float:
        """Samples a second in this run."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def byte_rate(self) -> float:
        """Bytes a second in this run."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this rate, or None before there is one."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


Observer = Callable[[Progress], None]
"""Called a few times a second while a job runs, and once when it ends."""


class ProgressMeter:
    """Counts, and calls an observer."""

    def __init__(self, total: int, before: int, observer: Observer | None) -> None:
        self._total, self._before, self._observer = total, before, observer
        self._done, self._bytes, self._failures = before, 0, 0
        self._begin = time.monotonic()

    def add(self, samples: int, size: int, failures: int) -> None:
        """Count what a shard came to, and tell the observer."""
        self._done += samples + failures
        self._bytes += size
        self._failures += failures
        self.tick()

    def tick(self) -> None:
        """Tell the observer, so that clocks go on where nothing else happens."""
        if self._observer:
            self._observer(self.progress())

    def progress(self) -> Progress:
        """How far the job is now."""
        seconds = time.monotonic() - self._begin
        return Progress(self._total, self._before, self._done, self._bytes, self._failures, seconds)
