"""Moving samples from any source to any sink, as a job; perhaps with a change of each on its way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from zlib import crc32

from facedata.dataset import BlockEncoder, OrderedOutput, Sample, SampleWriter, Sink, Source
from facedata.errors import FacedataError, RefusedSampleError, SampleError, output_error
from facedata.jobs.job import Conclude, JobOptions, JobSummary, run_job
from facedata.jobs.journal import ShardResult
from facedata.jobs.plan import Plan, shard_count

__all__ = ["Change", "ChangeItems", "Refused", "convert", "plan_conversion"]

_BYTES_PER_SHARD = 1 << 26
_BYTES_PER_BLOCK = 1 << 24  # what a single writer is given at a time: several of these are in memory at once


class Refused(NamedTuple):
    """A sample that cannot be made: its key, and why."""

    key: str
    reason: RefusedSampleError


ChangeItems = Callable[[Iterable[Sample | SampleError]], Iterator[Sequence[Sample | SampleError | Refused]]]
"""Gives for each item, in order, what it becomes: one sample, several, or what says why there is none."""


class Change(Protocol):
    """What is done to each sample on its way from a source to a sink; picklable."""

    @property
    def samples_per_shard(self) -> int | None:
        """At most, where 8,192 would take too long and it is not the sink that says where the shards end."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """The options that decide what becomes of a sample, as JSON values."""
        ...

    def part(self, first: int, end: int) -> Change:
        """What is needed for the samples from `first` on and before `end`, and no more: it is sent to a worker."""
        ...

    def open_shard(self, shard: int) -> AbstractContextManager[ChangeItems]:
        """What changes the samples of one shard, in a worker; called on what `part` gave."""
        ...


@dataclass(frozen=True)
class _ConvertShard:
    """One shard: the slice of the source, sent to the worker that does it."""

    source: Source
    sink: Sink
    shard: int
    first: int
    change: Change | None = None

    def __call__(self) -> ShardResult:
        begin = time.monotonic()
        tally = _Tally(self.source, self.first)
        try:
            with self._open_change() as change, self.sink.open_shard(self.shard) as writer:
                if change is None:
                    for index, item in enumerate(self.source.read(), self.first):
                        tally.take(index, item, writer)
                else:
                    for index, made in enumerate(change(self.source.read()), self.first):
                        tally.take_all(index, made, writer)
                block = writer.block() if isinstance(writer, BlockEncoder) else None
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.sink.root) from error
        return tally.result(time.monotonic() - begin, block)

    def _open_change(self) -> AbstractContextManager[ChangeItems | None]:
        return nullcontext() if self.change is None else self.change.open_shard(self.shard)


class _Tally:
    """Counts and digests what a shard delivers."""

    def __init__(self, source: Source, first: int) -> None:
        self._source, self._first = source, first
        self._samples = self._bytes = 0
        self._labels: tuple[int, int] | None = None
        self._last_label = -1
        self._digest = 0  # CRC-32: it is there to tell runs apart, and every image passes through it
        self._failures: list[Mapping[str, Any]] = []

    def take_all(self, index: int, made: Iterable[Sample | SampleError | Refused], writer: SampleWriter) -> None:
        """Take all that was made of one sample."""
        for face, item in enumerate(made):
            if isinstance(item, Refused):
                self._refuse(index, item.key, item.reason)
            else:
                self.take(index, item, writer, face)

    def take(self, index: int, item: Sample | SampleError, writer: SampleWriter, face: int = 0) -> None:
        if isinstance(item, SampleError):
            self._fail(index, item)
            return
        try:
            writer.write(index, item, face)
        except RefusedSampleError as error:
            self._refuse(index, item.key, error)
            return
        self._samples += 1
        self._bytes += len(item.image)
        self._digest = crc32(item.image, crc32(b"%d %d\n" % (item.label, len(item.image)), self._digest))
        if item.label != self._last_label:
            self._note_label(item.label)

    def _note_label(self, label: int) -> None:
        self._last_label = label
        low, high = self._labels or (label, label)
        self._labels = (min(low, label), max(high, label))

    def _refuse(self, index: int, key: str, reason: RefusedSampleError) -> None:
        dataset, offset = self._source.locate(index - self._first)
        self._fail(index, SampleError(dataset, key, str(reason), offset))

    def _fail(self, index: int, error: SampleError) -> None:
        self._failures.append(
            {"set": error.dataset, "key": error.key, "index": index, "offset": error.offset, "reason": error.reason}
        )

    def result(self, seconds: float, block: Any) -> ShardResult:
        digest, failures = f"{self._digest:08x}", tuple(self._failures)
        return ShardResult(self._samples, self._bytes, digest, self._labels, failures, seconds, block)


def plan_conversion(
    command: str,
    source: Source,
    sink: Sink,
    *,
    size: int,
    ends: tuple[int, ...] | None = None,
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    change: Change | None = None,
) -> Plan:
    """The plan of moving all of `source` to `sink`, which `Sink.fit` has made ready for it.

    Parameters
    ----------
    command : str
        The command whose job it is.
    source, sink
    size : int
        The input's bytes, about; decides only the number of shards.
    ends : tuple of int, optional
        Where the sink wants the shards to end.
    options : mapping, optional
        Further options that decide what is written.
    facts : mapping, optional
        What else to keep with the job.
    change : Change, optional
        What is done to the samples on their way.
    """
    most = None if change is None else change.samples_per_shard
    limit = _BYTES_PER_BLOCK if isinstance(sink, OrderedOutput) else _BYTES_PER_SHARD
    return Plan(
        command,
        source.identity(),
        {**sink.identity(), **(change.identity() if change else {}), **(options or {})},
        len(source),
        shard_count(len(source), size, limit, most) if ends is None else len(ends),
        {**(facts or {}), "named_files": [os.path.abspath(name) for name in sink.named_files()]},
        ends,
    )


def convert(
    plan: Plan,
    source: Source,
    sink: Sink,
    options: JobOptions | None = None,
    conclude: Conclude | None = None,
    change: Change | None = None,
) -> JobSummary:
    """Run the job, or the part of it that is asked for, and go on where an earlier run was cut off.

    Parameters
    ----------
    plan : Plan
        As `plan_conversion` made it from the same source and sink.
    source, sink
    options : JobOptions, optional
    conclude : callable, optional
        As for `run_job`.
    change : Change, optional
        As the plan has it.

    Raises
    ------
    OutputError
        Where the output cannot be written or is not this job's.
    InterruptedJobError
        After SIGINT or SIGTERM.
    """

    def make_task(shard: int) -> _ConvertShard:
        first, end = plan.bounds(shard)
        part = None if change is None else change.part(first, end)
        return _ConvertShard(source[first:end], sink, shard, first, part)

    return run_job(plan, make_task, sink, options, conclude)
