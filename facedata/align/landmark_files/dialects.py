"""The dialects of landmark files: how each project writes the landmarks of a face in one line of text.

**A new format of landmark file goes here.** If its lines are a key and columns of numbers, it may be readable already:
see `facedata.align.landmark_files.tables`, where a new name of a column is one more word in a table. Else write a
function that parses one line, like `parse_image_info`, and add a `Dialect` to `DIALECTS` at the end of this module: its
name, an example of a line, a pattern of the first line of such a file, and the function. If the meaning of a line
depends on a header, `Dialect.adapt` reads it, as `adapt_cvlface` does. facedata itself writes two dialects, tables with
commas and JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from facedata.align.faces import LAYOUTS, Face
from facedata.align.landmark_files.keys import bytes_of_key
from facedata.align.landmark_files.lines import (
    LONGEST_LINE,
    NUMBER,
    Dialect,
    Entry,
    Floats,
    LineError,
    mostly_fractions,
    numbers_of,
    points_of,
    shown,
)
from facedata.align.landmark_files.tables import Columns, adapt_list, adapt_table, parse_row, read_row
from facedata.errors import FaceError

__all__ = ["DIALECTS", "find_dialect", "landmark_header", "landmark_line", "parse_plain_numbers"]


def find_dialect(lines: Sequence[bytes]) -> Dialect:
    """Find the dialect of a file from its first hundred lines; raises `LineError`."""
    if lines[0].startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LineError("is UTF-16, not UTF-8; convert the file with iconv -f UTF-16 -t UTF-8")
    for dialect in DIALECTS:
        if dialect.first_line.match(lines[0].rstrip()):
            adapted = dialect if dialect.adapt is None else dialect.adapt(dialect, lines)
            if adapted is not None:
                return adapted
    known = "; ".join(f"{dialect.name}: {dialect.example}" for dialect in DIALECTS)
    raise LineError(f"is not a known kind of landmark file: {shown(lines[0])}; expected one of: {known}")


# FaceX-Zoo (https://github.com/JDAI-CV/FaceX-Zoo): 106 points an image


def parse_image_info(line: bytes) -> Entry:
    """FaceX-Zoo's ``lfw_face_info.txt`` and ``facescrub_face_info.txt``; the path may contain spaces."""
    parts = line.rstrip().rsplit(b" ", 2)
    if len(parts) != 3 or not parts[0] or parts[1].count(b",") != 3:
        raise LineError(f"expected 'path left,top,right,bottom x1,y1,x2,y2,...', found {shown(line)}")
    path, box, points = parts
    return path, lambda: Face(points_of(numbers_of(points.split(b","))), numbers_of(box.split(b",")))


def parse_plain_numbers(line: bytes) -> Entry:
    """FaceX-Zoo's file for one image; if a file has many lines, the first belongs to the first image, and so on."""
    if not line or line.isspace():
        raise LineError("is blank; expected the landmarks of an image")
    return b"", lambda: Face(points_of(numbers_of(line.split())))


# InsightFace

_INSIGHTFACE = Columns(b"\t", 17, key=1, points=[7, 12, 8, 13, 9, 14, 10, 15, 11, 16], box=[3, 4, 5, 6])  # x, then y


def parse_insightface(line: bytes) -> Entry:
    """InsightFace's ``.lst`` as ``face_preprocess.parse_lst_line`` reads it: perhaps a box, perhaps landmarks.

    The flag and the label are not used: landmarks count whenever a line has them.
    """
    line = line.rstrip()
    fields = line.split(b"\t")
    if len(fields) < 3 or fields[0] not in (b"0", b"1") or not fields[1]:
        raise LineError(f"expected 'aligned path label' and perhaps box and landmarks, with tabs: {shown(line)}")
    if len(fields) in (3, 7):
        return None, lambda: None
    return fields[1], partial(read_row, line, _INSIGHTFACE)


# CVLFace (https://github.com/mk-minchul/CVLface)


def adapt_cvlface(dialect: Dialect, lines: Sequence[bytes]) -> Dialect:
    """CVLFace's ``ldmk_5points.csv``, written beside a record set by ``predict_landmark.py``.

    The first column is the position of an image in the record set, counted from 0 (not the key of the record, which
    begins at 1), or a path, as others write it. x and y of five points follow, as fractions of the image's width and
    height. CVLFace's reader also takes 15 columns, with a third number for each point.
    """
    count = lines[0].count(b",")
    names = [name.strip() for name in lines[0].split(b",")[1:]]
    if names != [b"ldmk_%d" % column for column in range(count)]:
        raise LineError(f"expected the columns idx, ldmk_0, ldmk_1, ldmk_2 and so on, found {shown(lines[0])}")
    points = [column for column in range(1, count + 1) if count != 15 or column % 3]
    points_of(points)
    rows = [line.rstrip().split(b",") for line in lines[1:]]
    numbered = bool(rows) and rows[0][0].strip().isdigit()
    faces = []
    for row in rows:
        with suppress(LineError):
            faces.append(numbers_of(row[1:]))
    parse = partial(parse_row, columns=Columns(b",", count + 1, 0, points, numbered=numbered))
    return replace(dialect, parse=parse, numbered=numbered, relative=mostly_fractions(faces))


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
        raise LineError(f'expected an object with a "key", a text, found {shown(line)}')
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
    landmarks = points_of(_json_numbers(coordinates, "landmarks as a list of [x, y]"))
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
        raise LineError(f"is not JSON ({str(error)[:80]}): {shown(line)}") from None
    if not isinstance(value, dict):
        raise LineError(f"expected a JSON object, found {shown(line)}")
    return value


# Writing our CSV and JSON lines

_CSV_HEADER = b"key,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5,left,top,right,bottom,score\n"


def landmark_header(name: str) -> bytes:
    """What comes before the first line of a file of five landmarks a face: the names of the columns, or nothing.

    The file is a CSV if its `name` ends in ``.csv``, and JSON lines otherwise.
    """
    return _CSV_HEADER if name.lower().endswith(".csv") else b""


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
        parse=parse_row,
        adapt=adapt_cvlface,
        header=1,
    ),
    Dialect(
        name="table of landmarks",
        example="key,x1,y1,x2,y2,...",
        first_line=re.compile(rb"(?is).*[xy]"),
        parse=parse_row,
        adapt=adapt_table,
        header=1,
    ),
    Dialect(
        name="InsightFace .lst",
        example="aligned<TAB>path<TAB>label<TAB>...",
        first_line=re.compile(rb"(?i)[01]\t[^\t]*\t *" + NUMBER + rb" *(?:\t|$)"),
        parse=parse_insightface,
    ),
    Dialect(
        name="FaceX-Zoo landmark file",
        example="x1 y1 x2 y2 ...",
        first_line=re.compile(rb"(?i)\s*(?:" + NUMBER + rb"\s+){9}(?:(?:" + NUMBER + rb"\s+){10,})?" + NUMBER + rb"$"),
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
    Dialect(
        name="list of landmarks",
        example="path [label] x1 y1 x2 y2 ... [score]",
        first_line=re.compile(rb""),
        parse=parse_row,
        adapt=adapt_list,
    ),
)
"""All dialects; a file has the first one whose `first_line` matches and whose `adapt` does not decline."""
