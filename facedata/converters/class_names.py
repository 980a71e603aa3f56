"""The file ``classes.txt``: ``label<TAB>name`` lines, the names that the classes had in their source."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from facedata.errors import FormatError, InputError, input_error, output_error
from facedata.files import atomic_writer

__all__ = ["CLASSES", "read_class_names", "read_class_names_in", "write_class_names"]

CLASSES = "classes.txt"
"""The name of the file in an output that is a folder."""

_LONGEST_LINE = 1 << 14
_log = logging.getLogger(__name__)


def write_class_names(path: str | os.PathLike[str], names: Mapping[int, str]) -> None:
    """Write the names of labels, in ascending order; the file appears complete or not at all.

    Control characters in a name, which would break the lines, are written as spaces.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    try:
        with atomic_writer(path) as file:
            for label in sorted(names):
                name = "".join(" " if ord(c) < 32 or c in "\x7f\x85\u2028\u2029" else c for c in names[label])
                file.write(f"{label}\t{name}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise output_error(error, path) from error


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
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                label, tab, name = line.rstrip(b"\n").partition(b"\t")
                if not tab or not 0 < len(label) <= 10 or not label.isdigit() or int(label) in names:
                    raise FormatError(f"{os.fspath(path)}: line {number}: expected 'label<TAB>name', each label once")
                names[int(label)] = os.fsdecode(name)
    except OSError as error:
        raise input_error(error, path) from error
    return names


def read_class_names_in(folder: str | os.PathLike[str], name: str = CLASSES) -> dict[int, str] | None:
    """The names in the file `name` of `folder`; None if there is no such file, or, with a warning, if it is damaged."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    try:
        return read_class_names(path)
    except InputError as error:
        _log.warning("%s; the names in it are not used", error)
        return None
