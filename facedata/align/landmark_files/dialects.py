"""The dialects of landmark files: how each project writes the landmarks of a face in one line of text.

To add a dialect, write a function that parses one line, like `parse_image_info`, and add a `Dialect` to `DIALECTS`:
its name, an example of a line, a pattern that only the first line of such a file matches, and the function. If the
meaning of a line depends on a header, `Dialect.adapt` reads it, as `adapt_csv` does. facedata itself writes two
dialects, CSV and JSON lines.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import LAYOUTS, Face
from facedata.align.landmark_files.keys import bytes_of_key
from facedata.errors import FaceError

__all__ = [
    "DIALECTS",
    "LONGEST_LINE",
    "Dialect",
    "Entry",
    "LineError",
    "find_dialect",
    "landmark_header",
    "landmark_line",
    "mostly_fractions",
    "parse_plain_numbers",
]

LONGEST_LINE = 1 << 16
"""Bytes; 106 points with all digits of a double take 5,000."""

Floats = NDArray[np.float64]
Entry = tuple[bytes | None, Callable[[], Face | None]]
"""The key of the image that a line belongs to, and what reads the face of the line, since most lines are only matched.

The key is None, or the face, if the line has no landmarks. Both raise `LineError`.
"""

_NUMBER = rb"[-+]?(?:\d+(?:\.\d*)?|\.\d+|inf|infinity|nan)(?:e[-+]?\d+)?"
_SHOWN = 60
_log = logging.getLogger(__name__)


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
        What the first line of such a file matches, without white space at its end, and that of no other dialect.
    parse : callable
        From a line, without its end, to an `Entry`; `adapt` supplies all other parameters.
    adapt : callable, optional
        From the dialect and the first lines of a file to the dialect of this very file; raises `LineError`.
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
    adapt: Callable[[Dialect, Sequence[bytes]], Dialect] | None = None
    header: int = 0
    keyed: bool = True
    numbered: bool = False
    relative: bool = False


def find_dialect(lines: Sequence[bytes]) -> Dialect:
    """Find the dialect of a file from its first hundred lines; raises `LineError`."""
    for dialect in DIALECTS:
        if dialect.first_line.match(lines[0].rstrip()):
            return dialect if dialect.adapt is None else dialect.adapt(dialect, lines)
    known = "; ".join(f"{dialect.name}: {dialect.example}" for dialect in DIALECTS)
    raise LineError(f"is not a known kind of landmark file: {_shown(lines[0])}; expected one of: {known}")


# What the dialects share


def _shown(text: bytes) -> str:
    return repr(text[:_SHOWN].decode(errors="replace")) + ("..." if len(text) > _SHOWN else "")


def _numbers(fields: Sequence[bytes]) -> Floats:
    """Decimal numbers; ``nan`` and ``inf`` too, which are refused when a face is aligned."""
    try:
        numbers = np.fromiter(map(float, fields), np.float64, len(fields))
    except ValueError:
        pass
    else:  # Python accepts underscores in numbers, and no other reader of such files does
        if b"_" not in b"".join(fields):
            return numbers
    wrong = next(field for field in fields if not re.fullmatch(rb"(?i)\s*" + _NUMBER + rb"\s*", field))
    raise LineError(f"expected numbers, found {_shown(wrong)}")


def _points(numbers: Sequence[float] | Floats) -> Floats:
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


# FaceX-Zoo (https://github.com/JDAI-CV/FaceX-Zoo): 106 points an image


def parse_image_info(line: bytes) -> Entry:
    """FaceX-Zoo's ``lfw_face_info.txt`` and ``facescrub_face_info.txt``; the path may contain spaces."""
    parts = line.rstrip().rsplit(b" ", 2)
    if len(parts) != 3 or not parts[0] or parts[1].count(b",") != 3:
        raise LineError(f"expected 'path left,top,right,bottom x1,y1,x2,y2,...', found {_shown(line)}")
    path, box, points = parts
    return path, lambda: Face(_points(_numbers(points.split(b","))), _numbers(box.split(b",")))


def parse_plain_numbers(line: bytes) -> Entry:
    """FaceX-Zoo's file for one image; if a file has many lines, the first belongs to the first image, and so on."""
    if not line or line.isspace():
        raise LineError("is blank; expected the landmarks of an image")
    return b"", lambda: Face(_points(_numbers(line.split())))


