"""The lists that people write: which column holds the path, which the label, told from the first lines.

A list is one of these, with any byte order mark, line ends and blanks between the columns:

- ``path label``; the label is the last word, so a path may hold spaces; the label may be a number or a name;
- ``path`` alone;
- im2rec's ``index<TAB>label<TAB>path``, InsightFace's ``aligned<TAB>path<TAB>label``;
- CSV or TSV, or columns between blanks, with a header that names the columns;
- JSON lines with such names;
- CUB's ``images.txt``, ``id path``, beside ``image_class_labels.txt``, ``id label``.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from facedata.columns import LARGEST_LABEL, LONGEST_LINE, UNLABELLED, LabelLines, read_label_lines, whole_lines
from facedata.errors import EmptyDatasetError, FormatError
from facedata.files import opened_regular
from facedata.images import IMAGE_EXTENSIONS
from facedata.text import natural_sort

__all__ = ["first_lines_fit", "read_list"]

_PATHS = ("path", "file_name", "filename", "filepath", "file_path", "image_path", "file", "image", "img", "key", "name")
_LABELS = ("label", "class_id", "class", "identity", "person_id", "identity_id", "id", "person", "target", "subject_id")
_NAMES = ("label_name", "class_name", "person_name", "name", "person")
_FIRST = 200  # lines that decide
_HEAD = 1 << 18
_WHOLE = re.compile(r"(-1|\d{1,18})(?:\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?", re.ASCII)
_PLAIN = re.compile(rb"[^ \t\r\n\\,;]+ \d{1,10}\r?\n?")
_MISFITS = (ValueError, IndexError, KeyError, TypeError, csv.Error)
_BOM = b"\xef\xbb\xbf"
_CUB_LABELS, _CUB_CLASSES, _CUB_IMAGES = "image_class_labels.txt", "classes.txt", "images"
_EXPECTED = (
    "expected 'path label', a path alone, an .lst of im2rec or InsightFace, CSV or JSON lines with the columns path "
    "and label, or the images.txt of CUB"
)


@dataclass(frozen=True)
class Dialect:
    """How a line is cut.

    Attributes
    ----------
    separator : str
        ``" "`` for any blanks, ``"json"`` for JSON lines, else the one character between two columns.
    path, label, name : int or str, optional
        The column of the path, of the label and of the label's name: a position, or the key in JSON lines.
    first : int
        How many lines stand before the first image.
    last_word : bool
        The label is the last word of the line and the path is all before it.
    numbers : bool
        The labels are numbers, not words.
    backslashes : bool
        Paths have backslashes in the place of slashes.
    prefix : str
        What all paths begin with and keys do not.
    """

    separator: str = " "
    path: int | str = 0
    label: int | str | None = None
    name: int | str | None = None
    first: int = 0
    last_word: bool = False
    numbers: bool = False
    backslashes: bool = False
    prefix: str = ""

    def cut(self, line: bytes) -> tuple[str, str | None, str | None]:
        """Path, label and its name in one line; raises ValueError, IndexError or KeyError if it does not fit."""
        text = os.fsdecode(line.removeprefix(_BOM).rstrip(b"\r\n"))
        name = None
        if self.last_word:
            path, label = text.rstrip().rsplit(None, 1)
        elif self.separator == " " and self.label is None and self.path == 0:
            path, label = text.strip(), None
        else:
            columns = self._columns(text)
            path = str(columns[self.path])
            label = None if self.label is None else str(columns[self.label])
            name = None if self.name is None else str(columns[self.name])
        path = path.replace("\\", "/") if self.backslashes else path
        path = path.removeprefix("./")
        if not path or not path.startswith(self.prefix):
            raise ValueError
        return path[len(self.prefix) :], label, name

    def path_of(self, line: bytes) -> str:
        """The path in one line."""
        return self.cut(line)[0]

    def _columns(self, text: str) -> Any:
        if self.separator == "json":
            return json.loads(text)
        if self.separator == " ":
            path, label = self.path, self.label
            last = isinstance(path, int) and isinstance(label, int) and path > label
            return text.split(None, int(path) if last else -1)  # the path may hold spaces if it is the last column
        return next(csv.reader([text], delimiter=self.separator))


def first_lines_fit(path: str) -> bool:
    """Whether the file looks like a list of images."""
    try:
        lines = _first_lines(path)
        return bool(lines) and _recognise(lines, path) is not None
    except FormatError:
        return False


def read_list(path: str, root: str | None = None) -> tuple[LabelLines, str]:
    """Read and check every line of a list.

    Parameters
    ----------
    root : str, optional
        The folder that the paths start from, if it is not the list's own.

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
    folder = root or os.path.dirname(path) or "."
    lines = _first_lines(path)
    if not lines:
        raise EmptyDatasetError(f"{path}: is empty; {_EXPECTED}")
    if all(map(_PLAIN.fullmatch, lines)) and not lines[0].startswith((b"/", b"./")):
        try:
            return read_label_lines(path), folder
        except FormatError:  # another form further down: the slow way reads it, or names the line
            pass
    dialect = _recognise(lines, path)
    if dialect is None:
        shown = repr(lines[0][:80].decode(errors="replace"))
        raise FormatError(f"{path}: line 1: {shown} is not a line of a list; {_EXPECTED}")
    cub = None
    if dialect.separator == " " and dialect.path == 1 and dialect.label == 0:  # the number of the image, not a label
        cub = _read_cub(os.path.dirname(path))
        if not os.path.exists(os.path.join(folder, dialect.cut(lines[0])[0])):
            folder = os.path.join(folder, _CUB_IMAGES)
    shared = _shared_folder(path, dialect)
    if shared:
        dialect = replace(dialect, prefix=_prefix(shared, root, path))
        folder = dialect.prefix if root is None else folder
    return _read(path, dialect, cub), folder


