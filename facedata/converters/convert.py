"""Converting: from specs to a planned job that moves samples from any sources to any sink, and running it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from zlib import crc32

import numpy as np

from facedata.columns import UNLABELLED
from facedata.converters.selection import LabelOrigin, Selection, join_sources, label_origins, old_labels, select
from facedata.dataset import (
    BlockEncoder,
    OrderedOutput,
    Output,
    Sample,
    Sink,
    Source,
    create_dataset,
    find_format,
    further_values,
    load_format,
    open_dataset,
    takes_option,
)
from facedata.errors import FacedataError, OptionError, RefusedSampleError, SampleError, output_error
from facedata.jobs.engine import report_progress
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import JobState, ShardResult, refuse_unfinished
from facedata.jobs.output import check_output, refuse_overlap
from facedata.jobs.plan import InputTimes, Plan, shard_count

if TYPE_CHECKING:
    from facedata.converters.ids import IdOptions

__all__ = [
    "Change",
    "ChangeItems",
    "ChangeMaker",
    "Conversion",
    "ConversionOptions",
    "Input",
    "LabelOptions",
    "Refused",
    "check_conversion",
    "convert_dataset",
    "failure_line",
    "open_inputs",
    "plan_conversion",
    "plan_dataset",
    "read_without",
    "run_conversion",
]

_log = logging.getLogger(__name__)

_VALUES_SHOWN = 4
_BYTES_PER_SHARD = 1 << 26
_REPORT_EVERY = 256  # samples that are only copied
_BYTES_PER_BLOCK = 1 << 24  # what a single writer gets at a time: several of these are in memory at once


class Refused(NamedTuple):
    """A face or image that cannot be made: its key, and why."""

    key: str
    reason: RefusedSampleError


ChangeItems = Callable[[Iterable[Sample | SampleError]], Iterator[Sequence[Sample | SampleError | Refused]]]
"""Gives for each item, in order, what it becomes: one sample, several, or the reason why there is none."""


class Change(Protocol):
    """A change of each sample on its way from a source to a sink; picklable."""

    @property
    def samples_per_shard(self) -> int | None:
        """At most how many samples make a shard, if 8,192 would take too long; ignored if the sink cuts the shards."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """The options that decide what becomes of a sample, as JSON values."""
        ...

    def files(self) -> Sequence[str]:
        """The files that are read besides the dataset."""
        ...

    def part(self, first: int, end: int) -> Change:
        """The change with what it needs for the samples `first` to `end` alone: this is sent to a worker."""
        ...

    def open_shard(self, shard: int) -> AbstractContextManager[ChangeItems]:
        """The function that changes the samples of one shard, in a worker; called on what `part` returned."""
        ...


ChangeMaker = Callable[[Source, Sink], tuple[Change, Sink]]
"""Makes the change for a source and a sink, and the sink that then writes the samples."""


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels of the samples come from.

    Attributes
    ----------
    mode : str
        ``"shift"``: from the sources, the labels of each following those of the sources before it, so that people stay
        apart; ``"keep"``: from the sources as they are, so that people of different sources may share a label;
        ``"folders"``: as ``"shift"``, and each folder of a folder of images is a class, whatever it looks like;
        ``"none"``: nowhere, every sample gets -1.
    constant : int, optional
        Every sample gets this label.
    file : str, optional
        A file with the labels, see `labels.labels_from`.
    """

    mode: str = "shift"
    constant: int | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        if (self.mode == "none") + (self.constant is not None) + (self.file is not None) > 1:
            raise OptionError("--labels none, --label and --labels-from contradict each other; choose one")

    @property
    def replaced(self) -> bool:
        """Whether the labels of the sources do not matter."""
        return self.mode == "none" or self.constant is not None or self.file is not None

    @property
    def scan(self) -> str | None:
        """How a folder of images gets its labels, if not by what it looks like."""
        return "none" if self.replaced else "folders" if self.mode == "folders" else None

    def options(self) -> dict[str, Any]:
        """These options as JSON values; for a plan."""
        return {"labels": self.mode if self.constant is None else self.constant}

    def apply(self, source: Source) -> Source:
        """The source with the labels that the user gave, or itself if there are none."""
        if self.file is not None:
            from facedata.converters.labels import labels_from

            return labels_from(source, self.file)
        if self.constant is not None or self.mode == "none":
            from facedata.converters.labels import constant_labels

            return constant_labels(source, UNLABELLED if self.constant is None else self.constant)
        return source


