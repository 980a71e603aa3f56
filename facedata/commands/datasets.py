"""``facedata datasets``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facedata.download.catalogue import Catalogue, CatalogueSet

_HEADINGS = ("name", "what", "people", "images", "size", "status", "how")
_RIGHT = (2, 3, 4)


@click.command("datasets", short_help="List the datasets that have a name, or say all that is known of one.")
@click.argument("name", required=False)
@options.CATALOGUE
@options.ROOT
@options.JSON
@options.runs_library
def command(name: str | None, catalogue: tuple[str, ...], root: str, as_json: bool) -> int:
    """List the datasets that facedata knows by name, or say all that is known of NAME.

    Sets and mirrors of your own are read from a file of the same form as facedata's catalogue, given with --catalogue
    or kept in ~/.config/facedata/catalogue.toml.

    \b
    Example:
      facedata datasets glint360k
    """
    from facedata.download.catalogue import load_catalogue

    known = load_catalogue(catalogue)
    if name is None:
        _list(known, as_json=as_json)
    else:
        _show(known.find(name), root, as_json=as_json)
    return 0


def _list(known: Catalogue, *, as_json: bool) -> None:
    if as_json:
        options.print_json({"datasets": [_brief(one) for one in known]})
        return
    rows = [_HEADINGS, *(_row(one) for one in known)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = [
            cell.rjust(width) if number in _RIGHT else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _row(one: CatalogueSet) -> tuple[str, ...]:
    size, exact = one.bytes
    shown = ("" if exact else "~") + human_bytes(size) if size else ""
    return (one.name, one.what, _number(one.people), _number(one.images), shown, ", ".join(one.status), one.access)


def _number(value: int | str | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _brief(one: CatalogueSet) -> dict[str, Any]:
    size, exact = one.bytes
    return {
        "name": one.name,
        "title": one.title,
        "what": one.what,
        "people": one.people,
        "images": one.images,
        "bytes": size or None,
        "bytes_exact": exact,
        "status": list(one.status),
        "access": one.access,
    }


def _show(one: CatalogueSet, root: str, *, as_json: bool) -> None:
    from dataclasses import asdict

    from facedata.download.transfer.pages import shown_url

    commands = one.next_commands(root)
    if as_json:
        shown = [{**asdict(source), "address": shown_url(source.address)} for source in one.sources]
        options.print_json({**asdict(one), **_brief(one), "sources": shown, "terms": one.terms, "next": commands})
        return
    click.echo(f"{one.name}: {one.title}")
    size, exact = one.bytes
    facts = (
        ("what", one.what),
        ("family", one.family),
        ("also called", ", ".join(one.aliases)),
        ("people", _number(one.people)),
        ("images", _number(one.images)),
        ("classes", _number(one.classes)),
        ("size", f"{'' if exact else 'about '}{human_bytes(size)}" if size else ""),
        ("homepage", one.homepage),
        ("how", one.access),
    )
    for heading, fact in facts:
        if fact:
            click.echo(f"  {heading + ':':13s}{fact}")
    _section("terms", one.terms)
    _section("sources, in this order", one.places)
    _section("downloads", [_checked(download.name, download.digest, download.size) for download in one.downloads])
    _section("files, when it is ready", [_checked(file.path, file.digest, file.size) for file in one.files])
    _section("notes", one.notes)
    _section("next", commands)


def _section(heading: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo(f"{heading}:")
    for line in lines:
        click.echo(f"  {line}")


def _checked(name: str, digest: object, size: int | None) -> str:
    known = ([human_bytes(size)] if size else []) + ([str(digest)] if digest else [])
    return f"{name}  {', '.join(known) or 'no checksum published'}"
