"""The lists that people write: which column holds the path, which the label, told from the first lines.

A list is one of these, with any byte order mark, line ends and blanks between the columns:

- ``path label``; the label is the last word, so a path may hold spaces; the label may be a number or a name;
- ``path`` alone;
- im2rec's ``index<TAB>label<TAB>path``, InsightFace's ``aligned<TAB>path<TAB>label``;
- CSV or TSV, or columns between blanks, with a header that names the columns, and perhaps a count before it;
- JSON lines with such names;
- CUB's ``images.txt``, ``id path``, beside ``image_class_labels.txt``, ``id label``.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from facedata.columns import LARGEST_LABEL, LONGEST_LINE, UNLABELLED, LabelLines, read_label_lines, whole_lines
from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError
from facedata.files import is_file, opened_regular
from facedata.images import IMAGE_EXTENSIONS
from facedata.text import natural_sort, shared_folder

__all__ = ["first_rows", "read_list"]

# columns, in lower case and without what is not a letter; the first of them that is there is taken
_PATHS: tuple[str, ...] = ("path", "imagepath", "imgpath", "filepath", "relativepath", "filename", "imagename")
_PATHS += ("imgname", "imagefile", "file", "image", "img", "key", "name", "imageid")
_LABELS: tuple[str, ...] = ("label", "classid", "class", "classlabel", "identity", "identityid", "personid")
_LABELS += ("subjectid", "itemid", "id", "target", "category", "person", "subject")
_NAMES = ("labelname", "classname", "personname", "name", "person")
_FIRST = 200  # lines that decide
_log = logging.getLogger(__name__)
_FEW = 10  # images that may well be of so many people
_HEAD = 1 << 18
_NUMBER = re.compile(r"[-+]?\d{1,30}(?:\.\d{0,30})?(?:[eE][-+]?\d{1,2})?", re.ASCII)
_NOT_LETTERS = re.compile(r"[\W_]+")
_DRIVE = re.compile(r"[A-Za-z]:/")
_PLAIN = re.compile(rb"[^ \t\r\n\\,;]+ \d{1,10}\r?\n?")
_MISFITS = (ValueError, IndexError, KeyError, TypeError, AttributeError, csv.Error, RecursionError)
_LEAVES_FOLDER = re.compile(rb"^(?:/|(?:[^\n]*/)?\.\.(?:/| \d))", re.MULTILINE)
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CUB_LABELS, _CUB_CLASSES, _CUB_IMAGES = "image_class_labels.txt", "classes.txt", "images"
_EXPECTED = (
    "expected 'path label', a path alone, an .lst of im2rec or InsightFace, CSV or JSON lines with the columns path "
    "and label, or the images.txt of CUB"
)

_Row = tuple[str, str | None, str | None]
"""The path in a line, its label, and the name of the label."""


@dataclass(frozen=True)
class Dialect:
    """How a line is cut.

    Attributes
    ----------
    separator : str
        ``"json"`` for JSON lines, ``" "`` for any blanks, else the one character between two columns; empty if the
        whole line is a path.
    path, label, name : int or str, optional
        The column of the path, of the label and of the label's name: a position, or the key in JSON lines.
    first : int
        How many lines stand before the first image.
    columns : str
        What a header says, for messages.
    last_word : bool
        The label is the last word of the line and the path is all before it.
    numbers : bool
        The labels are numbers, not words.
    backslashes : bool
        Paths have backslashes in the place of slashes.
    prefix : str
        What all paths begin with and keys do not.
    """

    separator: str = ""
    path: int | str = 0
    label: int | str | None = None
    name: int | str | None = None
    first: int = 0
    columns: str = ""
    last_word: bool = False
    numbers: bool = False
    backslashes: bool = False
    prefix: str = ""

    def cut(self, line: bytes) -> _Row:
        """The parts of one line; raises one of `_MISFITS` if it does not fit."""
        text = os.fsdecode(line.removeprefix(_BOM).rstrip(b"\r\n"))
        label = name = None
        if self.last_word:
            path, label = text.strip().rsplit(None, 1)
        elif not self.separator:
            path = text.strip()
        else:
            values = self._values(text)
            path = values[self.path].strip()
            label, name = (None if key is None else _word(values[key]) for key in (self.label, self.name))
        path = (path.replace("\\", "/") if self.backslashes else path).removeprefix("./")
        if not path.startswith(self.prefix) or path == self.prefix:
            raise ValueError
        return path[len(self.prefix) :], label, name

    def path_of(self, line: bytes) -> str:
        """The path in one line; raises ValueError if it does not fit."""
        try:
            return self.cut(line)[0]
        except _MISFITS as error:
            raise ValueError from error

    def _values(self, text: str) -> Any:
        if self.separator == "json":
            return json.loads(text)
        if self.separator != " ":
            return _fields(text, self.separator)
        path, label = self.path, self.label
        last = isinstance(path, int) and isinstance(label, int) and path > label
        return text.split(None, int(path) if last else -1)  # the path may hold spaces if it is the last column


def _fields(text: str, separator: str) -> list[str]:
    if separator == " ":
        return text.split()
    if '"' not in text:
        return text.split(separator)
    return next(csv.reader([text], delimiter=separator, skipinitialspace=True))


def _word(value: object) -> str | None:
    return None if value is None else str(value).strip() or None


def first_rows(path: str) -> list[tuple[str, str | None]]:
    """Path and label in the first lines of a file; empty if it does not look like a list of images."""
    try:
        lines = _first_lines(path)
        dialect = _recognise(lines, path) if lines else None
    except InputError:
        return []
    rows = [] if dialect is None else [_fitting(dialect, line, paths=False) for line in lines[dialect.first :]]
    return [row[:2] for row in rows if row is not None]


def read_list(
    path: str, root: str | None = None, base: str | None = None, *, images: bool = True
) -> tuple[LabelLines, str]:
    """Read and check every line of a list.

    Parameters
    ----------
    root : str, optional
        The folder of the images, if the user named it.
    base : str, optional
        The folder that relative paths start from if there is no `root`; by default the list's own.
    images : bool
        The list names image files; if not, any keys.

    Returns
    -------
    LabelLines
    str
        The folder that the paths start from.

    Raises
    ------
    FormatError
        If the list is none of those that are known, or a line does not fit; the message names the line.
    EmptyDatasetError
        If there is no line.
    InputError
        If the file cannot be read.
    """
    folder = root or base or os.path.dirname(path) or "."
    lines = _first_lines(path)
    if not lines:
        raise EmptyDatasetError(f"{path}: is empty; {_EXPECTED}")
    there = not images or _exists(folder, os.fsdecode(lines[0].partition(b" ")[0]))
    if there and all(map(_PLAIN.fullmatch, lines)) and not lines[0].startswith((b"/", b"./")):
        with suppress(FormatError):  # another form further down: the slow way reads it, or names the line
            plain = read_label_lines(path)
            if not any(map(_LEAVES_FOLDER.search, (lines.block for lines in whole_lines(path)))):
                return plain, folder
    dialect = _recognise(lines, path, images=images)
    if dialect is None:
        raise _not_a_list(lines, path)
    if dialect.columns:
        _log.info("%s: %s", path, dialect.columns)
    elif dialect.separator == "\t" and dialect.label == 1 and dialect.path not in (0, 2):
        _log.warning("%s: has several values for each image; only the first is read, as the label", path)
    cub = None
    if dialect.separator == " " and (dialect.path, dialect.label) == (1, 0):  # the number of the image, not a label
        cub = _read_cub(os.path.dirname(path))
        if not _exists(folder, dialect.cut(lines[0])[0]):
            folder = os.path.join(folder, _CUB_IMAGES)
    first = dialect.cut(lines[dialect.first])[0]
    if first.startswith(("/", "../")) or (images and not _exists(folder, first)):
        prefix, folder = _place(path, dialect, folder, first, named=root is not None)
        dialect = replace(dialect, prefix=prefix)
    return _read(path, dialect, cub), folder


def _exists(folder: str, path: str) -> bool:
    try:
        return not path.startswith(("/", "../")) and os.path.lexists(os.path.join(folder, path))
    except ValueError:  # a zero byte
        return False


def _first_lines(path: str) -> list[bytes]:
    with opened_regular(path) as descriptor:
        head = os.read(descriptor, _HEAD)
    if head.startswith(_UTF16):
        raise FormatError(f"{path}: is in UTF-16; write it in UTF-8: iconv -f UTF-16 -t UTF-8 '{path}' > list.txt")
    lines = head.removeprefix(_BOM).split(b"\n")
    if len(lines[0]) > LONGEST_LINE:
        raise FormatError(f"{path}: line 1 is longer than {LONGEST_LINE:,} bytes; is this a text file?")
    whole = lines if len(head) < _HEAD else lines[:-1]
    return [line.rstrip(b"\r") for line in whole[:_FIRST] if line.strip()]


def _not_a_list(lines: Sequence[bytes], path: str) -> InputError:
    """Why these first lines are not those of a list."""
    if lines[0].lstrip().startswith(b"["):
        return FormatError(f"{path}: is a JSON array; write one object a line: jq -c '.[]' '{path}' > list.jsonl")
    if any(len(lines) <= dialect.first for dialect in _candidates([os.fsdecode(line) for line in lines], path)):
        return EmptyDatasetError(f"{path}: has no line after its header")
    shown = repr(lines[0][:80].decode(errors="replace"))
    return FormatError(f"{path}: line 1: {shown} is not a line of a list; {_EXPECTED}")


def _recognise(lines: Sequence[bytes], path: str, *, images: bool = True) -> Dialect | None:
    """The dialect that most of the first lines fit, the first of them too, or None."""
    texts = [os.fsdecode(line) for line in lines]
    backslashes = any("\\" in text for text in texts) and not any("/" in text for text in texts)
    best, most = None, 0
    for dialect in _candidates(texts, path):
        dialect = replace(dialect, backslashes=backslashes)
        paths = images and not dialect.columns  # else any words are keys
        rows = [_fitting(dialect, line, paths=paths) for line in lines[dialect.first :]]
        labels = [row[1] for row in rows if row is not None]
        if rows and rows[0] is not None and len(labels) > most:
            words = [label for label in labels if label is not None]
            numbers = sum(_NUMBER.fullmatch(word) is not None for word in words)
            best, most = replace(dialect, numbers=2 * numbers > len(words)), len(labels)
    return best


def _fitting(dialect: Dialect, line: bytes, *, paths: bool) -> _Row | None:
    """The parts of a line if it fits."""
    try:
        row = dialect.cut(line)
    except _MISFITS:
        return None
    return row if not paths or _is_path(row[0]) else None


def _candidates(texts: Sequence[str], path: str) -> list[Dialect]:
    """The dialects that the first line suggests, the surest first."""
    first = texts[0]
    if first.lstrip().startswith("{"):
        try:
            return _named(list(json.loads(first)), "json", 0)
        except _MISFITS:
            return []
    counted = len(texts) > 1 and first.strip().isdigit()  # the number of lines, above a header
    for separator in (",", ";", "\t", " "):
        with suppress(csv.Error):
            columns = _fields(texts[counted], separator)
            if len(columns) > 1 and (found := _named(columns, separator, 1 + counted)):
                return found
    if _plain_name(first) in _PATHS:
        return [Dialect(first=1, columns="paths alone, after a header")]
    tabs = first.split("\t")
    if len(tabs) >= 3 and _NUMBER.fullmatch(tabs[0]):
        if all(map(_NUMBER.fullmatch, tabs[:-1])):
            return [Dialect("\t", path=len(tabs) - 1, label=1)]
        return [Dialect("\t", path=1, label=2)]
    words = first.split()
    if len(words) == 2 and words[0].isdigit() and _is_path(words[1]) and not _is_path(words[0]):
        cub = os.path.exists(os.path.join(os.path.dirname(path), _CUB_LABELS))
        return [Dialect(" ", path=1, label=0)] if cub else []
    candidates = [
        *(Dialect(separator, path=0, label=1) for separator in (",", ";", "\t") if first.count(separator) == 1),
        Dialect(last_word=True),
    ]
    return [Dialect(), *candidates] if _is_image_name(first) else [*candidates, Dialect()]


def _named(columns: Sequence[str], separator: str, first: int) -> list[Dialect]:
    """The dialect of a header that names its columns."""
    plain = [_plain_name(column) for column in columns]

    def find(names: Sequence[str], *taken: int | None) -> int | None:
        places = (plain.index(name) for name in names if name in plain)
        return next((place for place in places if place not in taken), None)

    path = find(_PATHS)
    if path is None:
        return []
    label = find(_LABELS, path)
    name = find(_NAMES, path, label)
    if label is None:
        label, name = name, None
    parts = (("paths", path), ("labels", label), ("names of the labels", name))
    shown = ", ".join(f"{what} from '{columns[place]}'" for what, place in parts if place is not None)
    shown += "" if label is not None else "; no column is a label (such as 'label'): unlabelled"

    def key(place: int) -> int | str:
        return columns[place] if separator == "json" else place

    label_key, name_key = (None if place is None else key(place) for place in (label, name))
    return [Dialect(separator, key(path), label_key, name_key, first, shown)]


def _plain_name(column: str) -> str:
    return _NOT_LETTERS.sub("", column.lower())


def _is_image_name(text: str) -> bool:
    return text.strip().rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _is_path(text: str) -> bool:
    """Whether a text is a path: it ends like an image, or it is one word with a slash."""
    return _is_image_name(text) or (len(text.split()) == 1 and ("/" in text or "\\" in text))


def _cut(dialect: Dialect, line: bytes, path: str, number: int) -> _Row:
    try:
        return dialect.cut(line)
    except _MISFITS:
        shown = repr(line[:80].decode(errors="replace"))
        raise FormatError(f"{path}: line {number}: {shown} does not fit the lines before it; {_EXPECTED}") from None


def _place(path: str, dialect: Dialect, folder: str, first: str, *, named: bool) -> tuple[str, str]:
    """What all paths begin with and keys shall not, and the folder that they then start from.

    Absolute paths, and those that begin with ``..``, start from the folder that they share. If the images are not
    there, as in a list from another computer, they are looked for in `folder`, with less and less of what all paths
    begin with.
    """
    shared = shared_folder(_cut(dialect, line, path, number)[0] for number, _, line in _lines(path, dialect))
    absolute = os.path.join(os.path.abspath(folder), "")
    if named and shared.startswith(absolute):
        return absolute, folder
    if not named and shared.startswith(("/", "../")) and os.path.lexists(os.path.join(folder, first)):
        return shared, os.path.join(folder, shared)
    cuts = [place + 1 for place, letter in enumerate(shared) if letter == "/"]
    for cut in cuts:
        if _exists(folder, first[cut:]):
            _log.warning("%s: its paths begin with %s, which is taken for %s", path, shared[:cut], folder)
            return shared[:cut], folder
    if shared.startswith(("/", "../")) or _DRIVE.match(shared):
        raise InputNotFoundError(
            f"{path}: its paths begin with {shared}, and {folder} does not hold {first[len(shared) :]!r} either; name "
            "the folder of the images after an @, as in list:LIST@FOLDER"
        )
    return "", folder


def _lines(path: str, dialect: Dialect) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and content of each line after the header; blank lines may stand at the end alone."""
    blank = 0
    for block in whole_lines(path):
        position = block.offset
        for number, line in enumerate(block.block.split(b"\n")[:-1], block.first):
            start, position = position, position + len(line) + 1
            if number <= dialect.first:
                continue
            if not line.strip():
                blank = blank or number
            elif blank:
                raise FormatError(f"{path}: line {blank} is blank, and lines follow it; remove it")
            elif len(line) > LONGEST_LINE:
                raise FormatError(f"{path}: line {number} is longer than {LONGEST_LINE:,} bytes; is this a text file?")
            else:
                yield number, start, line


