"""How far a job is and what it delivered: progress while it runs, its summary, and its state read from the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from facedata.jobs.journal import JobState, Journal, job_folder
from facedata.jobs.plan import Part, Plan

__all__ = ["JobStatus", "JobSummary", "Observer", "Progress", "ProgressMeter", "job_status"]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    total : int
        Samples of this run, including those that earlier runs did.
    before : int
        Of these, done by earlier runs.
    done : int
        Delivered or failed so far, including earlier runs.
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
        """Samples per second in this run."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def byte_rate(self) -> float:
        """Bytes per second in this run."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time left at this rate, or None before there is a rate."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


Observer = Callable[[Progress], None]
"""Called a few times a second while a job runs, and once when it ends."""


class ProgressMeter:
    """Counts what is done and calls an observer.

    Parameters
    ----------
    total, before : int
        See `Progress`.
    observer : callable, optional
    """

    def __init__(self, total: int, before: int, observer: Observer | None) -> None:
        self._total, self._before, self._observer = total, before, observer
        self._done, self._bytes, self._failures = before, 0, 0
        self._begin = time.monotonic()

    def add(self, samples: int, size: int, failures: int) -> None:
        """Count a shard."""
        self._done += samples + failures
        self._bytes += size
        self._failures += failures
        self.tick()

    def tick(self) -> None:
        """Call the observer, so that a display's clock goes on while nothing else happens."""
        if self._observer:
            self._observer(self.progress())

    def progress(self) -> Progress:
        """The progress now."""
        seconds = time.monotonic() - self._begin
        return Progress(self._total, self._before, self._done, self._bytes, self._failures, seconds)


@dataclass(frozen=True)
class JobSummary:
    """The result of running a job or a part of it.

    Attributes
    ----------
    output : str
    finished : bool
        Whether all parts of the job are done and its result is published.
    nothing_to_do : bool
        Whether it was finished before this run.
    samples, bytes : int
        Delivered by the whole job so far, and their encoded size.
    failures : int
        Samples not delivered so far.
    failed_shards : int
        Shards that could not be done; the same command tries them again.
    shards_done, shards : int
    part : str
        ``i/n``, or ``1/1``.
    seconds, rate : float
        Time of this run, and its samples per second.
    digest : str or None
        Over the labels and bytes of all samples, if the job is finished.
    facts : mapping
        Facts of the plan and the sink: inputs, identities, label ranges.
    """

    output: str
    finished: bool
    nothing_to_do: bool
    samples: int
    bytes: int
    failures: int
    failed_shards: int
    shards_done: int
    shards: int
    part: str
    seconds: float
    rate: float
    digest: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return self.failures == 0 and self.failed_shards == 0

    def to_json(self) -> dict[str, Any]:
        """One flat JSON object."""
        value = asdict(self)
        return {**{name: value[name] for name in value if name != "facts"}, **self.facts}


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, read from its journal alone.

    Attributes
    ----------
    output : str
    command_line : str
        The command that began it, which also resumes it.
    finished : bool
        Whether every shard is done and the result is published.
    samples_total, samples, failures : int
        In the whole job; delivered so far; not delivered so far.
    bytes : int
    shards, shards_done, shards_failed, shards_missing : int
    missing : list of [int, int]
        Ranges of shards that are neither done nor failed, first and last, counted from 0; the first 20.
    failed : dict
        Shard to reason.
    runs : list
        Every run so far: host, pid, part, start.
    parts_missing : list of str
        The parts, ``i/n``, that still have shards to do, if all runs were parts of the same count.
    """

    output: str
    command_line: str
    finished: bool
    samples_total: int
    samples: int
    failures: int
    bytes: int
    shards: int
    shards_done: int
    shards_failed: int
    shards_missing: int
    missing: list[list[int]]
    failed: dict[int, str]
    runs: list[dict[str, Any]]
    parts_missing: list[str]

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return self.failures == 0 and self.shards_failed == 0

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def job_status(output: str | os.PathLike[str]) -> JobStatus:
    """Read the state of the job that writes `output`.

    Raises
    ------
    InputNotFoundError
        If there is no such folder, or no job in it.
    FormatError
        If its plan is damaged or was written by another version of facedata.
    """
    folder = job_folder(output)
    journal = Journal(folder)
    plan = journal.require_plan()
    state, runs = journal.load(plan), journal.runs()
    missing = [shard for shard in range(plan.shards) if not state.done[shard] and shard not in state.failed_shards]
    ranges: list[list[int]] = []
    for shard in missing:  # [1, 2, 3, 7] becomes [[1, 3], [7, 7]]
        if ranges and ranges[-1][1] == shard - 1:
            ranges[-1][1] = shard
        else:
            ranges.append([shard, shard])
    return JobStatus(
        output=folder,
        command_line=str(plan.facts.get("command_line", "")),
        finished=journal.read_summary() is not None,
        samples_total=plan.samples,
        samples=state.samples,
        failures=state.failures,
        bytes=state.bytes,
        shards=plan.shards,
        shards_done=sum(state.done),
        shards_failed=len(state.failed_shards),
        shards_missing=len(missing),
        missing=ranges[:20],
        failed=state.failed_shards,
        runs=runs,
        parts_missing=_parts_missing(plan, state, runs),
    )


def _parts_missing(plan: Plan, state: JobState, runs: list[dict[str, Any]]) -> list[str]:
    counts = {str(run.get("part", "")).partition("/")[2] for run in runs}
    count = counts.pop() if len(counts) == 1 else "1"
    if not count.isdigit() or int(count) == 1:
        return []
    parts = [Part(number, int(count)) for number in range(1, int(count) + 1)]
    return [str(part) for part in parts if not all(state.done[shard] for shard in part.shards(plan))]
