"""Our JSON lines: ``{"key": ..., "landmarks": [[x, y], ...], "box": [left, top, right, bottom], "score": ...}``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from facedata.align.faces import Face
from facedata.align.landmark_files.keys import bytes_of_key
from facedata.align.landmark_files.parsing import KNOWN_COUNTS, LineError, landmarks_of, shown

__all__ = ["JsonLines"]

_KEY_FIRST = re.compile(rb'\s*\{\s*"key"\s*:\s*"([^"\\]+)"')
_LANDMARKS = ("landmarks", *(f"landmarks{count}" for count in KNOWN_COUNTS))  # as make-sample calls them
_NUMBERS = {int, float}


@dataclass(frozen=True)
class JsonLines:
    """One object a line; box and score may be missing, and other names are passed over.

    A line without landmarks, or with null in their place, is an image without.
    """

    name: str = "JSON lines of landmarks"
    header: int = 0
    keyed: bool = True
    numbered: bool = False
    relative: bool = False

    @classmethod
    def recognise(cls, lines: Sequence[bytes]) -> JsonLines | None:
        """The dialect, where an object comes first."""
        return cls() if lines[0].lstrip().startswith(b"{") else None

    def key(self, line: bytes) -> bytes | None:
        """The key, a text or an integer."""
        match = _KEY_FIRST.match(line)
        if match and b'"landmarks' in line:  # the whole line is looked at when its face is wanted
            return match[1]
        value = _read_object(line)
        key = value.get("key")
        if type(key) not in (str, int) or key == "":
            raise LineError(f'expected an object with a "key", a text, found {shown(line)}')
        return None if _landmarks_in(value) is None else bytes_of_key(str(key))

    def face(self, line: bytes) -> Face | None:
        """Landmarks, box and score."""
        value = _read_object(line)
        points = _landmarks_in(value)
        if points is None:
            return None
        return Face(landmarks_of(_coordinates(points)), _box(value.get("box")), _score(value.get("score")))


def _landmarks_in(value: dict[str, Any]) -> Any:
    return next((value[name] for name in _LANDMARKS if value.get(name) is not None), None)


def _coordinates(points: Any) -> list[float]:
    try:
        pairs = set(map(len, points)) <= {2}
        numbers = list(chain.from_iterable(points))
    except TypeError:
        pairs, numbers = False, []
    if not pairs or not set(map(type, numbers)) <= _NUMBERS:
        raise LineError("expected landmarks as a list of [x, y], found something else")
    return _floats(numbers)


def _floats(numbers: Sequence[Any]) -> list[float]:
    try:
        return list(map(float, numbers))
    except OverflowError:
        raise LineError("a number is too large") from None


def _box(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not set(map(type, value)) <= _NUMBERS:
        raise LineError("expected a box as [left, top, right, bottom], found something else")
    return np.array(_floats(value), np.float64)


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in _NUMBERS:
        raise LineError("expected a number as the score, found something else")
    return _floats([value])[0]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise LineError("the same name stands twice in an object")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        value = _decode(line.decode("utf-8", "surrogateescape"))
    except LineError:
        raise
    except (ValueError, RecursionError) as error:  # also a number with thousands of digits
        raise LineError(f"is no JSON ({str(error)[:80]}): {shown(line)}") from None
    if not isinstance(value, dict):
        raise LineError(f"expected a JSON object, found {shown(line)}")
    return value
