"""Names in natural order (``id_2`` before ``id_10``, the same on every machine), and text to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

_DIGITS = re.compile(r"(\d+)", re.ASCII)
_OBEYED = re.compile(r"[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]")  # the last: not UTF-8
_PLAIN_NUMBERS = r"{0}(?:0|[1-9]\d*)((?:[^\d\0][^\0]*)?)(?:\0{0}(?:0|[1-9]\d*+)\1)*+"


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """The sort key: runs of digits count as numbers, all else by code point; the name itself decides a tie."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), name


def shared_prefix(first: str, last: str) -> int:
    """The number of letters that all names between these two, sorted, begin with."""
    return next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


def shared_folder(paths: Iterable[str]) -> str:
    """The folder that all paths lie in, with a slash at its end; empty if there is none."""
    low = high = None
    for path in paths:
        low, high = path if low is None else min(low, path), path if high is None else max(high, path)
    shared = (low or "")[: shared_prefix(low or "", high or "")]
    return shared[: shared.rfind("/") + 1]


def natural_sort(names: Iterable[str]) -> list[str]:
    """The names in natural order.

    Names that differ in one number alone, as in most folders of images, are recognised with one pattern and sorted by
    length, then text: the same order, an order of magnitude faster.
    """
    names = sorted(names)
    if len(names) < 2:
        return names
    shared = shared_prefix(names[0], names[-1])
    while shared and names[0][shared - 1].isdigit():
        shared -= 1
    pattern = _PLAIN_NUMBERS.format(re.escape(names[0][:shared]))
    if re.fullmatch(pattern, "\0".join(names), re.ASCII):
        names.sort(key=len)
    else:
        names.sort(key=natural_key)
    return names


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """``1 image``, ``17,091,657 images``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(names: Sequence[object], most: int = 3, *, quote: str = "'") -> str:
    """The first few names of many: ``'a', 'b', 'c' and 14 more``."""
    shown = ", ".join(f"{quote}{name}{quote}" for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def escaped(text: str, *, json: bool = False) -> str:
    """Text with backslash escapes for what a terminal obeys, as ESC, or a line end; in JSON, which keeps its value."""
    if json:
        return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return _OBEYED.sub(lambda found: ascii(found[0]).strip("'").replace("udc", "x"), text)


def plain_line(text: str, longest: int = 120) -> str:
    """Text of unknown origin as one line that is safe to print on a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def shown_url(url: str) -> str:
    """A URL without user name and password, as it may be shown and recorded."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return plain_line(url, 500)
