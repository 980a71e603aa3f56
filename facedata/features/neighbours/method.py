"""How a search is done: the method and its parameters, how it is cut into pieces, and how it fits into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from facedata.errors import MissingExtraError, OptionError
from facedata.features.feature_set import VALUE_BYTES

__all__ = [
    "CUDA",
    "EXACT",
    "HNSW",
    "IVF",
    "SAMPLE_PER_LIST",
    "Cut",
    "MemoryPlan",
    "Method",
    "cut_search",
    "fit_into_memory",
    "import_faiss",
]

EXACT, IVF, HNSW = "exact", "ivf", "hnsw"
CPU, CUDA = "cpu", "cuda"

_NAMES = {
    (EXACT, CPU): "faiss",
    (EXACT, CUDA): "faiss_gpu",
    (IVF, CPU): "faiss_ivf",
    (IVF, CUDA): "faiss_ivf_gpu",
    (HNSW, CPU): "hnsw",
}
_OPTIONS = {EXACT: (), IVF: ("nlist", "nprobe"), HNSW: ("ef",)}

SAMPLE_PER_LIST = 64
"""Rows that each inverted list is trained with."""

_LEAST_PER_LIST = 39  # faiss warns that lists trained with fewer rows each are unreliable
_MOST_LISTS = 1 << 16
_NPROBE = 128
_LINKS = 32
_EF_CONSTRUCTION = 100
_LEAST_EF = 160

_ROWS_AT_ONCE = 1 << 10
_VALUES_AT_ONCE = 1 << 17  # with fewer, faiss multiplies without BLAS, at a quarter of the speed
_MOST_AT_ONCE = 1 << 12
_FOUND_BYTES = 1 << 25  # ids and cosines that are found at once
_FOUND_EACH = 12
_CHUNK_BYTES = 1 << 28  # a quarter of it takes 7 % more time, because the k nearest are selected again in each chunk
_CHUNK_ROWS = 1 << 10  # faiss multiplies with so many rows at a time
_ROWS_FOR_ONE_MORE = 1 << 18
_MOST_PIECES = 8

_PROGRAM = 80_000_000  # bytes of Python, NumPy and faiss
_FOUND = 76  # bytes for each neighbour of a row while the results of two chunks are merged
_KEPT = 32  # bytes for each neighbour of a row while a shard is put together and written
_PRODUCTS = 4096  # bytes for each row: faiss multiplies it with 1,024 rows at a time
_WORKING = 1 << 23


def import_faiss() -> Any:
    """Import faiss, or raise a `MissingExtraError`; untyped, because its own hints fit some of its versions only."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("build-knn", "features", "faiss-cpu") from error
    return faiss


