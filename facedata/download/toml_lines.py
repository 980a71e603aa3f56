"""On which line of a TOML file a key stands; the standard library's parser does not say."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["Place", "find_line"]

Place = tuple[str | int, ...]
"""Keys, and numbers where a key holds an array of tables: ``("sets", "glint360k", "files", 0, "md5")``."""

_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


def find_line(text: str, place: Place) -> int:
    """The line, counted from 1, of the key at `place`, or of the nearest table around it.

    Keys inside of inline tables and arrays count as the line on which these begin.
    """
    best, depth = 1, 0
    for number, found in _keys(text):
        shared = _shared(found, place)
        if shared in (len(found), len(place)) and shared > depth:
            best, depth = number, shared
    return best


def _shared(one: Place, other: Place) -> int:
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))


def _keys(text: str) -> Iterator[tuple[int, Place]]:
    """Each header and each assignment of the file, with the line it begins on."""
    table: Place = ()
    counts: dict[Place, int] = {}
    for number, line in _code_lines(text):
        header = _HEADER.match(line)
        if header and _parts(header[2]):
            table = _table(_parts(header[2]), counts, array=header[1] == "[[")
            yield number, table
        elif assignment := _ASSIGNMENT.match(line):
            yield number, (*table, *_parts(assignment[1]))


def _table(parts: Place, counts: dict[Place, int], *, array: bool) -> Place:
    """The place of a header: names that hold arrays of tables mean their newest table."""
    place: Place = ()
    for part in parts[:-1]:
        place = (*place, part)
        if place in counts:
            place = (*place, counts[place])
    place = (*place, parts[-1])
    if array:
        counts[place] = counts.get(place, -1) + 1
        place = (*place, counts[place])
    return place


def _parts(dotted: str) -> Place:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _code_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that do not begin inside of a text or an array that runs over several lines."""
    quote, depth = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        if not quote and depth == 0:
            yield number, line
        if not quote and depth == 0 and _HEADER.match(line):
            continue
        quote, depth = _scan(line, quote, depth)


def _scan(line: str, quote: str, depth: int) -> tuple[str, int]:
    """What the line leaves open: a text of three quotes, and so many brackets."""
    position = 0
    while position < len(line):
        if quote:
            position, quote = _in_text(line, position, quote)
            continue
        if line[position] == "#":
            break
        if line[position] in "\"'":
            quote = line[position] * (3 if line.startswith(line[position] * 3, position) else 1)
            position += len(quote)
            continue
        depth += (line[position] in "[{") - (line[position] in "]}")
        position += 1
    return (quote if len(quote) == 3 else ""), max(depth, 0)


def _in_text(line: str, position: int, quote: str) -> tuple[int, str]:
    if line[position] == "\\" and quote[0] == '"':
        return position + 2, quote
    if line.startswith(quote, position):
        return position + len(quote), ""
    return position + 1, quote
