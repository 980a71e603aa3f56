"""The format ``list``: a text file that names images, and the folder that the paths start from.

As a spec: ``list:train.txt@root``, or ``list:train.txt`` if the paths start from the list's own folder; ``-`` reads the
list from stdin, with paths that start from the working folder.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LabelLines
from facedata.converters.class_names import CLASSES, folder_number, read_class_names_in
from facedata.converters.image_files import LIST_ENDINGS, ImageFileSource
from facedata.dataset import Format
from facedata.errors import FormatError, InputError, InputNotFoundError, OptionError
from facedata.files import file_identity
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.converters.folder.sink import FolderSink

__all__ = ["FORMAT", "ListSource", "create_sink", "open_source", "recognises"]

_LINES = 1 << 16
_BLOCK = 1 << 22
_SAMPLED = 16
_FOLDERS_ABOVE, _FOLDERS_TO_TRY = 3, 256
SEPARATORS = {"space": " ", "tab": "\t"}
"""What may stand between path and label in a list that is written."""
STDIN = "-"
"""The path of a list that is read from stdin."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListSource(ImageFileSource):
    """The images that a list names, in the order of its lines.

    Attributes
    ----------
    root : str
        The folder that the paths start from.
    facts : mapping
        The identity of the list and its images.
    """

    root: str
    lines: LabelLines
    facts: Mapping[str, Any]

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        """Whether the list has labels."""
        return self.lines.classes > 0

    def __len__(self) -> int:
        return len(self.lines)

    def sliced(self, part: slice) -> ListSource:
        """The samples of a slice."""
        return replace(self, lines=self.lines[part])

    def take(self, positions: NDArray[np.int64]) -> ListSource:
        """The images of the lines at `positions`."""
        return replace(self, lines=self.lines.take(positions))

    def entry(self, position: int) -> tuple[str, int]:
        """The path and the label of one line."""
        return self.lines.text(position), self.lines.labels.item(position)

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """Folder, file name and label of each line."""
        for path, label in zip(self.lines.texts(), self.lines.labels.tolist(), strict=True):
            folder, _, name = path.rpartition("/")
            yield folder, name, label

    def keys(self) -> Iterator[str]:
        """The paths as the list has them."""
        return self.lines.texts()

    def identity(self) -> Mapping[str, Any]:
        """Size and sampled digest of the list, and a digest of a few images."""
        return self.facts

    def places(self) -> Mapping[str, bool]:
        """The list, and the folder that its paths start from, which may hold other things too."""
        return {self.lines.path: True, self.root: False}

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """The labels of the lines."""
        for begin in range(0, len(self), _LINES):
            yield self.lines.labels[begin : begin + _LINES].astype(np.int64)

    def class_names(self) -> Mapping[int, str] | None:
        """The names of the labels: of the list, or of the folder if its numbers are the labels of the list."""
        if self.lines.names is not None or not os.path.isfile(os.path.join(self.root, CLASSES)):
            return self.lines.names
        some = self.sampled(_SAMPLED)
        numbers = [folder_number(key.partition("/")[0]) for key in some.keys()]  # noqa: SIM118, not a mapping
        same = numbers == some.labels().tolist()
        return read_class_names_in(self.root) if same else None

    def declared_classes(self) -> int:
        """The largest label of the whole list, plus 1."""
        return self.lines.classes


def open_source(spec: str) -> ListSource:
    """Open ``LIST@ROOT``, or ``LIST`` whose paths start from its own folder; see `list_files` for what a list may be.

    Raises
    ------
    InputError
        If the list or the folder does not exist.
    FormatError
        If a line does not fit, or its path leaves the folder; the message names the line.
    """
    path, root = _split(spec)
    if root is not None and not os.path.isdir(root):
        raise InputNotFoundError(f"{root}: no such folder; the paths of {path} start from it")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise FormatError(f"{path}: is not a regular file; expected a list with lines of 'path label'")
    if path != STDIN:
        return _open(path, root)
    copy = _copy_of_stdin()
    try:
        return _open(copy, root, os.curdir)
    except InputError as error:
        raise type(error)(str(error).replace(copy, "stdin")) from error


