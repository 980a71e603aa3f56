"""A job: a plan, its journal, an executor and an output, run from wherever it was left to its end."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from facedata.dataset import OrderedOutput, OrderedWriter, Output
from facedata.errors import (
    FacedataError,
    InterruptedJobError,
    OptionError,
    OutputError,
    OutputMismatchError,
    output_error,
)
from facedata.files import remove_stale_temporaries
from facedata.jobs.executors import ExecutorFactory, LocalExecutor, available_cpus
from facedata.jobs.journal import PREFIX, JobState, Journal
from facedata.jobs.lock import ShardLock
from facedata.jobs.output import check_still_ours, claim_output
from facedata.jobs.plan import Part, Plan
from facedata.jobs.progress import Observer, ProgressMeter
from facedata.jobs.record import JournalRecorder, OrderedRecorder
from facedata.jobs.run import Recorder, ShardTask, run_shards

__all__ = ["JobOptions", "JobSummary", "run_job"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOptions:
    """How a job is run; nothing here changes what it writes.

    Attributes
    ----------
    workers : int, optional
        Processes; by default the CPUs that this process may use.
    part : Part
        Which part of the job to do.
    overwrite : bool
        Delete what is in the output and start afresh.
    observer : callable, optional
        Told how far the job is.
    executor_factory : callable
        Makes the executor, given the number of workers.
    """

    workers: int | None = None
    part: Part = Part()
    overwrite: bool = False
    observer: Observer | None = None
    executor_factory: ExecutorFactory = LocalExecutor

    def __post_init__(self) -> None:
        if self.overwrite and self.part.count > 1:
            raise OptionError(
                "--overwrite and --shard together would delete what the other elements of the array write: remove the "
                "output once, before they start"
            )


@dataclass(frozen=True)
class JobSummary:
    """What a job, or a part of it, came to.

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
        Of this run: time, and samples a second.
    digest : str or None
        Over the labels and bytes of all samples, where the job is finished.
    facts : mapping
        What the sink and the plan have to say: identities, label ranges.
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
        """Whether nothing has failed."""
        return self.failures == 0 and self.failed_shards == 0

    def to_json(self) -> dict[str, Any]:
        """One flat JSON object."""
        value = asdict(self)
        return {**{name: value[name] for name in value if name != "facts"}, **self.facts}


Conclude = Callable[[Mapping[str, Any], JobState], Mapping[str, Any]]
"""Brings the facts of the plan up to date with what the finished job found."""


def run_job(
    plan: Plan,
    make_task: Callable[[int], ShardTask],
    output: Output,
    options: JobOptions | None = None,
    conclude: Conclude | None = None,
) -> JobSummary:
    """Run a job, or the part of it that is asked for, and go on where an earlier run was cut off.

    Parameters
    ----------
    plan : Plan
    make_task : callable
        Gives the picklable task of a shard, by its number.
    output : Output
        An `OrderedOutput` is written in this process, from the blocks that the tasks return.
    options : JobOptions, optional
    conclude : callable, optional
        Gives the facts of the final summary from those of the plan.

    Raises
    ------
    OutputError
        Where the output cannot be written or is not this job's.
    InterruptedJobError
        After SIGINT or SIGTERM.
    """
    options = options or JobOptions()
    if isinstance(output, OrderedOutput) and options.part.count > 1:
        raise OptionError(
            f"{output.root}: is written by a single process, so its work cannot be cut up with --shard; it still reads "
            "with many --workers"
        )
    journal = claim_output(plan, output, overwrite=options.overwrite)
    try:
        return _Job(plan, journal, output, options, conclude or _as_planned).run(make_task)
    except FacedataError:
        raise
    except OSError as error:
        raise output_error(error, output.root) from error


