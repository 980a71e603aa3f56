"""The format ``list``: a text file of ``relative/path label`` lines, and the folder that the paths start from.

As a spec: ``list:train.txt@root``, or ``list:train.txt`` where the paths start from the list's own folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LabelLines, read_label_lines
from facedata.converters.folder.sink import FolderSink
from facedata.converters.image_files import ImageFiles, estimated_size
from facedata.dataset import Format, Sample, Source
from facedata.errors import FormatError, InputError, InputNotFoundError, OptionError, SampleError, input_error
from facedata.files import file_identity
from facedata.images import LARGEST_IMAGE

__all__ = ["FORMAT", "ListSource", "create_sink", "open_source", "recognises"]

_LINES = 1 << 16
_BLOCK = 1 << 22
_LEAVES = re.compile(rb"^(?:/|(?:[^\n]*/)?\.\.(?:/| \d))", re.MULTILINE)
_FIRST_LINE = re.compile(rb"[^ \t\r\n]+ \d{1,10}\r?\n?")


@dataclass(frozen=True)
class ListSource(Source):
    """The images that a list names, in the order of its lines.

    Attributes
    ----------
    root : str
        The folder that the paths start from.
    lines : LabelLines
    facts : mapping
        The identity of the list and its folder.
    """

    root: str
    lines: LabelLines
    facts: Mapping[str, Any]

    keys_are_paths = True

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, part: slice) -> ListSource:
        return replace(self, lines=self.lines[part])

    def take(self, positions: NDArray[np.int64]) -> ListSource:
        """The lines at `positions`."""
        return replace(self, lines=self.lines.take(positions))

    def read(self) -> Iterator[Sample | SampleError]:
        """The image of every line, or the error in its place."""
        with ImageFiles(self.root) as files:
            for path, label in zip(self.lines.texts(), self.lines.labels.tolist(), strict=True):
                folder, _, name = path.rpartition("/")
                image = files.read(folder, name)
                yield SampleError(self.root, path, image) if isinstance(image, str) else Sample(path, label, image)

    def identity(self) -> Mapping[str, Any]:
        """Size and sampled digest of the list, and digests of a few of the images."""
        return self.facts

    def locate(self, position: int) -> tuple[str, int | None]:
        """The image file."""
        return os.path.join(self.root, next(self.lines[position : position + 1].texts())), None

    def places(self) -> Mapping[str, bool]:
        """The list; and the folder that its paths start from, in which there may be other things too."""
        return {self.lines.path: True, self.root: False}

    def keys(self) -> Iterator[str]:
        """The paths."""
        return self.lines.texts()

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels of the lines."""
        for begin in range(0, len(self), _LINES):
            yield self.lines.labels[begin : begin + _LINES].astype(np.int64)

    def size(self) -> int:
        """The mean size of 64 images, times the number of images."""
        return estimated_size(self)

    def sizes(self) -> NDArray[np.int32]:
        """The size of every file, 0 for what is not there; asks the file system for each."""
        return np.fromiter(map(self._size, self.lines.texts()), np.int32, len(self))

    def _size(self, path: str) -> int:
        try:
            return min(os.stat(os.path.join(self.root, path)).st_size, LARGEST_IMAGE)
        except (OSError, ValueError):
            return 0

    def declared_classes(self) -> int:
        """The largest label of the whole list, and 1."""
        return self.lines.classes


def open_source(spec: str) -> ListSource:
    """Open ``LIST@ROOT``, or ``LIST`` whose paths start from its own folder.

    Raises
    ------
    InputError
        Where the list or the folder is not there.
    FormatError
        Where a line is not ``path label``, or its path leaves the folder; the message names the line.
    """
    path, root = _split(spec)
    if not os.path.isdir(root):
        raise InputNotFoundError(f"{root}: no such folder; the paths of {path} are to start from it")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise FormatError(f"{path}: is no regular file; expected a list with lines of 'path label'")
    lines = read_label_lines(path)
    _refuse_paths_that_leave(path)
    source = ListSource(root, lines, {})
    return replace(source, facts={"list": file_identity(path), "images": _content(source)})


def _split(spec: str) -> tuple[str, str]:
    """The path of the list and its root; an @ in the name of a list that is there belongs to the name."""
    if os.path.exists(spec) or "@" not in spec:
        return spec, os.path.dirname(spec) or "."
    path, _, root = spec.rpartition("@")
    return path, root


def _refuse_paths_that_leave(path: str) -> None:
    try:
        with open(path, "rb") as file:
            number, rest = 1, b""
            while block := file.read(_BLOCK):
                block = rest + block
                cut = block.rfind(b"\n") + 1 or len(block)
                rest, block = block[cut:], block[:cut]
                _check_block(block, path, number)
                number += block.count(b"\n")
            _check_block(rest, path, number)
    except OSError as error:
        raise input_error(error, path) from error


def _check_block(block: bytes, path: str, number: int) -> None:
    suspicious = b".." in block or b"\n/" in block or block[:1] == b"/"  # much quicker than the exact question
    if suspicious and (match := _LEAVES.search(block)):
        line, _, _ = block[match.start() :].partition(b"\n")
        number += block.count(b"\n", 0, match.start())
        raise FormatError(
            f"{path}: line {number}: the path leaves the folder that it starts from: "
            f"{line[:80].decode(errors='replace')!r}; expected relative paths without '..'"
        )


def _content(source: ListSource) -> list[str]:
    """Digests of a few images, so that a changed folder is noticed."""
    positions = np.unique(np.linspace(0, len(source) - 1, 16).astype(np.int64))
    paths = (os.path.join(source.root, path) for path in source.take(positions).keys())  # noqa: SIM118, no mapping
    return [_digest(path) for path in paths]


def _digest(path: str) -> str:
    with suppress(InputError):
        if os.path.isfile(path):
            return str(file_identity(path)["digest"])
    return "none"  # it fails by name when it is read


def recognises(path: str) -> bool:
    """Whether `path` is a text file whose first line is ``path label``."""
    if not os.path.isfile(path) or not path.endswith((".txt", ".lst", ".list")):
        return False
    with suppress(OSError), open(path, "rb") as file:
        return _FIRST_LINE.fullmatch(file.readline(1 << 12)) is not None
    return False


def create_sink(spec: str, *, layout: str | None = None, keep_undecodable: bool = False) -> FolderSink:
    """A sink for ``LIST@FOLDER``: writes the images into the folder, and their list.

    Raises
    ------
    OptionError
        Where no folder is named.
    """
    path, at, root = spec.rpartition("@")
    if not at or not path or not root:
        raise OptionError(f"list:{spec}: say where the images go: list:LIST@FOLDER, as list:train.txt@images/")
    return FolderSink(root, layout, path, keep_undecodable)


def input_paths(spec: str) -> dict[str, bool]:
    """The list, and the folder that its paths start from, in which there may be other things too."""
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