def _open(path: str, root: str | None, base: str | None = None) -> ListSource:
    """Read a list whose paths start from `root`, if that is named, or from `base`, if not from its own folder."""
    from facedata.converters.list_files import read_list

    lines, root = read_list(path, root, base)
    source = ListSource(root, lines, {})
    sampled = list(source.sampled(_SAMPLED).keys())
    if not any(os.path.lexists(os.path.join(root, key)) for key in sampled if "\0" not in key):
        advice = _advice(STDIN if base else path, root, sampled[0])
        raise InputNotFoundError(f"{path}: none of its images is in {root}: {sampled[0]!r} is not; {advice}")
    if lines.names:
        _log.info("%s: labels of %s: 0 to %d", path, counted(len(lines.names), "class name"), lines.classes - 1)
    return replace(source, facts={"list": file_identity(path), "content": source.content()})


def _advice(path: str, root: str, key: str) -> str:
    """The folder that the paths of a list may start from, if not from `root`."""
    above = [os.path.normpath(os.path.join(root, *[".."] * steps)) for steps in range(1, _FOLDERS_ABOVE + 1)]
    with suppress(OSError), os.scandir(root) as entries:
        inside = [entry.path for entry in islice(entries, _FOLDERS_TO_TRY) if entry.is_dir()]
        for folder in [*above, os.curdir, *inside]:
            if os.path.lexists(os.path.join(folder, key)):
                return f"its paths start from {folder}: list:{path}@{folder}"
    return f"name the folder that its paths start from: list:{path}@FOLDER"


def _split(spec: str) -> tuple[str, str | None]:
    """The list, and the root if one is named; an @ in the name of a list that exists belongs to the name."""
    if os.path.exists(spec) or "@" not in spec:
        return spec, None
    path, _, root = spec.rpartition("@")
    return path, root


def _copy_of_stdin() -> str:
    """A file with what stdin has, for every process reads its lines from the file; removed when the program ends."""
    descriptor, path = tempfile.mkstemp(prefix="facedata-list-", suffix=".txt")
    atexit.register(_remove, path, os.getpid())
    with open(descriptor, "wb") as file:
        while block := sys.stdin.buffer.read(_BLOCK):
            file.write(block.replace(b"\0", b"\n"))  # find -print0
    os.utime(path, (0, 0))  # each run makes another copy, whose times say nothing
    return path


def _remove(path: str, process: int) -> None:
    if os.getpid() == process:
        with suppress(FileNotFoundError):
            os.unlink(path)


def recognises(path: str) -> bool:
    """Whether `path` is a text file whose first lines name images, or stdin."""
    from facedata.converters.list_files import first_rows

    if path == STDIN:
        return True
    with suppress(OSError, InputError):
        return path.lower().endswith(LIST_ENDINGS) and os.path.isfile(path) and bool(first_rows(path))
    return False


def create_sink(
    spec: str, *, layout: str | None = None, keep_undecodable: bool = False, list_separator: str = "space"
) -> FolderSink:
    """A sink for ``LIST@FOLDER``, which writes the images into the folder, and their list.

    Raises
    ------
    OptionError
        If no folder is named.
    """
    from facedata.converters.folder.sink import FolderSink

    path, at, root = spec.rpartition("@")
    if not at or not path or not root:
        raise OptionError(f"list:{spec}: name the folder of the images: list:LIST@FOLDER, as list:train.txt@images/")
    if list_separator not in SEPARATORS:
        raise OptionError(f"--list-separator {list_separator}: expected {' or '.join(SEPARATORS)}")
    return FolderSink(root, layout, path, keep_undecodable, SEPARATORS[list_separator])


def input_paths(spec: str) -> dict[str, bool]:
    """The list, and the folder that its paths start from, which may hold other things too."""
    path, root = _split(spec)
    return {path: path != STDIN, root or os.path.dirname(path) or ".": False}


FORMAT = Format(
    "list",
    open_source=open_source,
    create_sink=create_sink,
    recognises=recognises,
    input_paths=input_paths,
    extensions=(".txt",),
)
