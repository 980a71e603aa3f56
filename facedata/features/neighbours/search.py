"""The search for nearest neighbours by the cosine, with faiss: exact, or through lists, a graph or a GPU.

The result is the same whatever the number of threads and the memory. faiss computes other last bits if it multiplies
blocks of other sizes, so `cut_search` fixes them; each thread uses one core; an index is built by one thread, because
several would not build the same one twice, and from seeds that are constants of faiss.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import InterruptedJobError, MissingExtraError, OptionError
from facedata.features.feature_set import VALUE_BYTES, Floats, Matrix, check_rows

__all__ = [
    "CUDA",
    "IndexSearch",
    "Method",
    "Nearest",
    "UnitRows",
    "cut_search",
    "exact_nearest",
    "fit_into_memory",
    "import_faiss",
    "measured_recall",
    "to_unit_length",
    "use_one_core",
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


_TRAINING_ROUNDS = 10
_TRAINING_SEED = 0
_NORMALISED_VALUES = 1 << 18
_READ_BYTES = 1 << 22
_RECALL_ROWS = 1000
_RECALL_SEED = 1
_SAME = 1e-6  # cosines of the same pair that were computed in two ways differ by less


def use_one_core() -> None:
    """Make faiss use one core in this thread."""
    import_faiss().omp_set_num_threads(1)


@contextmanager
def _one_core() -> Iterator[None]:
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def to_unit_length(block: Floats, first: int, path: str) -> Floats:
    """Divide each row of a block, shape (M, D), by its length, in place; a result does not depend on the other rows.

    Raises a `FormatError` if a row is not finite or all zero: it names the file and the row, counted from `first`.
    """
    step = max(_NORMALISED_VALUES // block.shape[1], 1)
    for begin in range(0, len(block), step):
        part = block[begin : begin + step]
        wide = part.astype(np.float64)  # the square of a float32 may overflow or vanish
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            check_rows(part, first + begin, path)
        np.divide(wide, lengths[:, None], out=part, casting="same_kind")
    return block


class UnitRows:
    """The rows of a matrix at unit length: if they are resident, all kept in memory by `load`; else read each time.

    `chunk` is the number of rows that `chunks` gives at a time.
    """

    def __init__(self, matrix: Matrix, chunk: int, *, resident: bool) -> None:
        self.matrix, self._chunk, self.resident = matrix, chunk, resident
        self._kept: Floats | None = None

    def load(self) -> None:
        """Read and check all rows, as `to_unit_length` does; keep them if they are to be resident."""
        if self._kept is not None:
            return
        kept = np.empty((self.matrix.rows, self.matrix.dimensions), np.float32) if self.resident else None
        for first, block in self.matrix.blocks(_READ_BYTES):
            to_unit_length(block, first, self.matrix.path)
            if kept is not None:
                kept[first : first + len(block)] = block
        self._kept = kept

    def rows(self, begin: int, end: int) -> Floats:
        """The rows from `begin` to before `end`, shape (M, D)."""
        if self._kept is not None:
            return self._kept[begin:end]
        return to_unit_length(self.matrix.block(begin, end), begin, self.matrix.path)

    def chunks(self) -> Iterator[tuple[int, Floats]]:
        """All rows in order, one chunk at a time: the number of its first row, and its rows."""
        for begin in range(0, self.matrix.rows, self._chunk):
            yield begin, self.rows(begin, min(begin + self._chunk, self.matrix.rows))

    def sample(self, most: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
        """At most `most` rows drawn at random: their numbers, ascending, and the rows."""
        total = self.matrix.rows
        numbers = np.arange(total)
        if most < total:  # RandomState gives the same numbers in every version of NumPy
            numbers = np.sort(np.random.RandomState(seed).choice(total, most, replace=False))
        taken = [
            rows[numbers[slice(*np.searchsorted(numbers, (first, first + len(rows))))] - first]
            for first, rows in self.chunks()
        ]
        return numbers, np.concatenate(taken)


class Nearest(NamedTuple):
    """The nearest rows that were found for some queries, nearest first: arrays of shape (M, k)."""

    ids: NDArray[np.int64]
    cosines: NDArray[np.float32]


def exact_nearest(
    queries: Floats, base: UnitRows, k: int, at_once: int, stopped: threading.Event | None = None
) -> Nearest:
    """Find the k rows nearest to each query by comparing it with all rows.

    `queries` have the shape (M, D) and unit length; `at_once` is that of `Cut`. The result does not depend on the
    number of threads if faiss uses one core in each. If `stopped` is set, an `InterruptedJobError` ends the search.
    """
    faiss = import_faiss()
    pieces = [queries[begin : begin + at_once] for begin in range(0, len(queries), at_once)]
    best: list[Nearest | None] = [None] * len(pieces)
    for first, chunk in base.chunks():
        for number, piece in enumerate(pieces):
            _check_stop(stopped)
            cosines, ids = faiss.knn(piece, chunk, min(k, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
            found, before = Nearest(ids + first if first else ids, cosines), best[number]
            if before is not None:  # keep the k nearest of both; of equal cosines, those found first
                ids = np.concatenate([before.ids, found.ids], axis=1)
                cosines = np.concatenate([before.cosines, found.cosines], axis=1)
                order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
                found = Nearest(np.take_along_axis(ids, order, axis=1), np.take_along_axis(cosines, order, axis=1))
            best[number] = found
    return _joined([nearest for nearest in best if nearest is not None])


def _check_stop(stopped: threading.Event | None) -> None:
    if stopped is not None and stopped.is_set():
        raise InterruptedJobError("stopped")


def _joined(pieces: list[Nearest]) -> Nearest:
    if len(pieces) == 1:
        return pieces[0]
    return Nearest(np.concatenate([piece.ids for piece in pieces]), np.concatenate([piece.cosines for piece in pieces]))


class IndexSearch:
    """A search through a faiss index, which is built from all rows at once; parameters are those of the method.

    Raises `OptionError` if the GPU cannot be used, or its memory is too small. `stopped` is set to stop searches.
    """

    def __init__(
        self,
        base: UnitRows,
        method: Method,
        parameters: Mapping[str, int],
        k: int,
        at_once: int,
        stopped: threading.Event,
    ) -> None:
        self._method, self._parameters, self._k = method, parameters, k
        self._at_once, self._stopped = at_once, stopped
        with _one_core():
            self._index = self._build(base)

    def _build(self, base: UnitRows) -> Any:
        faiss, dimensions = import_faiss(), base.matrix.dimensions
        if self._method.name == HNSW:
            index = faiss.IndexHNSWFlat(dimensions, self._parameters["links"], faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = self._parameters["ef construction"]
        else:
            index = faiss.IndexFlatIP(dimensions)
        if self._method.name == IVF:
            nlist = self._parameters["nlist"]
            index = faiss.IndexIVFFlat(index, dimensions, nlist, faiss.METRIC_INNER_PRODUCT)
            index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = _TRAINING_ROUNDS, True, 1
            index.train(base.sample(nlist * SAMPLE_PER_LIST, _TRAINING_SEED)[1])
        try:
            if self._method.device == CUDA:  # the first GPU; the index is sent there empty and then filled
                resources = faiss.StandardGpuResources()
                index = faiss.index_cpu_to_gpu(resources, 0, index)
                index.resources = resources  # they must live as long as the index
            for _, rows in base.chunks():
                index.add(rows)
        except RuntimeError as error:
            if self._method.device != CUDA or isinstance(error, InterruptedJobError):
                raise
            reason = str(error).strip().splitlines()[-1][:200]
            raise OptionError(
                f"--device cuda: {reason}; if the features do not fit into the GPU's memory, use --device cpu"
            ) from error
        return index

    def nearest(self, queries: Floats) -> Nearest:
        """Find the k rows nearest to each query, shape (M, D), at unit length, as far as the index knows them."""
        found = []
        for begin in range(0, len(queries), self._at_once):
            _check_stop(self._stopped)
            piece = queries[begin : begin + self._at_once]
            cosines, ids = self._search(piece, thorough=False)
            short = np.flatnonzero((ids < 0).any(axis=1))
            if len(short):  # a graph that is not connected, or lists with fewer than k rows
                cosines[short], ids[short] = self._search(np.ascontiguousarray(piece[short]), thorough=True)
            found.append(Nearest(ids, cosines))
        return _joined(found)

    def _search(self, queries: Floats, *, thorough: bool) -> Any:
        faiss, chosen = import_faiss(), None
        if self._method.name == HNSW and thorough:
            return faiss.downcast_index(self._index.storage).search(queries, self._k)
        if self._method.name == HNSW:
            chosen = faiss.SearchParametersHNSW(efSearch=self._parameters["ef"])
        elif self._method.name == IVF:
            chosen = faiss.SearchParametersIVF(nprobe=self._parameters["nlist" if thorough else "nprobe"])
        return self._index.search(queries, self._k, params=chosen)


def measured_recall(search: IndexSearch, base: UnitRows, k: int, at_once: int) -> float:
    """Measure which share of the true neighbours an approximate search finds.

    Up to 1,000 rows, always the same, are compared with all rows; fewer if k is in the thousands, to bound the memory.
    The row itself does not count, and what ties with the last of the k nearest counts as found.
    """
    if k == 1:
        return 1.0
    numbers, queries = base.sample(min(_RECALL_ROWS, at_once), _RECALL_SEED)
    with _one_core():
        near = _cosines_of_others(search.nearest(queries), numbers)
        true = _cosines_of_others(exact_nearest(queries, base, k, at_once), numbers)
    return float(np.mean(near >= true[:, -1:] - _SAME))


def _cosines_of_others(nearest: Nearest, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosines of all but the row itself, not clipped: clipped at distance 1, half of all rows would be ties."""
    itself = nearest.ids == rows[:, None]
    itself[~itself.any(axis=1), -1] = True  # after k duplicates, the row itself replaces the last
    others: NDArray[np.float32] = nearest.cosines[~itself].reshape(len(rows), -1)
    return others
