"""``facedata preview``."""

from __future__ import annotations

from typing import Any

import click

from facedata.commands import options
from facedata.text import counted


@click.command("preview", cls=options.Command, short_help="Draw a contact sheet of any dataset.")
@click.argument("dataset")
@options.output("The picture to write, .png or .jpg.", type=click.Path(dir_okay=False))
@click.option("--rows", type=click.IntRange(1, 200), default=10, show_default=True, help="How many classes.")
@click.option("--columns", type=click.IntRange(1, 200), default=8, show_default=True, help="How many images of each.")
@click.option(
    "--cell", type=click.IntRange(16, 512), default=112, show_default=True, help="Side of each image in pixels."
)
@options.LABELS
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.runs_library
def command(dataset: str, output: str, rows: int, columns: int, cell: int, **given: Any) -> int:
    """Draw images of a dataset as one picture: a class in each row, from all over the dataset.

    DATASET is a path, whose format is found from its content, or FORMAT:PATH. Images without labels fill the rows in
    their order. Names that need other letters than ASCII are drawn with a font of the system that has them; that
    needs Pillow and fontconfig, and without them a letter is drawn as a question mark.

    \b
    Examples:
      facedata preview glint360k -o glint.png
      facedata preview photos/ -o photos.jpg --rows 5 --columns 5 --cell 200
    """
    from facedata.align.codec import decode_image
    from facedata.contact_sheet import sheet_extension, write_dataset_sheet
    from facedata.converters.convert import LabelOptions, open_inputs

    options.start_logging(quiet=given["quiet"])
    sheet_extension(output)
    labels = LabelOptions(given["labels"], given["label"], given["labels_from"])
    source = labels.apply(open_inputs([dataset], labels=labels)[0].source)
    drawn, failed = write_dataset_sheet(
        output, source, decode_image, rows=rows, columns=columns, cell=cell, overwrite=given["overwrite"]
    )
    if given["as_json"]:
        options.print_json({"output": output, "images": len(source), "drawn": drawn, "failed": failed})
    else:
        options.echo(f"{output}: {drawn:,} of {counted(len(source), 'image')}")
    if failed:
        options.echo(f"facedata: error: {failed:,} of {counted(drawn + failed, 'image')} could not be drawn", err=True)
    return 1 if failed else 0
