"""Exact search: every row is compared with every other, by faiss, each thread with one core and fixed blocks."""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from facedata.errors import InterruptedJobError, MissingExtraError
from facedata.features.matrix import Floats
from facedata.features.neighbours.base import Base
from facedata.features.neighbours.cut import Cut

__all__ = ["ExactSearch", "Nearest", "Search", "nearest_of", "need_faiss"]


class Nearest(NamedTuple):
    """The nearest so far: ids, int64, and cosines, float32, both of shape (M, k), nearest first."""

    ids: NDArray[np.int64]
    cosines: NDArray[np.float32]


class Search(Protocol):
    """Finds the nearest rows; called from several threads."""

    def search(self, begin: int, end: int) -> Nearest:
        """The k nearest of each row from `begin` on and before `end`."""
        ...


def need_faiss(why: str) -> str:
    """Check that faiss is there; its version.

    Raises
    ------
    MissingExtraError
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(why, "features", "faiss-cpu") from error
    return str(faiss.__version__)


class ExactSearch:
    """Compares rows with all others.

    Parameters
    ----------
    base : Base
    k : int
    cut : Cut
    stopped : Event
        Once it is set, searches end with an error.
    """

    def __init__(self, base: Base, k: int, cut: Cut, stopped: threading.Event) -> None:
        self._base, self._k, self._cut, self._stopped = base, k, cut, stopped

    def search(self, begin: int, end: int) -> Nearest:
        """The k nearest of each row from `begin` on and before `end`.

        Raises
        ------
        InputError
            Where the matrix cannot be read.
        FormatError
            Where a row is not finite or all zero.
        InterruptedJobError
        """
        return nearest_of(self._base.rows(begin, end), self._base, self._k, self._cut.at_once, self._stopped)


def nearest_of(queries: Floats, base: Base, k: int, at_once: int, stopped: threading.Event | None = None) -> Nearest:
    """The k rows of `base` nearest to each query, shape (M, D), at unit length.

    The result does not depend on the number of threads where faiss has been told to use one.
    """
    import faiss

    pieces = [queries[begin : begin + at_once] for begin in range(0, len(queries), at_once)]
    best: list[Nearest | None] = [None] * len(pieces)
    for first, chunk in base.chunks():
        for number, piece in enumerate(pieces):
            if stopped is not None and stopped.is_set():
                raise InterruptedJobError("stopped")
            cosines, ids = faiss.knn(piece, chunk, min(k, len(chunk)), metric=faiss.METRIC_INNER_PRODUCT)
            best[number] = _merged(best[number], Nearest(ids + first if first else ids, cosines), k)
    done = [nearest for nearest in best if nearest is not None]
    if len(done) == 1:
        return done[0]
    return Nearest(np.concatenate([one.ids for one in done]), np.concatenate([one.cosines for one in done]))


def _merged(best: Nearest | None, more: Nearest, k: int) -> Nearest:
    """The k nearest of both; of equals, those met first."""
    if best is None:
        return more
    ids = np.concatenate([best.ids, more.ids], axis=1)
    cosines = np.concatenate([best.cosines, more.cosines], axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return Nearest(np.take_along_axis(ids, order, axis=1), np.take_along_axis(cosines, order, axis=1))
