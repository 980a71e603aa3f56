"""Checking a catalogue against its schema; a wrong key is named with its line."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from facedata.download.digest import ALGORITHMS
from facedata.download.toml_lines import Place, find_line
from facedata.download.transfer.pages import plain_line
from facedata.errors import CatalogueError

__all__ = ["LAYOUTS", "SCHEMA", "SOURCES", "STATUSES", "read_catalogue"]

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
"""What a set's status may be, and how it is said."""

SOURCES = {
    "http": "url",
    "google-drive": "id",
    "onedrive": "url",
    "baidu": "url",
    "magnet": "url",
    "page": "note",
    "agreement": "note",
}
"""What a source may be, and the key that it cannot do without."""

LAYOUTS = ("files", "folder", "learn-to-cluster")

Check = Callable[[Any], str]
"""Says what is wrong with a value, or nothing."""


@dataclass(frozen=True)
class _Key:
    expected: str
    check: Check
    required: bool = False


@dataclass(frozen=True)
class _Tables:
    """An array of tables of one form."""

    keys: Mapping[str, _Key | _Tables]


def _is(expected: str, test: Callable[[Any], object], *, required: bool = False) -> _Key:
    return _Key(expected, lambda value: "" if test(value) else f"expected {expected}, found {_shown(value)}", required)


