"""The schema of a catalogue: the keys that it may have, their values, and the rules that a set must keep."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from facedata.download.checksums import ALGORITHMS
from facedata.errors import CatalogueError
from facedata.text import plain_line

__all__ = ["BY_PROGRAM", "PROVENANCE", "SCHEMA", "SOURCES", "STATUSES", "check_set", "read_catalogue"]

SCHEMA = 1
"""The version of the schema that this facedata reads."""

STATUSES = {
    "free": "free to use",
    "synthetic": "no real people; licence of its own",
    "non-commercial": "non-commercial research only",
    "agreement": "signed agreement needed; may not be passed on",
    "withdrawn": "withdrawn by its publisher",
    "derivative": "derivative of a withdrawn set",
    "offline": "taken offline by its authors",
    "ended": "distribution has ended",
    "dead-host": "official host dead; mirrors exist",
    "no-face-recognition": "licence forbids use for face recognition",
    "unknown": "terms not known",
}
"""The statuses that a set may have, in words."""

SOURCES = {
    "http": "url",
    "google-drive": "id",
    "onedrive": "url",
    "baidu": "url",
    "magnet": "url",
    "page": "note",
    "agreement": "note",
}
"""The kinds of sources, and the key that each must have."""

BY_PROGRAM = ("http", "google-drive", "onedrive")
"""The kinds of sources that facedata can download from."""

PROVENANCE = "provenance.json"
"""The name of facedata's own record below a root, which no download may have."""

_LAYOUTS = ("files", "folder", "learn-to-cluster")


class _Key(NamedTuple):
    expected: str
    test: Callable[[Any], object]
    is_required: bool = False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _matches(pattern: str) -> Callable[[Any], object]:
    return lambda value: _is_line(value) and re.fullmatch(pattern, value)


