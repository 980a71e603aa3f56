"""``facedata purge``."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from facedata.commands import options
from facedata.commands.convert import report_failures, show_conversion_plan, show_outcome, time_taken
from facedata.commands.progress import show_progress
from facedata.text import counted


@click.command("purge", cls=options.Command, short_help="Write a dataset without some people, and prove it.")
@click.argument("dataset")
@click.option(
    "--ids", type=click.Path(dir_okay=False), metavar="FILE", help="People to purge: a name or a label on each line."
)
@click.option("--keys", type=click.Path(dir_okay=False), metavar="FILE", help="Keys of images to purge.")
@options.output("What to write: any format by name.", metavar="FORMAT:TARGET")
@click.option(
    "--proof", type=click.Path(dir_okay=False), help="The proof to write, as JSON.  [default: <target>.purge.json]"
)
@options.RELABEL
@options.WORKERS
@options.OVERWRITE
@options.TRUST_INPUT
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    dataset: str,
    ids: str | None,
    keys: str | None,
    output: str,
    proof: str | None,
    relabel: bool,
    workers: int | None,
    overwrite: bool,
    trust_input: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write a dataset again without the images of some people, or without some images, as after a deletion request.

    An image of anyone else with the same bytes is purged too. Then every image of the output is read back and compared
    with those that were purged; the proof has their SHA-256. The input stays as it is: delete it yourself.

    \b
    Example:
      facedata purge rec:ms1m --ids requests.txt -o rec:ms1m-purged
    """
    from facedata.converters.convert import check_conversion, run_conversion
    from facedata.converters.ids import IdOptions
    from facedata.dataset import create_dataset, target_spec
    from facedata.errors import OutputExistsError
    from facedata.jobs.job import JobOptions
    from facedata.jobs.journal import BESIDE
    from facedata.jobs.plan import Part
    from facedata.lists.purge import plan_purge, write_proof

    options.start_logging(quiet=quiet)
    if ids is None and keys is None:
        raise click.UsageError("expected --ids FILE, or --keys FILE")
    target = target_spec(output)
    root = create_dataset(target).root.removesuffix(BESIDE)
    proof = proof or f"{root.rstrip('/')}.purge.json"
    if os.path.lexists(proof) and not os.path.lexists(root) and not overwrite:
        raise OutputExistsError(f"{proof}: already exists; choose another name, or --overwrite to replace it")
    job = JobOptions(workers, overwrite=overwrite, trust_input=trust_input)
    purge = plan_purge(dataset, target, IdOptions(drop=ids, drop_keys=keys), options.command_line(), relabel=relabel)
    if dry_run:
        check_conversion(purge.conversion, overwrite=overwrite)
        show_conversion_plan(purge.conversion, Part(), as_json=as_json)
        return 0
    with show_progress("images", quiet=quiet) as observer:
        summary = run_conversion(purge.conversion, replace(job, observer=observer))
    status = report_failures(summary)
    if not summary.finished:
        show_outcome(summary)
        return status
    proven = purge.prove()
    write_proof(proof, proven, overwrite=overwrite)
    gone = counted(proven["purged"], "image")
    if as_json:
        options.print_json({**summary.to_json(), "proof": proof, "purged": proven["purged"]})
    else:
        options.echo(
            f"{output}: {counted(summary.samples, 'image')} without {gone} that were purged; {time_taken(summary)}"
        )
        copies = f", {proven['purged_copies']:,} of them copies under other people" if proven["purged_copies"] else ""
        options.echo(f"  proof: {proof}: every image was read back, and none is one of these{copies}")
    return status
