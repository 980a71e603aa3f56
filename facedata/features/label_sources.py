"""Where the labels of a feature set come from: text, ``.npy``, any labelled dataset; and a ``.meta`` of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED, read_label_lines, read_labels
from facedata.dataset import open_dataset, split_spec
from facedata.errors import FormatError
from facedata.features.sources.numpy_array import MAGIC, Header, check_size, fill, read_header_at
from facedata.features.sources.source import opened

__all__ = ["Counted", "Labels", "meta_lines", "open_labels", "unlabelled_lines"]

_BLOCK = 1 << 20  # labels
_FIRST_LINE = 1 << 12
_LARGEST = 10**18 - 1  # as many digits as a .meta may have

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Counted:
    """How many labels there are, and how many different ones other than -1."""

    rows: int
    classes: int


@dataclass(frozen=True)
class Labels:
    """Labels, read anew each time.

    Attributes
    ----------
    title : str
        The file or dataset.
    read : callable
        Yields them in order, block by block, shape (M,).
    """

    title: str
    read: Callable[[], Iterator[Numbers]]

    def blocks(self) -> Iterator[Numbers]:
        """All labels in order, none below -1, none that a ``.meta`` cannot have.

        Raises
        ------
        InputError
            Where they cannot be read.
        FormatError
            Where one is no integer, or is below -1; names its row.
        """
        first = 0
        for block in self.read():
            low = np.flatnonzero(block < UNLABELLED)
            if len(low):
                raise FormatError(
                    f"{self.title}: the label of row {first + int(low[0]):,} is {int(block[low[0]]):,}; expected an "
                    "integer from 0, or -1 for unlabelled; rows count from 0"
                )
            high = np.flatnonzero(block > _LARGEST)
            if len(high):
                raise FormatError(
                    f"{self.title}: the label of row {first + int(high[0]):,} is {int(block[high[0]])}; expected at "
                    f"most {_LARGEST}; rows count from 0"
                )
            first += len(block)
            yield block

    def count(self, limit: int | None = None) -> Counted:
        """Read all labels, and count them; the classes of the first `limit` rows only. Raises as `blocks`."""
        rows, classes = 0, np.empty(0, np.int64)
        for block in self.blocks():
            wanted = block if limit is None else block[: max(limit - rows, 0)]
            classes = np.union1d(classes, wanted)
            rows += len(block)
        return Counted(rows, int((classes != UNLABELLED).sum()))


def open_labels(where: str | os.PathLike[str]) -> Labels:
    """Labels for the rows of a matrix, in order.

    Parameters
    ----------
    where : str or path
        Text with an integer a line, as a ``.meta``; a list of ``path label`` lines; ``.npy`` of integers, shape (N,);
        a folder of class folders, in the order and with the labels of ``open_dataset("folder:...")``; or any other
        dataset as ``format:path``.

    Raises
    ------
    InputError
        Where there is nothing, or it cannot be read.
    FormatError
        Where it holds no labels.
    """
    path = os.fspath(where)
    if split_spec(path)[0] is not None and not os.path.lexists(path):
        return _of_dataset(path)
    if os.path.isdir(path):
        return _of_dataset(f"folder:{path}")
    with opened(path) as descriptor:
        head = os.pread(descriptor, _FIRST_LINE, 0)
    if head.startswith(MAGIC):
        return _of_npy(path)
    if len(head.partition(b"\n")[0].split()) > 1:
        return Labels(path, lambda: _cut(read_label_lines(path).labels))
    return Labels(path, lambda: read_labels(path))


def _cut(labels: NDArray[np.integer]) -> Iterator[Numbers]:
    return (labels[begin : begin + _BLOCK].astype(np.int64) for begin in range(0, len(labels), _BLOCK))


def _of_dataset(spec: str) -> Labels:
    source = open_dataset(spec)

    def read() -> Iterator[Numbers]:
        first = 0
        for block in source.labels():
            if (block < 0).any():
                row = first + int(np.flatnonzero(block < 0)[0])
                raise FormatError(f"{spec}: the label of sample {row:,} cannot be told; samples count from 0")
            first += len(block)
            yield block

    return Labels(spec, read)


def _of_npy(path: str) -> Labels:
    with opened(path) as descriptor:
        header = read_header_at(descriptor, 0, path)
        size = os.fstat(descriptor).st_size
    if header.dtype.kind not in "iu" or len(header.shape) != 1:
        raise FormatError(
            f"{path}: expected labels as integers of shape (rows,), found {header.dtype.name} of shape {header.shape}; "
            "in Python: np.save(name, labels.ravel().astype(np.int64))"
        )
    check_size(header, size, path)
    return Labels(path, lambda: _npy_blocks(path, header))


def _npy_blocks(path: str, header: Header) -> Iterator[Numbers]:
    (rows,) = header.shape
    with opened(path) as descriptor:
        for begin in range(0, rows, _BLOCK):
            block = np.empty(min(_BLOCK, rows - begin), header.dtype)
            fill(descriptor, block, header.size + begin * header.dtype.itemsize, path)
            if header.dtype.kind == "u" and (block > _LARGEST).any():
                row = begin + int(np.flatnonzero(block > _LARGEST)[0])
                raise FormatError(
                    f"{path}: the label of row {row:,} is {int(block[row - begin])}; expected at most {_LARGEST}; "
                    "rows count from 0"
                )
            yield block.astype(np.int64)


def meta_lines(labels: Labels, rows: int) -> Iterator[bytes]:
    """The first `rows` labels as the lines of a ``.meta``, many at a time.

    Raises
    ------
    FormatError
        Where there are fewer of them, by now.
    """
    left = rows
    for block in labels.blocks():
        wanted = block[:left].tolist()
        left -= len(wanted)
        if wanted:
            yield ("\n".join(map(str, wanted)) + "\n").encode()
    if left:
        raise FormatError(f"{labels.title}: has {rows - left:,} labels, and {rows:,} rows need one")


def unlabelled_lines(rows: int) -> Iterator[bytes]:
    """A line of -1 for each row, many at a time."""
    return (b"%d\n" % UNLABELLED * min(_BLOCK, rows - begin) for begin in range(0, rows, _BLOCK))