def _one_of(names: Collection[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


def _list_of(test: Callable[[Any], object]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


_PART = r"[^./\\][^/\\]*"  # of a path, not hidden
_URL = r"(https?://[^\s/]+(/\S*)?|magnet:\S+)"
_LINE = _Key("a line of text", _is_line)
_LINES = _Key("a list of lines of text", _list_of(_is_line))
_COUNT = _Key("a whole number", _is_count)
_COUNT_OR_LINE = _Key("a whole number, or a text such as '9K'", lambda value: _is_count(value) or _is_line(value))
_PATH = _Key("a path below the root, without '..'", _matches(f"{_PART}(/{_PART})*"))
_NAME = _Key("the name of a file, without folders", _matches(_PART), is_required=True)
_FLAG = _Key("true or false", lambda value: isinstance(value, bool))
_DIGESTS = {
    algorithm: _Key(f"{digits} hexadecimal digits", _matches(f"[0-9a-fA-F]{{{digits}}}"))
    for algorithm, digits in ALGORITHMS.items()
}
_SET: dict[str, Any] = {
    "title": _LINE,
    "what": _LINE,
    "family": _LINE,
    "aliases": _LINES,
    "people": _COUNT_OR_LINE,
    "images": _COUNT_OR_LINE,
    "classes": _COUNT,
    "about_bytes": _COUNT,
    "status": _Key(f"a list of {', '.join(STATUSES)}", _list_of(_one_of(STATUSES))),
    "status_note": _LINE,
    "licence": _LINE,
    "homepage": _Key("a URL", _matches(_URL)),
    "publisher": _LINE,
    "search": _LINE,
    "notes": _LINES,
    "layout": _Key(f"one of {', '.join(_LAYOUTS)}", _one_of(_LAYOUTS)),
    "folder": _Key("the name of a folder", _matches(_PART)),
    "complete": _FLAG,
    "holding": _Key("the name of a file or folder", _matches(_PART)),
    "next": _LINES,
    "sources": {
        "kind": _Key(f"one of {', '.join(SOURCES)}", _one_of(SOURCES), is_required=True),
        "url": _Key("a URL: http://, https:// or magnet:", _matches(_URL)),
        "id": _Key("an id of Google Drive", _matches(r"[\w-]{10,200}")),
        "file": _Key("the name of a download", _matches(_PART)),
        "code": _LINE,
        "note": _LINE,
    },
    "downloads": {
        "name": _NAME,
        "place": _PATH,
        "bytes": _COUNT,
        "about_bytes": _COUNT,
        **_DIGESTS,
        "superseded": {"name": _NAME, "what": _LINE, **_DIGESTS},
    },
    "files": {
        "path": _PATH._replace(is_required=True),
        "bytes": _COUNT,
        "lines": _COUNT,
        "classes": _COUNT,
        "rows": _COUNT,
        "dimensions": _Key("a whole number of at least 1", lambda value: _is_count(value) and value > 0),
        "index": _PATH,
        "optional": _FLAG,
        **_DIGESTS,
    },
}
"""The keys of a set; a dictionary stands for an array of tables with these keys."""
_MOST_DOTS = 1000  # in a line; tomllib takes memory with the square of the parts of a key


def read_catalogue(text: str, name: str) -> dict[str, dict[str, Any]]:
    """The sets of a catalogue in TOML, each as the table that the file has, checked key by key.

    Raises
    ------
    CatalogueError
        If the file breaks the schema; the message gives `name` and the path of the key: ``sets.x.downloads[0].md5``.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > _MOST_DOTS:
            raise CatalogueError(f"{name}: line {number} has more than {_MOST_DOTS:,} dots; is this a catalogue?")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{name}: is not TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; very deep tables
        raise CatalogueError(f"{name}: is not a catalogue: {plain_line(str(error))}") from error
    for key in document.keys() - {"schema", "sets"}:
        raise CatalogueError(f"{name}: {plain_line(key)}: {_unknown(key, ('schema', 'sets'))}")
    if (version := document.get("schema", SCHEMA)) != SCHEMA:
        found = plain_line(repr(version))
        raise CatalogueError(f"{name}: schema: is {found}, but this facedata reads {SCHEMA}; a newer one may read it")
    sets: dict[str, dict[str, Any]] = document.get("sets", {})
    if not isinstance(sets, dict):
        raise CatalogueError(f"{name}: sets: expected tables named [sets.NAME]")
    for key, table in sets.items():
        place = f"{name}: sets.{plain_line(key)}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", key):
            raise CatalogueError(f"{place}: a name may only have letters, digits, '-', '_' and '.'")
        if not isinstance(table, dict):
            raise CatalogueError(f"{place}: expected a table")
        _check_table(table, _SET, place)
        for number, source in enumerate(table.get("sources", ())):
            place, kind = f"{name}: sets.{key}.sources[{number}]", source["kind"]
            if SOURCES[kind] not in source:
                raise CatalogueError(f"{place}: a source of the kind '{kind}' has no '{SOURCES[kind]}'")
            if kind in BY_PROGRAM and source.get("url", "").startswith("magnet:"):
                raise CatalogueError(f"{place}.url: a source of the kind '{kind}' needs an http:// or https:// URL")
    return sets


def _check_table(table: dict[str, Any], keys: Mapping[str, Any], place: str) -> None:
    for key, value in table.items():
        where, rule = f"{place}.{plain_line(key)}", keys.get(key)
        if rule is None:
            raise CatalogueError(f"{where}: {_unknown(key, keys)}")
        if isinstance(rule, _Key):
            if not rule.test(value):
                raise CatalogueError(f"{where}: expected {rule.expected}, found {plain_line(repr(value))}")
        elif not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise CatalogueError(f"{where}: expected an array of tables, [[...{key}]]")
        else:
            for number, each in enumerate(value):
                _check_table(each, rule, f"{where}[{number}]")
    for key, rule in keys.items():
        if isinstance(rule, _Key) and rule.is_required and key not in table:
            raise CatalogueError(f"{place}: has no '{key}'")


def _unknown(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    return f"unknown key; did you mean '{close[0]}'?" if close else f"unknown key; known are {', '.join(sorted(known))}"


def check_set(table: dict[str, Any], place: str) -> None:
    """Check what no key can show alone, when the tables of all files have been merged.

    Raises
    ------
    CatalogueError
        If the set has no title, its layout needs a folder, its downloads would overwrite each other, or a source does
        not say what it gives.
    """
    downloads = table.get("downloads", [])
    names = [download["name"] for download in downloads]
    places = [download.get("place") or download["name"] for download in downloads]
    folders = {str(folder) for path in places for folder in PurePosixPath(path).parents}
    problem = ""
    if "title" not in table:
        problem = "has no 'title', and no set of this name is known to add to"
    elif table.get("layout") == "folder" and "folder" not in table:
        problem = "the layout 'folder' needs the key 'folder'"
    elif repeated := _repeated(names):
        problem = f"downloads: '{repeated}' is listed twice"
    elif repeated := _repeated(places):
        problem = f"downloads: two of them would be '{repeated}' below the root"
    elif PROVENANCE in places:
        problem = f"downloads: '{PROVENANCE}' is the name of facedata's own record"
    elif both := folders.intersection(places):
        problem = f"downloads: '{min(both)}' would be both a file and a folder"
    for source in table.get("sources", []):
        file, address = source.get("file", ""), source.get("url") or source.get("id", "")
        if file and file not in names:
            problem = problem or f"a source has the file '{file}', but the downloads are: {', '.join(names) or 'none'}"
        elif source["kind"] in BY_PROGRAM and not file and len(names) > 1 and not address.endswith("/"):
            problem = problem or (
                f"{address} is one address for {len(names)} downloads: say with 'file' which one it is, "
                "or end the URL of a folder with '/'"
            )
    if problem:
        raise CatalogueError(f"{place}: {problem}")


def _repeated(names: Iterable[str]) -> str:
    return min((name for name, count in Counter(names).items() if count > 1), default="")