def _shown(value: Any) -> str:
    return plain_line(repr(value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _positive(value: Any) -> bool:
    return _whole(value) and value > 0


def _one_of(names: Iterable[str]) -> Callable[[Any], bool]:
    """Not a plain ``in``: a list or a table, which has no hash, may stand where a name should."""
    known = tuple(names)
    return lambda value: isinstance(value, str) and value in known


def _line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _lines(value: Any) -> bool:
    return isinstance(value, list) and all(map(_line, value))


def _path(value: Any) -> bool:
    """A relative path that stays below the root, without hidden or empty parts."""
    return _line(value) and "\\" not in value and all(part and part[0] != "." for part in value.split("/"))


def _name(value: Any) -> bool:
    return _path(value) and "/" not in value


def _url(value: Any) -> bool:
    return _line(value) and re.fullmatch(r"(https?://[^\s/]+(/\S*)?|magnet:\S+)", value) is not None


def _statuses(value: Any) -> bool:
    return isinstance(value, list) and all(map(_one_of(STATUSES), value))


_TEXT = _is("a line of text", _line)
_TEXTS = _is("a list of lines of text", _lines)
_COUNT = _is("a whole number", _whole)
_COUNT_TEXT = _is("a whole number, or a text such as '9K'", lambda value: _whole(value) or _line(value))
_PATH = _is("a path below the root, without '..'", _path)
_NAME = _is("the name of a file, without folders", _name, required=True)
_FLAG = _is("true or false", lambda value: isinstance(value, bool))


def _digest(digits: int) -> _Key:
    pattern = re.compile(f"[0-9a-fA-F]{{{digits}}}")
    return _is(f"{digits} hexadecimal digits", lambda value: isinstance(value, str) and pattern.fullmatch(value))


_DIGESTS = {algorithm: _digest(digits) for algorithm, digits in ALGORITHMS.items()}

_SET: dict[str, _Key | _Tables] = {
    "title": _TEXT,
    "what": _TEXT,
    "family": _TEXT,
    "aliases": _TEXTS,
    "people": _COUNT_TEXT,
    "images": _COUNT_TEXT,
    "classes": _COUNT,
    "about_bytes": _COUNT,
    "status": _is(f"a list of {', '.join(STATUSES)}", _statuses),
    "status_note": _TEXT,
    "licence": _TEXT,
    "homepage": _is("a URL", _url),
    "notes": _TEXTS,
    "layout": _is(f"one of {', '.join(LAYOUTS)}", _one_of(LAYOUTS)),
    "folder": _is("the name of a folder", _name),
    "complete": _FLAG,
    "holding": _is("the name of a file or folder", _name),
    "next": _TEXTS,
    "sources": _Tables(
        {
            "kind": _is(f"one of {', '.join(SOURCES)}", _one_of(SOURCES), required=True),
            "url": _is("a URL: http://, https:// or magnet:", _url),
            "id": _is("an id of Google Drive", lambda v: isinstance(v, str) and re.fullmatch(r"[\w-]{10,200}", v)),
            "file": _is("the name of a download", _name),
            "code": _TEXT,
            "note": _TEXT,
        }
    ),
    "downloads": _Tables(
        {
            "name": _NAME,
            "place": _PATH,
            "bytes": _COUNT,
            "about_bytes": _COUNT,
            **_DIGESTS,
            "superseded": _Tables({"name": _NAME, "what": _TEXT, **_DIGESTS}),
        }
    ),
    "files": _Tables(
        {
            "path": _is("a path below the root, without '..'", _path, required=True),
            "bytes": _COUNT,
            "lines": _COUNT,
            "classes": _COUNT,
            "rows": _COUNT,
            "dimensions": _is("a whole number from 1 on", _positive),
            "index": _PATH,
            "optional": _FLAG,
            **_DIGESTS,
        }
    ),
}


def read_catalogue(text: str, name: str) -> dict[str, dict[str, Any]]:
    """The sets of a catalogue, each as the table that the file has, checked.

    Parameters
    ----------
    text : str
        TOML.
    name : str
        What messages call the file.

    Raises
    ------
    CatalogueError
        With the line and the key.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{name}: is not TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; tables in tables without end
        raise CatalogueError(f"{name}: is no catalogue: {plain_line(str(error))}") from error
    for place, problem in _problems(document):
        shown = plain_line(".".join(map(str, place)))
        raise CatalogueError(f"{name}: line {find_line(text, place)}: {shown}: {problem}")
    sets: dict[str, dict[str, Any]] = document.get("sets", {})
    return sets


def _problems(document: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    for key in document.keys() - {"schema", "sets"}:
        yield (key,), _unknown(key, {"schema", "sets"})
    version = document.get("schema", SCHEMA)
    if version != SCHEMA:
        yield ("schema",), f"is {version!r}; this facedata reads version {SCHEMA}: a newer one may read it"
    sets = document.get("sets", {})
    if not isinstance(sets, dict):
        yield ("sets",), "expected tables named [sets.NAME]"
        return
    for name, table in sets.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
            yield ("sets", name), "a name has letters, digits, '-', '_' and '.' only"
        elif not isinstance(table, dict):
            yield ("sets", name), "expected a table"
        else:
            yield from _table_problems(table, _SET, ("sets", name))


def _table_problems(
    table: dict[str, Any], keys: Mapping[str, _Key | _Tables], place: Place
) -> Iterator[tuple[Place, str]]:
    for key, value in table.items():
        rule = keys.get(key)
        if rule is None:
            yield (*place, key), _unknown(key, keys.keys())
        elif isinstance(rule, _Key):
            if problem := rule.check(value):
                yield (*place, key), problem
        else:
            yield from _array_problems(value, rule, (*place, key))
    for key, rule in keys.items():
        if isinstance(rule, _Key) and rule.required and key not in table:
            yield place, f"has no '{key}'"
    if place[-2:-1] == ("sources",):
        yield from _source_problems(table, place)


def _array_problems(value: Any, rule: _Tables, place: Place) -> Iterator[tuple[Place, str]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        yield place, f"expected tables, as [[{'.'.join(str(part) for part in place)}]]"
        return
    for number, one in enumerate(value):
        yield from _table_problems(one, rule.keys, (*place, number))


def _source_problems(table: dict[str, Any], place: Place) -> Iterator[tuple[Place, str]]:
    kind = table.get("kind")
    needed = SOURCES.get(kind, "") if isinstance(kind, str) else ""
    if needed and needed not in table:
        yield place, f"a source of the kind '{kind}' has no '{needed}'"
    if kind in ("http", "onedrive") and str(table.get("url", "")).startswith("magnet:"):
        yield (*place, "url"), f"a source of the kind '{kind}' needs a URL that begins with http:// or https://"


def _unknown(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, known, 1)
    meant = f"; was '{close[0]}' meant?" if close else f"; known are {', '.join(sorted(known))}"
    return f"unknown key{meant}"
