"""Names of tars: a numbered pattern, a range in braces, a glob, a folder."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from math import prod

from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError, input_error
from facedata.text import natural_sort

__all__ = ["COMPRESSED", "NumberedNames", "find_tars", "parse_numbered"]

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_NUMBERED = re.compile(r"((?:[^%]|%%)*)%(?:0(\d\d?))?d((?:[^%]|%%)*)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_MOST_NAMES = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NumberedNames:
    """File names with a number, as given by ``%06d`` in a pattern."""

    before: str
    width: int
    after: str

    def name(self, number: int) -> str:
        """The file name with that number."""
        return f"{self.before}{number:0{self.width}d}{self.after}"

    def number(self, name: str) -> int | None:
        """The number in a file name; None if it is named differently."""
        digits = name[len(self.before) : len(name) - len(self.after)]
        if digits.isascii() and digits.isdigit() and name == self.name(int(digits)):
            return int(digits)
        return None

    def __str__(self) -> str:
        number = f"%0{self.width}d" if self.width else "%d"
        return f"{self.before.replace('%', '%%')}{number}{self.after.replace('%', '%%')}"


def parse_numbered(name: str) -> NumberedNames | None:
    """The file names of a pattern with one number; None if it is not such a pattern."""
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return None
    return NumberedNames(match[1].replace("%%", "%"), int(match[2] or 0), match[3].replace("%%", "%"))


def find_tars(spec: str) -> list[str]:
    """The paths of the tars that `spec` names, in order.

    Parameters
    ----------
    spec : str
        A file; a folder, for each ``*.tar`` in it; a pattern with one number (``glint-%06d.tar``), for all files with
        such names, in the order of the numbers; ranges or lists in braces (``glint-{000000..000123}.tar``), for exactly
        these; or a glob.

    Raises
    ------
    InputError
        If nothing has such a name.
    """
    if os.path.lexists(spec):
        return _in_folder(spec) if os.path.isdir(spec) else [spec]
    if (names := _expand_braces(spec)) is not None:
        for name in names:
            if not os.path.lexists(name):
                raise InputNotFoundError(f"{name}: no such file; {spec} names {len(names)} tars, and all must exist")
        return names
    folder, base = os.path.split(spec)
    if (numbered := parse_numbered(base)) is not None:
        found = _numbered_in(folder, numbered)
    else:
        found = natural_sort(glob.glob(spec)) if glob.has_magic(spec) else []
    if not found:
        raise InputNotFoundError(f"{spec}: no such file or folder")
    return found


def _in_folder(folder: str) -> list[str]:
    names = [name for name in _list(folder) if not name.startswith(".")]
    tars = natural_sort(name for name in names if name.endswith(".tar"))
    if not tars:
        compressed = [name for name in names if name.endswith(COMPRESSED)]
        hint = f"; {compressed[0]} is compressed: decompress it to a plain .tar first" if compressed else ""
        raise EmptyDatasetError(f"{folder}: there is no .tar in this folder{hint}")
    return [os.path.join(folder, name) for name in tars]


def _list(folder: str) -> Sequence[str]:
    try:
        return os.listdir(folder or ".")
    except OSError as error:
        raise input_error(error, folder) from error


def _numbered_in(folder: str, numbered: NumberedNames) -> list[str]:
    numbers = sorted(number for name in _list(folder) if (number := numbered.number(name)) is not None)
    for before, number in pairwise(numbers):
        if number > before + 1:
            _log.warning("%s: there is no %s; continuing without it", folder or ".", numbered.name(before + 1))
            break
    return [os.path.join(folder, numbered.name(number)) for number in numbers]


def _expand_braces(spec: str) -> list[str] | None:
    """Every name that braces stand for, the last pair changing first; None without ranges or lists."""
    literals, insides = _BRACES.split(spec)[::2], _BRACES.findall(spec)
    choices = [_choices(inside) for inside in insides]
    if not any(choices):
        return None
    if prod(len(choice or "1") for choice in choices) > _MOST_NAMES:
        raise FormatError(f"{spec}: stands for more than {_MOST_NAMES} names")
    options = [choice or [f"{{{inside}}}"] for choice, inside in zip(choices, insides, strict=True)]
    chosen = product(*options)
    return ["".join(chain.from_iterable(zip(literals, (*pieces, ""), strict=True))) for pieces in chosen]


def _choices(inside: str) -> list[str] | None:
    """What a pair of braces stands for; None if it is neither a range nor a list."""
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",") if "," in inside else None
    first, last = match.groups()
    step = 1 if int(first) <= int(last) else -1
    numbers = range(int(first), int(last) + step, step)
    if len(numbers) > _MOST_NAMES:
        raise FormatError(f"{{{inside}}}: stands for more than {_MOST_NAMES} names")
    padded = any(text.startswith("0") and len(text) > 1 for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}d}" for number in numbers]
