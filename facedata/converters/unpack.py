"""Unpacking record sets into a folder of images: the job behind ``facedata unpack-rec``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from facedata.converters.combined import join_sources
from facedata.converters.convert import convert, plan_conversion
from facedata.converters.folder import GLINT360K, LAYOUTS, FolderSink
from facedata.converters.rec.record_set import OpenOptions, RecordSet, open_record_set
from facedata.dataset import Source
from facedata.errors import OptionError
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.journal import JobState, refuse_unfinished
from facedata.jobs.output import check_output, claim_output, refuse_overlap
from facedata.jobs.plan import Plan

__all__ = ["UnpackOptions", "plan_unpacking", "unpack_record_sets"]


@dataclass(frozen=True)
class UnpackOptions:
    """What to unpack, and how.

    Attributes
    ----------
    layout : str
        ``"glint360k"`` or ``"imagefolder"``, see `FolderSink`.
    labels : str
        ``"shift"``: the labels of each set follow those of the sets before it, so that people stay apart;
        ``"keep"``: as they are, so that people of different sets who share a number share a folder.
    list_file : str, optional
        Also write the ``relative/path label`` list there.
    limit : int, optional
        Only the first so many images.
    keep_undecodable : bool
        Write what is not an image as ``.bin``.
    backend : str
        ``"native"``, or ``"mxnet"`` to read through MXNet itself.
    opening : OpenOptions
    command_line : str
        The command as the user typed it, for messages that say how to go on.
    """

    layout: str = GLINT360K
    labels: str = "shift"
    list_file: str | None = None
    limit: int | None = None
    keep_undecodable: bool = False
    backend: str = "native"
    opening: OpenOptions = field(default_factory=OpenOptions)
    command_line: str = "the same command"


@dataclass(frozen=True)
class Unpacking:
    """A planned unpacking: run it with `convert`, or look at its plan alone."""

    plan: Plan
    source: Source
    sink: FolderSink
    sets: Sequence[RecordSet]


def unpack_record_sets(
    includes: Sequence[str],
    output: str | os.PathLike[str],
    options: UnpackOptions | None = None,
    job: JobOptions | None = None,
) -> JobSummary:
    """Unpack record sets into a folder, one folder an identity.

    Parameters
    ----------
    includes : sequence of str
        Set folders or ``.rec`` files.
    output : path
    options : UnpackOptions, optional
    job : JobOptions, optional

    Raises
    ------
    InputError
        Where a set cannot be read or contradicts itself.
    OutputError
        Where the output cannot be written or is another job's.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call goes on.
    """
    job = job or JobOptions()
    unpacking = plan_unpacking(includes, output, options)
    plan, sink = unpacking.plan, unpacking.sink
    if any(one.rebuilt is not None for one in unpacking.sets):
        claim_output(plan, sink, overwrite=job.overwrite)
        job = replace(job, overwrite=False)
        for one in unpacking.sets:
            one.save_rebuilt(Path(sink.root))
    return convert(plan, unpacking.source, sink, job, _with_last_label)


def plan_unpacking(
    includes: Sequence[str], output: str | os.PathLike[str], options: UnpackOptions | None = None
) -> Unpacking:
    """Open the sets and plan the job; writes nothing."""
    options = options or UnpackOptions()
    if options.layout not in LAYOUTS:
        raise OptionError(f"--layout {options.layout}: records have no paths to keep; there are {', '.join(LAYOUTS)}")
    root = os.fspath(output)
    refuse_overlap(list(includes), root)
    for name in includes:
        refuse_unfinished(name)
    opening = replace(options.opening, cache_folder=Path(root))
    sets = [open_record_set(name, opening) for name in includes]
    for one in sets:
        _refuse_list_in_set(options.list_file, one)
    source, facts = _join(sets, options)
    sink = FolderSink(root, options.layout, options.list_file, options.keep_undecodable)
    size = sum(one.source.file_identity["size"] for one in sets)
    plan = plan_conversion(
        "unpack-rec",
        source,
        sink,
        size=size * len(source) // max(sum(len(one.source) for one in sets), 1),
        options={"labels": options.labels, "limit": options.limit, "salvage": opening.salvage},
        facts={"sets": facts, "command_line": options.command_line},
    )
    return Unpacking(plan, source, sink, sets)


def check_unpacking(unpacking: Unpacking, *, overwrite: bool) -> None:
    """Raise where the job may not write into its output; for a dry run."""
    check_output(unpacking.plan, unpacking.sink, overwrite=overwrite)


def _refuse_list_in_set(list_file: str | None, one: RecordSet) -> None:
    """A list must not replace the very files that are unpacked."""
    if list_file is not None and Path(list_file).resolve().parent == Path(one.files.folder).resolve():
        raise OptionError(
            f"--list {list_file}: lies in the folder of the set {one.files.records}; choose another place"
        )


def _with_last_label(facts: Mapping[str, Any], state: JobState) -> dict[str, Any]:
    """Where shifted, the largest label of all is one of the last set's."""
    *others, last = (dict(one) for one in facts["sets"])
    if not others or last["first_label"] > 0:
        last["last_label"] = max(state.largest_label, last["last_label"] or 0)
    return {**facts, "sets": [*others, last]}


def _join(sets: Sequence[RecordSet], options: UnpackOptions) -> tuple[Source, list[dict[str, Any]]]:
    """The sets behind each other, their labels shifted, and what to tell of each."""
    sources = [_backend(one, options.backend) for one in sets]
    joined, told = join_sources(sources, shift=options.labels == "shift")
    facts = [_facts(one, shift, classes) for one, (shift, classes) in zip(sets, told, strict=True)]
    return (joined if options.limit is None else joined[: options.limit]), facts


def _facts(one: RecordSet, shift: int, classes: int | None) -> dict[str, Any]:
    return {
        "set": one.files.records,
        "dialect": one.dialect,
        "index": "rebuilt" if one.rebuilt is not None else one.files.index,
        "images": len(one.source),
        "classes": classes,
        "first_label": shift,
        "last_label": None if classes is None else shift + classes - 1,
    }


def _backend(one: RecordSet, backend: str) -> Source:
    if backend == "native":
        return one.source
    if backend == "mxnet":
        from facedata.converters.rec.mxnet_backend import MXNetRecSource, check_mxnet

        check_mxnet()
        return MXNetRecSource(one.source)
    raise OptionError(f"backend {backend}: there are 'native' and 'mxnet'")
