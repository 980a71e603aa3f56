"""``facedata convert``."""

from __future__ import annotations

from typing import Any

import click

from facedata.commands import options
from facedata.commands.conversion import JOB, SELECTION, TARGET, run_conversion


@click.command("convert", short_help="Convert a dataset from any format to any other.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", metavar="FORMAT:TARGET")
@SELECTION
@TARGET
@options.LIST
@options.LANDMARK_COLUMN
@options.SHARD
@JOB
@options.runs_library
def command(sources: tuple[str, ...], target: str, **given: Any) -> int:
    """Write the images of one or more datasets, byte for byte, as a dataset of another format.

    A SOURCE is a path, whose format is found from its content, or FORMAT:PATH. The formats are rec (a folder with
    train.rec), folder (one folder for each class), list (list:train.txt@root), lmdb (lmdb:set.lmdb, or
    lmdb:set.lmdb@kv.txt), webdataset (a folder of tars, or webdataset:shards/set-{000000..000123}.tar) and parquet;
    the target null measures the speed of reading.

    Images that cannot be read, and data that is not an image, are listed in failures.jsonl in the output, and the exit
    status is 1. After an interruption, a kill or a full disk, the same command resumes.

    \b
    Examples:
      facedata convert rec:glint360k webdataset:shards/glint-%06d.tar --shard-size 1GB
      facedata convert out/ parquet:hf/ --workers 8
      facedata convert lmdb:a.lmdb rec:b rec:merged/ --min-images 5 --relabel
    """
    return run_conversion("convert", sources, target, **given)
