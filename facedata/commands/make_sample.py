"""``facedata make-sample``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from facedata.commands import options
from facedata.commands.progress import counted, human_bytes, show_count


@click.command("make-sample", short_help="Draw a small dataset of made faces, for trying things out.")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--identities", type=click.IntRange(1, 1_000_000), default=36, show_default=True, help="How many people.")
@click.option("--images", type=click.IntRange(1, 100_000), default=8, show_default=True, help="How many of each.")
@click.option("--size", type=click.IntRange(16, 1024), default=112, show_default=True, help="Side in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, other people.")
@click.option("--preview", type=click.Path(dir_okay=False), help="Also write a contact sheet there (.png or .jpg).")
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    folder: str,
    identities: int,
    images: int,
    size: int,
    seed: int,
    preview: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Draw faces that belong to nobody and write them to FOLDER as a record set.

    FOLDER gets train.rec, train.idx and property (the InsightFace dialect), and landmarks.jsonl with the exact 5 and 68
    landmarks of each image. The same seed draws the same people.

    \b
    Example:
      facedata make-sample sample --identities 12 --images 6 --preview sample.png
    """
    from facedata.synthetic.sample_set import SampleOptions, check_sample_output, make_sample

    options.start_logging(quiet=quiet)
    sample = SampleOptions(identities, images, size, seed)
    if dry_run:
        check_sample_output(Path(folder), preview, overwrite=overwrite)
        if as_json:
            options.print_json(
                {"dry_run": True, "output": folder, "identities": identities, "images": identities * images}
            )
        else:
            click.echo(f"would draw {_drawn(identities, images)} into {folder}")
        return 0
    with show_count("faces", quiet=quiet) as progress:
        summary = make_sample(folder, sample, overwrite=overwrite, preview=preview, progress=progress)
    if as_json:
        options.print_json(asdict(summary))
    else:
        click.echo(
            f"{folder}: {_drawn(identities, images)}, {human_bytes(summary.bytes)}"
            + (f"; preview: {preview}" if preview else "")
        )
    return 0


def _drawn(identities: int, images: int) -> str:
    return f"{counted(identities * images, 'image')} of {counted(identities, 'identity', 'identities')}"
