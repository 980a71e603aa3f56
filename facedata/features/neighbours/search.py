"""The search for nearest neighbours by the cosine, with faiss: exact, or through lists, a graph or a GPU.

The result is the same whatever the number of threads and the memory. faiss computes other last bits if it multiplies
blocks of other sizes, so `cut_search` fixes them; each thread uses one core; an index is built by one thread, because
several would not build the same one twice, and from seeds that are constants of faiss.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import InterruptedJobError, OptionError
from facedata.features.feature_set import Floats, Matrix, check_rows
from facedata.features.neighbours.method import CUDA, HNSW, IVF, SAMPLE_PER_LIST, Method, import_faiss

__all__ = ["IndexSearch", "Nearest", "UnitRows", "exact_nearest", "measured_recall", "to_unit_length", "use_one_core"]

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

    The result does not depend on the number of threads if faiss uses one core in each.

    Parameters
    ----------
    queries : ndarray of shape (M, D)
        At unit length.
    base : UnitRows
    k : int
    at_once : int
        See `Cut`.
    stopped : Event, optional
        Set to stop the search with an `InterruptedJobError`.
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
