"""``facedata unpack-rec``."""

from __future__ import annotations

import os
from typing import Any

import click

from facedata.commands import options
from facedata.commands.convert import JOB, convert_and_report
from facedata.commands.progress import show_bytes


@click.command("unpack-rec", cls=options.Command, short_help="Unpack MXNet record sets into folders of images.")
@click.argument("sources", nargs=-1, metavar="SET...")
@click.option(
    "--include",
    "includes",
    multiple=True,
    metavar="SET[,SET...]",
    help="Further sets, separated by commas or given several times.",
)
@options.output("The folder to write.")
@options.LAYOUT
@click.option(
    "--list",
    "list_file",
    type=click.Path(dir_okay=False),
    help="Also write a list of the images to this file, as lines of 'relative/path label'.",
)
@options.LABELS
@click.option(
    "--backend",
    type=click.Choice(["native", "mxnet"]),
    default="native",
    show_default=True,
    help="The reader of the records; mxnet is slower, as a cross-check.",
)
@options.REBUILD_INDEX
@options.KEEP_UNDECODABLE
@options.SALVAGE
@options.LIMIT
@options.SHARD
@JOB
@options.runs_library
def command(
    sources: tuple[str, ...],
    includes: tuple[str, ...],
    output: str,
    layout: str | None,
    list_file: str | None,
    keep_undecodable: bool,
    backend: str,
    quiet: bool,
    **given: Any,
) -> int:
    """Unpack MXNet record sets into OUTPUT/id_<label>/<label>_<n>.jpg, byte for byte as they are stored.

    A SET is a folder with train.rec and train.idx, or a .rec file; its dialect is recognised by its content. Images
    that cannot be read are listed in OUTPUT/failures.jsonl, and the exit status is 1. After an interruption, a kill or
    a full disk, the same command resumes.

    \b
    Examples:
      facedata unpack-rec glint360k -o out/
      facedata unpack-rec ms1m glint360k -o merged/ --workers 16 --json
      facedata unpack-rec big -o out/ --shard 3/64
    """
    from facedata.converters.folder.sink import FolderSink

    # split at commas, except in a path with a comma that exists
    included = [path for name in includes for path in ([name] if os.path.exists(name) else name.split(",")) if path]
    paths = [path.removeprefix("rec:") for path in (*sources, *included)]
    if not paths:
        raise click.UsageError("no record set was given; expected: facedata unpack-rec SET... -o OUTPUT")
    sink = FolderSink(output, layout, list_file, keep_undecodable)
    with show_bytes("index", quiet=quiet) as progress:
        opening = {"backend": backend, "cache_folder": output, "progress": progress}
        sets = [f"rec:{path}" for path in paths]
        return convert_and_report("unpack-rec", sets, sink, opening=opening, quiet=quiet, **given)
