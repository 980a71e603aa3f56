"""Tables and lists of landmarks, one face a line: columns that a header names, or that are found from the faces.

Most projects write such a file, with commas, semicolons, tabs or blanks between the fields. `adapt_table` reads a
header, whatever its words for the points are: a new word goes into `_NUMBERED`, `_NAMED`, `_KEYS` or `_SCORES`.
`adapt_list` reads a file without header: of the orders in which projects write five points, perhaps with a label before
and a score after them, it takes the one that makes faces of the numbers.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product, takewhile
from typing import NamedTuple

import numpy as np

from facedata.align.faces import LAYOUTS, Face, five_points
from facedata.align.landmark_files.keys import without_extension
from facedata.align.landmark_files.lines import (
    Dialect,
    Entry,
    Floats,
    LineError,
    is_number,
    numbers_of,
    points_of,
    shown,
)
from facedata.align.similarity import fits_mirrored, similarity_transforms
from facedata.align.templates import load_template

_BOX = ("left", "top", "right", "bottom")
_SCORES = ("score", "confidence", "detectionscore")
_KEYS = ("key", "path", "filepath", "imagepath", "filename", "imagename", "file", "image", "imageid", "nameid", "name")
_NUMBERED = re.compile(r"(.*?)(?:([xy])([0-9]{1,3})|([0-9]{1,3})([xy]))")
_NAMED = re.compile(r"(l|left|r|right)?(eye|nose|mouth)(l|left|r|right)?(?:center|centre|corner|tip)?([xy])")
_FACE = ("the left eye", "the right eye", "the nose", "the left of the mouth", "the right of the mouth")

_SEPARATORS = bytes.maketrans(b",;:\t()[]", b" " * 8)  # for `split`
_BOX_SIZE = 4
_TEMPLATE = load_template("arcface", 112).points
_LARGEST_ERROR = 75.0  # of a face, in crop pixels: see `Transforms.errors`
_WAY_OUT = "name the columns in a first line, such as: key x1 y1 x2 y2 x3 y3 x4 y4 x5 y5"
_log = logging.getLogger(__name__)


class Columns(NamedTuple):
    """The numbers of the fields in which a line has the key, x1, y1, x2, y2, ..., the box and the score.

    `separator` is a comma, semicolon or tab between fields that may be quoted; or None for any run of these and of
    blanks. Then `width` fields are counted from the end of the line, since the first, the key, may contain blanks.
    `numbered`: the key is the position of an image, counted from 0.
    """

    separator: bytes | None
    width: int
    key: int
    points: Sequence[int]
    box: Sequence[int] = ()
    score: Sequence[int] = ()
    numbered: bool = False


def parse_row(line: bytes, columns: Columns) -> Entry:
    """A line of a table or list; fields of the box and the score may be empty."""
    if columns.separator is None or columns.key or b'"' in line:
        fields = _fields(line, columns)
        key = fields[columns.key] if columns.key < len(fields) else b""
    else:
        key, separator, _ = line.partition(columns.separator)
        key = key if separator else b""
    if not key:
        raise LineError(f"expected a key and {columns.width - 1} more fields, found {shown(line)}")
    if columns.numbered:
        if not key.isdigit() or len(key) > 15:
            raise LineError(f"expected the position of an image, counted from 0, found {shown(key)}")
        key = b"%d" % int(key)
    return key, partial(read_row, line, columns)


def read_row(line: bytes, columns: Columns) -> Face:
    """The face of a line."""
    fields = _fields(line, columns)
    if len(fields) != columns.width:
        raise LineError(f"expected {columns.width} fields, found {len(fields)}: {shown(line)}")
    points, box, score = ([fields[column] for column in group] for group in columns[3:6])
    return Face(
        points_of(numbers_of(points)),
        numbers_of(box) if any(box) else None,
        float(numbers_of(score)[0]) if any(score) else None,
    )


def _fields(line: bytes, columns: Columns) -> list[bytes]:
    if columns.separator is not None:
        return _quoted_fields(line, columns.separator)
    line = line.strip()
    fields = line.translate(_SEPARATORS).rsplit(None, columns.width - 1)
    return [line[: len(fields[0])].strip(b'"'), *fields[1:]] if fields else []


def _quoted_fields(line: bytes, separator: bytes) -> list[bytes]:
    if b'"' not in line:
        return line.split(separator)
    if line.count(b'"') == 2 and line.startswith(b'"') and b'"' + separator in line:  # VGGFace2: a tenth of the time
        key, _, rest = line[1:].partition(b'"' + separator)
        return [key, *rest.split(separator)]
    try:  # bytes go in and out of text unchanged as Latin-1
        rows = list(csv.reader([line.decode("latin-1")], delimiter=separator.decode(), strict=True))
    except csv.Error as error:
        raise LineError(f"a quotation mark too many or too few ({error}): {shown(line)}") from None
    return [field.encode("latin-1") for row in rows for field in row]


# With a header


def _coordinate(name: str) -> tuple[str, int, str] | None:
    """What a column has, from its name in lower case without punctuation: of which set of points, which one, x or y.

    ``x1``, ``p1x`` and ``lmx1`` are numbered, from 1 or from 0. ``lefteyex``, ``leyex`` and ``xmouthleftcorner`` are
    of the five of a face, counted from 0, a set without a name. None if it is the name of no coordinate.
    """
    if numbered := _NUMBERED.fullmatch(name):
        return numbered[1] or "numbered", int(numbered[3] or numbered[4]), numbered[2] or numbered[5]
    named = _NAMED.fullmatch(name) or _NAMED.fullmatch(name[1:] + name[:1])
    side = (named[1] or named[3] or "")[:1] if named else ""
    if named is None or (side == "") != (named[2] == "nose"):
        return None
    return "", {"eye": 0, "nose": 2, "mouth": 3}[named[2]] + (side == "r"), named[4]


def _point_columns(names: Sequence[str]) -> tuple[str, list[int]] | None:
    """A set of points and its columns, x1, y1, x2, y2, ...; None if no two columns are the x and y of a point."""
    sets: dict[str, dict[tuple[int, str], int]] = {}
    for column, name in enumerate(names):
        if coordinate := _coordinate(name):
            sets.setdefault(coordinate[0], {})[coordinate[1:]] = column
    if not any({(point, "x"), (point, "y")} <= found.keys() for found in sets.values() for point, _ in found):
        return None
    wanted = {
        name: list(product(range(min(1, min(found)[0]), max(found)[0] + 1), "xy")) for name, found in sets.items()
    }
    whole = [name for name in sets if len(sets[name]) == len(wanted[name]) and len(wanted[name]) // 2 in LAYOUTS]
    if len(whole) > 1:
        raise LineError("names several sets of points; rename the columns of all but one")
    name = whole[0] if whole else max(sets, key=lambda name: len(sets[name]))
    if len(wanted[name]) <= _BOX_SIZE:
        raise LineError(f"names a box, not landmarks; {_WAY_OUT}")
    for point, axis in wanted[name]:
        if (point, axis) not in sets[name]:
            raise LineError(f"has no column for the {axis} of {f'point {point}' if name else _FACE[point]}")
    points_of([0.0] * len(wanted[name]))
    return name, [sets[name][coordinate] for coordinate in wanted[name]]


def adapt_table(dialect: Dialect, lines: Sequence[bytes]) -> Dialect | None:
    """Find the columns by their names in the header; None if it does not name the x and y of a point."""
    header = lines[0].lstrip(b"#").strip(b" ")
    separator = next((mark for mark in (b"\t", b";", b",") if mark in header), None)
    fields = header.split() if separator is None else _quoted_fields(header, separator)
    names = [re.sub(r"[\W_]", "", field.decode(errors="replace").lower()) for field in fields]
    found = _point_columns(names)
    if found is None:
        return None
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise LineError(f"two columns have the name '{repeated[0]}'")
    set_name, points = found
    if not set(_KEYS).intersection(names):  # CelebA's header has only the names of the points
        if len(lines) < 2 or len(lines[1].split(separator)) <= len(names):
            raise LineError("has no column 'key'; give this name to the column of the images")
        names, points = ["key", *names], [column + 1 for column in points]
    box = _BOX if set(_BOX).intersection(names) else ()
    missing = [name for name in box if name not in names]
    if missing:
        raise LineError(f"has no column '{missing[0]}'")
    key = next(names.index(name) for name in _KEYS if name in names)
    score = [names.index(name) for name in _SCORES if name in names][:1]
    columns = Columns(separator, len(names), key, points, list(map(names.index, box)), score)
    ignored = [name for column, name in enumerate(names) if name and column not in {key, *points, *columns.box, *score}]
    if ignored:
        _log.info("ignored the columns %s of the landmarks", ", ".join(map(repr, ignored)))
    if not set_name:
        columns = _unmirrored(columns, lines[1:])
    return replace(dialect, parse=partial(parse_row, columns=columns))


def _unmirrored(columns: Columns, lines: Sequence[bytes]) -> Columns:
    """The columns with left and right exchanged if most faces fit so: they are the person's, not the image's."""
    faces = []
    for line in lines:
        with suppress(LineError):
            faces.append(read_row(line, columns).landmarks)
    if not faces or np.shape(faces)[1] != 5 or fits_mirrored(np.stack(faces), _TEMPLATE).mean() <= 0.5:
        return columns
    _log.info("reading left and right as the person's, not the image's: the faces do not fit otherwise")
    return columns._replace(points=np.reshape(columns.points, (5, 2))[[1, 0, 2, 4, 3]].ravel().tolist())


# Without a header


def adapt_list(dialect: Dialect, lines: Sequence[bytes]) -> Dialect | None:
    """Find the columns of the points from the faces of the first lines; None if lines do not end in numbers.

    Of the orders that projects write, the one is taken whose points fit a face. A file is refused if none fits, or if
    another fits nearly as well.
    """
    counts = []
    for line in lines:
        fields = line.translate(_SEPARATORS).split()[1:]
        counts.append(sum(1 for _ in takewhile(is_number, reversed(fields))))
    header = int(counts[0] < _BOX_SIZE and len(lines) > 1)  # of names that `adapt_table` does not know
    count = Counter(counts[header:]).most_common(1)[0][0]
    if count < _BOX_SIZE:
        return None
    if count == _BOX_SIZE:
        raise LineError(f"has 4 numbers, as many as a box, not landmarks; {_WAY_OUT}")
    whole = [line for line, numbers in zip(lines, counts, strict=True) if numbers == count]
    rows = [_fields(line, Columns(None, count + 1, 0, ())) for line in whole]
    keys = [row[0] for row in rows]
    if b"0" in keys and all(map(bytes.isdigit, keys)):
        raise LineError(f"counts the images from 0, and it is not clear whether these are their names; {_WAY_OUT}")
    numbers = np.stack([numbers_of(row[1:]) for row in rows])
    labels = (0, 1, 4, 5) if np.mean(numbers[:, 0] == np.trunc(numbers[:, 0])) > 0.9 else (0, 4)
    scores = (0, 1) if np.mean((numbers[:, -1] >= 0) & (numbers[:, -1] < 2)) > 0.9 else (0,)
    places = [  # a label, a box or both may come before the points, a score after them
        np.arange(before, count - after)
        for points, before, after in product(LAYOUTS, labels, scores)
        if before + 2 * points + after == count
    ]
    orders = [order for place in places for order in (place, place.reshape(2, -1).T.ravel())]  # x y x y or x x y y
    errors = [_median_error(numbers[:, order]) for order in orders]
    ranked = np.argsort(errors).tolist()
    if not orders or errors[ranked[0]] > _LARGEST_ERROR or errors[ranked[1]] < 1.5 * errors[ranked[0]]:
        raise LineError(f"has {count} numbers, and it is not clear which of them are the landmarks; {_WAY_OUT}")
    order = orders[ranked[0]]
    texts = [key.translate(_SEPARATORS).rpartition(b" ")[0].rstrip() for key in keys]  # if a label is not a number
    labelled = all(
        without_extension(key) == key and without_extension(text) != text for key, text in zip(keys, texts, strict=True)
    )
    score = [labelled + count] if order.max() < count - 1 else []
    columns = Columns(None, 1 + labelled + count, 0, (order + 1 + labelled).tolist(), score=score)
    return replace(dialect, parse=partial(parse_row, columns=_unmirrored(columns, whole)), header=header)


def _median_error(coordinates: Floats) -> float:
    """How far most of these faces are from one, or from its mirror image; infinite if all points are on a line."""
    faces = five_points(coordinates.reshape(len(coordinates), -1, 2))
    errors = np.fmin(*(similarity_transforms(faces * sides, _TEMPLATE).errors for sides in ([1, 1], [-1, 1])))
    errors = errors[np.isfinite(errors)]
    return float(np.median(errors)) if len(errors) else np.inf
