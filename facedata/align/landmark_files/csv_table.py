"""Our CSV: a header of ``key,x1,y1,...,x5,y5``, and perhaps ``left``, ``top``, ``right``, ``bottom``, ``score``."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError, landmarks_of, numbers_in, shown

__all__ = ["BOX", "KEY_NAMES", "SCORE", "CsvTable", "coordinate_names"]

KEY_NAMES = ("key", "path")
BOX = ("left", "top", "right", "bottom")
SCORE = "score"
_MOST_POINTS = 1000
_log = logging.getLogger(__name__)


def coordinate_names(points: int) -> list[str]:
    """The names of the columns of so many points."""
    return [f"{axis}{point}" for point in range(1, points + 1) for axis in "xy"]


@dataclass(frozen=True)
class CsvTable:
    """Where the columns are.

    Attributes
    ----------
    width : int
        Columns in all.
    key_column : int
    coordinates : tuple of int
        The columns of x1, y1, x2, y2, ...
    box, score : tuple of int
        The columns of the box and the score; empty where there are none.
    """

    width: int
    key_column: int
    coordinates: tuple[int, ...]
    box: tuple[int, ...]
    score: tuple[int, ...]
    name: str = "CSV of landmarks"
    header: int = 1
    keyed: bool = True
    numbered: bool = False
    relative: bool = False

    @classmethod
    def recognise(cls, lines: Sequence[bytes]) -> CsvTable | None:
        """The dialect, where a header with x1 and y1 comes first. Raises `LineError` where it is not whole."""
        try:
            names = [name.strip().decode().lower() for name in _fields(lines[0].strip())]
        except (LineError, UnicodeDecodeError):
            return None
        return cls._of_names(names) if "x1" in names and "y1" in names else None

    @classmethod
    def _of_names(cls, names: list[str]) -> CsvTable:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise LineError(f"two columns are called '{twice[0]}'")
        keys = [name for name in KEY_NAMES if name in names]
        if not keys:
            raise LineError("no column is called 'key'")
        points = next((point for point in range(1, _MOST_POINTS) if f"x{point + 1}" not in names), _MOST_POINTS)
        landmarks_of([0.0] * (2 * points))
        wanted = coordinate_names(points)
        for name in wanted + list(BOX if any(corner in names for corner in BOX) else ()):
            if name not in names:
                raise LineError(f"no column is called '{name}'")
        unknown = [name for name in names if name not in {keys[0], SCORE, *BOX, *wanted}]
        if unknown:
            _log.info("passed over the columns %s of the landmarks", ", ".join(map(repr, unknown)))
        place = {name: column for column, name in enumerate(names)}
        at = [tuple(place[name] for name in group if name in place) for group in (wanted, BOX, (SCORE,))]
        return cls(len(names), place[keys[0]], at[0], at[1], at[2])

    def key(self, line: bytes) -> bytes:
        """The key."""
        if self.key_column == 0 and b'"' not in line:
            key, comma, _ = line.partition(b",")
        else:
            key, comma = self._row(line)[self.key_column], b","
        if not key or not comma:
            raise LineError(f"expected a key and {self.width - 1} more fields, with commas, found {shown(line)}")
        return key

    def face(self, line: bytes) -> Face:
        """Landmarks, and box and score where the fields are not empty."""
        fields = self._row(line)
        landmarks = landmarks_of(numbers_in([fields[column] for column in self.coordinates]))
        box = self._optional(fields, self.box)
        score = self._optional(fields, self.score)
        return Face(landmarks, box, None if score is None else float(score[0]))

    def _optional(self, fields: Sequence[bytes], columns: tuple[int, ...]) -> NDArray[np.float64] | None:
        texts = [fields[column] for column in columns]
        return np.array(numbers_in(texts), np.float64) if any(texts) else None

    def _row(self, line: bytes) -> list[bytes]:
        fields = _fields(line)
        if len(fields) != self.width:
            raise LineError(f"expected {self.width} fields, as the header has, found {len(fields)}: {shown(line)}")
        return fields


def _fields(line: bytes) -> list[bytes]:
    if b'"' not in line:
        return line.split(b",")
    try:  # bytes go in and out of text unchanged as Latin-1
        rows = list(csv.reader([line.decode("latin-1")], strict=True))
    except csv.Error as error:
        raise LineError(f"a quotation mark too many or too few ({error}): {shown(line)}") from None
    return [field.encode("latin-1") for row in rows for field in row]
