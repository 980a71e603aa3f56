"""The catalogue: every dataset that has a name, where it can be had, and what is known of it.

The data are TOML: facedata's own file, then the user's, then those given with ``--catalogue``. A later file adds sets,
and to a set of an earlier one mirrors, which are tried first, and keys.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from facedata.download.digest import ALGORITHMS, Digest
from facedata.download.links import Link
from facedata.download.provenance import PROVENANCE
from facedata.download.schema import STATUSES, read_catalogue
from facedata.download.toml_lines import find_line
from facedata.errors import CatalogueError, OptionError, input_error

__all__ = ["Catalogue", "CatalogueSet", "Download", "KnownFile", "Source", "load_catalogue", "user_catalogue"]

_LARGEST = 16 << 20  # bytes of a catalogue; facedata's own has some 20 thousand
_BY_PROGRAM = ("http", "google-drive", "onedrive")
_HARMLESS = {"free", "synthetic"}


@dataclass(frozen=True)
class Source:
    """One place that a set can be had from, by a program or by hand.

    Attributes
    ----------
    kind : str
        A key of `facedata.download.schema.SOURCES`.
    address : str
        The URL; for Google Drive the id; empty where there is only a note.
    file : str
        The download that it gives; where empty, an URL that ends in ``/`` is a folder with all of them.
    code : str
        What Baidu asks for.
    note : str
    """

    kind: str
    address: str = ""
    file: str = ""
    code: str = ""
    note: str = ""

    @property
    def by_program(self) -> bool:
        """Whether facedata can fetch from there."""
        return self.kind in _BY_PROGRAM

    def link(self, name: str) -> Link | None:
        """The link to the download of that name, if this source has it."""
        if not self.by_program or self.file not in ("", name):
            return None
        folder = self.kind == "http" and not self.file and self.address.endswith("/")
        return Link(self.kind, self.address + quote(name) if folder else self.address)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Download:
    """One file as it is published: an archive, a part of one, or a plain file.

    Attributes
    ----------
    name : str
    place : str
        Where a plain file belongs below the root; empty for archives, which are unpacked.
    digest : Digest, optional
    size, about : int, optional
        Bytes: exactly, and roughly.
    superseded : mapping of str to str
        Hexadecimal digests of files that were published before, and what these are.
    """

    name: str
    place: str = ""
    digest: Digest | None = None
    size: int | None = None
    about: int | None = None
    superseded: Mapping[str, str] = field(default_factory=dict)
    superseded_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownFile:
    """One file of the set as it lies below the root in the end, and what can be checked of it."""

    path: str
    digest: Digest | None = None
    size: int | None = None
    lines: int | None = None
    classes: int | None = None
    rows: int | None = None
    dimensions: int = 256
    index: str = ""
    optional: bool = False


@dataclass(frozen=True)
class CatalogueSet:
    """Everything known of one dataset."""

    name: str
    title: str
    what: str = ""
    family: str = ""
    aliases: tuple[str, ...] = ()
    people: int | str | None = None
    images: int | str | None = None
    classes: int | None = None
    about_bytes: int | None = None
    status: tuple[str, ...] = ()
    status_note: str = ""
    licence: str = ""
    homepage: str = ""
    notes: tuple[str, ...] = ()
    layout: str = "files"
    folder: str = ""
    holding: str = ""
    complete: bool = False
    next: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    downloads: tuple[Download, ...] = ()
    files: tuple[KnownFile, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether the status must be accepted before a download."""
        return not _HARMLESS.issuperset(self.status)

    @property
    def status_words(self) -> str:
        """The status in words: ``non-commercial research only``."""
        return "; ".join(STATUSES[one] for one in self.status)

    @property
    def access(self) -> str:
        """How it can be had: ``download``, ``by hand``, ``by agreement``, ``not here``."""
        kinds = {source.kind for source in self.sources}
        if not self.downloads and "agreement" not in kinds:
            return "not here"
        if all(self.links(download) for download in self.downloads) and self.downloads:
            return "download"
        return "by agreement" if "agreement" in kinds else "by hand"

    @property
    def bytes(self) -> tuple[int, bool]:
        """How much is downloaded, and whether that is exact; 0 where it is not known."""
        sizes = [download.size for download in self.downloads]
        if sizes and all(size is not None for size in sizes):
            return sum(size or 0 for size in sizes), True
        abouts = [download.size or download.about for download in self.downloads]
        if abouts and all(about is not None for about in abouts):
            return sum(about or 0 for about in abouts), False
        return self.about_bytes or 0, False

    def place_of(self, download: Download) -> str:
        """Where a download stays below the root as it is; empty for archives, which are unpacked."""
        return download.place or ("" if self.layout != "files" else download.name)

    def next_commands(self, root: str | os.PathLike[str]) -> list[str]:
        """What a user types when the set lies in `root`."""
        shown = shlex.quote(os.path.normpath(root))
        return [line.replace("{root}", shown) for line in self.next]

    def links(self, download: Download) -> tuple[Link, ...]:
        """Where a program can fetch the download from, in order of preference."""
        links = (source.link(download.name) for source in self.sources)
        return tuple(link for link in links if link)


