"""``facedata make-sample``."""

from __future__ import annotations

import click

from facedata.commands import options
from facedata.commands.convert import report_failures
from facedata.commands.progress import human_bytes, show_progress
from facedata.text import counted


@click.command(
    "make-sample", cls=options.Command, short_help="Draw a small dataset of invented faces, for trying things out."
)
@click.argument("folder", type=click.Path(file_okay=False), required=False)
@options.output("The folder to write, instead of FOLDER.", required=False, type=click.Path(file_okay=False))
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
    folder: str | None,
    output: str | None,
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
    """Draw faces of people who do not exist and write them to FOLDER as a record set.

    FOLDER gets train.rec, train.idx and property (the InsightFace dialect), and landmarks.jsonl with the exact 5 and 68
    landmarks of each image. The same seed draws the same people.

    \b
    Example:
      facedata make-sample sample --identities 12 --images 6 --preview sample.png
    """
    from facedata.converters.convert import check_conversion
    from facedata.jobs.job import JobOptions
    from facedata.synthetic.sample_set import SampleOptions, make_sample, plan_sample

    options.start_logging(quiet=quiet)
    if folder is None or output is not None:
        if (folder is None) == (output is None):
            raise click.UsageError("expected one folder to write: facedata make-sample FOLDER")
        folder = str(output)
    sample = SampleOptions(identities, images, size, seed)
    drawn = f"{counted(identities * images, 'image')} of {counted(identities, 'identity', 'identities')}"
    counts = {"output": folder, "identities": identities, "images": identities * images}
    if dry_run:
        check_conversion(plan_sample(folder, sample, preview=preview), overwrite=overwrite)
        if as_json:
            options.print_json({"dry_run": True, **counts})
        else:
            options.echo(f"would draw {drawn} into {folder}")
        return 0
    with show_progress("faces", quiet=quiet) as observer:
        job = JobOptions(overwrite=overwrite, observer=observer)
        summary = make_sample(folder, sample, preview=preview, job=job, command_line=options.command_line())
    if as_json:
        options.print_json({**counts, "bytes": summary.bytes, "preview": preview})
    else:
        shown = f"; preview: {preview}" if preview else ""
        options.echo(f"{folder}: {drawn}, {human_bytes(summary.bytes)}{shown}")
    return report_failures(summary)