@dataclass(frozen=True)
class ConversionOptions:
    """What to convert, and how.

    Attributes
    ----------
    labels : LabelOptions
        Where the labels come from.
    ids : IdOptions, optional
        Whose samples are kept, or left out, before labels are shifted.
    limit : int, optional
        Only the first so many of the selected samples.
    opening : mapping
        Keywords for the ``open_source`` of the sources' format.
    writing : mapping
        Keywords for the ``create_sink`` of the target's format.
    change : callable, optional
        Makes the change of the samples. It gets the selected source without the limit.
    command : str
        The name of the command that runs the job.
    command_line : str
        The command as the user typed it, for messages that say how to resume.
    """

    labels: LabelOptions = field(default_factory=LabelOptions)
    selection: Selection = field(default_factory=Selection)
    ids: IdOptions | None = None
    limit: int | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    writing: Mapping[str, Any] = field(default_factory=dict)
    change: ChangeMaker | None = None
    command: str = "convert"
    command_line: str = "the same command"


class Input(NamedTuple):
    """A dataset that was opened as the input of a job: its format, its path and its source."""

    format: str
    path: str
    source: Source


@dataclass(frozen=True)
class Conversion:
    """A planned conversion: run it with `run_conversion`, or only look at its plan.

    Attributes
    ----------
    source : Source
        The samples that are written, joined and selected.
    sink : Sink
        As `Sink.fit` prepared it for them.
    inputs : sequence of Input
    """

    plan: Plan
    source: Source
    sink: Sink
    change: Change | None = None
    inputs: Sequence[Input] = ()

    def label_origins(self) -> Iterator[LabelOrigin]:
        """What each label that is written stands for, in ascending order; reads all labels."""
        facts = self.plan.facts
        sets = [(each["set"], each["first_label"]) for each in facts["sets"]]
        known = sorted({int(label) for block in self.source.label_blocks() for label in np.unique(block) if label >= 0})
        before = old_labels(self.source)
        labels = ((label, before.get(label, label)) for label in known)
        return label_origins(
            labels, sets if facts["labels_shifted"] else [(sets[0][0], 0)], self.source.class_names() or {}
        )


def convert_dataset(
    sources: Sequence[str], target: str | Sink, options: ConversionOptions | None = None, job: JobOptions | None = None
) -> JobSummary:
    """Write the samples of one or more datasets as another dataset.

    Parameters
    ----------
    sources : sequence of str
        Specs.
    target : str or Sink
        A spec that names its format, or a sink.
    options, job : optional

    Raises
    ------
    InputError
        If a source cannot be read.
    OutputError
        If the output cannot be written or belongs to another job.
    OptionError
        If an option does not apply to a format, or the target's format cannot hold the samples.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call resumes the job.
    """
    return run_conversion(plan_dataset(sources, target, options), job)


def open_inputs(
    specs: Sequence[str],
    options: Mapping[str, Any] | None = None,
    output: Output | None = None,
    labels: LabelOptions | None = None,
) -> list[Input]:
    """Open datasets as the inputs of a job.

    Parameters
    ----------
    specs : sequence of str
    options : mapping, optional
        Keywords for the ``open_source`` of their formats.
    output : Output, optional
        The output of the job. It must not overlap with an input; that is checked before anything is opened.
    labels : LabelOptions, optional
        Decides how a folder of images is scanned.

    Raises
    ------
    InputUnfinishedError
        If an input is, or lies in, the output of a job that has not finished.
    InputError
        If an input cannot be read.
    OutputError
        If the output overlaps with an input.
    """
    formats = [find_format(spec) for spec in specs]
    for name, path in formats:
        paths = load_format(name).input_paths(path)
        for part in paths:
            refuse_unfinished(part)
        if output is not None:
            refuse_overlap(paths, output.root, output.named_files())
    scan = None if labels is None else labels.scan
    inputs = []
    for name, path in formats:
        scanned = scan is not None and (scan != "none" or takes_option(name, "labels"))
        opening = {**(options or {}), **({"labels": scan} if scanned else {})}
        inputs.append(Input(name, path, open_dataset(f"{name}:{path}", **opening)))
    for item in inputs:
        places = item.source.places()
        if output is not None:
            refuse_overlap(places, output.root, output.named_files())
        for folder in {os.path.dirname(path) for path in places}:
            refuse_unfinished(folder or ".")
    return inputs