@dataclass(frozen=True)
class Catalogue:
    """Sets by name."""

    sets: Mapping[str, CatalogueSet]

    def __iter__(self) -> Iterator[CatalogueSet]:
        return iter(self.sets.values())

    def find(self, name: str) -> CatalogueSet:
        """The set of that name or alias; case does not matter.

        Raises
        ------
        OptionError
            With the names that are near.
        """
        wanted = name.casefold()
        names = {word.casefold(): one for one in self for word in (*one.aliases, one.name)}
        if wanted in names:
            return names[wanted]
        close = difflib.get_close_matches(wanted, names, 3)
        meant = f"; near are {', '.join(sorted({names[word].name for word in close}))}" if close else ""
        raise OptionError(f"no dataset is named '{name}'{meant}; 'facedata datasets' lists all")

    def superseded(self, digest: Digest) -> str:
        """What a file with that checksum is, where it is known as an old release."""
        for one in self:
            for download in one.downloads:
                if digest.value in download.superseded:
                    return download.superseded[digest.value]
        return ""


def user_catalogue() -> Path:
    """Where the user's own sets and mirrors are kept; need not be there."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base, "facedata", "catalogue.toml")


def load_catalogue(files: Sequence[str | os.PathLike[str]] = ()) -> Catalogue:
    """Facedata's own sets, then the user's, then those of `files`.

    Raises
    ------
    CatalogueError
        With the file, the line and the key.
    InputError
        Where a file cannot be read.
    """
    own = Path(__file__).with_name("catalogue.toml")
    mine = user_catalogue()
    merged: dict[str, dict[str, Any]] = {}
    for path in (own, *([mine] if mine.is_file() else []), *map(Path, files)):
        text = _text(path)
        for name, table in read_catalogue(text, os.fspath(path)).items():
            merged[name] = _merged(merged[name], table) if name in merged else table
            if problem := _problem(merged[name]):
                raise CatalogueError(f"{path}: line {find_line(text, ('sets', name))}: sets.{name}: {problem}")
    sets = {name: _set(name, table) for name, table in merged.items()}
    _check_aliases(sets.values())
    return Catalogue(sets)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST or not path.is_file():
            raise CatalogueError(f"{path}: is not a catalogue: expected a TOML file of at most {_LARGEST:,} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise input_error(error, path) from error
    except UnicodeDecodeError as error:
        raise CatalogueError(
            f"{path}: is not a catalogue: expected UTF-8, found other bytes at {error.start}"
        ) from error


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Keys of `new` win; its sources come first; its downloads and files add to those of the same name."""
    merged = {**old, **new}
    merged["sources"] = [*new.get("sources", []), *old.get("sources", [])]
    for key, name in (("downloads", "name"), ("files", "path")):
        tables = {one[name]: one for one in old.get(key, [])}
        for one in new.get(key, []):
            tables[one[name]] = {**tables.get(one[name], {}), **one}
        merged[key] = list(tables.values())
    return merged


