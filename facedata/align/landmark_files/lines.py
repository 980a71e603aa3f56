"""What the dialects of landmark files share: a dialect and an entry, and how numbers and points are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import LAYOUTS, Face

LONGEST_LINE = 1 << 16
"""Bytes; 106 points with all digits of a double take 5,000."""

NUMBER = rb"[-+]?(?:\d+(?:\.\d*)?|\.\d+|inf|infinity|nan)(?:e[-+]?\d+)?"
"""The pattern of a decimal number, in lower case."""

Floats = NDArray[np.float64]
Entry = tuple[bytes | None, Callable[[], Face | None]]
"""The key of the image that a line belongs to, and what reads the face of the line, since most lines are only matched.

The key is None, or the face, if the line has no landmarks. Both raise `LineError`.
"""

is_number = re.compile(rb"(?i)\s*" + NUMBER + rb"\s*").fullmatch
_SHOWN = 60


class LineError(ValueError):
    """A line does not follow its dialect; the message leaves out the place, which the reader of the file adds."""


@dataclass(frozen=True)
class Dialect:
    """One way to write landmarks in lines of text; picklable.

    Attributes
    ----------
    name, example : str
        What such a file is called, and the beginning of a line, for messages.
    first_line : pattern
        What the first line of such a file matches, without white space at its end, and that of no dialect before it.
    parse : callable
        From a line, without its end, to an `Entry`; `adapt` supplies all other parameters.
    adapt : callable, optional
        From the dialect and the first lines of a file to the dialect of this very file, or None if it is of another
        dialect; raises `LineError`.
    header : int
        How many lines come before the first entry.
    keyed, numbered, relative : bool
        Whether entries say which image they belong to; whether images are identified by their position in the dataset;
        whether coordinates are fractions of the image's width and height.
    """

    name: str
    example: str
    first_line: re.Pattern[bytes]
    parse: Callable[..., Entry]
    adapt: Callable[[Dialect, Sequence[bytes]], Dialect | None] | None = None
    header: int = 0
    keyed: bool = True
    numbered: bool = False
    relative: bool = False


def shown(text: bytes) -> str:
    """The beginning of a text, in quotation marks, for messages."""
    return repr(text[:_SHOWN].decode(errors="replace")) + ("..." if len(text) > _SHOWN else "")


def numbers_of(fields: Sequence[bytes]) -> Floats:
    """Decimal numbers; ``nan`` and ``inf`` too, which are refused when a face is aligned."""
    try:
        numbers = np.fromiter(map(float, fields), np.float64, len(fields))
    except ValueError:
        pass
    else:  # Python accepts underscores in numbers, and no other reader of such files does
        if b"_" not in b"".join(fields):
            return numbers
    wrong = next(field for field in fields if not is_number(field))
    raise LineError(f"expected numbers, found {shown(wrong)}")


def points_of(numbers: Sequence[float] | Floats) -> Floats:
    """The points, shape (P, 2), of x1, y1, x2, y2, ..., if there is a layout of so many."""
    if len(numbers) % 2 or len(numbers) // 2 not in LAYOUTS:
        *counts, last = map(str, LAYOUTS)
        found = f"{len(numbers)} numbers" if len(numbers) % 2 else f"{len(numbers) // 2} points"
        raise LineError(f"found {found}, expected {', '.join(counts)} or {last} points, x and y of each")
    return np.asarray(numbers, np.float64).reshape(-1, 2)


def mostly_fractions(rows: Iterable[Floats]) -> bool:
    """Whether more faces have coordinates that can be fractions of an image's size than have others.

    A failed detection leaves a wild number here and there; one of them must not turn the whole file into pixels.
    Faces of whole numbers, such as zeros for an image without a face, and of NaN do not count.
    """
    balance = 0
    for numbers in rows:
        if not np.isfinite(numbers).all():
            continue
        if np.any((numbers < -1.0) | (numbers > 2.0)):  # a face may reach over the edge of its image
            balance -= 1
        elif np.any(numbers % 1.0):
            balance += 1
    return balance > 0
