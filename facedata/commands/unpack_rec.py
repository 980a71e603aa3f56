"""``facedata unpack-rec``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.conversion import show_sets, show_summary
from facedata.commands.progress import counted, show_count, show_progress

if TYPE_CHECKING:
    from facedata.converters.unpack import Unpacking


@click.command("unpack-rec", short_help="Unpack MXNet record sets into folders of images.")
@click.option(
    "--include",
    "includes",
    required=True,
    multiple=True,
    metavar="SET[,SET...]",
    help="Set folders (train.rec, train.idx), or .rec files; separated by commas, or given again.",
)
@click.option("--output", required=True, type=click.Path(), help="The folder to write.")
@options.LAYOUT
@click.option(
    "--list", "list_file", type=click.Path(dir_okay=False), help="Also write 'relative/path label' lines there."
)
@options.LABELS
@click.option(
    "--backend",
    type=click.Choice(["native", "mxnet"]),
    default="native",
    show_default=True,
    help="mxnet: a cross-check, slower.",
)
@options.REBUILD_INDEX
@options.KEEP_UNDECODABLE
@options.SALVAGE
@options.WORKERS
@options.SHARD
@options.LIMIT
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    includes: tuple[str, ...],
    output: str,
    layout: str | None,
    list_file: str | None,
    labels: str,
    backend: str,
    rebuild_index: bool,
    keep_undecodable: bool,
    salvage: bool,
    workers: int | None,
    shard: tuple[int, int],
    limit: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Unpack MXNet record sets into OUTPUT/id_<label>/<label>_<n>.jpg, byte for byte as stored.

    Every dialect of record sets is read and told apart by its content. Interrupted, killed or out of disk: the same
    command goes on where it was. What cannot be read is named in OUTPUT/failures.jsonl, and the exit status is 1.

    \b
    Examples:
      facedata unpack-rec --include glint360k --output out/
      facedata unpack-rec --include ms1m,glint360k --output merged/ --workers 16 --json
      facedata unpack-rec --include big --output out/ --shard 3/64
    """
    from facedata.converters.rec.record_set import OpenOptions
    from facedata.converters.unpack import UnpackOptions, check_unpacking, plan_unpacking, unpack_record_sets
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=quiet)
    with (
        show_count("index", quiet=quiet, unit="B", unit_scale=True) as walked,
        show_progress("images", quiet=quiet) as observer,
    ):
        unpack_options = UnpackOptions(
            layout=layout or "glint360k",
            labels=labels,
            list_file=list_file,
            limit=limit,
            keep_undecodable=keep_undecodable,
            backend=backend,
            opening=OpenOptions(salvage=salvage, rebuild_index=rebuild_index, progress=walked),
            command_line=options.command_line(),
        )
        sets = _split(includes)
        if dry_run:
            unpacking = plan_unpacking(sets, output, unpack_options)
            check_unpacking(unpacking, overwrite=overwrite)
            _show_plan(unpacking, Part(*shard), as_json=as_json)
            return 0
        job = JobOptions(workers=workers, part=Part(*shard), overwrite=overwrite, observer=observer)
        summary = unpack_record_sets(sets, output, unpack_options, job)
    show_summary(summary, as_json=as_json)
    return 0 if summary.good else 1


def _split(includes: tuple[str, ...]) -> list[str]:
    """Cut at commas, except where a path with a comma is really there."""
    names = [[one] if os.path.exists(one) else one.split(",") for one in includes]
    sets = [name for group in names for name in group if name]
    if not sets:
        raise click.UsageError("--include names no set")
    return sets


def _show_plan(unpacking: Unpacking, part: Any, *, as_json: bool) -> None:
    plan = unpacking.plan
    shards = part.shards(plan)
    images = sum(end - first for first, end in map(plan.bounds, shards))
    if as_json:
        value = {"dry_run": True, "output": unpacking.sink.root, "images": images, "shards": len(shards)}
        options.print_json({**value, "part": str(part), "fingerprint": plan.fingerprint, "sets": plan.facts["sets"]})
        return
    click.echo(f"would unpack {counted(images, 'image')} in {counted(len(shards), 'shard')} into {unpacking.sink.root}")
    show_sets(plan.facts["sets"])
