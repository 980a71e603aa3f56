"""The catalogue: every dataset that has a name, where it can be had, and what is known of it.

The data are TOML: facedata's own file, then the user's, then those given with ``--catalogue``. A later file adds sets,
and to a set of an earlier one mirrors, which are tried first, and keys.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from facedata.download.checksums import ALGORITHMS, Digest
from facedata.download.schema import BY_PROGRAM, STATUSES, check_set, read_catalogue
from facedata.download.transfer import Link
from facedata.errors import CatalogueError, OptionError
from facedata.files import read_small
from facedata.text import shown_url

__all__ = ["Catalogue", "CatalogueSet", "Download", "KnownFile", "Source", "load_catalogue", "user_catalogue"]

_LARGEST = 16 << 20  # bytes of a catalogue; facedata's own has some 20 thousand
_HARMLESS = {"free", "synthetic"}


@dataclass(frozen=True)
class Source:
    """A place that a set can be had from, by a program or by hand.

    Attributes
    ----------
    kind : str
        A key of `facedata.download.schema.SOURCES`.
    address : str
        The URL; for Google Drive the id; empty if there is only a note.
    file : str
        The download that it gives. If empty, a URL that ends in ``/`` is a folder with all of them.
    code : str
        The extraction code that Baidu asks for.
    """

    kind: str
    address: str = ""
    file: str = ""
    code: str = ""
    note: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether this is the URL of a folder with all downloads."""
        return self.kind == "http" and not self.file and self.address.endswith("/")

    def link(self, name: str) -> Link | None:
        """The link to the download of that name, if a program can get it from this source."""
        if self.kind not in BY_PROGRAM or self.file not in ("", name):
            return None
        return Link(self.kind, self.address + quote(name) if self.is_folder else self.address)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Download:
    """A file as it is published: an archive, a part of one, or a plain file.

    Attributes
    ----------
    place : str
        Where a plain file belongs below the root; empty for archives, which are unpacked.
    size, about : int, optional
        Bytes: exactly, and roughly.
    superseded : mapping of str to str
        Hexadecimal digests of files that were published before, and what each of them is.
    superseded_names : tuple of str
        The names of these files.
    """

    name: str
    place: str = ""
    digest: Digest | None = None
    size: int | None = None
    about: int | None = None
    superseded: Mapping[str, str] = field(default_factory=dict)
    superseded_names: tuple[str, ...] = ()

    def path(self, root: Path) -> Path:
        """Where the download is below the root."""
        return root / (self.place or self.name)


@dataclass(frozen=True)
class KnownFile:
    """A file of the set in its final place below the root, and what can be checked of it."""

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
    """Everything that is known of a dataset."""

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
    publisher: str = ""
    search: str = ""
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
        """Whether the terms must be accepted before a download."""
        return not _HARMLESS.issuperset(self.status)

    @property
    def terms(self) -> list[str]:
        """The status in words, its note and the licence, one a line."""
        advice = "find out from the publisher what you may do with it" if "unknown" in self.status else ""
        licence = f"licence: {self.licence}" if self.licence else ""
        return [*(STATUSES[status] for status in self.status), *filter(None, (self.status_note, licence, advice))]

    @property
    def access(self) -> str:
        """How the set can be had: ``download``, ``by hand``, ``by agreement``, ``not here``."""
        if self.downloads and all(map(self.links, self.downloads)):
            return "download"
        if any(source.kind == "agreement" for source in self.sources):
            return "by agreement"
        return "by hand" if self.downloads or self.sources else "not here"

    @property
    def found_at(self) -> str:
        """Where a person finds the set: the homepage, or who published it and what to search the web for."""
        search = f"search the web for '{self.search}'" if self.search else ""
        published = f"published by {self.publisher}" if self.publisher else ""
        return "; ".join(filter(None, [published, self.homepage or search]))

    @property
    def bytes(self) -> tuple[int, bool]:
        """How much is downloaded, and whether that is exact; 0 if it is not known."""
        sizes = [download.size for download in self.downloads]
        abouts = [
            download.about if size is None else size for download, size in zip(self.downloads, sizes, strict=True)
        ]
        if not abouts or None in abouts:
            return self.about_bytes or 0, False
        return sum(about or 0 for about in abouts), None not in sizes

    @property
    def places(self) -> list[str]:
        """The sources as a person uses them: what to open, and the code to enter."""
        places = []
        for source in self.sources:
            note = f"  ({source.note})" if source.note and source.address else source.note
            if source.kind == "baidu":
                places.append(f"Baidu: {source.address}  code: {source.code or 'none'}{note}")
            elif source.kind == "magnet":
                places.append(f"BitTorrent: {source.address}{note}")
            elif source.is_folder:
                places.append(f"{shown_url(source.address)}{note}")
            elif source.kind in BY_PROGRAM:
                pages = [link.page for download in self.downloads if (link := source.link(download.name))]
                places += [f"{shown_url(page)}{note}" for page in pages[:1]]
            else:
                places.append(f"{source.address}{note}")
        return places

    def place_of(self, download: Download) -> str:
        """Where a download stays as it is, below the root; empty for archives, which are unpacked."""
        return download.place or ("" if self.layout != "files" else download.name)

    def is_archive(self, download: Download) -> bool:
        """Whether a download is unpacked."""
        return not self.place_of(download)

    def next_commands(self, root: str | os.PathLike[str]) -> list[str]:
        """The commands that a user runs next, when the set is in `root`."""
        shown = shlex.quote(os.path.normpath(root))
        return [line.replace("{root}", shown) for line in self.next]

    def links(self, download: Download) -> tuple[Link, ...]:
        """Where a program can get the download from, in order of preference."""
        links = (source.link(download.name) for source in self.sources)
        return tuple(link for link in links if link)


