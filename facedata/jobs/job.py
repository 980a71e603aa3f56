"""A job: a plan, its journal, an executor and an output, run from wherever an earlier run stopped."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from facedata.dataset import OrderedOutput, OrderedWriter, Output
from facedata.errors import (
    FacedataError,
    FormatError,
    InterruptedJobError,
    OptionError,
    OutputError,
    OutputMismatchError,
    TooManyFailuresError,
    changed_error,
    output_error,
)
from facedata.files import remove_stale_temporaries
from facedata.jobs.engine import (
    ExecutorFactory,
    LocalExecutor,
    Observer,
    ProgressMeter,
    Recorder,
    ShardRunner,
    ShardTask,
)
from facedata.jobs.journal import FAILURES, JobState, Journal, JournalWriter
from facedata.jobs.output import check_still_ours, claim_output, lost_files
from facedata.jobs.plan import COUNT, InputTimes, Part, Plan, check_line
from facedata.text import counted

__all__ = ["Conclude", "JobOptions", "JobSummary", "run_job"]

_SHOWN_CAUSES = 5
_ROUNDING = 1e-6  # 0.29 * 100 is a little less than 29
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
        Delete what is in the output and start again.
    observer : callable, optional
        Called with the progress of the job.
    executor_factory : callable
        Makes the executor, given the number of workers.
    trust_input : bool
        Resume although the times of input files have changed: their bytes have not.
    max_failures : int or float, optional
        So many samples of the whole job may fail: an int is their number, a float from 0 to 1 their share. If more do,
        the job stops, and resumes once more are allowed. By default it goes on, but is only good if none fails.
    """

    workers: int | None = None
    part: Part = Part()
    overwrite: bool = False
    observer: Observer | None = None
    executor_factory: ExecutorFactory = LocalExecutor
    max_failures: int | float | None = None
    trust_input: bool = False

    def failures_allowed(self, plan: Plan) -> int | None:
        """How many samples of the job may fail; None if the user has not said so."""
        allowed = self.max_failures
        return int(allowed * plan.samples + _ROUNDING) if isinstance(allowed, float) else allowed

    def __post_init__(self) -> None:
        if self.overwrite and self.part.count > 1:
            raise OptionError(
                "--overwrite and --shard together would delete what the other elements of the array write: remove the "
                "output once, before they start"
            )

    def worker_count(self) -> int:
        """The number of workers that the user gave, or else the CPUs that this process may use."""
        if self.workers is not None:
            return self.workers
        from facedata.jobs.machine import available_cpus

        return available_cpus()


