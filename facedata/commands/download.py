"""``facedata download``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes, show_bytes, shown_path
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.download.acquire import Acquired, Watch
    from facedata.download.available import Plan
    from facedata.download.catalogue import CatalogueSet

_log = logging.getLogger("facedata")


@click.command(
    "download", cls=options.Command, short_help="Fetch a dataset by its name: checked, unpacked, in its final layout."
)
@click.argument("name", shell_complete=options.complete_dataset)
@click.option(
    "--root",
    "-o",
    "--output",
    "root",
    type=click.Path(file_okay=False),
    default=".",
    show_default=True,
    help="The folder of the files.",
)
@click.option(
    "--from-dir", type=click.Path(file_okay=False), help="Use files that were fetched by hand, from this folder."
)
@click.option(
    "--from-file",
    "from_files",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Use this file, fetched by hand; may be given several times.",
)
@click.option("--accept-terms", is_flag=True, help="Accept the set's status and licence without a question.")
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Number of files to download at once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    default=60.0,
    show_default=True,
    help="Seconds to wait for an answer of the server before the next attempt.",
)
@click.option(
    "--remove-archives", is_flag=True, help="Delete the archives below --root when everything is unpacked and checked."
)
@options.CATALOGUE
@options.WORKERS
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    name: str,
    root: str,
    from_dir: str | None,
    from_files: tuple[str, ...],
    accept_terms: bool,
    connections: int,
    timeout: float,
    remove_archives: bool,
    catalogue: tuple[str, ...],
    workers: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fetch the dataset NAME: check its files, unpack them, put them where they belong below --root, and check again.

    After an interruption, run it again: it resumes, and does nothing if everything is done. If no program can fetch a
    file, it says how to get it by hand, and resumes with --from-dir or --from-file. The terms that were accepted and
    the origin of each file are written to provenance.json in --root.

    \b
    Example:
      facedata download ms1m-part1 --root data/
    """
    from facedata.download.acquire import AcquireOptions, acquire, plan_acquisition
    from facedata.download.catalogue import load_catalogue
    from facedata.download.transfer import TransferOptions
    from facedata.errors import FacedataError, OptionError
    from facedata.jobs.signals import stop_on_signals

    options.start_logging(quiet=quiet)
    entry = load_catalogue(catalogue).find(name)
    how = AcquireOptions(
        from_dir=Path(from_dir) if from_dir else None,
        from_files=tuple(map(Path, from_files)),
        overwrite=overwrite,
        remove_archives=remove_archives,
        workers=workers,
        transfer=TransferOptions(connections=connections, timeout=timeout, overwrite=overwrite),
    )

    def watch(what: str) -> Any:
        return show_bytes(what, quiet=quiet)

    def accept(entry: CatalogueSet) -> str:
        options.echo(f"{entry.title}:", *(f"  {line}" for line in entry.terms), err=True)
        if accept_terms:
            return "--accept-terms"
        if not sys.stdin.isatty():
            raise OptionError(
                f"{entry.name}: these terms must be accepted first: add --accept-terms; nothing was fetched"
            )
        # no work is in progress while this waits, so that Ctrl-C ends the program at once
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            if not click.confirm("Do you accept this?", err=True):
                raise FacedataError(f"{entry.name}: not accepted; nothing was fetched")
        finally:
            signal.signal(signal.SIGINT, before)
        return "answered on the terminal"

    with stop_on_signals() as stop:
        if dry_run:
            plan = plan_acquisition(entry, Path(root), how, watch=watch, stop=stop)
            _show_plan(entry, Path(root), plan, as_json=as_json)
            return 0
        done = acquire(entry, Path(root), how, accept, watch=watch, stop=stop)
    if done.good and not done.already and entry.layout == "learn-to-cluster":
        _check_feature_sets(done, watch)
    _show(done, as_json=as_json)
    return 0 if done.good else 1


