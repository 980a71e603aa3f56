"""``facedata status``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from facedata.commands import INTERRUPTED, options
from facedata.commands.progress import human_bytes, output_name
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.jobs.status import JobStatus


@click.command("status", cls=options.Command, short_help="Show what of a job is done, missing and failed.")
@click.argument("output", type=click.Path())
@options.JSON
@options.runs_library
def command(output: str, as_json: bool) -> int:
    """Show what is done, missing and failed of the job that writes OUTPUT. Only its journal is read.

    Exit status: 0 finished without failures, 1 something failed, 75 not finished yet.

    \b
    Example:
      facedata status out/
    """
    from facedata.jobs.status import job_status

    status = job_status(output)
    if status.command_line and not options.is_known(status.command_line):
        status = replace(status, command_line="")  # someone has forged it
    if as_json:
        options.print_json(status.to_json())
    else:
        _show(status)
    if not status.good:
        return 1
    return 0 if status.finished else INTERRUPTED


def _show(status: JobStatus) -> None:
    state = "finished" if status.finished else "not finished"
    options.echo(
        f"{output_name(status.output)}: {state}: {status.shards_done} of {counted(status.shards, 'shard')} done"
    )
    options.echo(f"  {status.samples:,} of {status.samples_total:,} samples, {human_bytes(status.bytes)}")
    if status.missing:
        shown = ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in status.missing)
        options.echo(f"  {counted(status.shards_missing, 'shard')} missing: {shown}")
    if status.failures:
        options.echo(f"  {counted(status.failures, 'sample')} failed: see failures.jsonl")
    if status.skipped:
        options.echo(f"  {counted(status.skipped, 'sample')} skipped: see skipped.jsonl")
    for shard, reason in sorted(status.failed.items()):
        options.echo(f"  shard {shard} failed: {reason}")
    if status.parts_missing:
        shown = ", ".join(status.parts_missing[:20]) + (" ..." if len(status.parts_missing) > 20 else "")
        options.echo(f"  elements of the job array to run again: --shard {shown}")
    if status.damage:
        options.echo(f"  {status.damage}")
    if not status.finished:
        options.echo(f"  resume with: {status.command_line or 'the command that was used'}")
