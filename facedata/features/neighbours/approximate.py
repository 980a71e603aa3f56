"""Search through an index of faiss: inverted lists, a graph, or a GPU.

An index is built by one thread, because several would not build the same one twice, and from seeds that are faiss'
own constants.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from facedata.errors import FacedataError, InterruptedJobError, OptionError
from facedata.features.matrix import VALUE_BYTES, Floats
from facedata.features.neighbours.base import Base
from facedata.features.neighbours.cut import Cut
from facedata.features.neighbours.exact import Nearest

__all__ = ["CPU", "CUDA", "EXACT", "HNSW", "IVF", "IndexSearch", "Method", "one_thread", "prepare_index"]

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
_SAMPLE_PER_LIST = 64
_LEAST_PER_LIST = 39  # with fewer rows a list, faiss says that its lists are not to be trusted
_MOST_LISTS = 1 << 16
_NPROBE = 128
_ROUNDS = 10
_LINKS = 32
_EF_CONSTRUCTION = 100
_LEAST_EF = 160
_SEED = 0


@dataclass(frozen=True)
class Method:
    """How neighbours are searched for.

    Attributes
    ----------
    name : str
        ``"exact"``, ``"ivf"`` (inverted lists) or ``"hnsw"`` (a graph).
    device : str
        ``"cpu"`` or ``"cuda"``.
    nlist, nprobe : int, optional
        For ivf: how many lists, and how many of them are looked through for a row; by default four times the root of
        the number of rows, and 128, which is learn-to-cluster's.
    ef : int, optional
        For hnsw: how many candidates are kept while searching; by default twice k, at least 160.

    Raises
    ------
    OptionError
        Where there is no such method, or it has no such option.
    """

    name: str = EXACT
    device: str = CPU
    nlist: int | None = None
    nprobe: int | None = None
    ef: int | None = None

    def __post_init__(self) -> None:
        if (self.name, self.device) not in _NAMES:
            raise OptionError(f"--method {self.name} --device {self.device}: there is no such search")
        for option in ("nlist", "nprobe", "ef"):
            value = getattr(self, option)
            if value is not None and option not in _OPTIONS[self.name]:
                raise OptionError(f"--{option}: is no option of --method {self.name}")
            if value is not None and value < 1:
                raise OptionError(f"--{option} {value}: expected 1 or more")

    @property
    def file_name(self) -> str:
        """What learn-to-cluster calls it in the names of its files."""
        return _NAMES[self.name, self.device]

    @property
    def approximate(self) -> bool:
        """Whether it may miss neighbours."""
        return self.name != EXACT

    def check_device(self) -> None:
        """Raise `OptionError` where a GPU is asked for that faiss cannot use."""
        faiss = _library()
        if self.device != CUDA:
            return
        if not hasattr(faiss, "StandardGpuResources"):
            raise OptionError("--device cuda: this faiss has no GPU support; install one that has, or use --device cpu")
        if not faiss.get_num_gpus():
            raise OptionError("--device cuda: faiss sees no GPU here; use --device cpu")

    def parameters(self, rows: int, k: int) -> Mapping[str, int]:
        """What is searched with, as JSON values.

        Raises
        ------
        OptionError
            Where there are more lists than rows.
        """
        if self.name == HNSW:
            return {
                "links": _LINKS,
                "ef construction": _EF_CONSTRUCTION,
                "ef": max(self.ef or max(2 * k, _LEAST_EF), k),
            }
        if self.name == EXACT:
            return {}
        if self.nlist is not None and self.nlist > rows:
            raise OptionError(f"--nlist {self.nlist:,}: expected at most one list a row, and there are {rows:,} rows")
        fitting = max(min(round(4 * math.sqrt(rows)), rows // _LEAST_PER_LIST, _MOST_LISTS), 1)
        nlist = self.nlist or fitting
        return {"nlist": nlist, "nprobe": min(self.nprobe or _NPROBE, nlist)}

    def index_bytes(self, rows: int, dimensions: int, parameters: Mapping[str, int]) -> int:
        """About what the index takes in memory, and building it."""
        row = dimensions * VALUE_BYTES
        if self.name == IVF:
            return rows * (row + 8) + parameters["nlist"] * row * (_SAMPLE_PER_LIST + 1)
        return rows * (row + 10 * _LINKS + 16) if self.name == HNSW else rows * row


def _library() -> Any:
    """faiss, whose own type hints know some of its versions only."""
    import faiss

    return faiss


@contextmanager
def one_thread() -> Iterator[None]:
    """Have faiss use one core in this thread."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class IndexSearch:
    """Searches an index that holds all rows.

    Parameters
    ----------
    base : Base
    index : faiss.Index
        As `prepare_index` gave it.
    method : Method
    parameters : mapping
        As `Method.parameters` gave them.
    k : int
    cut : Cut
    stopped : Event
        Once it is set, searches end with an error.
    """

    def __init__(
        self,
        base: Base,
        index: Any,
        method: Method,
        parameters: Mapping[str, int],
        k: int,
        cut: Cut,
        stopped: threading.Event,
    ) -> None:
        self._base, self._index, self._k, self._cut, self._stopped = base, index, k, cut, stopped
        self._method, self._parameters = method, parameters

    def search(self, begin: int, end: int) -> Nearest:
        """The k nearest of each row from `begin` on and before `end`, as far as the index knows them."""
        return self.nearest_of(self._base.rows(begin, end))

    def nearest_of(self, queries: Floats) -> Nearest:
        """The k nearest of each query, shape (M, D), at unit length."""
        found = []
        for begin in range(0, len(queries), self._cut.at_once):
            if self._stopped.is_set():
                raise InterruptedJobError("stopped")
            found.append(self._piece(queries[begin : begin + self._cut.at_once]))
        return Nearest(np.concatenate([one.ids for one in found]), np.concatenate([one.cosines for one in found]))

    def _piece(self, queries: Floats) -> Nearest:
        cosines, ids = self._index.search(queries, self._k, params=self._search_parameters(thorough=False))
        short = np.flatnonzero((ids < 0).any(axis=1))
        if len(short):  # a graph in several parts, or lists with fewer rows than k
            cosines[short], ids[short] = self._thoroughly(np.ascontiguousarray(queries[short]))
        return Nearest(ids, cosines)

    def _thoroughly(self, queries: Floats) -> Any:
        import faiss

        if self._method.name == HNSW:
            return faiss.downcast_index(self._index.storage).search(queries, self._k)
        return self._index.search(queries, self._k, params=self._search_parameters(thorough=True))

    def _search_parameters(self, *, thorough: bool) -> Any:
        faiss = _library()
        if self._method.name == IVF:
            return faiss.SearchParametersIVF(nprobe=self._parameters["nlist" if thorough else "nprobe"])
        if self._method.name == HNSW:
            return faiss.SearchParametersHNSW(efSearch=self._parameters["ef"])
        return None


