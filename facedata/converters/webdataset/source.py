"""`WebDatasetSource`: the samples of some tars, in order, read in large blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES, read_class_names_in
from facedata.converters.webdataset.members import TarReader
from facedata.converters.webdataset.names import COMPRESSED, find_tars
from facedata.converters.webdataset.samples import Row, SampleTable, read_key, read_sample, scan_tars
from facedata.dataset import Sample, Source
from facedata.errors import InputError, SampleError
from facedata.files import combined_identity, file_identity, opened_regular
from facedata.tar_format import BLOCK

__all__ = ["WebDatasetSource", "open_source", "recognises"]

_BLOCK = 1 << 16
_MAGIC = slice(257, 262)

_T = TypeVar("_T")


@dataclass(frozen=True)
class WebDatasetSource(Source):
    """The samples of some tars, in order.

    Attributes
    ----------
    paths : tuple of str
        The tars that hold these samples.
    starts : ndarray of shape (T,), int64
        Where each tar begins, if all tars of the dataset followed each other.
    table : SampleTable
        The place and label of each sample.
    tars_identity : mapping
        Number, bytes and digest of all tars of the dataset.
    classes : int
        The largest label of the dataset plus 1.
    names_file : str
        The file that may hold the names of the classes.
    """

    paths: tuple[str, ...]
    starts: NDArray[np.int64]
    table: SampleTable
    tars_identity: Mapping[str, Any]
    classes: int
    names_file: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, part: slice) -> WebDatasetSource:
        return self.take(part)

    def take(self, positions: NDArray[np.int64] | slice) -> WebDatasetSource:
        """The samples at `positions`, with only the tars that hold them."""
        table = self.table.take(positions)
        used = np.unique(self._tars_of(table.places))
        paths = tuple(self.paths[tar] for tar in used.tolist())
        return replace(self, table=table, starts=self.starts[used], paths=paths)

    def _tars_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        tars: NDArray[np.int64] = np.searchsorted(self.starts, places, side="right") - 1
        return tars

    def read(self) -> Iterator[Sample | SampleError]:
        """Every sample in order, or the error in its place.

        Raises
        ------
        InputError
            If a tar cannot be opened.
        """
        return self._each(read_sample)

    def keys(self) -> Iterator[str]:
        """The ``key`` in each sample's ``.json``, or else the path of its image without the extension."""
        return self._each(read_key)

    def _each(self, read: Callable[[TarReader, Row], _T]) -> Iterator[_T]:
        for tar, rows in groupby(self._rows(), attrgetter("tar")):
            with TarReader(self.paths[tar]) as reader:
                for row in rows:
                    yield read(reader, row)

    def _rows(self) -> Iterator[Row]:
        for begin in range(0, len(self), _BLOCK):
            table = self.table.take(slice(begin, begin + _BLOCK))
            tars = self._tars_of(table.places)
            offsets = table.places - self.starts[tars]
            columns = (tars, offsets, table.sizes, table.labels, table.extras, table.headings)
            yield from map(Row._make, zip(*(column.tolist() for column in columns), strict=True))

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels in blocks; -1 for a sample without a valid one."""
        for begin in range(0, len(self), _BLOCK):
            yield np.maximum(self.table.labels[begin : begin + _BLOCK].astype(np.int64), -1)

    def size(self) -> int:
        """The bytes of the images."""
        return int(self.table.sizes.sum(dtype=np.int64))

    def sizes(self) -> NDArray[np.int32]:
        """The bytes of each image."""
        return self.table.sizes

    def identity(self) -> Mapping[str, Any]:
        """The number of tars, their bytes, and a digest of samples of each."""
        return {"tars": dict(self.tars_identity)}

    def locate(self, position: int) -> tuple[str, int | None]:
        """The tar, and the offset of the image in it."""
        place = self.table.places[position]
        tar = int(self._tars_of(place))
        return self.paths[tar], int(place - self.starts[tar])

    def places(self) -> Mapping[str, bool]:
        """The tars."""
        return dict.fromkeys(self.paths, True)

    def class_names(self) -> Mapping[int, str] | None:
        """The names in a ``classes.txt`` beside the first tar, if facedata wrote it."""
        return read_class_names_in(os.path.dirname(self.names_file))

    def declared_classes(self) -> int:
        """The largest label plus 1: only the samples say how many classes there are."""
        return self.classes


def open_source(spec: str) -> WebDatasetSource:
    """Open the tars that `spec` names, see `find_tars`, and walk through them once.

    Raises
    ------
    InputError
        If there are none, or one cannot be read.
    EmptyDatasetError
        If there is no image in them.
    FormatError
        If one is corrupt, or holds something other than regular files and folders.
    """
    paths = find_tars(spec)
    table, starts = scan_tars(paths)
    identities = [file_identity(path) for path in paths]
    identity = {
        "number": len(paths),
        "size": sum(identity["size"] for identity in identities),
        "digest": combined_identity((str(identity["size"]), identity["digest"]) for identity in identities),
    }
    classes = int(table.labels.max(initial=-1)) + 1
    return WebDatasetSource(
        tuple(paths), starts, table, identity, classes, os.path.join(os.path.dirname(paths[0]), CLASSES)
    )


def recognises(spec: str) -> bool:
    """Whether `spec` names tars, or a folder with a tar in it."""
    if spec.endswith((".tar", *COMPRESSED)) and os.path.isfile(spec):
        return True  # opening it reports what is wrong
    try:
        with opened_regular(find_tars(spec)[0]) as descriptor:
            return os.pread(descriptor, BLOCK, 0)[_MAGIC] == b"ustar"
    except InputError:
        return False
