"""``facedata build-knn``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.convert import report_failures, time_taken
from facedata.commands.progress import human_bytes, output_name, show_progress, shown_path
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.features.neighbours.job import NeighbourJob
    from facedata.jobs.job import JobSummary


@click.command("build-knn", cls=options.Command, short_help="Find the nearest neighbours of each row of a feature set.")
@click.argument("root", type=click.Path(file_okay=False))
@click.option("--name", required=True, help="The set: ROOT/features/NAME.bin.")
@click.option("--k", type=int, default=80, show_default=True, help="Neighbours of each row, itself included.")
@options.DIM
@click.option(
    "--method",
    type=click.Choice(["exact", "ivf", "hnsw"]),
    default="exact",
    show_default=True,
    help="Compare all rows with all, or search inverted lists or a graph, whose recall is measured and shown.",
)
@click.option("--nlist", type=int, help="ivf: number of lists.  [default: 4 times the square root of the rows]")
@click.option("--nprobe", type=int, help="ivf: number of lists to search for each row.  [default: 128]")
@click.option("--ef", type=int, help="hnsw: candidates kept during a search.  [default: twice k, at least 160]")
@options.DEVICE
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["ltc", "cdp", "gcn", "npy"]),
    default="ltc",
    show_default=True,
    help="learn-to-cluster: data, (N, 2, k); CDP: idx and dist; GCN-clustering: ids, (N, k + 1), the row itself and k "
    "others; or two .npy files, ids and distances.",
)
@options.output(
    "The file.  [default: ROOT/knns/NAME/faiss_k_80.npz, by method and k]",
    required=False,
    type=click.Path(dir_okay=False),
)
@click.option(
    "--memory",
    type=options.SizeType(),
    metavar="SIZE",
    help="About the most memory to take, as 8GB.  [default: half of what is available]",
)
@options.WORKERS
@options.SHARD
@options.OVERWRITE
@options.TRUST_INPUT
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(root: str, **given: Any) -> int:
    """Find the nearest neighbours of each row of ROOT/features/NAME.bin, by the cosine.

    The row itself is the first of its neighbours, at distance 0; distances are 1 - cosine, clipped to 0 and 1. Rows
    need not have unit length. The same command writes the same file, whatever the workers and the memory. Interrupted,
    killed or out of disk, it resumes when it is run again.

    --workers is the number of cores to use. Rows for which --memory has no room are read from the disk repeatedly.

    \b
    Examples:
      facedata build-knn data/ --name part1_test --k 80
      facedata build-knn data/ --name part1_test --k 200 --format gcn --memory 8GB
      facedata build-knn data/ --name ms1m --method ivf --nprobe 256
    """
    from facedata.features.feature_set import open_feature_set
    from facedata.features.neighbours.job import NeighbourJob, NeighbourOptions
    from facedata.features.neighbours.search import Method
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=given["quiet"])
    chosen = NeighbourOptions(
        k=given["k"],
        method=Method(given["method"], given["device"], given["nlist"], given["nprobe"], given["ef"]),
        format=given["file_format"],
        output=given["output"],
        memory=given["memory"],
        threads=given["workers"],
        command_line=options.command_line(),
    )
    planned = NeighbourJob(open_feature_set(root, given["name"], given["dim"]), chosen)
    if given["dry_run"]:
        planned.check(overwrite=given["overwrite"])
        _show_plan(planned, as_json=given["as_json"])
        return 0
    job = JobOptions(part=Part(*given["shard"]), overwrite=given["overwrite"], trust_input=given["trust_input"])
    with show_progress("rows", quiet=given["quiet"]) as observer:
        summary = planned.run(replace(job, observer=observer))
    _show_summary(summary, as_json=given["as_json"])
    return report_failures(summary)


def _show_plan(planned: NeighbourJob, *, as_json: bool) -> None:
    files, memory, rows = planned.output.named_files(), planned.memory, planned.plan.samples
    if as_json:
        value = {"dry_run": True, "files": files, "rows": rows, "shards": planned.plan.shards}
        options.print_json({**value, "threads": memory.threads, "memory": memory.bytes, "resident": memory.resident})
        return
    kept = "all rows in memory" if memory.resident else "not all rows in memory"
    options.echo(f"would write {', '.join(map(shown_path, files))}: {counted(rows, 'row')}")
    options.echo(f"  {counted(memory.threads, 'thread')}, {kept}, about {human_bytes(memory.bytes)}")


def _show_summary(summary: JobSummary, *, as_json: bool) -> None:
    facts = summary.facts
    if as_json:
        value = summary.to_json()
        options.print_json({"rows": value.pop("samples"), **value})
        return
    state = time_taken(summary)
    if not (summary.finished and {"files", "file_bytes", "recall"} <= facts.keys()):  # a damaged summary has lost them
        output = output_name(summary.output)
        options.echo(f"{output}: {summary.shards_done} of {summary.shards} shards are done; {state}")
        return
    names = ", ".join(map(shown_path, facts["files"]))
    size = human_bytes(facts["file_bytes"])
    options.echo(
        f"{names}: {counted(summary.samples, 'row')}, {counted(facts['k'], 'neighbour')} each, {size}; {state}"
    )
    if facts["recall"] is not None:
        options.echo(f"  {facts['method']}: recall {facts['recall']:.4f} on a sample of rows")
