"""What names say: ``classes.txt`` with the names of the classes, class folders with labels, parts of a dataset.

``classes.txt`` has ``label<TAB>name`` lines, the names that the classes had in their source.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.errors import FormatError, input_error
from facedata.files import StrPath, atomic_writer, is_file, open_regular, opened_regular, output_errors, read_exactly
from facedata.text import listed

__all__ = [
    "CLASSES",
    "are_splits",
    "class_labels",
    "folder_number",
    "read_class_names",
    "read_class_names_in",
    "refuse_mixed_splits",
    "write_class_names",
]

CLASSES = "classes.txt"
"""The name of the file in an output that is a folder."""

_LONGEST_LINE, _MOST_NAMES = 1 << 14, 1 << 22
_NUMBERED = re.compile(r"(?:id_)?(\d+)", re.ASCII)
_OURS = re.compile(rb"\d{1,10}\t")
_MOST_DIGITS = 18  # int() refuses some thousands
_SPLIT = re.compile(
    r"(?<![a-z])(train|training|validation|valid|val|dev|testing|test|evaluation|eval)(?![a-z])", re.ASCII
)
_log = logging.getLogger(__name__)


def write_class_names(
    path: StrPath, names: Mapping[int, str], rename: Callable[[StrPath, StrPath], None] | None = None
) -> None:
    """Write the names of labels, in ascending order; the file appears when it is complete.

    Control characters in a name, which would break the lines, are written as spaces.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with output_errors(path), atomic_writer(path, rename=rename) as file:
        for label in sorted(names):
            name = "".join(" " if ord(c) < 32 or c in "\x7f\x85\u2028\u2029" else c for c in names[label])
            file.write(f"{label}\t{name}\n".encode(errors="surrogateescape"))


def read_class_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read the names that `write_class_names` wrote.

    Raises
    ------
    FormatError
        If a line is not ``label<TAB>name``, or a label occurs twice.
    InputError
        If the file cannot be read.
    """
    names: dict[int, str] = {}
    try:
        with open(open_regular(path), "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                label, tab, name = line.rstrip(b"\n").partition(b"\t")
                if not tab or not 0 < len(label) <= 10 or not label.isdigit() or int(label) in names:
                    raise FormatError(f"{os.fspath(path)}: line {number}: expected 'label<TAB>name', each label once")
                if number > _MOST_NAMES:
                    raise FormatError(f"{os.fspath(path)}: has more than {_MOST_NAMES:,} lines; these are not classes")
                names[int(label)] = os.fsdecode(name)
    except OSError as error:
        raise input_error(error, path) from error
    return names


def read_class_names_in(folder: str | os.PathLike[str], name: str = CLASSES) -> dict[int, str] | None:
    """The names in the file `name` of `folder`; None if there is none, or, with a warning, if it is of another kind.

    Raises
    ------
    InputError
        If there is one of ours, but it is damaged or cannot be read: the names would be lost.
    """
    path = os.path.join(folder, name)
    if not is_file(path):
        return None
    with opened_regular(path) as descriptor:
        head = read_exactly(descriptor, _LONGEST_LINE, 0)
    if not _OURS.match(head) and not os.path.lexists(os.path.join(folder, ".facedata-summary.json")):
        _log.warning("%s: line 1: expected 'label<TAB>name'; the names in it are not used", path)
        return None
    names = read_class_names(path)
    if not names:
        raise FormatError(f"{path}: is empty; expected lines of 'label<TAB>name'")
    return names


def class_labels(folders: Sequence[str], root: str) -> NDArray[np.int64]:
    """The label of each class folder, shape (C,).

    ``id_<n>`` and names of digits alone keep their number; others are numbered in order, after the largest of these.
    """
    numbers = [folder_number(folder) for folder in folders]
    too_large = [folder for folder, number in zip(folders, numbers, strict=True) if number > LARGEST_LABEL]
    if too_large:
        _log.warning(
            "%s: %s: these numbers are too large for a label (%d); such folders are numbered like names",
            root,
            listed(too_large),
            LARGEST_LABEL,
        )
    labels = [number if number <= LARGEST_LABEL else -1 for number in numbers]
    following = max(labels, default=-1) + 1
    taken: dict[int, str] = {}
    for place, folder in enumerate(folders):
        if labels[place] < 0:
            labels[place], following = following, following + 1
        label = labels[place]
        if label > LARGEST_LABEL:
            raise FormatError(
                f"{root}: the folder '{folder}' would get the label {label}, after the largest number of a folder, but "
                f"labels end at {LARGEST_LABEL}; rename the folder with that number"
            )
        if label in taken:
            raise FormatError(
                f"{root}: the folders '{taken[label]}' and '{folder}' both have the label {label}, and two people must "
                "not share one; rename one of them"
            )
        taken[label] = folder
    return np.array(labels, np.int64)


def folder_number(folder: str) -> int:
    """The number in the name of a class folder, as in ``id_7`` or ``0007``; -1 if it is another name."""
    match = _NUMBERED.fullmatch(folder)
    if match is None:
        return -1
    return int(match[1][-_MOST_DIGITS:]) if not match[1][:-_MOST_DIGITS].strip("0") else 1 << 62


def are_splits(folders: Iterable[str]) -> bool:
    """Whether folders are called like the parts of a dataset (train, val, test), and not like classes."""
    return all(_SPLIT.fullmatch(folder.lower()) for folder in folders)


def refuse_mixed_splits(name: str, folder: str, paths: Sequence[str]) -> None:
    """Raise `FormatError` if, by their names, the files in a folder belong to several parts of a dataset.

    `name` is that of the format. Files that are named by a pattern were asked for, and need not be checked.
    """
    splits: dict[str, list[str]] = {}
    for base in map(os.path.basename, paths):
        if match := _SPLIT.search(base.lower()):
            splits.setdefault(match[1], []).append(base)
    if len(splits) > 1:
        found = ", ".join(f"{split} ({len(files)}: {files[0]})" for split, files in splits.items())
        part, extension = next(iter(splits)), os.path.splitext(paths[0])[1]
        raise FormatError(
            f"{folder}: its files are of different parts of a dataset: {found}; name one of them "
            f"({name}:{os.path.join(os.path.dirname(paths[0]), f'*{part}*{extension}')}), or several, or all: "
            f"{name}:{os.path.join(os.path.dirname(paths[0]), f'*{extension}')}"
        )
