"""What the dialects of landmark files share: numbers out of text, and a face out of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.layouts import LAYOUTS

__all__ = ["KNOWN_COUNTS", "Dialect", "LineError", "landmarks_in", "landmarks_of", "numbers_in", "shown"]

KNOWN_COUNTS = tuple(sorted(LAYOUTS))
_KNOWN_NUMBERS = frozenset(2 * count for count in KNOWN_COUNTS)
_SHOWN = 60


class LineError(ValueError):
    """A line that is not what its dialect says; told without the place, which whoever reads the file knows."""


class Dialect(Protocol):
    """How landmarks stand in the lines of a file; picklable."""

    @property
    def name(self) -> str:
        """What such a file is called."""
        ...

    @property
    def header(self) -> int:
        """Lines before the first entry."""
        ...

    @property
    def keyed(self) -> bool:
        """Whether a line says which image it belongs to; else the first belongs to the first image, and so on."""
        ...

    @property
    def numbered(self) -> bool:
        """Whether images are told by their position in the source, from 0, and not by their keys."""
        ...

    @property
    def relative(self) -> bool:
        """Whether coordinates are fractions of the image's width and height."""
        ...

    def key(self, line: bytes) -> bytes | None:
        """The image's key; None where the line has no landmarks. Raises `LineError`."""
        ...

    def face(self, line: bytes) -> Face | None:
        """The face; None where the line has no landmarks. Raises `LineError`."""
        ...


def shown(text: bytes) -> str:
    """The beginning of a text, for messages."""
    return repr(text[:_SHOWN].decode(errors="replace")) + ("..." if len(text) > _SHOWN else "")


def numbers_in(fields: Sequence[bytes]) -> list[float]:
    """Decimal numbers; ``nan`` and ``inf`` are numbers too, which whoever uses them refuses.

    Raises
    ------
    LineError
        Where one is none; names it.
    """
    try:
        values = list(map(float, fields))
    except ValueError:
        raise LineError(f"expected numbers, found {shown(_first_wrong(fields))}") from None
    _refuse_underscores(fields)
    return values


def _refuse_underscores(fields: Sequence[bytes]) -> None:
    """Python takes them in numbers, and nothing else that reads such files does."""
    if b"_" in b"".join(fields):
        raise LineError(f"expected numbers, found {shown(next(field for field in fields if b'_' in field))}")


def landmarks_in(fields: Sequence[bytes]) -> NDArray[np.float64]:
    """Points out of the fields x1, y1, x2, y2, ...; quicker for many than `numbers_in` and `landmarks_of`.

    Raises
    ------
    LineError
        Where one is no number, or no layout has so many.
    """
    if len(fields) not in _KNOWN_NUMBERS:
        return landmarks_of(numbers_in(fields))
    try:
        points = np.array(fields, np.float64).reshape(-1, 2)
    except ValueError:
        raise LineError(f"expected numbers, found {shown(_first_wrong(fields))}") from None
    _refuse_underscores(fields)
    return points


def _first_wrong(fields: Iterable[bytes]) -> bytes:
    for field in fields:
        try:
            float(field)
        except ValueError:
            return field
    return b""


def landmarks_of(numbers: Sequence[float]) -> NDArray[np.float64]:
    """Points out of x1, y1, x2, y2, ...

    Raises
    ------
    LineError
        Where no layout has so many.
    """
    if len(numbers) not in _KNOWN_NUMBERS:
        counts = f"{', '.join(map(str, KNOWN_COUNTS[:-1]))} or {KNOWN_COUNTS[-1]} points"
        found = f"{len(numbers)} numbers" if len(numbers) % 2 else f"{len(numbers) // 2} points"
        raise LineError(f"found {found}, expected {counts}, x and y of each")
    return np.array(numbers, np.float64).reshape(-1, 2)
