"""Where the labels of a feature set come from: text, ``.npy``, or any labelled dataset; and a ``.meta`` of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED, read_label_lines, read_labels
from facedata.converters.convert import open_inputs
from facedata.dataset import split_spec
from facedata.errors import FormatError
from facedata.features.feature_set import NPY_MAGIC
from facedata.features.sources.arrays import open_npy
from facedata.files import StrPath, opened_regular, read_exactly

__all__ = ["Labels", "meta_lines", "open_labels", "unlabelled_lines"]

_BLOCK = 1 << 20  # labels
_FIRST_LINE = 1 << 12
_LARGEST = 10**18 - 1  # the most digits that a line of a .meta may have

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Labels:
    """Labels in order, read again each time."""

    title: str
    """The file or dataset."""
    read: Callable[[], Iterator[Integers]]
    """Yields the labels block by block, shape (M,)."""

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """All labels in order, block by block, each from -1 to the largest that a ``.meta`` may contain.

        Raises
        ------
        InputError
            If they cannot be read.
        FormatError
            If one is not an integer or is out of range; the message names its row.
        """
        first = 0
        for block in self.read():
            wrong = np.flatnonzero((block < UNLABELLED) | (block > _LARGEST))
            if len(wrong):
                label = int(block[wrong[0]])
                expected = f"at most {_LARGEST}" if label > _LARGEST else "an integer from 0, or -1 for unlabelled"
                raise FormatError(
                    f"{self.title}: the label of row {first + int(wrong[0]):,} is {label}; expected {expected}; rows "
                    "count from 0"
                )
            first += len(block)
            yield block.astype(np.int64, copy=False)

    def count(self, limit: int | None = None) -> tuple[int, int]:
        """How many labels there are, and how many classes the first `limit` rows have; raises as `blocks`."""
        rows, classes = 0, np.empty(0, np.int64)
        for block in self.blocks():
            classes = np.union1d(classes, block if limit is None else block[: max(limit - rows, 0)])
            rows += len(block)
        return rows, int((classes != UNLABELLED).sum())


def open_labels(where: StrPath) -> Labels:
    """Open labels for the rows of a matrix, in the order of the rows.

    They are text with an integer a line, as a ``.meta``; a list of ``path label`` lines; an ``.npy`` of integers, shape
    (N,); a folder of class folders, in the order and with the labels of ``open_dataset("folder:...")``; or any other
    dataset as ``format:path``.

    Raises
    ------
    InputError
        If there is nothing, or it cannot be read.
    FormatError
        If it does not contain labels.
    """
    path = os.fspath(where)
    if split_spec(path)[0] is not None and not os.path.lexists(path):
        return _labels_of_dataset(path)
    if os.path.isdir(path):
        return _labels_of_dataset(f"folder:{path}")
    with opened_regular(path) as descriptor:
        head = read_exactly(descriptor, _FIRST_LINE, 0)
    if head.startswith(NPY_MAGIC):
        array = open_npy(path)
        shape = array.header.shape
        if array.header.dtype.kind not in "iu" or len(shape) != 1:
            raise FormatError(
                f"{path}: expected labels as integers of shape (rows,), found {array.dtype} of shape {shape}; "
                "in Python: np.save(name, labels.ravel().astype(np.int64))"
            )
        return Labels(path, lambda: array.blocks(_BLOCK))
    if len(head.partition(b"\n")[0].split()) > 1:
        return Labels(path, lambda: iter([read_label_lines(path).labels]))
    return Labels(path, lambda: read_labels(path))


def _labels_of_dataset(spec: str) -> Labels:
    source = open_inputs([spec])[0].source

    def read() -> Iterator[Integers]:
        first = 0
        for block in source.labels():
            unknown = np.flatnonzero(block < 0)
            if len(unknown):
                sample = first + int(unknown[0])
                raise FormatError(f"{spec}: the label of sample {sample:,} is unknown; samples count from 0")
            first += len(block)
            yield block

    return Labels(spec, read)


def meta_lines(labels: Labels, rows: int) -> Iterator[bytes]:
    """The first `rows` labels as the lines of a ``.meta``, many at a time; raises `FormatError` if there are fewer."""
    left = rows
    for block in labels.blocks():
        for begin in range(0, min(len(block), left), _BLOCK):
            wanted = block[begin : min(begin + _BLOCK, left)].tolist()
            yield ("\n".join(map(str, wanted)) + "\n").encode()
        left -= min(len(block), left)
    if left:
        raise FormatError(f"{labels.title}: has {rows - left:,} labels, but {rows:,} rows need one each")


def unlabelled_lines(rows: int) -> Iterator[bytes]:
    """A line of -1 for each row, many at a time."""
    return (b"%d\n" % UNLABELLED * min(_BLOCK, rows - begin) for begin in range(0, rows, _BLOCK))
