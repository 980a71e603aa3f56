"""Files of nearest neighbours: the rules that neighbours keep, the formats, and the output of the job."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Publish
from facedata.errors import InputError, OutputMismatchError
from facedata.files import atomic_writer, output_errors, read_small
from facedata.jobs.output import StagedOutput

__all__ = [
    "FORMATS",
    "NEAREST",
    "NeighbourFormat",
    "NeighbourOutput",
    "Neighbours",
    "what_is_wrong_with",
    "with_itself_first",
]

NEAREST = 2.0**-24
"""The smallest distance of another row: half a float32 step below 1, less than the error of the products.

learn-to-cluster sorts each row by distance with an unstable sort and takes the first for the row itself, so a duplicate
must not be at distance 0 too.
"""

_EXACT_IN_FLOAT32 = 1 << 24
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold: the same arrays give the same bytes
_MODE = 0o644 << 16
_LARGEST_RECALL = 64  # bytes
_RECALL = "recall.json"


class Neighbours(NamedTuple):
    """The neighbours of consecutive rows, nearest first: arrays of shape (M, k)."""

    ids: NDArray[np.int32]
    distances: NDArray[np.float32]
    """1 - cosine."""


ReadBlocks = Callable[[], Iterator[Neighbours]]
"""Reads the neighbours of all rows in order, from the first row each time it is called."""


def with_itself_first(ids: NDArray[np.int64], cosines: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbours:
    """Put each row first among its own neighbours, at distance 0, and turn cosines into distances in [`NEAREST`, 1].

    `ids` and `cosines`, shape (M, k), have the nearest first; `rows`, shape (M,), are the numbers of the rows. A row
    may be at any place among its neighbours, or, after k duplicates, at none: then it replaces the last.
    """
    itself = ids == rows[:, None]
    place = np.where(itself.any(axis=1), itself.argmax(axis=1), ids.shape[1] - 1)
    moved = np.flatnonzero((place > 0) | (ids[:, 0] != rows))
    distances = np.clip(np.float32(1) - cosines, np.float32(NEAREST), np.float32(1))
    narrow = ids.astype(np.int32)
    if len(moved):
        columns = np.arange(ids.shape[1])
        order = np.where(columns <= place[moved, None], columns - 1, columns)  # those before it move back by one place
        narrow[moved] = np.take_along_axis(narrow[moved], order, axis=1)
        distances[moved] = np.take_along_axis(distances[moved], order, axis=1)
        narrow[moved, 0] = rows[moved]
    distances[:, 0] = 0
    return Neighbours(narrow, distances)


def what_is_wrong_with(block: Neighbours, first: int, rows: int) -> str | None:
    """Which rule the neighbours of the rows from `first` on break, of `rows` in the set; None if they keep them all."""
    ids, distances = block
    if not (ids[:, 0] == np.arange(first, first + len(ids))).all():
        return "a row is not the first of its own neighbours"
    if not ((ids >= 0) & (ids < rows)).all():
        return f"an id is not between 0 and {rows - 1:,}"
    if not ((distances[:, 0] == 0).all() and (distances <= 1).all()):
        return "a distance is not between 0 and 1, or the distance to the row itself is not 0"
    if not (distances[:, 1:] >= distances[:, :-1]).all():
        return "distances do not ascend"
    return None


# Formats


@dataclass(frozen=True)
class NeighbourFormat:
    """A file format of nearest neighbours."""

    ending: str
    """The end of the file's name."""
    arrays: tuple[str, ...]
    """The names of its arrays: ``data``, or one of ids (``idx``, ``ids``) and one of distances."""
    more: int = 0
    """How many neighbours it holds beyond k."""

    def files(self, path: str) -> list[str]:
        """The files that are written for `path`: itself, or one ``.npy`` for each array beside it."""
        if len(self.arrays) == 1 or self.ending.endswith(".npz"):
            return [path]
        return [f"{path.removesuffix('.npy')}.{name}.npy" for name in self.arrays]

    def write(self, path: str, read_blocks: ReadBlocks, rows: int, k: int, rename: Publish | None = None) -> None:
        """Write the file or files, block by block; each appears when it is complete, the first of them last.

        Members of an ``.npz`` are stored, not compressed: ids and distances would shrink by a fifth only, in fifty
        times the time. The blocks have `k` neighbours of each row.
        """
        if self.ending.endswith(".npz"):
            with atomic_writer(path, rename=rename) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name in self.arrays:
                    member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
                    member.external_attr = _MODE
                    with archive.open(member, "w", force_zip64=True) as stream:
                        _write_array(stream, name, read_blocks, rows, k)
            return
        for file_path, name in reversed(list(zip(self.files(path), self.arrays, strict=True))):
            with atomic_writer(file_path, rename=rename) as file:
                _write_array(file, name, read_blocks, rows, k)


