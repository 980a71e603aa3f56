"""``facedata build-lmdb``."""

from __future__ import annotations

from typing import Any

import click

from facedata.commands import options
from facedata.commands.conversion import JOB, SELECTION, run_conversion


@click.command("build-lmdb", short_help="Build an LMDB and its key-label file, as FFC and LFS read them.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", required=True, type=click.Path(), help="The database to write, as msceleb.lmdb.")
@options.KV
@options.DATUM
@options.KEYS
@options.SINGLE_FILE
@options.BUILD_DIR
@SELECTION
@JOB
@options.runs_library
def command(sources: tuple[str, ...], output: str, **given: Any) -> int:
    """Write the images of one or more datasets, byte for byte, into an LMDB; beside it its key-label file.

    A SOURCE is a path (a folder of class folders, a record set, a list, ...), its format found from its content, or
    FORMAT:PATH; `facedata convert --help` names them all. OUTPUT.lmdb gets OUTPUT_kv.txt beside it with `key label`
    lines in the order of the images, and OUTPUT_classes.txt with the names of the labels, where there are any.

    The database is built at a side path and appears when it is complete. Interrupted, killed or out of disk: the same
    command goes on where it was.

    \b
    Examples:
      facedata build-lmdb out/ --output msceleb.lmdb
      facedata build-lmdb rec:glint360k --output glint.lmdb --kv glint_kv.txt
      facedata build-lmdb rec:ms1m rec:glint360k --output both.lmdb --build-dir /scratch --workers 16
    """
    return run_conversion("build-lmdb", sources, f"lmdb:{output}", **given)
