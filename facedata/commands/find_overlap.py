"""``facedata find-overlap``."""

from __future__ import annotations

import os
import sys

import click

from facedata.commands import options
from facedata.text import counted


@click.command("find-overlap", cls=options.Command, short_help="Find people who are in two sets, or twice in one.")
@click.argument("first", type=click.Path(), metavar="FEATURES")
@click.argument("second", type=click.Path(), metavar="[FEATURES]", required=False)
@click.option("--within", is_flag=True, help="Find people who are twice in one set, as two classes.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    default=0.7,
    show_default=True,
    help="The smallest cosine similarity of the centres of two people to report.",
)
@options.output("The list to write; - is stdout.", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--sheet", type=click.Path(dir_okay=False), help="Also draw the most similar people there (.png or .jpg)."
)
@click.option(
    "--images",
    multiple=True,
    metavar="DATASET",
    help="For --sheet: the dataset that the features are of; twice for two sets.",
)
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.shows_errors
def command(
    first: str,
    second: str | None,
    within: bool,
    threshold: float,
    output: str,
    sheet: str | None,
    images: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare the people of two feature sets, or of one with --within, by the centres of their features.

    FEATURES is the folder of a set, or its matrix features/NAME.bin. Each line has a person of the first set, the
    similarity, and the person of the second, the most similar first: a list for --drop-ids, to remove the people of a
    test set from a training set. A person is named by the folder of the images, or by the label. Look at the candidates
    before you remove them: which similarity means the same person depends on the model.

    \b
    Examples:
      facedata find-overlap train/ lfw/ --threshold 0.7 -o overlap.txt
      facedata find-overlap f/ --within -o t.txt --sheet t.png --images photos/
    """
    from facedata.errors import OutputExistsError
    from facedata.files import atomic_writer, output_errors
    from facedata.lists.overlap import class_centres, draw_matches, find_overlap

    options.start_logging(quiet=quiet)
    if within == (second is not None):
        raise click.UsageError("expected two feature sets, or one and --within")
    if sheet is not None and len(images) != 2 - within:
        raise click.UsageError(f"--sheet needs --images DATASET {'once' if within else 'for each of the two sets'}")
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - both print to stdout; name a file for the list")
    for path in filter(None, (output, sheet)):
        if path != "-" and os.path.lexists(path) and not overwrite:
            raise OutputExistsError(f"{path}: already exists; choose another name, or --overwrite to replace it")
    centres = [class_centres(path) for path in (first, second) if path is not None]
    matches = find_overlap(centres[0], None if within else centres[1], threshold)
    names = [centres[0].names, centres[-1].names]
    lines = (f"{names[0][match.first]}\t{match.similarity:.4f}\t{names[1][match.second]}\n" for match in matches)
    text = "".join(lines).encode(errors="surrogateescape")
    if output == "-":
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    else:
        with output_errors(output), atomic_writer(output, replace=overwrite) as file:
            file.write(text)
    if sheet is not None and matches:
        draw_matches(sheet, matches, centres, images, overwrite=overwrite)
    people = len({match.first for match in matches})
    if as_json:
        value = {"output": output, "pairs": len(matches), "people": people, "threshold": threshold}
        options.print_json({**value, "compared": [len(each.labels) for each in centres], "sheet": sheet})
    elif output != "-" and not quiet:
        compared = " with ".join(f"{len(each.labels):,}" for each in centres)
        options.echo(
            f"{output}: {counted(people, 'person', 'people')} in {counted(len(matches), 'pair')}; compared {compared}"
        )
    return 0