class _Job:
    def __init__(self, plan: Plan, journal: Journal, output: Output, options: JobOptions, conclude: Conclude) -> None:
        self._plan, self._journal, self._output, self._options = plan, journal, output, options
        self._conclude = conclude
        self._lock_path = journal.folder / f"{PREFIX}lock"
        self._meter = ProgressMeter(0, 0, None)

    def run(self, make_task: Callable[[int], ShardTask]) -> JobSummary:
        finished = self._journal.read_summary()
        if finished is not None:
            self._refuse_lost_files()
            self._clean_up()
            return self._summarise(self._journal.load(self._plan), finished, nothing_to_do=True)
        try:
            self._do_part(make_task)
        except InterruptedJobError as error:
            self._journal.write_failures(self._plan)
            again = "the same command, without --overwrite," if self._options.overwrite else "the same command again"
            raise InterruptedJobError(f"{error}; run {again} to go on") from None
        return self._finish()

    def _do_part(self, make_task: Callable[[int], ShardTask]) -> None:
        part = self._options.part.shards(self._plan)
        with ShardLock(self._lock_path) as lock:
            lock.take(part)
            check_still_ours(self._plan, self._output)
            state = self._journal.load(self._plan)
            if not isinstance(self._output, OrderedOutput):
                self._do_shards(part, state, make_task, None)
                return
            lock.take_finishing()  # a run that publishes must not be disturbed by one that finds all shards done
            if self._journal.read_summary() is not None:
                return
            self._output.prepare()
            with self._output.open_writer(state.ends) as writer:
                self._catch_up(state, writer)
                self._do_shards(part, state, make_task, writer)

    def _catch_up(self, state: JobState, writer: OrderedWriter) -> None:
        """Append the lines that an earlier run did not live to append."""
        if writer.unrecorded:
            with self._journal.writer(self._plan, self._options.part) as journal:
                for entry in writer.unrecorded:
                    journal.append(entry)
                    state.add(entry["shard"], entry)
        if sum(state.done) != writer.done or not all(state.done[: writer.done]):
            raise OutputMismatchError(
                f"{self._output.root}: its journal and what it holds do not agree ({sum(state.done)} and {writer.done} "
                "shards): were files of the build moved or deleted, or was another --build-dir given? --overwrite "
                "starts afresh"
            )

    def _do_shards(
        self, part: range, state: JobState, make_task: Callable[[int], ShardTask], writer: OrderedWriter | None
    ) -> None:
        """Do the shards of `part` that are not done."""
        todo = [shard for shard in part if not state.done[shard]]
        self._meter = self._new_meter(part, todo)
        if not todo:
            return
        if len(todo) < len(part):
            _log.info("going on: %d of %d shards were done before", len(part) - len(todo), len(part))
        if writer is None:
            self._output.prepare()
        workers = self._options.workers or available_cpus()
        with self._journal.writer(self._plan, self._options.part) as journal:
            recorder: Recorder = (
                JournalRecorder(state, journal, self._meter)
                if writer is None
                else OrderedRecorder(state, journal, self._meter, writer, workers)
            )
            run_shards(
                todo,
                make_task,
                recorder=recorder,
                workers=workers,
                executor_factory=self._options.executor_factory,
            )

    def _new_meter(self, part: range, todo: list[int]) -> ProgressMeter:
        total, left = (sum(map(self._samples_in, shards)) for shards in (part, todo))
        return ProgressMeter(total, total - left, self._options.observer)

    def _samples_in(self, shard: int) -> int:
        first, end = self._plan.bounds(shard)
        return end - first

    def _finish(self) -> JobSummary:
        """Publish the result if this run did the last shard; parts that end at the same moment take turns."""
        with ShardLock(self._lock_path) as lock:
            lock.take_finishing()
            check_still_ours(self._plan, self._output)
            state = self._journal.load(self._plan)
            self._journal.write_failures(self._plan)
            if not state.complete:
                return self._summarise(state, None)
            summary = self._journal.read_summary()
            if summary is None:
                self._journal.note_publishing()
                facts = self._conclude(self._plan.facts, state)
                summary = _final(state, {**facts, **self._output.finish(self._plan.shards)})
                self._journal.write_summary(summary)
            self._clean_up()
            return self._summarise(state, summary)

    def _refuse_lost_files(self) -> None:
        for path in self._output.files(self._plan.shards):
            if not os.path.exists(path):
                raise OutputError(
                    f"{path}: was written by this job, which is finished, and is gone; --overwrite starts it afresh"
                )

    def _clean_up(self) -> None:
        self._output.clean_up()
        self._journal.forget_publishing()
        remove_stale_temporaries(self._journal.folder)

    def _summarise(
        self, state: JobState, final: Mapping[str, Any] | None, *, nothing_to_do: bool = False
    ) -> JobSummary:
        progress = self._meter.progress()
        return JobSummary(
            output=self._output.root,
            finished=final is not None,
            nothing_to_do=nothing_to_do,
            samples=state.samples,
            bytes=state.bytes,
            failures=state.failures,
            failed_shards=len(state.failed_shards),
            shards_done=sum(state.done),
            shards=self._plan.shards,
            part=str(self._options.part),
            seconds=round(progress.seconds, 3),
            rate=round(progress.rate, 1),
            digest=None if final is None else final["digest"],
            facts=self._plan.facts if final is None else final["facts"],
        )


def _as_planned(facts: Mapping[str, Any], state: JobState) -> Mapping[str, Any]:
    return facts


def _final(state: JobState, facts: Mapping[str, Any]) -> dict[str, Any]:
    joined = "".join(state.digests[shard] for shard in sorted(state.digests))
    return {
        "samples": state.samples,
        "bytes": state.bytes,
        "failures": state.failures,
        "largest_label": state.largest_label,
        "digest": hashlib.blake2b(joined.encode(), digest_size=16).hexdigest(),
        "facts": dict(facts),
    }
