"""``facedata convert``, and what the commands that write images share: their options, their run, their summary."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes, human_seconds, output_name, show_progress, shown_path
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.converters.convert import Conversion
    from facedata.converters.ids import IdOptions
    from facedata.converters.selection import LabelOrigin
    from facedata.dataset import Sink
    from facedata.jobs.job import JobSummary

__all__ = [
    "JOB",
    "SELECTION",
    "TARGET",
    "command",
    "convert_and_report",
    "error_of",
    "named_target",
    "report_failures",
    "show_conversion_plan",
    "show_outcome",
    "show_summary",
    "time_taken",
]

_SETS_SHOWN = 9
SELECTION = options.together(
    options.LABELS,
    options.MIN_IMAGES,
    options.MAX_IMAGES,
    options.RANDOM,
    options.SAMPLE,
    options.IDS,
    options.RELABEL,
    options.MAPPING,
    options.LIMIT,
    options.SHUFFLE,
    options.SEED,
    options.KEEP_UNDECODABLE,
    options.SALVAGE,
    options.REBUILD_INDEX,
    options.COLUMNS,
)
"""Which samples are written, with which labels, in which order."""

JOB = options.together(
    options.WORKERS,
    options.MAX_FAILURES,
    options.OVERWRITE,
    options.TRUST_INPUT,
    options.DRY_RUN,
    options.JSON,
    options.QUIET,
)
"""How the job is run."""

TARGET = options.together(
    options.LAYOUT,
    options.SHARD_SIZE,
    options.SHARD_SAMPLES,
    options.STYLE,
    options.LABEL_ARRAY,
    options.LIST_SEPARATOR,
    options.DATUM,
    options.KEYS,
    options.KV,
    options.SINGLE_FILE,
    options.BUILD_DIR,
)
"""How the formats are written."""

_COUNTS = {
    "identities": ("of", "identity", "identities"),
    "classes": ("of", "class", "classes"),
    "tars": ("in", "tar", "tars"),
    "files": ("in", "file", "files"),
}
"""How to word the counts that sinks report."""


def convert_and_report(
    command: str,
    sources: Sequence[str],
    target: str | Sink,
    *,
    labels: str,
    label: int | None,
    labels_from: str | None,
    limit: int | None,
    workers: int | None,
    max_failures: int | float | None,
    overwrite: bool,
    trust_input: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    salvage: bool = False,
    rebuild_index: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    min_images: int | None = None,
    max_images: int | None = None,
    random: bool = False,
    sample: int | None = None,
    keep_ids: str | None = None,
    drop_ids: str | None = None,
    drop_keys: str | None = None,
    relabel: bool = False,
    mapping: str | None = None,
    shuffle: bool = False,
    seed: int = 0,
    shard: tuple[int, int] = (1, 1),
    opening: Mapping[str, Any] | None = None,
    **writing: Any,  # an option that is not named here goes to the format: to its create_sink
) -> int:
    """Convert `sources` to `target`, show the summary, and return the exit status.

    Parameters
    ----------
    command : str
        The name of the command.
    sources : sequence of str
        Specs.
    target : str or Sink
    labels, label, labels_from, limit, min_images, max_images, random, sample, keep_ids, drop_ids, drop_keys, relabel,
    shuffle, seed
        Which samples are written, as for `LabelOptions`, `Selection` and `IdOptions`.
    workers, max_failures, overwrite, trust_input, dry_run, as_json, quiet, shard
        How the job is run.
    salvage, rebuild_index, image_column, label_column, opening
        How the sources are opened; `opening` has further keywords for their ``open_source``.
    mapping
        A file for `write_mapping`.
    **writing
        All other options go to the format that is written, except those that were not given.
    """
    from facedata.converters.convert import (
        ConversionOptions,
        LabelOptions,
        check_conversion,
        plan_dataset,
        run_conversion,
    )
    from facedata.converters.selection import Selection
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=quiet)
    how = {
        "salvage": salvage or None,
        "rebuild_index": rebuild_index or None,
        "image_column": image_column,
        "label_column": label_column,
    }
    conversion_options = ConversionOptions(
        labels=LabelOptions(labels, label, labels_from),
        selection=Selection(min_images, max_images, relabel, shuffle=shuffle, seed=seed, random=random, sample=sample),
        ids=id_options(keep_ids, drop_ids, drop_keys),
        limit=limit,
        opening={**(opening or {}), **{name: value for name, value in how.items() if value is not None}},
        writing={name: value for name, value in writing.items() if value not in (None, False)},
        command=command,
        command_line=options.command_line(),
    )
    part = Part(*shard)
    # before anything is opened
    job = JobOptions(workers, part, overwrite, max_failures=max_failures, trust_input=trust_input)
    with named_target(target) if isinstance(target, str) else nullcontext(target) as named:
        conversion = plan_dataset(sources, named, conversion_options)
        if dry_run:
            check_conversion(conversion, overwrite=overwrite)
            show_conversion_plan(conversion, part, as_json=as_json)
            return 0
        with show_progress("images", quiet=quiet) as observer:
            summary = run_conversion(conversion, replace(job, observer=observer))
        if mapping is not None and summary.finished:
            write_mapping(mapping, conversion.label_origins(), overwrite=overwrite)
        show_summary(summary, as_json=as_json)
        return report_failures(summary)


def id_options(keep_ids: str | None, drop_ids: str | None, drop_keys: str | None) -> IdOptions | None:
    """The lists of people to keep and to leave out, and of keys; None if there are none."""
    if keep_ids is None and drop_ids is None and drop_keys is None:
        return None
    from facedata.converters.ids import IdOptions

    return IdOptions(keep_ids, drop_ids, drop_keys)


def write_mapping(path: str, origins: Iterable[LabelOrigin], *, overwrite: bool) -> None:
    """Write which set and class each label stands for, as lines of TSV with a header."""
    from facedata.converters.selection import MAPPING_HEADER
    from facedata.files import atomic_writer, output_errors

    with output_errors(path), atomic_writer(path, replace=overwrite, tidy=True) as file:
        file.write(f"{MAPPING_HEADER}\n".encode())
        lines = ("\t".join(map(str, origin)) for origin in origins)
        file.writelines(f"{line}\n".encode(errors="surrogateescape") for line in lines)


@contextmanager
def named_target(target: str) -> Iterator[str]:
    """`target` itself, or for ``null:``, which names no path, a temporary folder for the journal of the job."""
    if target != "null:":
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="facedata-null-") as folder:
        yield f"null:{folder}"


def show_conversion_plan(conversion: Conversion, part: Any, *, as_json: bool) -> None:
    """Report on stdout what a job would write."""
    plan = conversion.plan
    shards = part.shards(plan)
    images = sum(end - first for first, end in map(plan.bounds, shards))
    root = output_name(conversion.sink.root)
    if as_json:
        value = {"dry_run": True, "output": root, "images": images, "shards": len(shards), "part": str(part)}
        options.print_json({**value, "fingerprint": plan.fingerprint, "sets": plan.facts["sets"]})
        return
    options.echo(f"would write {counted(images, 'image')} in {counted(len(shards), 'shard')} into {root}")
    _show_sets(plan.facts["sets"])


def show_summary(summary: JobSummary, *, as_json: bool, faces_of: int | None = None) -> None:
    """Report on stdout what a job that wrote images, or the faces of so many images, has done."""
    if as_json:
        value = summary.to_json()
        if output_name(summary.output) == "null":
            value["output"] = "null:"
        options.print_json({"images": value.pop("samples"), **value, **error_of(summary)})
        return
    facts = summary.facts
    inside = next(
        (f" {how} {counted(facts[name], *words)}" for name, (how, *words) in _COUNTS.items() if name in facts), ""
    )
    size = human_bytes(summary.bytes)
    output = output_name(summary.output)
    what = counted(summary.samples, "image")
    if faces_of is not None:
        what = f"{counted(summary.samples, 'face')} in {counted(faces_of, 'image')}"
    options.echo(f"{output}: {what}{inside}, {size}; {time_taken(summary)}")
    _show_sets(facts["sets"])
    empty = facts.get("labels", 0) - facts.get("identities", facts.get("classes", facts.get("labels", 0)))
    if empty > 0:
        options.echo(f"  {empty:,} of {counted(facts['labels'], 'label')} have no image; --relabel closes the gaps")
    if "kv" in facts:
        options.echo(f"  keys and labels: {shown_path(facts['kv'])}")
    show_outcome(summary)


def error_of(summary: JobSummary) -> dict[str, Any]:
    """What the JSON object of a summary says if something failed, as the one of an error does."""
    if summary.good:
        return {}
    shards = f"{counted(summary.failed_shards, 'shard')} failed"
    return {"error": summary.failures_in_words("image") if summary.failures else shards, "exit": 1}


def time_taken(summary: JobSummary) -> str:
    """How long a job took, and how fast it was."""
    if summary.nothing_to_do:
        return "all done before"
    return f"{human_seconds(summary.seconds)}, {summary.rate:,.{0 if summary.rate >= 10 else 1}f}/s"


def show_outcome(summary: JobSummary) -> None:
    """Report on stdout what a job has left: shards to do, and images that are not wanted."""
    if not summary.finished:
        output = output_name(summary.output)
        options.echo(f"  {summary.shards_done} of {summary.shards} shards are done; facedata status {output}")
    if summary.skipped:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in summary.skipped_causes.items())
        options.echo(f"  {counted(summary.skipped, 'image')} skipped: {causes}{_see(summary, 'skipped.jsonl')}")


def _see(summary: JobSummary, name: str) -> str:
    is_temporary = output_name(summary.output) == "null"
    return "" if is_temporary else f"; see {os.path.join(summary.output, name)}"


def report_failures(summary: JobSummary, note: str = "") -> int:
    """Report on stderr which images failed; `note` says what became of them. Return the exit status."""
    level = "warning" if summary.good else "error"
    log = _see(summary, "failures.jsonl")
    if summary.failures:
        options.echo(f"facedata: {level}: {summary.failures_in_words('image', note)}{log}", err=True)
    if summary.finished and summary.skipped and not summary.samples:
        options.echo("facedata: warning: the output is empty: no image has a face that is wanted", err=True)
    if summary.failed_shards:
        shards = counted(summary.failed_shards, "shard")
        options.echo(f"facedata: error: {shards} failed; the same command tries again{log}", err=True)
    return 0 if summary.good else 1


def _show_sets(sets: Sequence[Mapping[str, Any]]) -> None:
    for facts in sets[:_SETS_SHOWN]:
        first, last = facts["first_label"], facts["last_label"]
        labels = f"labels from {first}" if last is None else f"labels {first} to {last}"
        if last is not None and last < first:
            labels = "unlabelled"
        kind = facts.get("dialect") or facts["format"]
        options.echo(f"  {facts['set']}: {kind}, {counted(facts['images'], 'image')}, {labels}")
    if len(sets) > _SETS_SHOWN:
        options.echo(f"  and {len(sets) - _SETS_SHOWN:,} more; --json lists all")


@click.command("convert", cls=options.Command, short_help="Convert a dataset from any format to any other.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE... [FORMAT:TARGET]")
@options.output(
    "What to write, instead of the last argument: a folder, or any format by name.",
    required=False,
    metavar="FOLDER|FORMAT:TARGET",
)
@SELECTION
@TARGET
@options.LIST
@options.LANDMARK_COLUMN
@options.SHARD
@JOB
@options.runs_library
def command(sources: tuple[str, ...], output: str | None, **given: Any) -> int:
    """Write the images of one or more datasets, byte for byte, as a dataset of another format.

    A SOURCE is a path, whose format is found from its content, or FORMAT:PATH. The formats are rec (a folder with
    train.rec), folder (images, with or without class folders), list (list:train.txt@root; - is a list from stdin), lmdb
    (lmdb:set.lmdb, or lmdb:set.lmdb@kv.txt), webdataset (a folder of tars, or
    webdataset:tars/set-{000000..000123}.tar), parquet and, to be read, evalbin (lfw.bin of InsightFace); the target
    null measures the speed of reading.

    Images that cannot be read, and data that is not an image, are listed in failures.jsonl in the output, and the exit
    status is 1. After an interruption, a kill or a full disk, the same command resumes.

    \b
    Examples:
      facedata convert rec:glint360k webdataset:tars/%06d.tar --shard-size 1GB
      facedata convert out/ -o parquet:hf/ -j 8
      facedata convert lmdb:a.lmdb rec:b rec:merged/ --min-images 5 --relabel
    """
    from facedata.dataset import target_spec

    if output is None and len(sources) < 2:
        raise click.UsageError("nothing to write was named; expected: facedata convert SOURCE... FORMAT:TARGET")
    *inputs, target = sources if output is None else (*sources, target_spec(output))
    return convert_and_report("convert", inputs, target, **given)
