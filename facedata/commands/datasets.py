"""``facedata datasets``."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes

if TYPE_CHECKING:
    from facedata.download.catalogue import CatalogueSet

_HEADINGS = ("name", "what", "people", "images", "size", "status", "how")
_RIGHT = (2, 3, 4)
_LEFT_OUT_FIRST = (2, 1, 4, 5, 3)  # columns for which a terminal may be too narrow


@click.command("datasets", cls=options.Command, short_help="List the known datasets, or show all that is known of one.")
@click.argument("name", required=False, shell_complete=options.complete_dataset)
@options.CATALOGUE
@options.ROOT
@options.JSON
@options.runs_library
def command(name: str | None, catalogue: tuple[str, ...], root: str, as_json: bool) -> int:
    """List the datasets that facedata knows by name, or show all that is known of NAME.

    Your own sets and mirrors are read from a file in the format of facedata's catalogue, given with --catalogue or
    kept in ~/.config/facedata/catalogue.toml.

    \b
    Example:
      facedata datasets glint360k
    """
    from facedata.download.catalogue import load_catalogue

    known = load_catalogue(catalogue)
    if name is not None:
        _show(known.find(name), root, as_json=as_json)
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
            click.echo("  ".join(cells).rstrip())
        if left_out:
            click.echo(f"not shown in this width: {', '.join(left_out)}; facedata datasets NAME shows all", err=True)
    return 0


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
    click.echo(f"{entry.name}: {entry.title}")
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
            click.echo(f"  {heading + ':':13s}{fact}")
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
            click.echo("\n  ".join([f"{heading}:", *lines]))


def _checked(name: str, digest: object, size: int | None) -> str:
    known = ([human_bytes(size)] if size else []) + ([str(digest)] if digest else [])
    return f"{name}  {', '.join(known) or 'no checksum published'}"
