"""The layouts of files of nearest neighbours: learn-to-cluster's, CDP's, GCN-clustering's, and two plain arrays."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError
from facedata.features.checks.stored import StoredArray, open_stored
from facedata.features.matrix import BLOCK_BYTES

__all__ = ["CDP", "GCN", "LEARN_TO_CLUSTER", "NPY", "OpenedNeighbours", "neighbour_files", "open_neighbours"]

LEARN_TO_CLUSTER, CDP, GCN, NPY = "learn-to-cluster", "cdp", "gcn", "npy"

_IDS, _DISTANCES = ".ids.npy", ".distances.npy"
_EXPECTED = (
    "expected 'data' of shape (N, 2, k), or 'idx' and 'dist' of (N, k), or whole numbers (N, k + 1) in a .npy, "
    "or .ids.npy and .distances.npy of (N, k)"
)


@dataclass
class OpenedNeighbours:
    """Arrays of ids and distances as one, whatever the layout."""

    layout: str
    rows: int
    k: int
    dtype: np.dtype[np.generic]
    arrays: list[StoredArray]

    @property
    def row_bytes(self) -> int:
        """Of all arrays together."""
        return sum(one.dtype.itemsize * math.prod(one.shape[1:]) for one in self.arrays)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.generic], NDArray[np.generic] | None]]:
        """The number of the first row, ids (M, k), and distances (M, k) where there are any."""
        at_once = max(BLOCK_BYTES // (self.k * 16), 1)
        begin = 0
        for parts in zip(*(array.rows(at_once) for array in self.arrays), strict=True):
            if self.layout == LEARN_TO_CLUSTER:
                yield begin, parts[0][:, 0], parts[0][:, 1]
            else:
                yield begin, parts[0], parts[1] if len(parts) > 1 else None
            begin += len(parts[0])


def neighbour_files(folder: str, k: int | None = None) -> list[str]:
    """The ``.npz`` and ``.npy`` files of a set's folder below ``knns/``, by name; those of one `k`, if it is given."""
    wanted = ("*.np[yz]",) if k is None else (f"*_k_{k}.np[yz]", f"*_k_{k}.*.np[yz]")
    found = {path for one in wanted for path in glob.glob(os.path.join(glob.escape(folder), one))}
    return sorted(path for path in found if _ids_beside(path) not in found)


def _ids_beside(path: str) -> str:
    """The file of ids that one of distances goes with; empty for all others."""
    return path.removesuffix(_DISTANCES) + _IDS if path.endswith(_DISTANCES) else ""


@contextmanager
def open_neighbours(path: str) -> Iterator[OpenedNeighbours]:
    """Open a file of neighbours, or the two of ids and distances, whatever the layout.

    Raises
    ------
    InputError
        Where it cannot be read.
    FormatError
        Where it has none of the layouts.
    """
    with _open(path) as arrays:
        yield _recognise(arrays)


@contextmanager
def _open(path: str) -> Iterator[Mapping[str, StoredArray]]:
    """The arrays of a file; of two that belong together ``ids`` and ``distances``."""
    beside = path.removesuffix(_IDS) + _DISTANCES
    if not path.endswith(_IDS) or not os.path.lexists(beside):
        with open_stored(path) as arrays:
            yield arrays
        return
    with open_stored(path) as ids, open_stored(beside) as distances:
        both = {"ids": ids.get(""), "distances": distances.get("")}
        yield {name: one for name, one in both.items() if one is not None}


def _recognise(arrays: Mapping[str, StoredArray]) -> OpenedNeighbours:
    """The layout of a file."""
    alone, data = arrays.get(""), arrays.get("data")
    found = ", ".join(
        f"{name[:40]!r} {one.dtype} {one.shape}" if name else f"{one.dtype} {one.shape}" for name, one in arrays.items()
    )
    if any(one.dtype.kind not in "iuf" or 0 in one.shape for one in arrays.values()):
        raise FormatError(f"{_EXPECTED}; found {found}")
    both = data or alone
    if both is not None and len(both.shape) == 3 and both.shape[1] == 2:
        return OpenedNeighbours(LEARN_TO_CLUSTER, both.shape[0], both.shape[2], both.dtype, [both])
    for layout, names in ((CDP, ("idx", "dist")), (NPY, ("ids", "distances"))):
        pair = [arrays[name] for name in names if name in arrays]
        if len(pair) == 2 and len(pair[0].shape) == 2 and pair[0].shape == pair[1].shape:
            return OpenedNeighbours(layout, *pair[0].shape, pair[1].dtype, pair)
    if alone is not None and len(alone.shape) == 2 and alone.dtype.kind in "iu":
        return OpenedNeighbours(GCN, *alone.shape, alone.dtype, [alone])
    raise FormatError(f"{_EXPECTED}; found {found}")