def _check_feature_sets(done: Acquired, watch: Watch) -> None:
    """Log what `check_feature_set` finds in the feature sets of a download, without a search for neighbours.

    A finding is not a failure: checksums and sizes have shown that these are the published files, and another
    download would give the same ones.
    """
    from facedata.errors import InputError, OptionError
    from facedata.features.checks import CheckOptions, check_feature_set

    paths = [PurePosixPath(path) for path in (*done.placed, *(each.found_at or each.path for each in done.results))]
    names = {path.stem for path in paths if path.parts[0] == "features"}
    names |= {path.parts[1] for path in paths if path.parts[0] == "knns" and len(path.parts) == 3}
    for name in sorted(names):
        if not all((done.root / file).is_file() for file in (f"features/{name}.bin", f"labels/{name}.meta")):
            continue
        try:
            report = check_feature_set(done.root, name, CheckOptions(sample=0), watch=watch)
        except (InputError, OptionError) as error:
            _log.warning("%s", error)
            continue
        size = f"{report.rows:,} rows of {report.dimensions:,} values" if report.rows and report.dimensions else "?"
        classes = f", {report.classes.classes:,} classes" if report.classes else ""
        _log.info("%s: %s%s: %s", name, size, classes, "good" if report.good else "has faults as published")
        for finding in report.findings:
            level = logging.WARNING if finding.wrong else logging.INFO
            _log.log(level, "%s: %s", finding.path, finding.message)


def _show(done: Acquired, *, as_json: bool) -> None:
    if as_json:
        fetched = [
            {"path": str(file.path), "bytes": file.size, "fetched_bytes": file.fetched_bytes, "from": file.final_url}
            for file in done.fetched
        ]
        files = [{key: getattr(each, key) for key in ("path", "verdict", "how", "detail")} for each in done.results]
        facts = {key: getattr(done, key) for key in ("name", "already", "good", "used", "placed", "refused", "next")}
        options.print_json({**facts, "root": str(done.root), "fetched": fetched, "files": files})
        return
    root = shown_path(str(done.root))
    if done.already:
        options.echo(f"{done.name}: already complete in {root}")
    elif done.good:
        size = human_bytes(sum(fetched.fetched_bytes for fetched in done.fetched))
        counts = [f"{counted(len(done.fetched), 'file')} fetched, {size}"] if done.fetched else []
        counts += [f"{counted(len(done.used), 'file')} available and right"] if done.used else []
        options.echo("; ".join([f"{done.name}: ready in {root}", *counts]))
    else:
        options.echo(f"{done.name}: in {root}, but some files are wrong")
    for result in done.results:
        options.echo("  " + os.fsdecode(result.line).rstrip("\n"))
    for member, reason in list(done.refused.items())[:20]:
        options.echo(f"  {member}: not unpacked: {reason}")
    if done.good and done.next:
        options.echo("next:")
        for line in done.next:
            options.echo(f"  {line}")
    if not done.good:
        options.echo("add --overwrite to fetch and unpack everything again", err=True)


def _show_plan(entry: CatalogueSet, root: Path, plan: Plan, *, as_json: bool) -> None:
    from facedata.download.available import steps_by_hand
    from facedata.text import shown_url

    if as_json:
        options.print_json(
            {
                "dry_run": True,
                "name": entry.name,
                "terms": entry.terms,
                "already": plan.already,
                "found": {name: str(file.path) for name, file in plan.found.items()},
                "wrong": plan.wrong,
                "fetch": {
                    download.name: [shown_url(link.page) for link in entry.links(download)] for download in plan.fetch
                },
                "by_hand": [download.name for download in plan.by_hand],
            }
        )
        return
    if plan.already:
        options.echo(f"{entry.name}: already complete in {root}")
        return
    lines = [f"{entry.name}: {line}" for line in entry.terms]
    lines += [f"{name}: would use {found.path}" for name, found in plan.found.items()]
    lines += [f"{path}: {reason}" for path, reason in plan.wrong.items()]
    for download in plan.fetch:
        size = download.size or download.about
        pages = " or ".join(shown_url(link.page) for link in entry.links(download))
        lines.append(f"{download.name}: would fetch {human_bytes(size) if size else 'it'} from {pages}")
    if plan.by_hand:
        lines += steps_by_hand(entry, plan.by_hand, root).split("\n")
    options.echo(*lines)
