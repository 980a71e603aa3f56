"""`WebDatasetSource`: the samples of some tars, in order, read in large blocks."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES, read_class_names_in
from facedata.converters.webdataset.names import COMPRESSED, find_tars
from facedata.converters.webdataset.reading import Row, read_key, read_sample
from facedata.converters.webdataset.samples import SampleTable, scan_tars
from facedata.converters.webdataset.walk import TarReader
from facedata.dataset import Sample, Source
from facedata.errors import InputError, SampleError
from facedata.files import file_identity
from facedata.tar_format import BLOCK

__all__ = ["WebDatasetSource", "open_source", "recognises"]

_BLOCK = 1 << 16
_MAGIC = slice(257, 262)

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WebDatasetSource(Source):
    """The samples of some tars, in order.

    Attributes
    ----------
    paths : tuple of str
        The tars that these samples lie in.
    starts : ndarray of shape (T,), int64
        Where each tar begins, if all of the dataset lay one behind the other.
    table : SampleTable
        Where each sample lies, and its label.
    tars_identity : mapping
        Number, bytes and digest of all tars of the dataset.
    classes : int
        The largest label of the dataset and 1.
    names_file : str
        Where the names of the classes may be.
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
        return self._only(self.table[part])

    def take(self, positions: NDArray[np.int64]) -> WebDatasetSource:
        """The samples at `positions`."""
        return self._only(self.table.take(positions))

    def _only(self, table: SampleTable) -> WebDatasetSource:
        """Some of the samples, with the tars that these lie in and no others."""
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
            Where a tar cannot be opened.
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
            table = self.table[begin : begin + _BLOCK]
            tars = self._tars_of(table.places)
            offsets = table.places - self.starts[tars]
            columns = (tars, offsets, table.sizes, table.labels, table.extras, table.headings)
            yield from map(Row._make, zip(*(column.tolist() for column in columns), strict=True))

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """The labels, block by block; -1 for each that cannot be told."""
        for begin in range(0, len(self), _BLOCK):
            yield np.maximum(self.table.labels[begin : begin + _BLOCK].astype(np.int64), -1)

    def size(self) -> int:
        """The bytes of the images."""
        return int(self.table.sizes.sum(dtype=np.int64))

    def sizes(self) -> NDArray[np.int32]:
        """The bytes of each image."""
        return self.table.sizes

    def identity(self) -> Mapping[str, Any]:
        """How many tars there are, how many bytes they have, and a digest of samples of each."""
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
        """What a ``classes.txt`` beside the first tar says, where facedata wrote it."""
        return read_class_names_in(os.path.dirname(self.names_file))

    def declared_classes(self) -> int:
        """The largest label and 1: the samples are all there is to say how many classes there are."""
        return self.classes


def open_source(spec: str) -> WebDatasetSource:
    """Open the tars that `spec` names, see `find_tars`, and walk through them once.

    Raises
    ------
    InputError
        Where there are none, or one cannot be read.
    EmptyDatasetError
        Where there is no image in them.
    FormatError
        Where one is damaged, or holds what is neither a regular file nor a folder.
    """
    paths = find_tars(spec)
    scanned = scan_tars(paths)
    return WebDatasetSource(
        tuple(paths),
        scanned.starts,
        scanned.table,
        _identity(paths),
        int(scanned.table.labels.max(initial=-1)) + 1,
        os.path.join(os.path.dirname(paths[0]), CLASSES),
    )


def _identity(paths: Sequence[str]) -> Mapping[str, Any]:
    """All tars in one: a record of each would make the plan of a job as long as the list of its tars."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    for path in paths:
        one = file_identity(path)
        digest.update(f"{one['size']} {one['digest']}\n".encode())
        size += one["size"]
    return {"number": len(paths), "size": size, "digest": digest.hexdigest()}


def recognises(spec: str) -> bool:
    """Whether `spec` is, or names, tars; or is a folder with a tar in it."""
    if spec.endswith((".tar", *COMPRESSED)) and os.path.isfile(spec):
        return True  # whatever may be wrong with it is said when it is opened
    try:
        return _is_tar(find_tars(spec)[0])
    except (InputError, OSError):
        return False


def _is_tar(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(BLOCK)[_MAGIC] == b"ustar"