@dataclass(frozen=True)
class Catalogue:
    """Datasets by name."""

    sets: Mapping[str, CatalogueSet]

    def __iter__(self) -> Iterator[CatalogueSet]:
        return iter(self.sets.values())

    def find(self, name: str) -> CatalogueSet:
        """The set with that name or alias; case does not matter.

        Raises
        ------
        OptionError
            If there is none; the message gives similar names.
        """
        wanted = name.casefold()
        names = {word.casefold(): entry for entry in self for word in (*entry.aliases, entry.name)}
        if wanted in names:
            return names[wanted]
        close = sorted({names[word].name for word in difflib.get_close_matches(wanted, names, 3)})
        meant = f"; similar names are {', '.join(close)}" if close else ""
        raise OptionError(f"there is no dataset named '{name}'{meant}; 'facedata datasets' lists all")


def user_catalogue() -> Path:
    """The file with the user's own sets and mirrors, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base, "facedata", "catalogue.toml")


def load_catalogue(files: Sequence[str | os.PathLike[str]] = ()) -> Catalogue:
    """Load facedata's own sets, then the user's in ``~/.config/facedata``, then those of `files`.

    Raises
    ------
    CatalogueError
        If a file breaks the schema; the message names the file and the path of the key.
    InputError
        If a file cannot be read.
    """
    own = Path(__file__).with_name("catalogue.toml")
    mine = user_catalogue()
    merged: dict[str, dict[str, Any]] = {}
    files_of: dict[str, str | os.PathLike[str]] = {}
    for path in (own, *([mine] if mine.is_file() else []), *files):
        try:
            text = read_small(path, _LARGEST).decode()
        except UnicodeDecodeError as error:
            raise CatalogueError(
                f"{path}: is not a catalogue: expected UTF-8, found other bytes at {error.start}"
            ) from error
        for name, table in read_catalogue(text, os.fspath(path)).items():
            merged[name] = _merge(merged[name], table) if name in merged else table
            files_of[name] = path
            check_set(merged[name], f"{path}: sets.{name}")
    sets = {name: _parse_set(name, table) for name, table in merged.items()}
    owners: dict[str, str] = {}
    for entry in sets.values():
        for word in {entry.name.casefold(), *(alias.casefold() for alias in entry.aliases)}:
            if owners.setdefault(word, entry.name) != entry.name:
                both = " and ".join(f"{name} ({files_of[name]})" for name in (owners[word], entry.name))
                raise CatalogueError(f"two sets have the name or alias '{word}': {both}; rename one")
    return Catalogue(sets)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Keys of `new` win; its sources come first; its downloads and files add to those of the same name."""
    merged = {**old, **new}
    merged["sources"] = [*new.get("sources", []), *old.get("sources", [])]
    for key, name in (("downloads", "name"), ("files", "path")):
        tables = {table[name]: table for table in old.get(key, [])}
        for table in new.get(key, []):
            tables[table[name]] = {**tables.get(table[name], {}), **table}
        merged[key] = list(tables.values())
    return merged


def _parse_set(name: str, table: dict[str, Any]) -> CatalogueSet:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    values["sources"] = tuple(
        Source(address=source.pop("url", source.pop("id", "")), **source)
        for source in map(dict, table.get("sources", []))
    )
    values["downloads"] = tuple(map(_parse_download, table.get("downloads", [])))
    values["files"] = tuple(KnownFile(**_parse_digest(file)) for file in table.get("files", []))
    return CatalogueSet(name=name, **values)


def _parse_download(table: dict[str, Any]) -> Download:
    values = _parse_digest(table)
    old = values.pop("superseded", [])
    return Download(
        about=values.pop("about_bytes", None),
        superseded={
            release[algorithm].lower(): release.get("what", "a release that was replaced")
            for release in old
            for algorithm in ALGORITHMS
            if algorithm in release
        },
        superseded_names=tuple(release["name"] for release in old),
        **values,
    )


def _parse_digest(table: dict[str, Any]) -> dict[str, Any]:
    """The table with the strongest checksum as `digest`, and its bytes as `size`."""
    values = {key: value for key, value in table.items() if key not in (*ALGORITHMS, "bytes")}
    known = [Digest(algorithm, table[algorithm].lower()) for algorithm in ALGORITHMS if algorithm in table]
    return {**values, "digest": known[-1] if known else None, "size": table.get("bytes")}
