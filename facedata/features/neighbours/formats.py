"""The formats that readers of nearest neighbours open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from facedata.features.neighbours.found import Neighbours
from facedata.features.neighbours.writing import StreamedArray, write_npy, write_npz

__all__ = ["FORMATS", "NeighbourFormat"]

_EXACT_IN_FLOAT32 = 1 << 24

Blocks = Callable[[], Iterator[Neighbours]]
_Part = Callable[[Neighbours], NDArray[Any]]


@dataclass(frozen=True)
class NeighbourFormat:
    """A format of nearest neighbours.

    Attributes
    ----------
    ending : str
        Of the name of its file.
    names : tuple of str
        Its arrays, as their reader calls them.
    more : int
        How many neighbours it holds beyond k.
    """

    ending: str
    names: tuple[str, ...]
    more: int = 0

    def files(self, path: str) -> list[str]:
        """The files written for `path`: itself, or, where each array has its own, one beside the other."""
        if len(self.names) == 1 or self.ending.endswith(".npz"):
            return [path]
        return [f"{path.removesuffix('.npy')}.{name}.npy" for name in self.names]

    def write(self, path: str, blocks: Blocks, rows: int, k: int) -> None:
        """Write the file, or the files, the first of them last.

        Parameters
        ----------
        path : str
        blocks : callable
            Gives the neighbours of all rows in order, each time anew.
        rows, k : int
            k as the blocks have it.
        """
        arrays = [_array(name, blocks, rows, k) for name in self.names]
        if self.ending.endswith(".npz"):
            write_npz(path, arrays)
            return
        for file, array in reversed(list(zip(self.files(path), arrays, strict=True))):
            write_npy(file, array)


FORMATS = {
    "ltc": NeighbourFormat(".npz", ("data",)),
    "cdp": NeighbourFormat(".cdp.npz", ("idx", "dist")),
    "gcn": NeighbourFormat(".gcn.npy", ("ids",), more=1),
    "npy": NeighbourFormat(".npy", ("ids", "distances")),
}
"""By name:

- ``ltc``, learn-to-cluster's: ``data``, (N, 2, k), ids and distances. float32, which all that reads it there takes (it
  casts ids to int32, compares and weighs with distances, and asserts -1e-5 <= distance <= 1 + 1e-5); float64 above
  16,777,216 rows, where float32 has no exact ids.
- ``cdp``, that of CDP: ``idx``, int32, and ``dist``, float32, both (N, k).
- ``gcn``, that of GCN-clustering: ids, int32, (N, k + 1), an ``.npy``; the first column is the row itself, which its
  reader leaves out.
- ``npy``: ids, int32, and distances, float32, each an ``.npy`` of (N, k), to be mapped into memory.
"""


def _array(name: str, blocks: Blocks, rows: int, k: int) -> StreamedArray:
    shape: Sequence[int] = (rows, 2, k) if name == "data" else (rows, k)
    part, dtype = _part(name, rows)
    return StreamedArray(name, dtype, tuple(shape), lambda: (part(block) for block in blocks()))


def _part(name: str, rows: int) -> tuple[_Part, DTypeLike]:
    if name == "data":
        dtype = np.dtype("<f4" if rows <= _EXACT_IN_FLOAT32 else "<f8")
        return lambda block: np.stack([part.astype(dtype) for part in block], axis=1), dtype
    if name in ("idx", "ids"):
        return lambda block: block.ids, np.dtype("<i4")
    return lambda block: block.distances, np.dtype("<f4")