FORMATS = {
    "ltc": NeighbourFormat(".npz", ("data",)),
    "cdp": NeighbourFormat(".cdp.npz", ("idx", "dist")),
    "gcn": NeighbourFormat(".gcn.npy", ("ids",), more=1),
    "npy": NeighbourFormat(".npy", ("ids", "distances")),
}
"""The formats by name:

- ``ltc``, of learn-to-cluster: ``data``, (N, 2, k), ids and distances. float32 suits all of its readers (they cast ids
  to int32, compare and weigh with distances, and assert -1e-5 <= distance <= 1 + 1e-5); float64 above 16,777,216 rows,
  because float32 cannot hold larger ids.
- ``cdp``, of CDP: ``idx``, int32, and ``dist``, float32, both (N, k).
- ``gcn``, of GCN-clustering: ids, int32, (N, k + 1), an ``.npy``; its reader ignores the first column, the row itself.
- ``npy``: ids, int32, and distances, float32, each an ``.npy`` of (N, k), which can be mapped into memory.
"""


def _write_array(file: IO[bytes], name: str, read_blocks: ReadBlocks, rows: int, k: int) -> None:
    """Write an array as an ``.npy`` of version 1.0 in C order."""
    if name == "data":
        dtype = np.dtype("<f4" if rows <= _EXACT_IN_FLOAT32 else "<f8")
    else:
        dtype = np.dtype("<i4" if name in ("idx", "ids") else "<f4")
    shape = (rows, 2, k) if name == "data" else (rows, k)
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    for block in read_blocks():
        if name == "data":
            values: NDArray[Any] = np.stack([part.astype(dtype) for part in block], axis=1)
        else:
            values = block.ids if dtype.kind == "i" else block.distances
        file.write(np.ascontiguousarray(values, dtype).data.cast("B"))


# The output of the job


class NeighbourOutput(StagedOutput):
    """The output of a search: a part for each shard (ids, then distances), then the file with `k` neighbours a row.

    `prepare_search` is called before the first search of a run.
    """

    def __init__(
        self, path: str, file_format: NeighbourFormat, rows: int, k: int, prepare_search: Callable[[], None]
    ) -> None:
        self._path, self._format, self._rows, self._k = path, file_format, rows, k
        self._prepare_search = prepare_search

    @property
    def path(self) -> str:
        """The file that the user named."""
        return self._path

    def named_files(self) -> list[str]:
        """The file, or the files, that readers open."""
        return self._format.files(self._path)

    def prepare(self) -> None:
        """Make the folder of the parts, and prepare the search."""
        super().prepare()
        self._prepare_search()

    def read_blocks(self, shards: int) -> Iterator[Neighbours]:
        """Read the neighbours of all rows, shard by shard; raises `OutputMismatchError` if a part has changed."""
        first = 0
        for shard in range(shards):
            data = self.read_part(shard)
            values = len(data) // 8
            if values and len(data) == values * 8 and values % self._k == 0:
                ids = np.frombuffer(data, np.int32, values).reshape(-1, self._k)
                block = Neighbours(ids, np.frombuffer(data, np.float32, values, 4 * values).reshape(-1, self._k))
                wrong = what_is_wrong_with(block, first, self._rows)
            else:
                wrong = f"found {len(data):,} bytes, expected whole rows of {8 * self._k:,}"
            if wrong is not None:
                raise self._corrupt(self.part_path(shard), wrong)
            yield block
            first += len(ids)
        if first != self._rows:
            raise self._corrupt(self.staging, f"found neighbours of {first:,} rows, expected {self._rows:,}")

    def _corrupt(self, path: str, wrong: str) -> OutputMismatchError:
        return OutputMismatchError(
            f"{path}: is corrupt: {wrong}; nothing was published. Did the machine crash, or was the file changed? "
            "--overwrite starts the job over"
        )

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Check all parts and write the file from them."""
        with output_errors(self._path):
            self._format.write(self._path, lambda: self.read_blocks(shards), self._rows, self._k, publish)
            files = [os.path.abspath(name) for name in self.named_files()]
            size = sum(map(os.path.getsize, files))
        recall = None
        with suppress(OSError, InputError, ValueError, TypeError):
            recall = float(json.loads(read_small(os.path.join(self.staging, _RECALL), _LARGEST_RECALL)))
        return {"files": files, "file_bytes": size, "recall": recall}

    def write_recall(self, recall: float) -> None:
        """Keep the recall until the summary is written, which another run may do."""
        with atomic_writer(os.path.join(self.staging, _RECALL)) as file:
            file.write(json.dumps(recall).encode())