def _first_lines(path: str) -> list[bytes]:
    with opened_regular(path) as descriptor:
        head = os.read(descriptor, _HEAD)
    lines = head.removeprefix(_BOM).split(b"\n")
    whole = lines if len(head) < _HEAD else lines[:-1]
    return [line.rstrip(b"\r") for line in whole[:_FIRST] if line.strip()]


def _recognise(lines: Sequence[bytes], path: str) -> Dialect | None:
    """The dialect that most of the first lines fit, the first of them too, or None."""
    texts = [os.fsdecode(line) for line in lines]
    backslashes = any("\\" in text for text in texts) and not any("/" in text for text in texts)
    best, most = None, 0
    for dialect in _candidates(texts, path):
        dialect = replace(dialect, backslashes=backslashes)
        rows = [_fitting(dialect, line) for line in lines[dialect.first :]]
        fitting = [row for row in rows if row is not None]
        if rows and rows[0] is not None and len(fitting) > most:
            numbers = sum(label is not None and _WHOLE.fullmatch(label) is not None for _, label, _ in fitting)
            best, most = replace(dialect, numbers=2 * numbers > len(fitting)), len(fitting)
    return best


def _fitting(dialect: Dialect, line: bytes) -> tuple[str, str | None, str | None] | None:
    """The parts of a line if it fits."""
    try:
        row = dialect.cut(line)
    except _MISFITS:
        return None
    return row if dialect.first or dialect.separator == "json" or _is_path(row[0]) else None


def _candidates(texts: Sequence[str], path: str) -> list[Dialect]:
    """The dialects that the first line suggests, the surest first."""
    first = texts[0]
    if first.lstrip().startswith("{"):
        try:
            return _named(list(json.loads(first)), "json", 0)
        except ValueError:
            return []
    for separator in (",", ";", "\t", " "):
        header = first.split() if separator == " " else next(csv.reader([first], delimiter=separator), [])
        if len(header) > 1 and (found := _named([column.strip().lower() for column in header], separator, 1)):
            return found
    if first.strip().lower() in _PATHS:
        return [Dialect(first=1)]
    tabs = first.split("\t")
    if len(tabs) >= 3 and _NUMBER.fullmatch(tabs[0]):
        if all(map(_NUMBER.fullmatch, tabs[:-1])):
            return [Dialect("\t", path=len(tabs) - 1, label=1)]
        return [Dialect("\t", path=1, label=2)]
    words = first.split()
    if len(words) == 2 and words[0].isdigit() and _is_path(words[1]) and not _is_path(words[0]):
        return (
            [Dialect(" ", path=1, label=0)] if os.path.exists(os.path.join(os.path.dirname(path), _CUB_LABELS)) else []
        )
    separated = [
        Dialect(separator, path=0, label=1) for separator in (",", ";", "\t") if len(first.split(separator)) == 2
    ]
    return (
        [Dialect(), *separated, Dialect(last_word=True)]
        if _is_path(first.strip())
        else [*separated, Dialect(last_word=True)]
    )


