"""``facedata pack-pairs``."""

from __future__ import annotations

import click

from facedata.commands import options
from facedata.commands.make_pairs import show_pairs, spread_over_folds
from facedata.text import counted, listed


@click.command(
    "pack-pairs",
    cls=options.Command,
    short_help="Pack evaluation pairs into a verification set of InsightFace, a .bin.",
)
@click.argument("pairs", type=click.Path())
@click.option("--root", type=click.Path(file_okay=False), required=True, help="The folder that the paths start from.")
@options.output("The verification set to write, as lfw.bin.", type=click.Path(dir_okay=False))
@options.FOLDS
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.runs_library
def command(pairs: str, root: str, output: str, folds: int, overwrite: bool, as_json: bool, quiet: bool) -> int:
    """Pack the images of PAIRS, byte for byte, into a verification set as InsightFace's evaluation reads it.

    PAIRS is a pair list, or the pair file of a published set (see facedata make-pairs --help). Images that are not
    112 x 112, as that evaluation expects them, are named.

    \b
    Example:
      facedata pack-pairs pairs.txt --root lfw-112/ -o lfw.bin
    """
    from facedata.lists.pairs import find_images, read_pairs
    from facedata.lists.verification import pack_pairs

    options.start_logging(quiet=quiet)
    found = spread_over_folds(find_images(read_pairs(pairs), root), folds, pairs)
    others = pack_pairs(found, root, output, overwrite=overwrite)
    show_pairs(output, found, folds, as_json=as_json, other_sizes=len(others))
    if others:
        images = counted(len(others), "image")
        options.echo(
            f"facedata: warning: {images} not 112 x 112, as the evaluation expects: {listed(others)}; align them first",
            err=True,
        )
    return 0
