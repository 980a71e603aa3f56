"""``facedata datasets``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes, show_bytes, shown_path
from facedata.errors import OptionError
from facedata.text import counted, listed

if TYPE_CHECKING:
    from facedata.download.catalogue import Catalogue, CatalogueSet

_HEADINGS = ("name", "what", "people", "images", "size", "status", "how")
_RIGHT = (2, 3, 4)
_LEFT_OUT_FIRST = (2, 1, 4, 5, 3)  # columns for which a terminal may be too narrow


@click.command("datasets", cls=options.Command, short_help="List the known datasets, show one, or add your own.")
@click.argument("name", required=False, shell_complete=options.complete_dataset)
@click.option(
    "--root",
    type=click.Path(file_okay=False),
    help="List the datasets that are in this folder, and whether they are whole.",
)
@click.option(
    "--add",
    "source",
    type=click.Path(),
    metavar="FOLDER|LIST",
    help="Add a set of your own to your catalogue (or to --catalogue): the files of a folder, or a list with a URL and "
    "its checksum on each line.",
)
@click.option("--url", help="With --add: the URL of a folder that has the files of FOLDER, or of a list of checksums.")
@options.CATALOGUE
@options.JSON
@options.runs_library
def command(
    name: str | None, root: str | None, source: str | None, url: str | None, catalogue: tuple[str, ...], as_json: bool
) -> int:
    """List the datasets that facedata knows by name, or show all that is known of NAME.

    Your own sets and mirrors are read from a file in the format of facedata's catalogue, given with --catalogue or
    kept in ~/.config/facedata/catalogue.toml. --add writes an entry of that file, which `download` and `verify-md5`
    take by its name.

    \b
    Example:
      facedata datasets glint360k
      facedata datasets --root data/
      facedata datasets lab-faces --add data/lab-faces --url http://lab/faces/
    """
    from facedata.download.catalogue import load_catalogue

    if source is not None:
        if root is not None:
            raise OptionError("--root does not apply to --add: leave it out")
        return _add(source, name or "", url or "", catalogue, as_json=as_json)
    if url is not None:
        raise OptionError("--url applies to --add only")
    known = load_catalogue(catalogue)
    if name is not None:
        _show(known.find(name), root or ".", as_json=as_json)
    elif root is not None:
        _show_states(known, root, as_json=as_json)
    elif as_json:
        options.print_json({"datasets": [_brief(entry) for entry in known]})
    else:
        rows = [_HEADINGS]
        for entry in known:
            numbers = (_number(entry.people), _number(entry.images), _size(entry, "~"))
            rows.append((entry.name, entry.what, *numbers, ", ".join(entry.status), entry.access))
        widths = {number: max(map(len, column)) for number, column in enumerate(zip(*rows, strict=True))}
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
        left_out = []
        for number in _LEFT_OUT_FIRST:
            if sum(widths.values()) + 2 * len(widths) - 2 > room:
                left_out.append(_HEADINGS[number])
                del widths[number]
        for row in rows:
            cells = [
                row[number].rjust(width) if number in _RIGHT else row[number].ljust(width)
                for number, width in widths.items()
            ]
            options.echo("  ".join(cells).rstrip())
        if left_out:
            options.echo(f"not shown in this width: {', '.join(left_out)}; facedata datasets NAME shows all", err=True)
    return 0


def _add(source: str, name: str, url: str, catalogue: tuple[str, ...], *, as_json: bool) -> int:
    from facedata.download.describe import add_set
    from facedata.jobs.signals import stop_on_signals

    options.start_logging(quiet=False)
    with stop_on_signals() as stop, show_bytes("read", quiet=False) as observer:
        name, target, table = add_set(source, name, url, catalogue, observer=observer, stop=stop)
    downloads, more = table["downloads"], [word for file in catalogue for word in ("--catalogue", file)]
    folder = os.path.dirname(os.path.abspath(source)) if os.path.isdir(source) else ""
    by_hand = ["--from-dir", shown_path(folder)] if folder and not url else []
    commands = [shlex.join(["facedata", "download", name, *more, "--root", "NEW", *by_hand])]
    if folder:
        commands.insert(0, shlex.join(["facedata", "verify-md5", name, *more, "--root", shown_path(folder)]))
    if as_json:
        options.print_json({"name": name, "catalogue": str(target), "downloads": len(downloads), "next": commands})
        return 0
    options.echo(f"{name}: added to {target}: {counted(len(downloads), 'download')}")
    options.echo("next:", *(f"  {line}" for line in commands))
    return 0


def _show_states(known: Catalogue, root: str, *, as_json: bool) -> None:
    from facedata.download.expectations import set_state
    from facedata.errors import input_error

    try:
        os.scandir(root).close()
    except OSError as error:
        raise input_error(error, root) from error
    states = [state for entry in known if (state := set_state(entry, Path(root)))]
    if as_json:
        options.print_json({"root": root, "sets": [state._asdict() for state in states]})
        return
    width = max((len(state.name) for state in states), default=0)
    for state in states:
        faults = [f"{path}: {what}" for path, what in state.wrong.items()]
        faults += [f"{counted(len(state.missing), 'file')} missing: {listed(state.missing)}"] if state.missing else []
        notes = "; ".join([counted(state.files, "file"), *faults])
        options.echo(f"{state.name.ljust(width)}  {state.state.ljust(12)}  {notes}")
    where = shlex.quote(root)
    if not states:
        options.echo(f"no dataset of the catalogue is in {where}")
        return
    options.echo(f"only names and sizes were compared; to check all: facedata verify-md5 NAME --root {where}", err=True)
    if any(state.state != "whole" for state in states):
        options.echo(f"to complete or repair a set: facedata download NAME --root {where}", err=True)


def _size(entry: CatalogueSet, about: str) -> str:
    size, exact = entry.bytes
    return ("" if exact else about) + human_bytes(size) if size else ""


def _number(value: int | str | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _brief(entry: CatalogueSet) -> dict[str, Any]:
    size, exact = entry.bytes
    keys = ("name", "title", "what", "people", "images", "status", "access")
    return {**{key: getattr(entry, key) for key in keys}, "bytes": size or None, "bytes_exact": exact}


def _show(entry: CatalogueSet, root: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from facedata.text import shown_url

    commands = entry.next_commands(root)
    if as_json:
        shown = [{**asdict(source), "address": shown_url(source.address)} for source in entry.sources]
        options.print_json({**asdict(entry), **_brief(entry), "sources": shown, "terms": entry.terms, "next": commands})
        return
    options.echo(f"{entry.name}: {entry.title}")
    facts = (
        ("what", entry.what),
        ("family", entry.family),
        ("also called", ", ".join(entry.aliases)),
        ("people", _number(entry.people)),
        ("images", _number(entry.images)),
        ("classes", _number(entry.classes)),
        ("size", _size(entry, "about ")),
        ("homepage", entry.found_at),
        ("how", entry.access),
    )
    for heading, fact in facts:
        if fact:
            options.echo(f"  {heading + ':':13s}{fact}")
    sections = {
        "terms": entry.terms,
        "sources, in this order": entry.places,
        "downloads": [_checked(download.name, download.digest, download.size) for download in entry.downloads],
        "files in their final places": [_checked(file.path, file.digest, file.size) for file in entry.files],
        "notes": entry.notes,
        "next": commands,
    }
    for heading, lines in sections.items():
        if lines:
            options.echo(f"{heading}:", *(f"  {line}" for line in lines))


def _checked(name: str, digest: object, size: int | None) -> str:
    known = ([human_bytes(size)] if size else []) + ([str(digest)] if digest else [])
    return f"{name}  {', '.join(known) or 'no checksum published'}"
