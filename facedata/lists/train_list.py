"""Lists of the images of any dataset, one a line, for the readers of several projects; no image is copied."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from facedata.converters.convert import LabelOptions, open_inputs
from facedata.converters.ids import IdOptions
from facedata.converters.image_files import ImageFileSource
from facedata.converters.selection import LabelOrigin, Selection, join_sources, label_origins, select
from facedata.dataset import Source, WrappedSource
from facedata.errors import InputNotFoundError, OptionError
from facedata.images import IMAGE_EXTENSIONS
from facedata.text import counted, listed

__all__ = ["LIST_FORMATS", "ListOptions", "TrainList", "plan_list"]

LIST_FORMATS = ("plain", "ffc", "im2rec", "insightface", "csv", "jsonl")
"""The formats of lists; see `TrainList.write`."""

_SPLIT_AT_BLANKS = ("plain", "ffc")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class ListOptions:
    """What is listed.

    Attributes
    ----------
    form : str
        One of `LIST_FORMATS`.
    also : str, optional
        A folder that has a twin of each image under the same path, with or without its extension: each line is
        followed by that of the twin, with the same label.
    keep_labels : bool
        Keep the labels as they are; else the remaining classes are numbered from 0 without gaps.
    """

    form: str = "plain"
    labels: LabelOptions = field(default_factory=LabelOptions)
    selection: Selection = field(default_factory=Selection)
    ids: IdOptions | None = None
    also: str | None = None
    keep_labels: bool = False


@dataclass(frozen=True)
class TrainList:
    """A list that is planned.

    Attributes
    ----------
    root : str
        The folder that its paths start from; empty if the keys of the source are not paths.
    prefix : str
        What the keys begin with that the paths of twins do not.
    classes : sequence of LabelOrigin
        In the order of the labels.
    smallest : int
        The number of images of the smallest class.
    """

    source: Source
    form: str
    root: str
    prefix: str
    also: str | None
    classes: Sequence[LabelOrigin]
    labels: NDArray[np.int64]
    smallest: int

    @property
    def lines(self) -> int:
        """How many lines it has."""
        return len(self.labels) * (2 if self.also else 1)

    def write(self, file: BinaryIO) -> None:
        """Write the lines.

        =============  ==================================================
        ``plain``      ``path label``, as FaceX-Zoo and UDML-SS read it
        ``ffc``        the same, as the key-label file of FFC
        ``im2rec``     ``index<TAB>label<TAB>path``
        ``insightface``  ``1<TAB>path<TAB>label``
        ``csv``        with the header ``path,label``
        ``jsonl``      ``{"path": ..., "label": ...}``
        =============  ==================================================

        Raises
        ------
        OptionError
            If a path has a blank or a tab at which the readers of this list would split it.
        InputNotFoundError
            If twins are missing; the message names the first ones.
        """
        line = _LINES[self.form]
        if self.form == "csv":
            file.write(b"path,label\n")
        if self.form in _SPLIT_AT_BLANKS and self.also is None:
            keys, first = iter(self.source.keys()), 0
            while paths := list(islice(keys, _BLOCK)):
                labels = self.labels[first : first + len(paths)].tolist()
                text = "".join([f"{path} {label}\n" for path, label in zip(paths, labels, strict=True)])
                if text.count(" ") > len(paths) or text.count("\n") > len(paths) or "\t" in text:
                    for path in paths:
                        self._check(path)
                file.write(text.encode(errors="surrogateescape"))
                first += len(paths)
            return
        block: list[str] = []
        for number, (path, label) in enumerate(self._entries()):
            self._check(path)
            block.append(line(number, path, label))
            if len(block) == _BLOCK:
                file.write("".join(block).encode(errors="surrogateescape"))
                block.clear()
        file.write("".join(block).encode(errors="surrogateescape"))

    def _check(self, path: str) -> None:
        if ("\t" in path or "\n" in path) and self.form not in ("csv", "jsonl"):
            raise OptionError(f"{path!r}: has a tab or a line break, which a list of lines cannot hold; use jsonl")
        if " " in path and self.form in _SPLIT_AT_BLANKS:
            raise OptionError(
                f"{path!r}: has a blank, and the readers of such a list split its lines at blanks; rename it, or "
                "write another --format"
            )

    def _entries(self) -> Iterator[tuple[str, int]]:
        missing = []
        for key, label in zip(self.source.keys(), self.labels.tolist(), strict=True):
            yield key, label
            if self.also is not None:
                twin = _twin(self.also, key.removeprefix(self.prefix))
                if twin is None:
                    missing.append(key)
                else:
                    yield os.path.relpath(os.path.join(self.also, twin), self.root), label
        if missing:
            raise InputNotFoundError(
                f"{self.also}: has no twin of {counted(len(missing), 'image')} of {len(self.labels):,}: "
                f"{listed(missing)}; nothing was written"
            )


class _PrefixedSource(WrappedSource):
    """A source whose keys get a prefix."""

    def __init__(self, source: Source, prefix: str) -> None:
        super().__init__(source)
        self._prefix = prefix

    def sliced(self, part: slice) -> _PrefixedSource:
        return _PrefixedSource(self._source[part], self._prefix)

    def take(self, positions: NDArray[np.int64]) -> _PrefixedSource:
        return _PrefixedSource(self._source.take(positions), self._prefix)

    def keys(self) -> Iterator[str]:
        return (self._prefix + key for key in self._source.keys())  # noqa: SIM118, not a mapping


def _im2rec(number: int, path: str, label: int) -> str:
    return f"{number}\t{label}.000000\t{path}\n"


def _csv(number: int, path: str, label: int) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([path, label])
    return text.getvalue()


_LINES: dict[str, Callable[[int, str, int], str]] = {
    "plain": lambda number, path, label: f"{path} {label}\n",
    "ffc": lambda number, path, label: f"{path} {label}\n",
    "im2rec": _im2rec,
    "insightface": lambda number, path, label: f"1\t{path}\t{label}\n",
    "csv": _csv,
    "jsonl": lambda number, path, label: json.dumps({"path": path, "label": label}, ensure_ascii=False) + "\n",
}


def _twin(folder: str, key: str) -> str | None:
    """The path of the twin of an image in a folder: its own, or that with another extension."""
    stem = key.rpartition(".")[0] or key
    paths = chain([key], (f"{stem}.{extension}" for extension in sorted(IMAGE_EXTENSIONS)))
    return next((path for path in paths if os.path.isfile(os.path.join(folder, path))), None)


def plan_list(specs: Sequence[str], options: ListOptions) -> TrainList:
    """Open datasets and find out which lines a list of their images has; writes nothing.

    Raises
    ------
    InputError
        If a dataset cannot be read.
    EmptyDatasetError
        If no image is left.
    OptionError
        If the source has no labels, or `also` is given for a source whose keys are not paths.
    """
    inputs = open_inputs(specs, labels=options.labels)
    root, prefixes = _common_root([item.source for item in inputs], options.also)
    parts = [_PrefixedSource(i.source, p) if p else i.source for i, p in zip(inputs, prefixes, strict=True)]
    if options.ids is not None and not options.labels.replaced:
        parts = options.ids.apply(parts, [item.path for item in inputs])
    shift = options.labels.mode != "keep" and not options.labels.replaced
    joined, shifts = join_sources(parts, shift=shift)
    source = options.labels.apply(joined)
    if options.ids is not None and options.labels.replaced:
        [source] = options.ids.apply([source])
    if not source.labelled:
        unlabelled = next((item.path for item in inputs if not item.source.labelled), inputs[0].path)
        raise OptionError(
            f"{unlabelled}: its images have no labels; put those of each class into a folder, or give "
            "--labels-from FILE or --label 0"
        )
    names = source.class_names() or {}
    selected = select(source, options.selection)
    labels = selected.labels()
    if (labels < 0).any():
        selected, labels = selected.take(np.flatnonzero(labels >= 0)), labels[labels >= 0]
    there, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sets = [(i.path, first) for i, (first, _) in zip(inputs, shifts, strict=True)] if shift else [(inputs[0].path, 0)]
    named = {number: names[label] for number, label in enumerate(there.tolist()) if label in names}
    written = there.tolist() if options.keep_labels else range(len(there))
    classes = list(
        label_origins(zip(written, there.tolist(), strict=True), sets, names if options.keep_labels else named)
    )
    labels = labels if options.keep_labels else numbers.astype(np.int64)
    return TrainList(selected, options.form, root, prefixes[0], options.also, classes, labels, int(counts.min()))


def _common_root(sources: Sequence[Source], also: str | None) -> tuple[str, list[str]]:
    """The folder that all paths start from, and what stands before the keys of each source there."""
    roots = [os.path.abspath(source.root) for source in sources if isinstance(source, ImageFileSource)]
    if also is not None and not os.path.isdir(also):
        raise InputNotFoundError(f"{also}: no such folder; --also names the folder of the twins")
    if also is not None and len(sources) != 1:
        raise OptionError("--also takes one dataset at a time, so that it is clear whose twins are there")
    if len(roots) < len(sources):
        if also is not None or roots:
            raise OptionError("a list of paths needs datasets of image files: folders or lists")
        return "", [""] * len(sources)
    common = os.path.commonpath([*roots, *([os.path.abspath(also)] if also else [])])
    return common, ["" if root == common else f"{os.path.relpath(root, common)}/" for root in roots]