def prepare_index(base: Base, method: Method, parameters: Mapping[str, int]) -> Any:
    """Build the index of a method.

    Parameters
    ----------
    base : Base
    method : Method
    parameters : mapping
        As `Method.parameters` gave them.

    Raises
    ------
    OptionError
        Where a GPU is asked for that faiss has not, or that is too small.
    """
    with one_thread():
        if method.device == CUDA:
            return _on_gpu(base, method, parameters)
        index = _empty_index(base, method, parameters)
        _add_all(base, index)
        return index


def _empty_index(base: Base, method: Method, parameters: Mapping[str, int]) -> Any:
    import faiss

    dimensions = base.matrix.dimensions
    if method.name == HNSW:
        graph = faiss.IndexHNSWFlat(dimensions, parameters["links"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = parameters["ef construction"]
        return graph
    flat = faiss.IndexFlatIP(dimensions)
    if method.name == EXACT:
        return flat
    lists = faiss.IndexIVFFlat(flat, dimensions, parameters["nlist"], faiss.METRIC_INNER_PRODUCT)
    lists.cp.niter, lists.cp.spherical, lists.cp.min_points_per_centroid = _ROUNDS, True, 1
    _, sample = base.sample(parameters["nlist"] * _SAMPLE_PER_LIST, _SEED)
    lists.train(sample)
    return lists


def _add_all(base: Base, index: Any) -> None:
    for _, rows in base.chunks():
        index.add(rows)


def _on_gpu(base: Base, method: Method, parameters: Mapping[str, int]) -> Any:
    """The index on the first GPU: sent there empty, and then filled."""
    faiss = _library()
    try:
        empty = _empty_index(base, method, parameters)
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, 0, empty)
        index.resources = resources  # they must live as long as it
        _add_all(base, index)
    except FacedataError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise OptionError(f"--device cuda: {reason}; does it fit into the GPU's memory? Or use --device cpu") from error
    return index
