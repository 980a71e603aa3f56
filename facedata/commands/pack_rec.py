"""``facedata pack-rec``."""

from __future__ import annotations

from typing import Any

import click

from facedata.commands import options
from facedata.commands.conversion import JOB, SELECTION, run_conversion


@click.command("pack-rec", short_help="Pack images into a record set, as InsightFace, MXNet and DALI read it.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", required=True, type=click.Path(file_okay=False), help="The folder to write.")
@options.STYLE
@options.LIST
@SELECTION
@JOB
@options.runs_library
def command(sources: tuple[str, ...], output: str, **given: Any) -> int:
    """Write the images of one or more datasets, byte for byte, as OUTPUT/train.rec, train.idx and property.

    A SOURCE is a path (a folder of class folders, a record set, a list, ...), its format found from its content, or
    FORMAT:PATH; `facedata convert --help` names them all. The insightface style groups the images by label and ends at
    16,777,216 records, beyond which its own counts, kept in float32, are wrong; the plain style has no such end, and is
    the one that NVIDIA DALI reads.

    The files are built at a side path and appear when they are complete. Interrupted, killed or out of disk: the same
    command goes on where it was.

    \b
    Examples:
      facedata pack-rec out/ --output set/ --style insightface
      facedata pack-rec rec:ms1m --output ms1m-dali/ --style plain --shuffle --seed 0
    """
    return run_conversion("pack-rec", sources, f"rec:{output}", **given)
