"""``facedata pack-rec``."""

from __future__ import annotations

from typing import Any

import click

from facedata.commands import options
from facedata.commands.convert import JOB, SELECTION, convert_and_report


@click.command(
    "pack-rec", cls=options.Command, short_help="Pack images into a record set, as InsightFace, MXNet and DALI read it."
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@options.output("The folder to write.", type=click.Path(file_okay=False))
@options.STYLE
@options.LABEL_ARRAY
@options.LIST
@SELECTION
@JOB
@options.runs_library
def command(sources: tuple[str, ...], output: str, **given: Any) -> int:
    """Write the images of one or more datasets, byte for byte, as OUTPUT/train.rec, train.idx and property.

    A SOURCE is a path (a folder of class folders, a record set, a list, ...), whose format is found from its content,
    or FORMAT:PATH; `facedata convert --help` lists the formats. The insightface style groups the images by label. It
    holds at most 16,777,216 records, because its counts are float32. The plain style has no such limit; NVIDIA DALI
    reads it.

    The files appear when they are complete. After an interruption, a kill or a full disk, the same command resumes.

    \b
    Examples:
      facedata pack-rec out/ -o set/ --style insightface
      facedata pack-rec rec:ms1m -o dali/ --style plain --shuffle --seed 0
    """
    return convert_and_report("pack-rec", sources, f"rec:{output}", **given)
