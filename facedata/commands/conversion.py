"""What ``convert``, ``build-lmdb`` and ``pack-rec`` share: their options, and the way from these to a summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.progress import counted, human_bytes, human_seconds, output_name, show_progress, shown_path

if TYPE_CHECKING:
    from facedata.converters.conversion import Conversion
    from facedata.jobs.job import JobSummary

__all__ = ["CHOICE", "JOB", "TARGET", "run_conversion", "show_conversion_plan", "show_sets", "show_summary"]

CHOICE = options.together(
    options.LABELS,
    options.MIN_IMAGES,
    options.MAX_IMAGES,
    options.RELABEL,
    options.LIMIT,
    options.KEEP_UNDECODABLE,
    options.SALVAGE,
    options.REBUILD_INDEX,
)
"""Options that decide which samples are written, with which labels."""

JOB = options.together(options.WORKERS, options.OVERWRITE, options.DRY_RUN, options.JSON, options.QUIET)
"""Options of how the job is run."""

TARGET = options.together(
    options.LAYOUT,
    options.SHARD_SIZE,
    options.SHARD_SAMPLES,
    options.STYLE,
    options.DATUM,
    options.KEYS,
    options.KV,
    options.SINGLE_FILE,
    options.BUILD_DIR,
)
"""Options of the formats that can be written."""

_SELECTION = ("min_images", "max_images", "relabel", "shuffle", "seed")
_OPENING = ("salvage", "rebuild_index")
_DOOR = ("labels", "limit", "workers", "shard", "overwrite", "dry_run", "as_json", "quiet")


def run_conversion(command: str, sources: tuple[str, ...], target: str, given: Mapping[str, Any]) -> int:
    """Convert `sources` to `target`, show what came of it, and return the exit status.

    Parameters
    ----------
    command : str
        The name of the command.
    sources : tuple of str
    target : str
        ``format:path``.
    given : mapping
        All options by name; what is not of the selection or the job goes to the format that is written.
    """
    from facedata.converters.conversion import ConversionOptions, check_conversion, convert_dataset, plan_dataset
    from facedata.converters.selection import Selection
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=given["quiet"])
    others = {name: value for name, value in given.items() if name not in (*_SELECTION, *_OPENING, *_DOOR)}
    writing = {name: value for name, value in others.items() if value not in (None, False)}
    chosen = {name: given[name] for name in _SELECTION if name in given}
    conversion = ConversionOptions(
        labels=given["labels"],
        selection=Selection(**chosen),
        limit=given["limit"],
        opening={name: True for name in _OPENING if given[name]},
        writing=writing,
        command=command,
        command_line=options.command_line(),
    )
    part = Part(*given.get("shard", (1, 1)))
    job = JobOptions(given["workers"], part, given["overwrite"])
    if given["dry_run"]:
        planned = plan_dataset(sources, target, conversion)
        check_conversion(planned, overwrite=given["overwrite"])
        show_conversion_plan(planned, part, as_json=given["as_json"])
        return 0
    with show_progress("images", quiet=given["quiet"]) as observer:
        summary = convert_dataset(sources, target, conversion, replace(job, observer=observer))
    show_summary(summary, as_json=given["as_json"])
    return 0 if summary.good else 1


def show_conversion_plan(conversion: Conversion, part: Any, *, as_json: bool) -> None:
    """Say on stdout what a job would write."""
    plan = conversion.plan
    shards = part.shards(plan)
    images = sum(end - first for first, end in map(plan.bounds, shards))
    root = output_name(conversion.sink.root)
    if as_json:
        value = {"dry_run": True, "output": root, "images": images, "shards": len(shards), "part": str(part)}
        options.print_json({**value, "fingerprint": plan.fingerprint, "sets": plan.facts["sets"]})
        return
    click.echo(f"would write {counted(images, 'image')} in {counted(len(shards), 'shard')} into {root}")
    show_sets(plan.facts["sets"])


def show_sets(sets: list[dict[str, Any]]) -> None:
    """A line for each input."""
    for one in sets:
        first, last = one["first_label"], one["last_label"]
        labels = f"labels from {first}" if last is None else f"labels {first} to {last}"
        click.echo(
            f"  {one['set']}: {one.get('dialect') or one['format']}, {counted(one['images'], 'image')}, {labels}"
        )


_TOLD = {
    "identities": ("of", "identity", "identities"),
    "classes": ("of", "class", "classes"),
    "tars": ("in", "tar", "tars"),
    "files": ("in", "file", "files"),
}
"""How to say the counts that sinks give."""


def show_summary(summary: JobSummary, *, as_json: bool) -> None:
    """Say on stdout what a job that moved images came to."""
    if as_json:
        value = summary.to_json()
        options.print_json({"images": value.pop("samples"), **value})
        return
    facts = summary.facts
    known = [
        f" {how} {counted(facts[name], word, plural)}" for name, (how, word, plural) in _TOLD.items() if name in facts
    ]
    inside = known[0] if known else ""
    state = "all done before" if summary.nothing_to_do else f"{human_seconds(summary.seconds)}, {summary.rate:,.0f}/s"
    output = output_name(summary.output)
    click.echo(f"{output}: {counted(summary.samples, 'image')}{inside}, {human_bytes(summary.bytes)}; {state}")
    show_sets(facts["sets"])
    if "kv" in facts:
        click.echo(f"  keys and labels: {shown_path(facts['kv'])}")
    if not summary.finished:
        click.echo(f"  {summary.shards_done} of {summary.shards} shards are done; facedata status {output}")
    if summary.failures:
        click.echo(f"  {counted(summary.failures, 'image')} failed: {os.path.join(summary.output, 'failures.jsonl')}")
    if summary.failed_shards:
        click.echo(f"  {counted(summary.failed_shards, 'shard')} failed; the same command tries them again")
