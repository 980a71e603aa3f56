"""From specs to a finished job: opening sources, choosing samples, planning, running. Behind ``facedata convert``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from facedata.converters.combined import join_sources
from facedata.converters.convert import Change, convert, plan_conversion
from facedata.converters.selection import Selection, select
from facedata.dataset import Sink, Source, create_dataset, find_format, load_format, open_dataset
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.journal import refuse_unfinished
from facedata.jobs.output import check_output, refuse_overlap
from facedata.jobs.plan import Plan

__all__ = [
    "ChangeMaker",
    "Conversion",
    "ConversionOptions",
    "check_conversion",
    "convert_dataset",
    "plan_dataset",
    "run_conversion",
]

ChangeMaker = Callable[[Source, Sink], tuple[Change, Sink]]


@dataclass(frozen=True)
class ConversionOptions:
    """What to convert, and how.

    Attributes
    ----------
    labels : str
        ``"shift"``: the labels of each source follow those of the sources before it, so that people stay apart;
        ``"keep"``: as they are.
    selection : Selection
    limit : int, optional
        Only the first so many samples of what is selected.
    opening : mapping
        Keywords for the ``open_source`` of the sources' format.
    writing : mapping
        Keywords for the ``create_sink`` of the target's format.
    change : callable, optional
        Called with the source, without the limit, and the sink once both are known, it gives the change of the samples
        on their way, and the sink that is to write them.
    command : str
        The command whose job it is.
    command_line : str
        The command as the user typed it, for messages that say how to go on.
    """

    labels: str = "shift"
    selection: Selection = field(default_factory=Selection)
    limit: int | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    writing: Mapping[str, Any] = field(default_factory=dict)
    change: ChangeMaker | None = None
    command: str = "convert"
    command_line: str = "the same command"


@dataclass(frozen=True)
class Conversion:
    """A planned conversion: run it with `convert`, or look at its plan alone."""

    plan: Plan
    source: Source
    sink: Sink
    change: Change | None = None


def convert_dataset(
    sources: Sequence[str], target: str, options: ConversionOptions | None = None, job: JobOptions | None = None
) -> JobSummary:
    """Write the samples of one or more datasets as another dataset.

    Parameters
    ----------
    sources : sequence of str
        Specs.
    target : str
        A spec that names its format.
    options : ConversionOptions, optional
    job : JobOptions, optional

    Raises
    ------
    InputError
        Where a source cannot be read.
    OutputError
        Where the output cannot be written or is another job's.
    OptionError
        Where the target's format does not know an option, or cannot hold the samples.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call goes on.
    """
    conversion = plan_dataset(sources, target, options)
    return run_conversion(conversion, job)


def run_conversion(conversion: Conversion, job: JobOptions | None = None) -> JobSummary:
    """Run what was planned, or go on with it."""
    return convert(conversion.plan, conversion.source, conversion.sink, job, change=conversion.change)


def plan_dataset(sources: Sequence[str], target: str, options: ConversionOptions | None = None) -> Conversion:
    """Open the sources and plan the job; writes nothing."""
    options = options or ConversionOptions()
    sink = create_dataset(target, **options.writing)
    formats = [find_format(spec) for spec in sources]
    for name, path in formats:
        inputs = load_format(name).input_paths(path)
        for part in inputs:
            refuse_unfinished(part)
        refuse_overlap(inputs, sink.root)
    opened = [open_dataset(f"{name}:{path}", **options.opening) for name, path in formats]
    joined, told = join_sources(opened, shift=options.labels == "shift")
    selection = replace(options.selection, group=True) if sink.grouped else options.selection
    selected = select(joined, selection)
    source = selected if options.limit is None else selected[: options.limit]
    change = None
    if options.change is not None:
        change, sink = options.change(selected, sink)
        change = change.part(0, len(source))
    sink, ends = sink.fit(source)
    for one in opened:
        refuse_overlap(one.places(), sink.root, sink.named_files())
        for folder in {os.path.dirname(path) for path in one.places()}:
            refuse_unfinished(folder or ".")
    facts = [
        {
            "set": path,
            "format": name,
            "images": len(one),
            "classes": classes,
            "first_label": shift,
            "last_label": None if classes is None else shift + classes - 1,
        }
        for (name, path), one, (shift, classes) in zip(formats, opened, told, strict=True)
    ]
    deciding = {"labels": options.labels, "limit": options.limit, **selection.options()}
    plan = plan_conversion(
        options.command,
        source,
        sink,
        size=source.size(),
        ends=ends,
        options={**deciding, "opening": dict(options.opening)},
        facts={"sets": facts, "command_line": options.command_line},
        change=change,
    )
    return Conversion(plan, source, sink, change)


def check_conversion(conversion: Conversion, *, overwrite: bool) -> None:
    """Raise where the job may not write into its output; for a dry run."""
    check_output(conversion.plan, conversion.sink, overwrite=overwrite)