# InsightFace


def parse_insightface(line: bytes) -> Entry:
    """InsightFace's ``.lst`` as ``face_preprocess.parse_lst_line`` reads it: perhaps a box, perhaps landmarks.

    Of the ten numbers of the landmarks the first five are x, the others y. The flag and the label are not used:
    landmarks count whenever a line has them.
    """
    fields = line.rstrip().split(b"\t")
    if line.count(b"\t") < 2 or fields[0] not in (b"0", b"1") or not fields[1]:
        raise LineError(f"expected 'aligned path label' and perhaps box and landmarks, with tabs: {_shown(line)}")
    if len(fields) in (2, 3, 7):
        return None, lambda: None

    def face() -> Face:
        if len(fields) != 17:
            raise LineError(f"expected 3, 7 or 17 fields, found {len(fields)}")
        numbers = _numbers(fields[3:])
        return Face(numbers[4:].reshape(2, 5).T.copy(), numbers[:4])

    return fields[1], face


# CVLFace (https://github.com/mk-minchul/CVLface)


def parse_cvlface(line: bytes, columns: int, numbered: bool) -> Entry:
    """CVLFace's ``ldmk_5points.csv``, written beside a record set by ``predict_landmark.py``.

    The first column is the position of an image in the record set, counted from 0 (not the key of the record, which
    begins at 1), or a path, as others write it. x and y of five points follow, as fractions of the image's width and
    height. CVLFace's reader also takes 15 columns, with a third number for each point.
    """
    key, comma, rest = line.partition(b",")
    if not comma or not key:
        raise LineError(f"expected the image and {columns} numbers, with commas, found {_shown(line)}")
    if numbered:
        if not key.isdigit() or len(key) > 15:
            raise LineError(f"expected the position of an image, counted from 0, found {_shown(key)}")
        key = b"%d" % int(key)

    def face() -> Face:
        numbers = _numbers(rest.rstrip().split(b","))
        if len(numbers) != columns:
            raise LineError(f"expected {columns} numbers, found {len(numbers)}")
        return Face(_points(numbers.reshape(5, 3)[:, :2].ravel() if columns == 15 else numbers))

    return key, face


def adapt_cvlface(dialect: Dialect, lines: Sequence[bytes]) -> Dialect:
    """Find out how many columns there are, what the first one is, and whether the unit is the image or the pixel."""
    columns = lines[0].count(b",")
    names = [name.strip() for name in lines[0].split(b",")[1:]]
    if names != [b"ldmk_%d" % column for column in range(columns)]:
        raise LineError(f"expected the columns idx, ldmk_0, ldmk_1, ldmk_2 and so on, found {_shown(lines[0])}")
    if columns != 15:
        _points([0.0] * columns)
    rows = [line.rstrip().split(b",") for line in lines[1:]]
    numbered = bool(rows) and rows[0][0].strip().isdigit()
    faces = []
    for row in rows:
        with suppress(LineError):
            faces.append(_numbers(row[1:]))
    relative = mostly_fractions(faces)
    parse = partial(parse_cvlface, columns=columns, numbered=numbered)
    return replace(dialect, parse=parse, numbered=numbered, relative=relative)


# Our CSV

_BOX = ("left", "top", "right", "bottom")
_SCORE = "score"


def parse_csv(line: bytes, width: int, key_column: int, groups: Sequence[Sequence[int]]) -> Entry:
    """Our CSV, whose header names the columns; fields of the box and the score may be missing or empty."""
    if key_column == 0 and b'"' not in line:
        key, comma, _ = line.partition(b",")
    else:
        key = comma = _csv_row(line, width)[key_column]
    if not key or not comma:
        raise LineError(f"expected a key and {width - 1} more fields, with commas, found {_shown(line)}")
    return key, partial(_csv_face, line, width, groups)


def _csv_row(line: bytes, width: int) -> list[bytes]:
    fields = _csv_fields(line)
    if len(fields) != width:
        raise LineError(f"expected {width} fields, as in the header, found {len(fields)}: {_shown(line)}")
    return fields


def _csv_face(line: bytes, width: int, groups: Sequence[Sequence[int]]) -> Face:
    fields = _csv_row(line, width)
    points, box, score = ([fields[column] for column in group] for group in groups)
    return Face(
        _points(_numbers(points)),
        _numbers(box) if any(box) else None,
        float(_numbers(score)[0]) if any(score) else None,
    )