def _read(path: str, dialect: Dialect, cub: tuple[dict[str, str], dict[int, str]] | None) -> LabelLines:
    """The offset and the label of every line; labels that are words are numbered in natural order."""
    starts, codes = array("q"), array("i")
    words: dict[str, int] = {}
    names: dict[str, str] = {}
    differ = False  # the name is that of the image
    for number, start, line in _lines(path, dialect):
        key, label, name = _cut(dialect, line, path, number)
        if cub is not None and (label := cub[0].get(label or "")) is None:
            raise FormatError(f"{path}: line {number}: the image {key} has no line in {_CUB_LABELS}")
        if key.startswith("/") or ".." in key.split("/"):
            raise FormatError(
                f"{path}: line {number}: the path leaves the folder that it starts from: {key!r}; expected relative "
                "paths without '..'"
            )
        code = UNLABELLED
        if label is not None:
            code = words.setdefault(label, len(words))
            if code == len(words) - 1 and dialect.numbers and _label_of(label) is None:
                raise FormatError(
                    f"{path}: line {number}: the label is not an integer from 0 to {LARGEST_LABEL}, or -1 for none: "
                    f"{label!r}"
                )
            if name is not None:
                differ |= names.setdefault(label, name) != name
        starts.append(start)
        codes.append(code)
    class_names = None
    if dialect.numbers:
        labels = [_label_of(word) or 0 for word in words]
        if names and not differ:
            class_names = {labels[words[word]]: name for word, name in names.items()}
    else:
        order = {word: place for place, word in enumerate(natural_sort(words))}
        labels, class_names = [order[word] for word in words], {place: word for word, place in order.items()} or None
    if cub is not None:
        class_names = cub[1] or None
    if dialect.columns and _FEW < len(words) == len(starts):
        _log.warning("%s: every image has a label of its own; does this column hold the labels?", path)
    table = np.array([*labels, UNLABELLED], np.int32)  # the last is that of the code -1
    numbers = table[np.frombuffer(codes, np.int32)]
    classes = int(numbers.max(initial=-1)) + 1
    return LabelLines(path, np.frombuffer(starts, np.int64), numbers, classes, dialect.path_of, class_names)


def _label_of(word: str) -> int | None:
    """The label that a number stands for, as in ``7``, ``7.0`` and ``7.000000e+00``; None if it stands for none."""
    number = float(word) if _NUMBER.fullmatch(word) else LARGEST_LABEL + 1.0
    return int(number) if number.is_integer() and UNLABELLED <= number <= LARGEST_LABEL else None


def _read_cub(folder: str) -> tuple[dict[str, str], dict[int, str]]:
    """The label of the number of each image, and the name of each label."""

    def pairs(name: str) -> Iterator[tuple[str, str]]:
        path = os.path.join(folder, name)
        for block in whole_lines(path):
            for number, line in enumerate(block.block.splitlines(), block.first):
                words = os.fsdecode(line).split(None, 1)
                if len(words) != 2 or not words[0].isdigit():
                    raise FormatError(f"{path}: line {number}: expected a number and what belongs to it")
                yield words[0], words[1].strip()

    named = is_file(os.path.join(folder, _CUB_CLASSES))
    return dict(pairs(_CUB_LABELS)), {int(label): name for label, name in pairs(_CUB_CLASSES)} if named else {}
