"""``facedata split-classes``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from facedata.commands import options
from facedata.commands.convert import report_failures, time_taken
from facedata.commands.progress import show_progress
from facedata.text import counted


@click.command("split-classes", cls=options.Command, short_help="Split a dataset by classes, as UDML-SS reads it.")
@click.argument("dataset", type=click.Path())
@options.output(
    "The folder of the split; with --preset the folder in which it is made.", type=click.Path(file_okay=False)
)
@click.option(
    "--preset",
    type=click.Choice(["cub", "cars", "products"]),
    help="The published split of CUB_200_2011, Cars196 or Stanford Online Products.",
)
@click.option(
    "--train-classes",
    type=click.FloatRange(0, min_open=True),
    metavar="N|SHARE",
    default=0.5,
    show_default=True,
    help="How many classes are for training: a share below 1, or a number.",
)
@click.option("--random", is_flag=True, help="Choose the train classes at random, set by --seed, instead of the first.")
@options.SEED
@click.option("--copy", is_flag=True, help="Copy the images instead of linking them.")
@options.WORKERS
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(dataset: str, output: str, preset: str | None, **given: Any) -> int:
    """Split a dataset into train classes and test classes: train/, test/, and the lists train.txt and test.txt.

    Lines are 'train/CLASS/FILE label', with labels from 0 in each list, as UDML-SS reads them. Blanks and slashes in
    names are replaced. DATASET is a folder of class folders, or, with --preset, the unpacked folder of the set.

    \b
    Examples:
      facedata split-classes CUB_200_2011/ --preset cub --output DATA_ROOT/
      facedata split-classes photos/ --train-classes 0.5 --output DATA_ROOT/MySet
    """
    from facedata.jobs.job import JobOptions
    from facedata.lists.splits import plan_split, preset_split, split_by_classes

    options.start_logging(quiet=given["quiet"])
    differs = ""
    if preset is not None:
        split, name, differs = preset_split(preset, dataset)
        output = os.path.join(output, name)
    else:
        split = split_by_classes(dataset, given["train_classes"], given["seed"] if given["random"] else None)
    if differs:
        options.echo(f"facedata: warning: {dataset}: {differs}", err=True)
    job = plan_split(split, dataset, output, copy=given["copy"], command_line=options.command_line())
    numbers = dict(zip(("train_images", "train_classes", "test_images", "test_classes"), split.counts(), strict=True))
    parts = [
        f"{counted(n, 'image')} of {counted(c, 'class', 'classes')}"
        for n, c in (split.counts()[:2], split.counts()[2:])
    ]
    words = f"{parts[0]} for training, {parts[1]} for the test"
    if given["dry_run"]:
        job.check(overwrite=given["overwrite"])
        if given["as_json"]:
            options.print_json({"dry_run": True, "output": output, **numbers})
        else:
            options.echo(f"would write {words} into {output}")
        return 0
    with show_progress("images", quiet=given["quiet"]) as observer:
        summary = job.run(replace(JobOptions(given["workers"], overwrite=given["overwrite"]), observer=observer))
    if given["as_json"]:
        options.print_json({**summary.to_json(), **numbers, "differs": differs})
    else:
        options.echo(f"{output}: {words}; {time_taken(summary)}")
    return report_failures(summary)
