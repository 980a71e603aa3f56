"""``facedata build-lmdb``."""

from __future__ import annotations

from typing import Any

import click

from facedata.commands import options
from facedata.commands.convert import JOB, SELECTION, convert_and_report


@click.command(
    "build-lmdb", cls=options.Command, short_help="Build an LMDB and its key-label file, as FFC and LFS read them."
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@options.output("The database to write, as msceleb.lmdb.")
@options.KV
@options.DATUM
@options.KEYS
@options.SINGLE_FILE
@options.BUILD_DIR
@SELECTION
@JOB
@options.runs_library
def command(sources: tuple[str, ...], output: str, **given: Any) -> int:
    """Write the images of one or more datasets, byte for byte, to an LMDB and its key-label file.

    A SOURCE is a path (a folder of class folders, a record set, a list, ...), whose format is found from its content,
    or FORMAT:PATH; `facedata convert --help` lists the formats. Beside NAME.lmdb, NAME_kv.txt has `key label` lines in
    the order of the images, and NAME_classes.txt the names of the labels, if there are any.

    The database appears when it is complete. After an interruption, a kill or a full disk, the same command resumes.

    \b
    Examples:
      facedata build-lmdb out/ -o msceleb.lmdb
      facedata build-lmdb rec:glint360k -o glint.lmdb --kv glint_kv.txt
      facedata build-lmdb rec:ms1m rec:glint -o both.lmdb --build-dir /fast -j 16
    """
    return convert_and_report("build-lmdb", sources, f"lmdb:{output}", **given)
