"""The format ``list``: a text file of ``relative/path label`` lines, and the folder that the paths start from.

As a spec: ``list:train.txt@root``, or ``list:train.txt`` if the paths start from the list's own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LabelLines, read_label_lines
from facedata.converters.image_files import ImageFileSource
from facedata.dataset import Format
from facedata.errors import FormatError, InputNotFoundError, OptionError, input_error
from facedata.files import file_identity

if TYPE_CHECKING:
    from facedata.converters.folder.sink import FolderSink

__all__ = ["FORMAT", "ListSource", "create_sink", "open_source", "recognises"]

_LINES = 1 << 16
_BLOCK = 1 << 22
_LEAVES_ROOT = re.compile(rb"^(?:/|(?:[^\n]*/)?\.\.(?:/| \d))", re.MULTILINE)
_FIRST_LINE = re.compile(rb"[^ \t\r\n]+ \d{1,10}\r?\n?")


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

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, part: slice) -> ListSource:
        return replace(self, lines=self.lines[part])

    def take(self, positions: NDArray[np.int64]) -> ListSource:
        """The images of the lines at `positions`."""
        return replace(self, lines=self.lines.take(positions))

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

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels of the lines."""
        for begin in range(0, len(self), _LINES):
            yield self.lines.labels[begin : begin + _LINES].astype(np.int64)

    def declared_classes(self) -> int:
        """The largest label of the whole list, plus 1."""
        return self.lines.classes


def open_source(spec: str) -> ListSource:
    """Open ``LIST@ROOT``, or ``LIST`` whose paths start from its own folder.

    Raises
    ------
    InputError
        If the list or the folder does not exist.
    FormatError
        If a line is not ``path label``, or its path leaves the folder; the message names the line.
    """
    path, root = _split(spec)
    if not os.path.isdir(root):
        raise InputNotFoundError(f"{root}: no such folder; the paths of {path} start from it")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise FormatError(f"{path}: is not a regular file; expected a list with lines of 'path label'")
    lines = read_label_lines(path)
    _refuse_paths_outside(path)
    source = ListSource(root, lines, {})
    return replace(source, facts={"list": file_identity(path), "content": source.content()})


def _split(spec: str) -> tuple[str, str]:
    """The path of the list and its root; an @ in the name of a list that exists belongs to the name."""
    if os.path.exists(spec) or "@" not in spec:
        return spec, os.path.dirname(spec) or "."
    path, _, root = spec.rpartition("@")
    return path, root


def _refuse_paths_outside(path: str) -> None:
    """Raise if a path in the list is absolute or has the part ``..``."""
    number, rest = 1, b""
    try:
        with open(path, "rb") as file:
            while block := rest + file.read(_BLOCK):
                end = block.rfind(b"\n") + 1 or len(block)
                rest, block = block[end:], block[:end]
                suspicious = b".." in block or b"\n/" in block or block[:1] == b"/"  # much faster than the exact test
                if suspicious and (match := _LEAVES_ROOT.search(block)):
                    number += block.count(b"\n", 0, match.start())
                    line = block[match.start() :].partition(b"\n")[0][:80].decode(errors="replace")
                    raise FormatError(
                        f"{path}: line {number}: the path leaves the folder that it starts from: {line!r}; expected "
                        "relative paths without '..'"
                    )
                number += block.count(b"\n")
    except OSError as error:
        raise input_error(error, path) from error


def recognises(path: str) -> bool:
    """Whether `path` is a text file whose first line is ``path label``."""
    if not os.path.isfile(path) or not path.endswith((".txt", ".lst", ".list")):
        return False
    with suppress(OSError), open(path, "rb") as file:
        return _FIRST_LINE.fullmatch(file.readline(1 << 12)) is not None
    return False


def create_sink(spec: str, *, layout: str | None = None, keep_undecodable: bool = False) -> FolderSink:
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
    return FolderSink(root, layout, path, keep_undecodable)


def input_paths(spec: str) -> dict[str, bool]:
    """The list, and the folder that its paths start from, which may hold other things too."""
    path, root = _split(spec)
    return {path: True, root: False}


FORMAT = Format(
    "list",
    open_source=open_source,
    create_sink=create_sink,
    recognises=recognises,
    input_paths=input_paths,
    extensions=(".txt",),
)
