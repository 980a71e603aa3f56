"""The state of a job, read from its journal alone."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from facedata.jobs.journal import JobState, Journal, job_folder
from facedata.jobs.plan import MOST_SHARDS, Part, Plan

__all__ = ["JobStatus", "job_status"]


@dataclass(frozen=True)
class JobStatus:
    """The state of a job, read from its journal alone.

    Attributes
    ----------
    command_line : str
        The command that began it, which also resumes it; empty if the plan has none that facedata would write.
    finished : bool
        Whether every shard is done and the result is published.
    samples_total, samples, failures, skipped : int
        In the whole job; delivered so far; not delivered so far; not wanted.
    missing : list of [int, int]
        Ranges of shards that are neither done nor failed, first and last, counted from 0; the first 20.
    failed : dict
        Shard to reason.
    runs : list
        Every run so far: host, pid, part, start.
    parts_missing : list of str
        The parts, ``i/n``, that still have shards to do, if all runs were parts of the same count.
    damage : str
        What is wrong with its journals, if that matters.
    """

    output: str
    command_line: str
    finished: bool
    samples_total: int
    samples: int
    failures: int
    skipped: int
    bytes: int
    shards: int
    shards_done: int
    shards_failed: int
    shards_missing: int
    missing: list[list[int]]
    failed: dict[int, str]
    runs: list[dict[str, Any]]
    parts_missing: list[str]
    damage: str

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
        If its plan or summary is damaged or was written by another version of facedata.
    """
    folder = job_folder(output)
    journal = Journal(folder)
    plan = journal.require_plan()
    state, runs, summary = journal.load(plan), journal.runs(), journal.read_summary()
    damage = state.damage_in_words() if summary is None else state.conclude(summary)
    missing = [shard for shard in range(plan.shards) if not state.done[shard] and shard not in state.failed_shards]
    ranges: list[list[int]] = []
    for shard in missing:  # [1, 2, 3, 7] becomes [[1, 3], [7, 7]]
        if ranges and ranges[-1][1] == shard - 1:
            ranges[-1][1] = shard
        else:
            ranges.append([shard, shard])
    return JobStatus(
        output=folder,
        command_line=plan.command_line,
        finished=summary is not None,
        samples_total=plan.samples,
        samples=state.samples,
        failures=state.failures,
        skipped=state.skipped,
        bytes=state.bytes,
        shards=plan.shards,
        shards_done=sum(state.done),
        shards_failed=len(state.failed_shards),
        shards_missing=len(missing),
        missing=ranges[:20],
        failed=state.failed_shards,
        runs=runs,
        parts_missing=_parts_missing(plan, state, runs),
        damage=damage,
    )


def _parts_missing(plan: Plan, state: JobState, runs: list[dict[str, Any]]) -> list[str]:
    counts = {int(run["part"].partition("/")[2]) for run in runs}
    count = counts.pop() if len(counts) == 1 else 1
    if not 1 < count <= MOST_SHARDS:
        return []
    parts = (Part(number, count) for number in range(1, count + 1))
    return [str(part) for part in parts if not all(state.done[shard] for shard in part.shards(plan))]
