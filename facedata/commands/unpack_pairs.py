"""``facedata unpack-pairs``."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from facedata.commands import options
from facedata.commands.convert import report_failures
from facedata.commands.make_pairs import show_pairs
from facedata.commands.progress import show_progress


@click.command(
    "unpack-pairs",
    cls=options.Command,
    short_help="Unpack a verification set of InsightFace into images and a list of pairs.",
)
@click.argument("path", type=click.Path(dir_okay=False))
@options.output("The folder to write.", type=click.Path(file_okay=False))
@options.FOLDS
@options.WORKERS
@options.OVERWRITE
@options.TRUST_INPUT
@options.JSON
@options.QUIET
@options.runs_library
def command(
    path: str,
    output: str,
    folds: int,
    workers: int | None,
    overwrite: bool,
    trust_input: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Unpack a verification set of InsightFace: its images, byte for byte, and pairs.txt, their list.

    Nothing in the pickle is run. The images are named by their pairs, 000017_1.jpg and 000017_2.jpg; the lines of
    pairs.txt are 'path path 1', or 0 for different people. After an interruption, the same command resumes.

    \b
    Example:
      facedata unpack-pairs lfw.bin -o lfw/
    """
    from facedata.converters.convert import run_conversion
    from facedata.converters.evalbin import open_source
    from facedata.jobs.job import JobOptions
    from facedata.lists.verification import PAIRS, pairs_of, plan_unpacking

    options.start_logging(quiet=quiet)
    job = JobOptions(workers, overwrite=overwrite, trust_input=trust_input)
    conversion = plan_unpacking(path, output, options.command_line())
    with show_progress("images", quiet=quiet) as observer:
        summary = run_conversion(conversion, replace(job, observer=observer))
    list_file, pairs = os.path.join(output, PAIRS), pairs_of(open_source(path))
    show_pairs(output if as_json else list_file, pairs, folds, as_json=as_json, failures=summary.failures)
    return report_failures(summary)