def adapt_csv(dialect: Dialect, lines: Sequence[bytes]) -> Dialect:
    """Find the columns by their names in the header."""
    names = [name.strip().decode(errors="replace").lower() for name in _csv_fields(lines[0].strip())]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise LineError(f"two columns have the name '{repeated[0]}'")
    known = set(names)
    key = next((name for name in ("key", "path") if name in known), None)
    if key is None:
        raise LineError("has no column 'key'")
    points = next(point for point in range(1, len(names) + 1) if f"x{point + 1}" not in known)
    coordinates = _coordinate_names(points)
    _points([0.0] * len(coordinates))
    box = _BOX if known.intersection(_BOX) else ()
    missing = [name for name in (*coordinates, *box) if name not in known]
    if missing:
        raise LineError(f"has no column '{missing[0]}'")
    ignored = [name for name in names if name not in {key, _SCORE, *box, *coordinates}]
    if ignored:
        _log.info("ignored the columns %s of the landmarks", ", ".join(map(repr, ignored)))
    score = (_SCORE,) if _SCORE in known else ()
    groups = [list(map(names.index, group)) for group in (coordinates, box, score)]
    parse = partial(parse_csv, width=len(names), key_column=names.index(key), groups=groups)
    return replace(dialect, parse=parse)


def _coordinate_names(points: int) -> list[str]:
    return [f"{axis}{point}" for point in range(1, points + 1) for axis in "xy"]


def _csv_fields(line: bytes) -> list[bytes]:
    if b'"' not in line:
        return line.split(b",")
    try:  # bytes go in and out of text unchanged as Latin-1
        rows = list(csv.reader([line.decode("latin-1")], strict=True))
    except csv.Error as error:
        raise LineError(f"a quotation mark too many or too few ({error}): {_shown(line)}") from None
    return [field.encode("latin-1") for row in rows for field in row]


# Our JSON lines

_KEY_FIRST = re.compile(rb'\s*\{\s*"key"\s*:\s*"([^"\\]+)"')
_LANDMARKS = ("landmarks", *(f"landmarks{count}" for count in LAYOUTS))  # make-sample writes landmarks5, landmarks68


def parse_json(line: bytes) -> Entry:
    """Our JSON lines: an object a line, of which the box and the score may be missing; other names are ignored."""
    match = _KEY_FIRST.match(line)
    if match and b'"landmarks' in line:  # the whole line is parsed when its face is read
        return match[1], lambda: _json_face(_json_object(line))
    value = _json_object(line)
    key = value.get("key")
    if type(key) not in (str, int) or key == "":
        raise LineError(f'expected an object with a "key", a text, found {_shown(line)}')
    has_landmarks = any(value.get(name) is not None for name in _LANDMARKS)
    return bytes_of_key(str(key)) if has_landmarks else None, lambda: _json_face(value)


def _json_face(value: dict[str, Any]) -> Face | None:
    points = next((value[name] for name in _LANDMARKS if value.get(name) is not None), None)
    if points is None:
        return None
    try:
        pairs = set(map(len, points)) <= {2}
    except TypeError:
        pairs = False
    coordinates = list(chain.from_iterable(points)) if pairs else None
    landmarks = _points(_json_numbers(coordinates, "landmarks as a list of [x, y]"))
    box, score = value.get("box"), value.get("score")
    if box is not None:
        sides = box if isinstance(box, list) and len(box) == 4 else None
        box = _json_numbers(sides, "a box [left, top, right, bottom]")
    if score is not None:
        score = float(_json_numbers([score], "a number as the score")[0])
    return Face(landmarks, box, score)


def _json_numbers(values: list[Any] | None, expected: str) -> Floats:
    if values is None or not set(map(type, values)) <= {int, float}:
        raise LineError(f"expected {expected}, found something else")
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except OverflowError:
        raise LineError("a number is too large") from None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise LineError("an object has the same name twice")
    return value


_decode_json = json.JSONDecoder(object_pairs_hook=_unique_names).decode


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = _decode_json(line.decode("utf-8", "surrogateescape"))
    except LineError:
        raise
    except (ValueError, RecursionError) as error:  # also a number with thousands of digits
        raise LineError(f"is not JSON ({str(error)[:80]}): {_shown(line)}") from None
    if not isinstance(value, dict):
        raise LineError(f"expected a JSON object, found {_shown(line)}")
    return value