def plan_dataset(sources: Sequence[str], target: str | Sink, options: ConversionOptions | None = None) -> Conversion:
    """Open the sources, select the samples and plan the job; writes nothing. Parameters as of `convert_dataset`."""
    options = options or ConversionOptions()
    sink = create_dataset(target, **options.writing) if isinstance(target, str) else target
    inputs = open_inputs(sources, options.opening, sink, options.labels)
    shifted = options.labels.mode != "keep" and not options.labels.replaced
    parts = [item.source for item in inputs]
    if options.ids is not None and not options.labels.replaced:
        parts = options.ids.apply(parts, [item.path for item in inputs])
    own_labels, labels = join_sources(parts, shift=shifted)
    joined = options.labels.apply(own_labels)
    if options.ids is not None and options.labels.replaced:
        [joined] = options.ids.apply([joined])
    if options.labels.replaced:
        first = options.labels.constant or 0
        labels = [(first, (joined.declared_classes() or 0) - first)] * len(labels)
    if sink.needs_labels and not joined.labelled:
        unlabelled = next((item.path for item in inputs if not item.source.labelled), inputs[0].path)
        raise OptionError(
            f"{unlabelled}: its samples have no labels, and the readers of this format need one for each. Put the "
            "images of each class into a folder, take labels from a file (--labels-from FILE), or give all one label: "
            "--label 0"
        )
    for item in inputs:
        if item.source.may_have_values and not sink.keeps_values and (values := further_values(item.source)):
            _log.warning(
                "%s: its records have %d label values, as in [%s]; only the first is kept, as the label",
                item.path,
                len(values),
                ", ".join(f"{value:g}" for value in values[:_VALUES_SHOWN]) + ", ..." * (len(values) > _VALUES_SHOWN),
            )
    selection = replace(options.selection, group=True) if sink.grouped else options.selection
    selected = select(joined, selection)
    source = selected if options.limit is None else selected[: options.limit]
    change = None
    if options.change is not None:
        change, sink = options.change(selected, sink)
        change = change.part(0, len(source))
    facts = [
        {
            "set": path,
            "format": name,
            **opened.describe(),
            "images": len(part),
            "classes": classes,
            "first_label": shift,
            "last_label": None if classes is None else shift + classes - 1,
        }
        for (name, path, opened), part, (shift, classes) in zip(inputs, parts, labels, strict=True)
    ]
    conversion = plan_conversion(
        options.command,
        source,
        sink,
        options={
            **options.labels.options(),
            "limit": options.limit,
            **selection.options(),
            **(options.ids.options() if options.ids else {}),
        },
        facts={"sets": facts, "labels_shifted": shifted and joined is own_labels, "command_line": options.command_line},
        change=change,
    )
    sink = conversion.sink
    for item in inputs:  # the change and `Sink.fit` may have added files to write
        refuse_overlap(item.source.places(), sink.root, sink.named_files())
    return replace(conversion, inputs=inputs)


def plan_conversion(
    command: str,
    source: Source,
    sink: Sink,
    *,
    size: int | None = None,
    ends: tuple[int, ...] | None = None,
    options: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    change: Change | None = None,
) -> Conversion:
    """Plan to write all samples of a source to a sink; writes nothing.

    Parameters
    ----------
    size : int, optional
        About how many bytes the input has, if that is not the size of the source; decides only the number of shards.
    ends : tuple of int, optional
        Where the shards end, if not where the sink wants them to.
    options : mapping, optional
        Further options that decide what is written.
    facts : mapping, optional
        What else to keep with the job.
    """
    sink, wanted_ends = sink.fit(source)
    ends = wanted_ends if ends is None else ends
    if ends is None:
        most = None if change is None else change.samples_per_shard
        limit = _BYTES_PER_BLOCK if isinstance(sink, OrderedOutput) else _BYTES_PER_SHARD
        shards = shard_count(len(source), source.size() if size is None else size, limit, most)
    else:
        shards = len(ends)
    plan = Plan(
        command,
        source.identity(),
        {**sink.identity(), **(change.identity() if change else {}), **(options or {})},
        len(source),
        shards,
        {**(facts or {}), "named_files": [os.path.abspath(name) for name in sink.named_files()]},
        ends,
        InputTimes.of([*source.places(), *(change.files() if change else ())]),
    )
    return Conversion(plan, source, sink, change)


def check_conversion(conversion: Conversion, *, overwrite: bool) -> None:
    """Raise if the job may not write its output; for a dry run."""
    check_output(conversion.plan, conversion.sink, overwrite=overwrite)


def read_without(source: Source, first: int, culprits: Mapping[int, str]) -> Iterator[Sample | SampleError]:
    """Read a source whose first sample is number `first`; `culprits` are not read, and fail for the reason given."""
    begin = 0
    for place in sorted(number - first for number in culprits if 0 <= number - first < len(source)):
        yield from source[begin:place].read()
        dataset, offset = source.locate(place)
        key = next(source[place : place + 1].keys(), "")
        yield SampleError(dataset, key, culprits[first + place], offset)
        begin = place + 1
    yield from (source[begin:] if begin else source).read()


def failure_line(error: SampleError, index: int) -> dict[str, Any]:
    """The line in ``failures.jsonl`` of the sample with this number in the job."""
    line = {"set": error.dataset, "key": error.key, "index": index, "offset": error.offset, "reason": error.reason}
    return {**line, "transient": True} if error.transient else line


