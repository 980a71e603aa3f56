"""``facedata extract``."""

from __future__ import annotations

import codecs
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes, show_bytes
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.download.archives import Archive, Extraction


def _check_encoding(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        if value is None or b"/".decode(value) == "/":  # not EBCDIC or UTF-16, which no zip has
            return None if value is None else codecs.lookup(value).name
    except (LookupError, ValueError):
        pass
    raise click.BadParameter(f"'{value}' is not an encoding of names that Python knows, as gbk or shift_jis")


@click.command("extract", cls=options.Command, short_help="Unpack .tar, .tar.gz and .zip archives, whole or in parts.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.output("The folder to unpack into.", type=click.Path(file_okay=False, path_type=Path))
@options.OVERWRITE
@click.option(
    "--max-ratio",
    type=click.FloatRange(1, 10_000),
    default=200,
    show_default=True,
    help="How many times larger than its archive the content may be, from 1 GiB on.",
)
@click.option(
    "--encoding",
    metavar="NAME",
    callback=_check_encoding,
    help="Zips: the encoding of names that are not marked as UTF-8, as gbk, shift_jis or big5.  [default: guessed]",
)
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    files: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    max_ratio: float,
    encoding: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Unpack the archives in FILES into a folder: .tar, .tar.gz, .tgz and .zip, whole or split into parts.

    Parts are joined while they are read, in the order of their numbers; a missing part is named before anything
    starts. Files get their names when the whole archive has been verified. Links, devices, names that lead out of the
    folder and second members of one name are not unpacked: they are listed, and the exit status is 1. If it is
    interrupted, run it again to resume. With --overwrite, files of the same names are replaced and others are left
    alone.

    \b
    Example:
      facedata extract data/glint360k_0* --output data/
      facedata extract photos.zip --output photos/ --encoding gbk
    """
    from facedata.download.archives import extract_archive, extracted_before, group_archives
    from facedata.jobs.signals import stop_on_signals

    options.start_logging(quiet=quiet)
    archives = group_archives(files, expected=_catalogue_names())
    if dry_run:
        _show_plan(
            [(archive, extracted_before(archive, output, encoding=encoding)) for archive in archives],
            overwrite,
            as_json,
        )
        return 0
    done = []
    with stop_on_signals() as stop:
        for archive in archives:
            with show_bytes(archive.name, quiet=quiet) as observer:
                done.append(
                    extract_archive(
                        archive,
                        output,
                        overwrite=overwrite,
                        max_ratio=max_ratio,
                        encoding=encoding,
                        observer=observer,
                        stop=stop,
                    )
                )
            if not as_json:
                _show(done[-1])
    if as_json:
        options.print_json({"dry_run": False, "archives": [asdict(extraction) for extraction in done]})
    return 1 if any(extraction.refused_count for extraction in done) else 0


def _catalogue_names() -> list[str]:
    """The file names in the catalogue, by which a missing last part is noticed; none if the catalogue is broken."""
    from facedata.download.catalogue import load_catalogue
    from facedata.errors import InputError

    try:
        return [download.name for entry in load_catalogue() for download in entry.downloads]
    except (InputError, OSError):  # the home folder of another user, for example
        return []


def _show(extraction: Extraction) -> None:
    what = f"{counted(extraction.files, 'file')}, {human_bytes(extraction.bytes)}"
    state = "already unpacked; nothing to do" if extraction.done_before else "unpacked"
    options.echo(f"{extraction.archive}: {state} ({what}) in {extraction.output}")
    if extraction.refused_count:
        options.echo(f"  {counted(extraction.refused_count, 'member')} not unpacked; see {extraction.refused_list}")


def _show_plan(plan: list[tuple[Archive, Extraction | None]], overwrite: bool, as_json: bool) -> None:
    if as_json:
        archives = [
            {
                "archive": archive.name,
                "kind": archive.kind,
                "parts": [str(part) for part in archive.parts],
                "bytes": archive.size,
                "done_before": before is not None and not overwrite,
            }
            for archive, before in plan
        ]
        options.print_json({"dry_run": True, "archives": archives})
        return
    for archive, before in plan:
        parts = counted(len(archive.parts), "part") if len(archive.parts) > 1 else "whole"
        options.echo(f"{archive.name}: {archive.kind}, {parts}, {human_bytes(archive.size)}")
        if len(archive.parts) > 1:
            options.echo(*(f"  {part}" for part in archive.parts))
        if before is not None and not overwrite:
            options.echo("  already unpacked; nothing to do")
