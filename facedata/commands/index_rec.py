"""``facedata index-rec``."""

from __future__ import annotations

from dataclasses import asdict

import click

from facedata.commands import options
from facedata.commands.progress import show_bytes
from facedata.text import counted


@click.command("index-rec", cls=options.Command, short_help="Write the missing train.idx of a record file.")
@click.argument("path", type=click.Path())
@options.SALVAGE
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(path: str, salvage: bool, overwrite: bool, dry_run: bool, as_json: bool, quiet: bool) -> int:
    """Write the index of a record file beside it. PATH is the file, or the folder of its set.

    The file is read once, from the first record to the last. An index that lists the same records is left as it is;
    another one is replaced only with --overwrite.

    \b
    Example:
      facedata index-rec glint360k
    """
    from facedata.converters.rec.record_set import index_records
    from facedata.identify import explained

    options.start_logging(quiet=quiet)
    with show_bytes("records", quiet=quiet) as progress, explained(path, "rec", "a record file"):
        summary = index_records(path, overwrite=overwrite, salvage=salvage, dry_run=dry_run, progress=progress)
    if as_json:
        options.print_json({"dry_run": dry_run, **asdict(summary)})
    else:
        verb = "is up to date:" if summary.up_to_date else "would have" if dry_run else "has"
        options.echo(f"{summary.index}: {verb} {counted(summary.records, 'line')}")
        if summary.damaged:
            options.echo(f"  skipped {counted(summary.damaged, 'damaged place')}")
    return 1 if summary.damaged else 0
