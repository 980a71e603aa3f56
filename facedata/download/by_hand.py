"""Files that the user fetched by hand, and what to do where no program can fetch them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from facedata.download.catalogue import CatalogueSet, Download, Source
from facedata.download.terms import terms
from facedata.download.transfer.pages import shown_url
from facedata.errors import InputError, InputNotFoundError, input_error

__all__ = ["ByHandError", "candidates", "files_given", "nothing_to_fetch", "source_text", "steps"]

_COPY = re.compile(r"(.+?)(?: ?\(\d+\))?((?:\.[A-Za-z0-9]{1,4}){0,2})")


class ByHandError(InputError):
    """Files of a set that no program can fetch, with the steps that a person takes."""


def files_given(from_dir: Path | None, from_files: Sequence[Path]) -> list[Path]:
    """The files that the user points at, those named one by one first.

    Raises
    ------
    InputError
        Where one is not there, or is not a file.
    """
    for path in from_files:
        if not path.is_file():
            raise InputNotFoundError(f"{path}: {'is not a file' if path.exists() else 'no such file'} (--from-file)")
    if from_dir is None:
        return list(from_files)
    try:
        with os.scandir(from_dir) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise input_error(error, from_dir) from error
    return [*from_files, *(from_dir / name for name in names)]


def candidates(download: Download, given: Sequence[Path], named: Sequence[Path], alone: bool) -> Iterator[Path]:
    """Which of the given files may be that download, the likeliest first.

    Parameters
    ----------
    download : Download
    given : sequence of path
        All that the user points at.
    named : sequence of path
        Those of them that were named one by one, with ``--from-file``.
    alone : bool
        Whether the set has this one download only, so that a file named for it is it, whatever its name.
    """
    names = {download.name, *download.superseded_names}
    yield from (path for path in given if path.name in names)
    yield from (path for path in given if path.name not in names and _original(path.name) in names)
    if alone or download.digest is not None:
        yield from (path for path in named if path.name not in names and _original(path.name) not in names)


def _original(name: str) -> str:
    """``data (1).tar.gz``, as browsers name a second copy, without its number."""
    match = _COPY.fullmatch(name)
    return match[1] + match[2] if match else name


def steps(entry: CatalogueSet, missing: Sequence[Download], root: Path) -> str:
    """What a person does to get the missing files, and the command that goes on."""
    lines = [f"{entry.name}: these files cannot be fetched by a program; fetch them in a browser:"]
    for download in missing:
        check = f"  ({download.digest})" if download.digest else "  (no checksum published)"
        lines.append(f"  {download.name}{check}")
    places = [text for source in entry.sources if (text := source_text(source, entry))]
    if places:
        lines += ["from:", *(f"  {place}" for place in places)]
    else:
        lines.append("no place to get them from is known here")
    whole = f"facedata download {entry.name} --root {shlex.quote(os.fspath(root))}"
    lines.append("then go on with the folder that they are in, or with the file:")
    lines.append(f"  {whole} --from-dir ~/Downloads")
    if len(missing) == 1:
        lines.append(f"  {whole} --from-file ~/Downloads/{shlex.quote(missing[0].name)}")
    return "\n".join(lines)


def nothing_to_fetch(entry: CatalogueSet) -> str:
    """What to say of a set without a single known file."""
    lines = [f"{entry.name}: facedata knows no file of this set to fetch or to check", *terms(entry)]
    lines += [text for source in entry.sources if (text := source_text(source, entry))]
    lines.append("once you have it, add its files to a catalogue of your own: docs/reference/catalogue.md")
    return "\n  ".join(lines)


def source_text(source: Source, entry: CatalogueSet) -> str:
    """A source as a person uses it: what to open, and the code it asks for."""
    note = f"  ({source.note})" if source.note and source.address else source.note
    if source.kind == "baidu":
        return f"Baidu: {source.address}  code: {source.code or 'none'}{note}"
    if source.kind == "magnet":
        return f"BitTorrent: {source.address}{note}"
    if source.kind == "http" and not source.file and source.address.endswith("/"):
        return f"{shown_url(source.address)}{note}"
    if source.by_program:
        pages = [link.page for download in entry.downloads if (link := source.link(download.name))]
        return f"{shown_url(pages[0])}{note}" if pages else ""
    return f"{source.address}{note}"