@dataclass(frozen=True)
class JobSummary:
    """The result of running a job or a part of it.

    Attributes
    ----------
    finished, nothing_to_do : bool
        Whether all parts of the job are done and its result is published; whether that was so before this run.
    samples, bytes, failures, skipped : int
        Delivered by the whole job so far, their encoded size, samples not delivered, and samples that are not wanted.
    samples_total, failures_allowed : int
        Samples in the input of the whole job, and how many of them may fail.
    causes, skipped_causes : dict of str to int
        How many samples failed, and were skipped, for each cause.
    failed_shards : int
        Shards that could not be done; the same command tries them again.
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
    skipped: int
    samples_total: int
    failures_allowed: int
    causes: Mapping[str, int]
    skipped_causes: Mapping[str, int]
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
        """Whether nothing failed, or no more samples than are allowed."""
        return self.failures <= self.failures_allowed and self.failed_shards == 0

    def failures_in_words(self, noun: str, note: str = "") -> str:
        """``3 of 30 images failed: 2 undecodable, 1 no label``; `note` follows "failed"."""
        causes = [f"{count:,} {cause}" for cause, count in self.causes.items()]
        if len(causes) > _SHOWN_CAUSES:
            causes[_SHOWN_CAUSES - 1 :] = [f"{sum(list(self.causes.values())[_SHOWN_CAUSES - 1 :]):,} for other causes"]
        return f"{self.failures:,} of {counted(self.samples_total, noun)} failed{note}: {', '.join(causes)}"

    def to_json(self) -> dict[str, Any]:
        """One flat JSON object."""
        value = asdict(self)
        return {**{name: value[name] for name in value if name != "facts"}, **self.facts}


Conclude = Callable[[Mapping[str, Any], JobState], Mapping[str, Any]]
"""Updates the facts of the plan with what the finished job found."""


def run_job(
    plan: Plan,
    make_task: Callable[[int], ShardTask],
    output: Output,
    options: JobOptions | None = None,
    conclude: Conclude | None = None,
) -> JobSummary:
    """Run a job, or one part of it, or resume it where an earlier run stopped.

    Parameters
    ----------
    make_task : callable
        Gives the picklable task of a shard, by its number.
    output : Output
        An `OrderedOutput` is written in this process, from the blocks that the tasks return.
    conclude : callable, optional
        Gives the facts of the final summary from those of the plan.

    Raises
    ------
    OutputError
        If the output cannot be written or belongs to another job.
    TooManyFailuresError
        If more samples fail than `options` allow.
    InterruptedJobError
        After SIGINT or SIGTERM.
    """
    options = options or JobOptions()
    allowed = options.failures_allowed(plan)
    if isinstance(output, OrderedOutput) and options.part.count > 1:
        raise OptionError(
            f"{output.root}: is written by a single process, so its work cannot be divided with --shard; "
            "it still reads with many --workers"
        )
    _warn_of_idle_parts(plan, options.part)
    _log.debug("%d samples, shards: %d, fingerprint %s", plan.samples, plan.shards, plan.fingerprint)
    journal = claim_output(plan, output, overwrite=options.overwrite)
    meter = ProgressMeter(0, 0, None)
    now = plan.times or InputTimes.of(())
    claimed = None if options.trust_input else journal.read_plan(plan)
    began = (claimed and claimed.times) or now
    try:
        finished, state = _read_summary(plan, journal, output, conclude)
        if finished is not None:
            changed = (path := began.changed(now)) and "has changed since this job began; --overwrite starts again"
            for place, problem in ((output.root, state.conclude(finished)), (path, changed)):
                if problem:
                    _log.warning("%s: %s", place, problem)
            _clean_up(journal, output)
            return _summary(plan, journal, state, output, options, meter, finished, nothing_to_do=True)

        _check_unchanged(began, now)
        # hold the locks of this part's shards and do those that no earlier run has done
        part = options.part.shards(plan)
        with journal.lock() as lock, ExitStack() as stack:
            lock.take(part)
            check_still_ours(plan, output)
            state = journal.load(plan)
            writer: OrderedWriter | None = None
            if isinstance(output, OrderedOutput):
                lock.take_finishing()  # a run that publishes must not be disturbed by one that finds all shards done
                if journal.read_summary() is None:
                    output.prepare()
                    writer = stack.enter_context(_open_writer(output, state))
                    _append_unrecorded(plan, journal, options.part, state, writer, output)
            todo = [shard for shard in part if not state.done[shard]]
            # those whose file an interrupted run left, or someone else: what is refused is refused at once
            todo.sort(key=lambda shard: not os.path.lexists(output.shard_file(shard) or ""))
            total, left = (sum(plan.sample_count(shard) for shard in shards) for shards in (part, todo))
            meter = ProgressMeter(total, total - left, options.observer)
            if damage := state.damage_in_words():
                _log.warning("%s", damage)
            if todo and (allowed is None or state.failures <= allowed):
                if len(todo) < len(part):
                    _log.info("resuming: %d of %d shards are already done", len(part) - len(todo), len(part))
                if writer is None:
                    output.prepare()
                workers = options.worker_count()
                lines = stack.enter_context(JournalWriter(journal, plan, options.part))
                recorder = Recorder(state, lines, meter, writer, workers, allowed)
                with suppress(TooManyFailuresError):  # `_publish` says so
                    latest = began.latest, began != now and began.is_place_of(now)
                    ShardRunner(todo, make_task, recorder, workers, options.executor_factory, latest).run()
    except InterruptedJobError as error:
        journal.write_failures(plan)
        again = "the same command, without --overwrite," if options.overwrite else "the same command again"
        raise InterruptedJobError(f"{error}; run {again} to resume") from None
    except (FacedataError, OSError) as error:
        journal.check_in_place()  # which may be the reason
        raise error if isinstance(error, FacedataError) else output_error(error, output.root) from error
    try:
        _check_unchanged(began, InputTimes.of(path for path, *_ in now.files))  # nor meanwhile
        return _publish(plan, journal, output, options, meter, conclude)
    except FacedataError:
        raise
    except OSError as error:
        raise output_error(error, output.root) from error


def _check_unchanged(began: InputTimes, now: InputTimes) -> None:
    if (path := began.changed(now)) is not None:
        raise changed_error(path)


def _read_summary(
    plan: Plan, journal: Journal, output: Output, conclude: Conclude | None
) -> tuple[Mapping[str, Any] | None, JobState]:
    """The summary, None if the job has not finished, and the state; a damaged summary is written again if it can be."""
    problem = None
    finished: Mapping[str, Any] | None = {}
    try:
        finished = journal.read_summary()
    except FormatError as error:
        problem = error
    state = journal.load(plan)
    facts = conclude(plan.facts, state) if conclude else plan.facts
    for path in () if finished is None else output.files(plan.shards):
        if not os.path.exists(path):
            raise OutputError(
                f"{path}: this finished job wrote it, but the file is gone; --overwrite starts the job again"
            )
    if problem is not None:
        if not state.complete:
            raise problem
        journal.write_summary(finished := _result(state, facts))
        _log.warning("%s: the summary was damaged, and is written again from the journal", output.root)
    elif finished is not None and "crc" not in finished:  # of an older version, or forged: its facts may be anything
        finished = {**finished, "facts": {**{k: v for k, v in finished["facts"].items() if COUNT[0](v)}, **facts}}
    return finished, state


def _open_writer(output: OrderedOutput, state: JobState) -> OrderedWriter:
    """The writer that continues; it cannot do a shard again that has others after it."""
    problem = state.damage
    try:
        if 0 not in state.done[: sum(state.done)]:
            return output.open_writer(state.output_ends)
    except KeyError as error:
        problem = f"an end has no {error}"
    raise OutputMismatchError(
        f"{output.root}: its journal is damaged: {problem or 'it lacks a shard before others'}; this format is written "
        "in order, so only --overwrite helps, which starts the job again"
    )


def _warn_of_idle_parts(plan: Plan, part: Part) -> None:
    if part.count > plan.shards:
        way = f"use --shard i/{plan.shards}" if plan.shards > 1 else "run it without --shard"
        finer = "" if plan.ends is None else ", or write smaller files (--shard-size, --shard-samples)"
        shards = counted(plan.shards, "shard")
        _log.warning("--shard %s: the job has %s, so some parts have nothing to do; %s%s", part, shards, way, finer)


def _append_unrecorded(
    plan: Plan, journal: Journal, part: Part, state: JobState, writer: OrderedWriter, output: Output
) -> None:
    """Append the lines of shards that an earlier run committed, and was killed before it could append them."""
    if writer.unrecorded:
        with JournalWriter(journal, plan, part) as lines:
            for entry in writer.unrecorded:
                try:
                    check_line(entry, plan.shards)
                except ValueError as error:
                    raise FormatError(f"{output.root}: a line noted there {error}; --overwrite starts again") from error
                lines.append(entry)
                state.add(entry["shard"], entry)
    if sum(state.done) != writer.done or not all(state.done[: writer.done]):
        raise OutputMismatchError(
            f"{output.root}: its journal and its content do not agree ({sum(state.done)} and {writer.done} shards): "
            "were files of the build moved or deleted, or was another --build-dir given? --overwrite starts again"
        )


def _publish(
    plan: Plan, journal: Journal, output: Output, options: JobOptions, meter: ProgressMeter, conclude: Conclude | None
) -> JobSummary:
    """Publish the result if every shard is done; parts that end at the same moment take turns."""
    journal.check_in_place()
    with journal.lock() as lock:
        lock.take_finishing()
        check_still_ours(plan, output)
        state = journal.load(plan)
        journal.write_failures(plan)
        allowed = options.failures_allowed(plan)
        if allowed is not None and state.failures > allowed:
            failed = _summary(plan, journal, state, output, options, meter, None).failures_in_words("image")
            raise TooManyFailuresError(
                f"stopped: {failed}; see {os.path.join(output.root, FAILURES)}. --max-failures allows {allowed:,}; the "
                "same command with a larger number resumes"
            )
        if not state.complete:
            return _summary(plan, journal, state, output, options, meter, None)
        final = journal.read_summary()
        if final is None:
            lost, count = lost_files(plan, journal, state, output)
            if lost:
                with JournalWriter(journal, plan, options.part) as lines:
                    for shard in lost:
                        lines.append({"shard": shard, "lost": True})
                path, others = next(iter(lost.values())), f", and {count - 1:,} others" if count > 1 else ""
                what = "its size has changed" if os.path.lexists(path) else "it is gone"
                way = "move it away, and run" if os.path.lexists(path) else "run"
                raise OutputMismatchError(
                    f"{path}: this job wrote it, but {what}{others}; {way} the same command again, which writes what "
                    "is missing"
                )
            facts = conclude(plan.facts, state) if conclude else plan.facts
            facts = {**facts, **output.finish(plan.shards, journal.publish)}
            for path in output.files(plan.shards):
                if not os.path.lexists(path):
                    raise OutputMismatchError(
                        f"{path}: this job wrote it, but the file is gone; --overwrite starts the job again"
                    )
            final = _result(state, facts)
            journal.write_summary(final)
        # all shards are done, so no process writes their files any more
        _clean_up(journal, output, map(os.path.basename, output.files(plan.shards)))
        return _summary(plan, journal, state, output, options, meter, final)


def _result(state: JobState, facts: Mapping[str, Any]) -> dict[str, Any]:
    digests = "".join(state.digests[shard] for shard in sorted(state.digests))
    return {
        "samples": state.samples,
        "bytes": state.bytes,
        "failures": state.failures,
        "skipped": state.skipped,
        "largest_label": state.largest_label,
        "digest": hashlib.blake2b(digests.encode(), digest_size=16).hexdigest(),
        "facts": facts,
    }


def _clean_up(journal: Journal, output: Output, unused: Iterable[str] = ()) -> None:
    output.clean_up()
    journal.forget_publishing()
    remove_stale_temporaries(journal.folder, set(unused))
    for folder in {os.path.dirname(os.path.abspath(path)) for path in (*output.named_files(), *output.final_files())}:
        with suppress(OSError):  # the folder may not be readable
            remove_stale_temporaries(folder)


def _summary(
    plan: Plan,
    journal: Journal,
    state: JobState,
    output: Output,
    options: JobOptions,
    meter: ProgressMeter,
    final: Mapping[str, Any] | None,
    *,
    nothing_to_do: bool = False,
) -> JobSummary:
    progress = meter.progress()
    causes, skipped_causes = journal.causes(plan) if state.failures or state.skipped else ({}, {})
    for known, total in ((causes, state.failures), (skipped_causes, state.skipped)):
        if lost := total - sum(known.values()):
            known["for reasons that the journal has lost"] = lost
    return JobSummary(
        output=output.root,
        finished=final is not None,
        nothing_to_do=nothing_to_do,
        samples=state.samples,
        bytes=state.bytes,
        failures=state.failures,
        skipped=state.skipped,
        samples_total=plan.samples,
        failures_allowed=options.failures_allowed(plan) or 0,
        causes=causes,
        skipped_causes=skipped_causes,
        failed_shards=len(state.failed_shards),
        shards_done=sum(state.done),
        shards=plan.shards,
        part=str(options.part),
        seconds=round(progress.seconds, 3),
        rate=round(progress.rate, 1),
        digest=None if final is None else final["digest"],
        facts=plan.facts if final is None else final["facts"],
    )