def _problem(table: dict[str, Any]) -> str:
    """What one key cannot show: a title, a folder where the layout needs one, files that sources name."""
    if "title" not in table:
        return "has no 'title', and no set of that name is known to add to"
    if table.get("layout") == "folder" and "folder" not in table:
        return "the layout 'folder' needs the key 'folder'"
    names = [download["name"] for download in table.get("downloads", [])]
    if doubled := _doubled(names):
        return f"downloads: '{doubled}' stands there twice"
    if problem := _place_problem(table):
        return problem
    problems = (_source_problem(source, names) for source in table.get("sources", []))
    return next(filter(None, problems), "")


def _place_problem(table: dict[str, Any]) -> str:
    """Whether two downloads, or a download and what facedata itself keeps in the root, would be one file."""
    places = [download.get("place") or download["name"] for download in table.get("downloads", [])]
    if doubled := _doubled(places):
        return f"downloads: two of them would be '{doubled}' below the root"
    if PROVENANCE in places:
        return f"downloads: '{PROVENANCE}' is the name of facedata's own record"
    folders = {str(folder) for place in places for folder in PurePosixPath(place).parents}
    if both := folders.intersection(places):
        return f"downloads: '{min(both)}' would be a file and a folder"
    return ""


def _doubled(names: Iterable[str]) -> str:
    return min((name for name, count in Counter(names).items() if count > 1), default="")


def _source_problem(source: dict[str, Any], names: list[str]) -> str:
    file = source.get("file", "")
    if file and file not in names:
        return f"a source gives '{file}', which is none of the downloads: {', '.join(names) or 'there are none'}"
    address = source.get("url") or source.get("id", "")
    if source["kind"] in _BY_PROGRAM and not file and len(names) > 1 and not address.endswith("/"):
        return (
            f"{address} is one address for {len(names)} downloads: say with 'file' which it gives, "
            "or end the URL of a folder with '/'"
        )
    return ""


def _check_aliases(sets: Iterable[CatalogueSet]) -> None:
    owners: dict[str, str] = {}
    for one in sets:
        for word in {one.name.casefold(), *(alias.casefold() for alias in one.aliases)}:
            if owners.setdefault(word, one.name) != one.name:
                raise CatalogueError(f"the catalogue has the name '{word}' twice: {owners[word]} and {one.name}")


def _set(name: str, table: dict[str, Any]) -> CatalogueSet:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    values["sources"] = tuple(map(_source, table.get("sources", [])))
    values["downloads"] = tuple(map(_download, table.get("downloads", [])))
    values["files"] = tuple(map(_known_file, table.get("files", [])))
    return CatalogueSet(name=name, **values)


def _source(table: dict[str, Any]) -> Source:
    rest = {key: table[key] for key in ("file", "code", "note") if key in table}
    return Source(table["kind"], table.get("url") or table.get("id", ""), **rest)


def _digest(table: dict[str, Any]) -> Digest | None:
    """The strongest that is known."""
    for algorithm in reversed(ALGORITHMS):
        if algorithm in table:
            return Digest(algorithm, table[algorithm].lower())
    return None


def _download(table: dict[str, Any]) -> Download:
    old = table.get("superseded", [])
    superseded = {
        one[algorithm].lower(): one.get("what", "a release that was replaced")
        for one in old
        for algorithm in ALGORITHMS
        if algorithm in one
    }
    return Download(
        name=table["name"],
        place=table.get("place", ""),
        digest=_digest(table),
        size=table.get("bytes"),
        about=table.get("about_bytes"),
        superseded=superseded,
        superseded_names=tuple(one["name"] for one in old),
    )


def _known_file(table: dict[str, Any]) -> KnownFile:
    rest = {key: value for key, value in table.items() if key not in ALGORITHMS and key != "bytes"}
    return KnownFile(digest=_digest(table), size=table.get("bytes"), **rest)