def run_conversion(conversion: Conversion, job: JobOptions | None = None) -> JobSummary:
    """Run a planned conversion, or the part of it that `job` asks for, or resume it. Raises as `convert_dataset`."""
    plan, source, sink, change = conversion.plan, conversion.source, conversion.sink, conversion.change
    unsaved = [item.source for item in conversion.inputs]

    def make_task(shard: int) -> _ConvertShard:
        while unsaved:  # by now the output belongs to this job
            unsaved.pop().save_cache()
        first, end = plan.bounds(shard)
        part = None if change is None else change.part(first, end)
        return _ConvertShard(source[first:end], sink, shard, first, part)

    return run_job(plan, make_task, sink, job, None if plan.options.get("relabel") else _with_last_label)


def _with_last_label(facts: Mapping[str, Any], state: JobState) -> Mapping[str, Any]:
    """The facts with the largest label that was written, which belongs to the last set if labels were shifted."""
    *others, last = facts.get("sets") or [{}]
    if state.largest_label < 0 or not last or (others and not facts["labels_shifted"]):
        return facts
    largest = max(state.largest_label, -1 if last["last_label"] is None else last["last_label"])
    merged = {"labels": largest + 1} if others else {}
    return {**facts, **merged, "sets": [*others, {**last, "last_label": largest}]}


class _OnlyTriedError(Exception):
    """Ends a task that was tried without some of its samples: no file of it may appear."""


@dataclass(frozen=True)
class _ConvertShard:
    """The task of one shard, sent to the worker that does it; `source` and `change` are its own parts of them."""

    source: Source
    sink: Sink
    shard: int
    first: int
    change: Change | None = None
    culprits: Mapping[int, str] = field(default_factory=dict)
    whole: bool = True

    @property
    def samples(self) -> range:
        """The numbers of its samples in the job."""
        return range(self.first, self.first + len(self.source))

    def part(self, samples: range, culprits: Mapping[int, str]) -> _ConvertShard:
        """The task for these samples, without the `culprits` among them; see `DivisibleTask`."""
        begin, end = samples.start - self.first, samples.stop - self.first
        change = None if self.change is None else self.change.part(begin, end)
        whole = samples == self.samples
        source = self.source[begin:end]
        return replace(self, source=source, first=samples.start, change=change, culprits=culprits, whole=whole)

    def __call__(self) -> ShardResult:
        begin = time.monotonic()
        samples = size = digest = 0  # a CRC-32: it only tells runs apart, and every image passes through it
        labels: tuple[int, int] | None = None
        last_label = -1
        failures: list[Mapping[str, Any]] = []
        skipped: list[Mapping[str, Any]] = []
        opened = nullcontext() if self.change is None else self.change.open_shard(self.shard)
        try:
            with opened as change, self.sink.open_shard(self.shard) as writer:
                items = read_without(self.source, self.first, self.culprits)
                made = ((item,) for item in items) if change is None else change(items)
                slow, count = change is not None, len(self.source)
                report_progress(0, count)
                for index, faces in enumerate(made, self.first):
                    for face, item in enumerate(faces):
                        if not isinstance(item, Sample):
                            is_result = isinstance(item, Refused) and item.reason.is_result
                            (skipped if is_result else failures).append(self._failure(index, item))
                            continue
                        try:
                            if item.label < 0 and self.sink.needs_labels:
                                raise RefusedSampleError("no label: the readers of this format need one for each image")
                            writer.write(index, item, face)
                        except RefusedSampleError as error:
                            failures.append(self._failure(index, Refused(item.key, error)))
                            continue
                        label, image = item.label, item.image
                        samples += 1
                        size += len(image)
                        digest = crc32(image, crc32(b"%d %d\n" % (label, len(image)), digest))
                        if label != last_label:  # most samples have the label of the one before
                            last_label = label
                            low, high = labels or (label, label)
                            labels = (min(low, label), max(high, label))
                    if slow or not index % _REPORT_EVERY:
                        report_progress(index - self.first + 1, count)
                block = writer.block() if isinstance(writer, BlockEncoder) else None
                if not self.whole:
                    raise _OnlyTriedError
            path = self.sink.shard_file(self.shard)
            file_size = None if path is None else os.path.getsize(path)
        except _OnlyTriedError:
            return ShardResult(0, 0, "", None, (), 0.0)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.sink.root) from error
        seconds = time.monotonic() - begin
        digits = f"{digest:08x}"
        return ShardResult(samples, size, digits, labels, tuple(failures), seconds, block, tuple(skipped), file_size)

    def _failure(self, index: int, item: SampleError | Refused) -> Mapping[str, Any]:
        if isinstance(item, Refused):
            dataset, offset = self.source.locate(index - self.first)
            item = SampleError(dataset, item.key, str(item.reason), offset)
        return failure_line(item, index)
