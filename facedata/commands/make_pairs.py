"""``facedata make-pairs``, and what the commands of evaluation pairs share: the report on their folds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.lists.pairs import Pair

__all__ = ["command", "show_pairs", "spread_over_folds"]


@click.command(
    "make-pairs",
    cls=options.Command,
    short_help="Write evaluation pairs: of a published list, or drawn from a dataset.",
)
@click.argument("dataset")
@options.output("The pair list to write; - is stdout.", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--pairs",
    "listed",
    type=click.Path(),
    help="The pair file of LFW, SLLFW, CALFW, CPLFW, AgeDB-30 or RFW, CFP's folder, or any pair list.",
)
@click.option("--count", type=click.IntRange(2), help="Draw so many random pairs, half of them of the same person.")
@options.FOLDS
@click.option(
    "--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True, help="Another seed, other pairs."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["ffc", "lfw", "facex"]),
    default="ffc",
    show_default=True,
    help="Lines of 'path path 1' or 0; the form of LFW; or two lines of 'path label' a pair, as FaceX-Zoo reads CPLFW.",
)
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.shows_errors
def command(
    dataset: str,
    output: str,
    listed: str | None,
    count: int | None,
    folds: int,
    seed: int,
    form: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write a list of pairs of images for evaluation: those of a published list, or drawn from a DATASET.

    With --pairs, DATASET is the folder that the images are in; each is looked for, perhaps with another extension.
    With --count, it is any dataset with labels. Pairs of the same person and of different people are spread evenly
    over the folds, because evaluation cuts the file into them from the top.

    \b
    Examples:
      facedata make-pairs lfw/ --pairs pairs.txt -o pair_LFW.txt
      facedata make-pairs mine/ --count 6000 --folds 10 --seed 0 -o pairs.txt
    """
    from facedata.dataset import open_dataset
    from facedata.errors import OutputExistsError
    from facedata.files import atomic_writer, output_errors
    from facedata.lists.pairs import draw_pairs, find_images, pair_lines, read_pairs

    options.start_logging(quiet=quiet)
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - both print to stdout; name a file for the pairs")
    if (listed is None) == (count is None):
        raise click.UsageError("expected --pairs FILE, or --count N to draw pairs")
    if output != "-" and os.path.lexists(output) and not overwrite:
        raise OutputExistsError(f"{output}: already exists; choose another name, or --overwrite to replace it")
    if listed is not None:
        pairs = spread_over_folds(find_images(read_pairs(listed), dataset), folds, listed)
    else:
        source = open_dataset(dataset)
        pairs = draw_pairs(list(source.keys()), source.labels(), count or 0, folds, seed)
    text = "".join(f"{line}\n" for line in pair_lines(pairs, form, folds)).encode(errors="surrogateescape")
    if output == "-":
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    else:
        with output_errors(output), atomic_writer(output, replace=overwrite, tidy=True) as file:
            file.write(text)
    if as_json or not (quiet or output == "-"):
        show_pairs(output, pairs, folds, as_json=as_json)
    return 0


def spread_over_folds(pairs: Sequence[Pair], folds: int, path: str) -> list[Pair]:
    """The pairs of a file, in another order if that is needed to give each fold its share of both kinds."""
    from facedata.lists.pairs import fold_counts, spread

    if repeated := len(pairs) - len(set(pairs)):
        options.echo(f"facedata: {path}: {counted(repeated, 'pair')} listed more than once; all are kept", err=True)
    ordered = spread(pairs, folds)
    if ordered != pairs and not fold_counts(pairs, folds)[0].different:
        options.echo(
            f"facedata: {path}: its pairs of different people come last; they are spread over the folds", err=True
        )
    return ordered


def show_pairs(output: str, pairs: Sequence[Pair], folds: int, *, as_json: bool, **facts: Any) -> None:
    """Report on stdout how many pairs there are, of each kind and in each fold; `facts` are added to the JSON."""
    from facedata.lists.pairs import fold_counts

    counts = fold_counts(pairs, folds)
    same = sum(fold.same for fold in counts)
    if as_json:
        value = {"output": output, "pairs": len(pairs), "same": same, "different": len(pairs) - same}
        options.print_json({**value, "folds": [fold._asdict() for fold in counts], **facts})
        return
    each = " or ".join(f"{same} same and {different} different" for same, different in sorted(set(counts))[:3])
    words = f"{counted(len(pairs), 'pair')}, {same:,} of the same person; {counted(folds, 'fold')} of {each}"
    options.echo(f"{output}: {words}")
