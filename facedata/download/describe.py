"""Catalogue entries for a user's own sets: from a folder, or from a list of URLs with checksums."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from facedata.download.catalogue import load_catalogue, user_catalogue
from facedata.download.checksums import ALGORITHMS
from facedata.download.manifest import Listed, list_checksums, read_manifest
from facedata.download.schema import check_set, read_catalogue
from facedata.download.walk import walk_files
from facedata.errors import FormatError, InputError, OptionError
from facedata.files import atomic_writer, open_regular, output_errors, read_small
from facedata.jobs.signals import StopRequest
from facedata.text import shown_url

__all__ = ["add_set"]

_LARGEST_LIST = 16 << 20
_MOST_FILES = 10_000  # a catalogue is read at every start
_ARCHIVE = re.compile(r".+\.(tar|tar\.gz|tgz|zip)(\.\w{1,4})?|.+\.z\d\d", re.IGNORECASE)
_DIGEST = re.compile(r"(?:(?:md5|sha-?\d+)[:=])?([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128})", re.IGNORECASE)
_log = logging.getLogger(__name__)


def add_set(
    source: str,
    name: str = "",
    url: str = "",
    catalogues: Sequence[str] = (),
    *,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> tuple[str, Path, dict[str, Any]]:
    """Add a set to a catalogue: its name, the file that it was added to, and its table in that file.

    Parameters
    ----------
    source : str
        A folder, whose files are read; or a file with one URL a line and its checksum; or, with `url`, a list of
        checksums.
    name : str
        By default that of the source.
    url : str
        The folder on a server that has the files.
    catalogues : sequence of str
        Further catalogues; the last one, which need not exist, is added to instead of the user's own.

    Raises
    ------
    InputError, FormatError, CatalogueError
        If the source cannot be read, is not such a list, or has names that a catalogue cannot have; or if the catalogue
        knows files of a set with that name.
    OutputError
        If the catalogue cannot be written.
    """
    target = Path(catalogues[-1]) if catalogues else user_catalogue()
    known = load_catalogue([file for file in catalogues if os.path.exists(file)])
    is_folder = os.path.isdir(source)
    base = os.path.basename(os.path.abspath(source))
    name = name or (base if is_folder else base.partition(".")[0])
    table: dict[str, Any] = {"title": name}
    with suppress(OptionError):  # there is no set of that name
        before = known.find(name)
        name, table = before.name, {}
        if before.downloads or before.files:
            raise InputError(f"the catalogue knows the files of '{name}' already: give the new set another name")
    if is_folder:
        table |= _describe_folder(source, base, url, observer, stop)
    else:
        table |= _describe_list(source, name, url)
    entry = _toml(name, table)
    read_catalogue(entry, f"{source}: as an entry")
    check_set({"title": name, **table}, f"{source}: as an entry: sets.{name}")
    text = read_small(target, _LARGEST_LIST).decode() if target.exists() else "schema = 1\n"
    text = f"{text.rstrip()}\n\n{entry}"
    read_catalogue(text, os.fspath(target))
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(target, tidy=True) as file:
            file.write(text.encode())
    return name, target, table


def _describe_folder(
    folder: str, base: str, url: str, observer: Callable[[int, int], None] | None, stop: StopRequest | None
) -> dict[str, Any]:
    """Every file of the folder as a download whose place is in a folder of that name below the root."""
    if sum(1 for _ in itertools.islice(walk_files(folder), _MOST_FILES + 1)) > _MOST_FILES:
        raise InputError(
            f"{folder}: has more than {_MOST_FILES:,} files, too many for a catalogue: pack them first, as with "
            "facedata pack-rec or tar, and add what that gives"
        )
    listed: list[Listed] = []
    for each in list_checksums(folder, "sha256", observer=observer, stop=stop):
        if not isinstance(each, Listed):
            raise InputError(f"{each.path}: {each.reason}; nothing was added")
        if any(part.startswith(".") for part in each.name.split("/")):
            _log.warning("%s/%s: hidden; left out", folder, each.name)
        else:
            listed.append(each)
    # the names of downloads have no folders in them
    often = Counter(os.path.basename(each.name) for each in listed)
    downloads, sources = [], []
    for path, digest in listed:
        name = base_name if often[base_name := os.path.basename(path)] == 1 else path.replace("/", "_")
        size = os.path.getsize(os.path.join(folder, path))
        downloads.append({"name": name, "place": f"{base}/{path}", "bytes": size, digest.algorithm: digest.value})
        sources.append({"kind": "http", "url": f"{url.rstrip('/')}/{quote(path)}", "file": name})
    table = {"layout": "files", "folder": base, "complete": True, "downloads": downloads}
    return {**table, "sources": sources} if url else table


def _describe_list(path: str, name: str, url: str) -> dict[str, Any]:
    """Each URL as a source of a download; archives are unpacked to a folder with the name of the set."""
    downloads: dict[str, dict[str, Any]] = {}
    sources = []
    for number, (link, digests, file) in enumerate(_listed_urls(path, url), 1):
        source = _source(link)
        file = file or ("" if source["kind"] != "http" else unquote(urlsplit(link).path).rpartition("/")[2])
        if not file:
            raise FormatError(f"{path}: URL {number} ({shown_url(link)}) has no file name: write it after the URL")
        if not digests:
            _log.warning("%s: %s has no checksum; it can only be checked against its first download", path, file)
        place = {} if _ARCHIVE.fullmatch(file) else {"place": f"{name}/{file}"}
        download = {"name": file, **place, **digests}
        if downloads.setdefault(file, download) != download:
            raise FormatError(f"{path}: '{file}' is listed twice, with different checksums")
        sources.append({**source, "file": file})
    layout = "files" if all("place" in each for each in downloads.values()) else "folder"
    return {"layout": layout, "folder": name, "downloads": list(downloads.values()), "sources": sources}


def _listed_urls(path: str, url: str) -> list[tuple[str, dict[str, str], str]]:
    """The URL, the checksums and the name, if it is given, of each line."""
    listed: list[tuple[str, dict[str, str], str]] = []
    if url:
        with open(open_regular(path), "rb") as file:
            for each in read_manifest(file, path):
                if not isinstance(each, Listed):
                    raise FormatError(f"{path}: line {each.number}: {each.reason}")
                digests = {each.digest.algorithm: each.digest.value}
                listed.append((f"{url.rstrip('/')}/{quote(each.name)}", digests, os.path.basename(each.name)))
        return listed
    text = read_small(path, _LARGEST_LIST).decode(errors="replace")
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        match = re.search(r"https?://[^\s,;#\"]+", line)
        is_header = not listed and match is None and "url" in line.lower()
        if is_header or not line.strip() or line.lstrip().startswith("#"):
            continue
        if match is None:
            raise FormatError(
                f"{path}: line {number}: has no URL; expected a URL and its checksum on each line. For a list of "
                "checksums, give the URL of the folder that has the files with --url"
            )
        words = re.split(r"[\s,;#\"]+", line[: match.start()] + " " + line[match.end() :])
        found = [digest[1].lower() for word in words if (digest := _DIGEST.fullmatch(word))]
        lengths = {digits: algorithm for algorithm, digits in ALGORITHMS.items()}
        names = ("", *ALGORITHMS)
        others = [word for word in words if not (_DIGEST.fullmatch(word) or word.lower().rstrip(":=") in names)]
        listed.append((match[0], {lengths[len(digest)]: digest for digest in found}, "".join(others[:1])))
    return listed


def _source(link: str) -> dict[str, str]:
    parts = urlsplit(link)
    host = (parts.hostname or "").lower()
    if host == "drive.google.com":
        match = re.search(r"/d/([\w-]+)", parts.path)
        return {"kind": "google-drive", "id": match[1] if match else parse_qs(parts.query).get("id", [""])[0]}
    is_onedrive = host in ("1drv.ms", "onedrive.live.com") or host.endswith(".sharepoint.com")
    return {"kind": "onedrive" if is_onedrive else "http", "url": link}


def _toml(name: str, table: dict[str, Any]) -> str:
    """The table of a set in TOML, whose texts, numbers and truth values are written as in JSON."""
    key = name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)

    def lines(values: dict[str, Any]) -> str:
        return "".join(f"{each} = {json.dumps(value, ensure_ascii=False)}\n" for each, value in values.items())

    text = f"[sets.{key}]\n" + lines({each: value for each, value in table.items() if not isinstance(value, list)})
    for kind in ("sources", "downloads"):
        text += "".join(f"\n[[sets.{key}.{kind}]]\n{lines(each)}" for each in table.get(kind, []))
    return text
