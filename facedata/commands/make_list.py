"""``facedata make-list``."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Any

import click

from facedata.commands import options
from facedata.commands.convert import id_options, write_mapping
from facedata.text import counted


@click.command("make-list", cls=options.Command, short_help="Write a list of the images of a dataset, with labels.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@options.output("The list to write; - is stdout.", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(["plain", "ffc", "im2rec", "insightface", "csv", "jsonl"]),
    default="plain",
    show_default=True,
    help="plain and ffc: 'path label', as FaceX-Zoo, UDML-SS and FFC read it; the .lst of im2rec or of InsightFace; "
    "CSV or JSON lines.",
)
@options.LABELS
@options.IDS
@options.MIN_IMAGES
@options.MAX_IMAGES
@click.option("--per-class", type=click.IntRange(1), metavar="N", help="N images of each class that has so many.")
@options.RANDOM
@options.SAMPLE
@options.SEED
@click.option(
    "--also",
    type=click.Path(file_okay=False),
    help="A folder with a twin of each image, as one with a mask: each is listed too, with the same label.",
)
@click.option(
    "--mapping", type=click.Path(dir_okay=False), help="Also write which set and class each label stands for."
)
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.shows_errors
def command(sources: tuple[str, ...], output: str, form: str, **given: Any) -> int:
    """Write a list of the images of one or more datasets, one `path label` a line; no image is copied.

    A SOURCE is a path, whose format is found from its content, or FORMAT:PATH; - is a list from stdin. The remaining
    classes are numbered from 0 without gaps, in natural order; --labels keep leaves their labels. Paths start from the
    folder of the dataset, which is printed. Images without a label are left out.

    \b
    Examples:
      facedata make-list aligned/ -o train_list.txt
      facedata make-list aligned/ --per-class 2 --random --seed 0 -o shallow.txt
      facedata make-list aligned/ --also masked/ -o masked_train.txt
      facedata make-list photos/ --labels-from pred_labels.txt -o clusters.txt
    """
    from facedata.converters.convert import LabelOptions
    from facedata.converters.selection import Selection
    from facedata.errors import OutputExistsError
    from facedata.files import atomic_writer, output_errors
    from facedata.lists.train_list import ListOptions, plan_list

    options.start_logging(quiet=given["quiet"])
    if output == "-" and given["as_json"]:
        raise click.UsageError("--json and -o - both print to stdout; name a file for the list")
    fewest, most = given["min_images"], given["max_images"]
    if given["per_class"] is not None:
        if fewest is not None or most is not None:
            raise click.UsageError("--per-class sets both --min-images and --max-images; give one or the other")
        fewest = most = given["per_class"]
    if given["random"] and most is None:
        raise click.UsageError("--random chooses images of each class: say how many with --per-class or --max-images")
    if output != "-" and os.path.lexists(output) and not given["overwrite"]:
        raise OutputExistsError(f"{output}: already exists; choose another name, or --overwrite to replace it")
    selection = Selection(fewest, most, seed=given["seed"], random=given["random"], sample=given["sample"])
    planned = plan_list(
        sources,
        ListOptions(
            form,
            LabelOptions(given["labels"], given["label"], given["labels_from"]),
            selection,
            id_options(given["keep_ids"], given["drop_ids"], given["drop_keys"]),
            given["also"],
            keep_labels=given["labels"] == "keep",
        ),
    )
    if given["mapping"] is not None:  # first: a run that was killed after it may be run again
        write_mapping(given["mapping"], planned.classes, overwrite=given["overwrite"])
    if output == "-":
        planned.write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        with output_errors(output), atomic_writer(output, replace=given["overwrite"], tidy=True) as file:
            planned.write(file)
    if given["as_json"]:
        value = {"output": output, "lines": planned.lines, "classes": len(planned.classes), "root": planned.root}
        options.print_json({**value, "smallest_class": planned.smallest, "selection": asdict(selection)})
    elif output != "-" and not given["quiet"]:
        classes = counted(len(planned.classes), "class", "classes")
        smallest = counted(planned.smallest, "image")
        root = f"; paths start from {planned.root}" if planned.root else ""
        options.echo(f"{output}: {counted(planned.lines, 'line')}, {classes} with {smallest} or more{root}")
    return 0