def _named(columns: Sequence[str], separator: str, first: int) -> list[Dialect]:
    """The dialect of a header that names its columns."""

    def find(names: Sequence[str], taken: Sequence[int | str | None] = ()) -> int | str | None:
        for name in names:
            if name in columns:
                place = name if separator == "json" else columns.index(name)
                if place not in taken:
                    return place
        return None

    path = find(_PATHS)
    if path is None:
        return []
    label = find(_LABELS, [path])
    name = find(_NAMES, [path, label])
    if label is None:
        label, name = name, None
    return [Dialect(separator, path, label, name, first)]


def _is_path(text: str) -> bool:
    """Whether a text is a path: it ends like an image, or it is one word with a slash."""
    named = text.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    return named or (len(text.split()) == 1 and ("/" in text or "\\" in text))


def _cut(dialect: Dialect, line: bytes, path: str, number: int) -> tuple[str, str | None, str | None]:
    try:
        return dialect.cut(line)
    except _MISFITS:
        shown = repr(line[:80].decode(errors="replace"))
        raise FormatError(f"{path}: line {number}: {shown} does not fit the lines before it; {_EXPECTED}") from None


def _shared_folder(path: str, dialect: Dialect) -> str:
    """The folder that all paths lie in, if all are absolute; else nothing."""
    low, high = "", ""
    for number, _, line in _lines(path, dialect):
        name = _cut(dialect, line, path, number)[0]
        if not name.startswith("/"):
            return ""
        low, high = min(low or name, name), max(high, name)
    return os.path.join(os.path.commonpath([os.path.dirname(low), os.path.dirname(high)]), "")


def _prefix(shared: str, root: str | None, path: str) -> str:
    """What is cut off absolute paths: the root that the user named, or the folder that they share."""
    if root is None:
        return shared
    wanted = os.path.join(os.path.abspath(root), "")
    if not shared.startswith(wanted):
        raise FormatError(f"{path}: its paths are absolute, in {shared}, which is not in the folder {root} after the @")
    return wanted


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
    starts, codes = [], []
    words: dict[str, int] = {}
    names: dict[str, str] = {}
    for number, start, line in _lines(path, dialect):
        key, label, name = _cut(dialect, line, path, number)
        if cub is not None:
            if label not in cub[0]:
                raise FormatError(f"{path}: line {number}: the image {key} has no line in {_CUB_LABELS}")
            label = cub[0][label]
        if key.startswith("/") or ".." in key.split("/"):
            raise FormatError(
                f"{path}: line {number}: the path leaves the folder that it starts from: {key!r}; expected relative "
                "paths without '..'"
            )
        elif dialect.numbers and label is not None and not _is_label(label):
            raise FormatError(
                f"{path}: line {number}: the label is not an integer from 0 to {LARGEST_LABEL}, or -1 for none: "
                f"{label!r}"
            )
        starts.append(start)
        codes.append(UNLABELLED if label is None else words.setdefault(label, len(words)))
        if name is not None and label is not None:
            names.setdefault(label, name)
    labels, class_names = _number(words)
    if names and class_names is None:
        class_names = {labels[words[word]]: name for word, name in names.items()}
    if cub is not None:
        class_names = cub[1] or None
    table = np.array([*labels, UNLABELLED], np.int64)
    numbers = table[np.array(codes, np.int64)].astype(np.int32) if codes else np.empty(0, np.int32)
    classes = int(numbers.max(initial=-1)) + 1
    return LabelLines(path, np.array(starts, np.int64), numbers, classes, dialect.path_of, class_names)


def _is_label(word: str) -> bool:
    match = _WHOLE.fullmatch(word.strip())
    return match is not None and int(match[1]) <= LARGEST_LABEL


def _number(words: dict[str, int]) -> tuple[list[int], dict[int, str] | None]:
    """The label of each word, in the order of the words, and the names if the words are not numbers."""
    if all(map(_is_label, words)):
        return [int(float(word)) for word in words], None
    order = {word: place for place, word in enumerate(natural_sort(words))}
    return [order[word] for word in words], {place: word for word, place in order.items()}


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

    named = os.path.isfile(os.path.join(folder, _CUB_CLASSES))
    return dict(pairs(_CUB_LABELS)), {int(label): name for label, name in pairs(_CUB_CLASSES)} if named else {}