@dataclass(frozen=True)
class Method:
    """How neighbours are searched for; raises `OptionError` if there is no such method, or an option does not apply."""

    name: str = EXACT
    """``"exact"``, ``"ivf"`` (through inverted lists) or ``"hnsw"`` (through a graph)."""
    device: str = CPU
    nlist: int | None = None
    """For ivf, the number of lists; by default four times the square root of the number of rows."""
    nprobe: int | None = None
    """For ivf, how many lists are searched for each row; by default 128, as in learn-to-cluster."""
    ef: int | None = None
    """For hnsw, how many candidates are kept during a search; by default twice k, at least 160."""

    def __post_init__(self) -> None:
        if (self.name, self.device) not in _NAMES:
            raise OptionError(f"--method {self.name} is not available with --device {self.device}")
        for option in ("nlist", "nprobe", "ef"):
            value = getattr(self, option)
            if value is not None and option not in _OPTIONS[self.name]:
                raise OptionError(f"--{option} does not apply to --method {self.name}")
            if value is not None and value < 1:
                raise OptionError(f"--{option} {value}: expected 1 or more")

    @property
    def file_name(self) -> str:
        """The name of the method in the file names of learn-to-cluster."""
        return _NAMES[self.name, self.device]

    @property
    def approximate(self) -> bool:
        """Whether the search may miss neighbours."""
        return self.name != EXACT

    @property
    def needs_index(self) -> bool:
        """Whether all rows are put into an index before the search."""
        return self.approximate or self.device == CUDA

    def check_device(self) -> None:
        """Raise `OptionError` if faiss cannot use the GPU that was asked for."""
        faiss = import_faiss()
        if self.device != CUDA:
            return
        if not hasattr(faiss, "StandardGpuResources"):
            raise OptionError(
                "--device cuda: the installed faiss has no GPU support; install a faiss with it, or use --device cpu"
            )
        if not faiss.get_num_gpus():
            raise OptionError("--device cuda: faiss finds no GPU on this machine; use --device cpu")

    def parameters(self, rows: int, k: int) -> dict[str, int]:
        """The parameters of the search, which decide its result; raises `OptionError` if there are too many lists."""
        if self.name == HNSW:
            ef = max(self.ef or max(2 * k, _LEAST_EF), k)
            return {"links": _LINKS, "ef construction": _EF_CONSTRUCTION, "ef": ef}
        if self.name == EXACT:
            return {}
        if self.nlist is not None and self.nlist > rows:
            raise OptionError(f"--nlist {self.nlist:,}: expected at most one list a row, and there are {rows:,} rows")
        fitting = max(min(round(4 * math.sqrt(rows)), rows // _LEAST_PER_LIST, _MOST_LISTS), 1)
        nlist = self.nlist or fitting
        return {"nlist": nlist, "nprobe": min(self.nprobe or _NPROBE, nlist)}

    def index_bytes(self, rows: int, dimensions: int, parameters: Mapping[str, int]) -> int | None:
        """About how much memory of the host it takes to build and hold the index; None without one."""
        row = dimensions * VALUE_BYTES
        if not self.needs_index:
            return None
        if self.device == CUDA:
            return 0
        if self.name == IVF:
            return rows * (row + 8) + parameters["nlist"] * row * (SAMPLE_PER_LIST + 1)
        return rows * (row + 10 * _LINKS + 16)


class Cut(NamedTuple):
    """How many rows are taken at a time, decided by the matrix and k alone."""

    at_once: int
    """Rows whose neighbours faiss is asked for in one call."""
    chunk: int
    """Rows that they are compared with in one call."""
    shards: int
    """Shards of the job, of about equal size; several calls each, so that a chunk is read once for all of them."""


def cut_search(rows: int, dimensions: int, k: int) -> Cut:
    """Cut the search for the `k` neighbours of each row."""
    at_once = min(max(_ROWS_AT_ONCE, _VALUES_AT_ONCE // dimensions), _MOST_AT_ONCE)
    at_once = max(min(at_once, _FOUND_BYTES // (_FOUND_EACH * k)), 1)
    pieces = min(max(rows // _ROWS_FOR_ONE_MORE, 1), _MOST_PIECES, max(_FOUND_BYTES // (_FOUND_EACH * k * at_once), 1))
    chunk = max(_CHUNK_BYTES // (dimensions * VALUE_BYTES) // _CHUNK_ROWS, 1) * _CHUNK_ROWS
    return Cut(at_once, chunk, -(-rows // (at_once * pieces)))


class MemoryPlan(NamedTuple):
    """How a search fits into memory."""

    threads: int
    resident: bool
    """Whether all rows are kept in memory, or read again for each shard."""
    bytes: int
    """About how much memory that takes."""


def fit_into_memory(
    rows: int, dimensions: int, k: int, threads: int, limit: int, index_bytes: int | None = None
) -> MemoryPlan:
    """Choose the number of threads, and whether all rows are kept, so that a search takes at most `limit` bytes.

    `threads` is the most threads to use; `index_bytes` is what the index takes, None for a search without one. Raises
    an `OptionError` that says how much is needed if even one thread takes more.
    """
    cut, row = cut_search(rows, dimensions, k), dimensions * VALUE_BYTES
    shard, chunk = -(-rows // cut.shards), min(cut.chunk, rows) * row
    thread = shard * k * _KEPT + min(cut.at_once, shard) * (k * _FOUND + _PRODUCTS) + _WORKING
    if index_bytes is None:  # rows, or for each thread the queries of a shard and a chunk
        choices = [(True, _PROGRAM + rows * row, thread), (False, _PROGRAM, thread + shard * row + chunk)]
    else:  # a chunk is only needed to build the index
        choices = [(False, _PROGRAM + index_bytes + chunk, thread + shard * row)]
    least = min(fixed + each for _, fixed, each in choices)
    if limit < least:
        advice = "" if index_bytes is None else "; --method exact takes less"
        raise OptionError(
            f"--memory: {limit:,} bytes are too few; this search needs at least {least:,} "
            f"({-(-least // 1_000_000):,}MB){advice}"
        )
    fitting = [(min(threads, (limit - fixed) // each), keep, fixed, each) for keep, fixed, each in choices]
    count, resident, fixed, each = max(fitting)
    return MemoryPlan(count, resident, fixed + count * each)