# Writing our CSV and JSON lines


def landmark_header(name: str) -> bytes:
    """What comes before the first line of a file of five landmarks a face: the names of the columns, or nothing.

    The file is a CSV if its `name` ends in ``.csv``, and JSON lines otherwise.
    """
    if not name.lower().endswith(".csv"):
        return b""
    return ",".join(["key", *_coordinate_names(5), *_BOX, _SCORE]).encode() + b"\n"


def landmark_line(name: str, key: str, face: Face) -> bytes:
    """The line of a face in a landmark file, which `open_landmarks` reads back to the last bit.

    `name` is that of the file, as in `landmark_header`, `key` that of the image. Raises a `FaceError`, "bad landmarks",
    if the format cannot hold the key, or so many landmarks.
    """
    parts = (face.landmarks, face.box, face.score)
    landmarks, box, score = (None if part is None else np.asarray(part, np.float64) for part in parts)
    assert landmarks is not None
    if not name.lower().endswith(".csv"):
        value: dict[str, Any] = {"key": key, "landmarks": landmarks.tolist()}
        value |= {} if box is None else {"box": box.tolist()}
        value |= {} if score is None else {"score": score.tolist()}
        line = json.dumps(value).encode() + b"\n"
    else:
        if len(landmarks) != 5:
            found = f"found {len(landmarks)} points, but the file has columns for 5; write JSON lines instead"
            raise FaceError("bad landmarks", found)
        encoded = bytes_of_key(key)
        if b"\n" in encoded or b"\r" in encoded:
            raise FaceError("bad landmarks", "a CSV cannot hold a line break in a key; write JSON lines instead")
        if b'"' in encoded or b"," in encoded:
            encoded = b'"' + encoded.replace(b'"', b'""') + b'"'
        fields: list[str] = []
        for values, count in ((landmarks, 10), (box, 4), (score, 1)):
            fields.extend([""] * count if values is None else map(repr, values.ravel().tolist()))
        line = encoded + b"," + ",".join(fields).encode() + b"\n"
    if not key or len(line) > LONGEST_LINE:
        raise FaceError("bad landmarks", f"a landmark file cannot hold this key, which has {len(key)} characters")
    return line


# The list of all dialects

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        name="JSON lines of landmarks",
        example='{"key": ..., "landmarks": [[x, y], ...]}',
        first_line=re.compile(rb"\s*\{"),
        parse=parse_json,
    ),
    Dialect(
        name="CVLFace ldmk_5points.csv",
        example="idx,ldmk_0,ldmk_1,...",
        first_line=re.compile(rb"[^,]*,\s*ldmk_0\s*,\s*ldmk_"),
        parse=parse_cvlface,
        adapt=adapt_cvlface,
        header=1,
    ),
    Dialect(
        name="CSV of landmarks",
        example="key,x1,y1,x2,y2,...",
        first_line=re.compile(rb'(?i)(?=(?:.*,)?[\s"]*x1[\s"]*(?:,|$))(?:.*,)?[\s"]*y1[\s"]*(?:,|$)'),
        parse=parse_csv,
        adapt=adapt_csv,
        header=1,
    ),
    Dialect(
        name="InsightFace .lst",
        example="aligned<TAB>path<TAB>label<TAB>...",
        first_line=re.compile(rb"(?i)[01]\t[^\t]*\t *" + _NUMBER + rb" *(?:\t|$)"),
        parse=parse_insightface,
    ),
    Dialect(
        name="FaceX-Zoo landmark file",
        example="x1 y1 x2 y2 ...",
        first_line=re.compile(rb"(?i)\s*(?:" + _NUMBER + rb"\s+)+" + _NUMBER + rb"$"),
        parse=parse_plain_numbers,
        keyed=False,
        numbered=True,
    ),
    Dialect(
        name="FaceX-Zoo image info file",
        example="path left,top,right,bottom x1,y1,x2,y2,...",
        first_line=re.compile(rb".+ [^ ,]*(?:,[^ ,]*){3} [^ ,]*,[^ ]*$"),
        parse=parse_image_info,
    ),
)
"""All dialects; a file has the first one whose `first_line` matches."""
