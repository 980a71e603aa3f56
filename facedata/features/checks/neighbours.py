"""What must hold of a file of nearest neighbours, row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError
from facedata.features.checks.findings import Finding, Noted, Observer
from facedata.features.checks.layouts import CDP, GCN, LEARN_TO_CLUSTER, OpenedNeighbours, open_neighbours
from facedata.features.checks.rows import rows_at
from facedata.features.checks.shares import Counted, Share, unit_rows
from facedata.features.matrix import Matrix

__all__ = ["NeighbourFile", "check_neighbours"]

TOLERANCE = 1e-5
"""What learn-to-cluster's graph code allows a distance to lie outside [0, 1]."""

_EXACT = {2: 1 << 11, 4: 1 << 24}  # whole numbers in float16 and float32
_COMPARED = 256
_COMPARED_VALUES = 1 << 26
_DISTANCE_TOLERANCE = 0.01  # float16 on a GPU comes to some thousandths
_SEED = 0x5EED
_K_IN_NAME = re.compile(r"_k_([0-9]{1,9})\.")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NeighbourFile:
    """What a file of neighbours has in it.

    Attributes
    ----------
    path : str
    layout : str
        ``"learn-to-cluster"``, ``"cdp"``, ``"gcn"`` or ``"npy"``; empty where it is none of them.
    rows, k : int
        `k` counts the row itself.
    dtype : str
    same_label : Share, optional
        None without labels, and where the file is wrong.
    """

    path: str
    layout: str = ""
    rows: int = 0
    k: int = 0
    dtype: str = ""
    same_label: Share | None = None


@dataclass
class _Wrong:
    """Rows that are not as they should be, by what is wrong with them."""

    outside: Noted = field(default_factory=Noted)
    without_self: Noted = field(default_factory=Noted)
    self_far: Noted = field(default_factory=Noted)
    self_later: Noted = field(default_factory=Noted)
    self_later_tied: Noted = field(default_factory=Noted)
    twice: Noted = field(default_factory=Noted)
    not_finite: Noted = field(default_factory=Noted)
    out_of_range: Noted = field(default_factory=Noted)
    descending: Noted = field(default_factory=Noted)


def check_neighbours(
    path: str, rows: int, labels: Integers | None = None, matrix: Matrix | None = None, observer: Observer | None = None
) -> tuple[NeighbourFile, list[Finding]]:
    """Check a file of neighbours, some thousand rows at a time.

    Parameters
    ----------
    path : str
    rows : int
        Of the matrix that it belongs to.
    labels : ndarray of shape (N,), int64, optional
    matrix : Matrix, optional
        To compare the distances of some rows with.
    observer : callable, optional

    Raises
    ------
    InputError
        Where it cannot be read.
    """
    try:
        with open_neighbours(path) as opened:
            unfit = _unfit(opened, rows)
            file = NeighbourFile(path, opened.layout, opened.rows, opened.k, opened.dtype.name)
            if unfit:
                return file, [_finding(path, "shape", unfit)]
            if misnamed := _misnamed(file):
                return file, [_finding(path, "name", misnamed)]
            return _Check(file, opened, labels, matrix).run(observer)
    except FormatError as error:
        return NeighbourFile(path), [_finding(path, "file", str(error).removeprefix(path).lstrip(":, "))]


def _unfit(opened: OpenedNeighbours, rows: int) -> str:
    if opened.rows != rows:
        return f"expected neighbours of {rows:,} rows, found those of {opened.rows:,}"
    if opened.k > rows:
        return f"expected at most {rows:,} neighbours, as many as there are rows, found k = {opened.k:,}"
    if opened.layout == LEARN_TO_CLUSTER and opened.dtype.kind != "f":
        return f"expected float32 or float64, as distances are in it too, found {opened.dtype}"
    limit = _EXACT.get(opened.dtype.itemsize, rows)
    if opened.layout == LEARN_TO_CLUSTER and rows > limit:
        return f"{opened.dtype} holds row numbers up to {limit:,} only, and there are {rows:,} rows"
    return ""


def _misnamed(file: NeighbourFile) -> str:
    """Readers of learn-to-cluster ask for a k by the name of the file; others count the row itself in it or not."""
    said = _K_IN_NAME.search(os.path.basename(file.path))
    if file.layout != LEARN_TO_CLUSTER or said is None or int(said[1]) == file.k:
        return ""
    return f"expected k = {int(said[1]):,} as its name says, found {file.k:,} neighbours of a row"


def _finding(path: str, check: str, message: str, *, wrong: bool = True) -> Finding:
    advice = (
        "build it again: facedata build-knn" if wrong else "readers that take the first for the row itself err there"
    )
    return Finding(path, f"neighbours: {check}", message, advice, wrong)


class _Check:
    """One file, gone through once."""

    def __init__(
        self, file: NeighbourFile, opened: OpenedNeighbours, labels: Integers | None, matrix: Matrix | None
    ) -> None:
        self._file, self._opened, self._labels, self._matrix = file, opened, labels, matrix
        self._wrong = _Wrong()
        self._counted = Counted()
        count = max(min(_COMPARED, file.rows, _COMPARED_VALUES // (file.k * (matrix.dimensions if matrix else 1))), 1)
        self._compared: Integers = np.sort(np.random.default_rng(_SEED).choice(file.rows, count, replace=False))
        self._others = Noted()

    def run(self, observer: Observer | None) -> tuple[NeighbourFile, list[Finding]]:
        for first, ids, distances in self._opened.blocks():
            whole = self._ids(first, ids)
            if distances is not None:
                self._distances(first, whole, distances.astype(np.float64))
            if self._labels is not None:
                self._counted.add(self._labels, np.arange(first, first + len(whole)), whole)
            if observer is not None:
                observer((first + len(whole)) * self._opened.row_bytes, self._file.rows * self._opened.row_bytes)
        wrong = [_finding(self._file.path, *told) for told in self._told()]
        findings = wrong + [_finding(self._file.path, "order", told, wrong=False) for told in self._tied()]
        if wrong or self._labels is None:
            return self._file, findings
        rows = np.arange(self._file.rows)
        share = self._counted.share(self._labels, rows, self._file.k - 1, self._file.path)
        return replace(self._file, same_label=share), findings

    def _ids(self, first: int, ids: NDArray[np.generic]) -> Integers:
        """The ids as whole numbers; one that is none, or is outside, becomes the row's own number."""
        values = ids.astype(np.float64)
        filled = (values == -1) & (self._opened.layout == CDP)  # where its search found fewer than k
        bad = ~((values >= 0) & (values < self._file.rows) & (values == np.floor(values))) & ~filled
        own = np.arange(first, first + len(ids), dtype=np.int64)[:, None]
        with np.errstate(invalid="ignore"):
            whole: Integers = np.where(bad | filled, own, ids.astype(np.int64))
        self._note(self._wrong.outside, _in_row(bad), first)
        if self._opened.layout != CDP:
            self._twice_and_self(first, whole, ~_in_row(bad))
        return whole

    def _twice_and_self(self, first: int, ids: Integers, good: NDArray[np.bool_]) -> None:
        twice = _in_row(np.diff(np.sort(ids, axis=1), axis=1) == 0)
        own = _is_own(ids, first)
        there = _in_row(own)
        self._note(self._wrong.twice, good & twice, first)
        self._note(self._wrong.without_self, ~there, first)
        if self._opened.layout == GCN:
            self._note(self._wrong.self_later, there & ~own[:, 0], first)

    def _distances(self, first: int, ids: Integers, distances: NDArray[np.float64]) -> None:
        endless = _in_row(~np.isfinite(distances))
        self._note(self._wrong.not_finite, endless, first)
        if self._opened.layout == CDP:  # it has other distances, and -1 where there is none
            return
        distances = np.where(endless[:, None], 0.0, distances)
        self._note(self._wrong.descending, _in_row(np.diff(distances, axis=1) < -TOLERANCE), first)
        own = _is_own(ids, first)
        later = _in_row(own) & ~own[:, 0]
        to_itself = distances[np.arange(len(ids)), own.argmax(axis=1)]
        far = _in_row(own) & (to_itself > _DISTANCE_TOLERANCE)
        self._note(self._wrong.self_far, far, first)
        tied = to_itself <= distances[:, 0] + TOLERANCE
        self._note(self._wrong.self_later, later & ~tied & ~far, first)
        self._note(self._wrong.self_later_tied, later & tied, first)
        outside = (distances < -TOLERANCE) | (distances > 1 + TOLERANCE)
        self._note(self._wrong.out_of_range, _in_row(outside), first)
        self._compare(first, ids, distances)

    def _compare(self, first: int, ids: Integers, distances: NDArray[np.float64]) -> None:
        """The distances of some rows with those of the matrix: is the file of these features?"""
        begin, end = np.searchsorted(self._compared, [first, first + len(ids)])
        for row in self._compared[begin:end].tolist() if self._matrix is not None else ():
            assert self._matrix is not None
            one = unit_rows(rows_at(self._matrix, np.array([row, *ids[row - first].tolist()])))
            cosines = one[1:] @ one[0]
            known = _in_row(one[1:] != 0) & (ids[row - first] != row) & bool(one[0].any())
            off = np.abs(np.clip(distances[row - first], 0, 1) - np.clip(1 - cosines, 0, 1))
            if (off[known] > _DISTANCE_TOLERANCE).any():
                self._others.add([row])

    def _note(self, noted: Noted, rows: NDArray[np.bool_], first: int) -> None:
        if rows.any():
            noted.add((np.flatnonzero(rows)[:5] + first).tolist(), int(rows.sum()))

    def _told(self) -> Iterator[tuple[str, str]]:
        wrong, rows = self._wrong, self._file.rows
        last = rows - 1
        kinds = {
            "ids": (wrong.outside, f"expected whole row numbers from 0 to {last:,}, found others"),
            "row itself": (wrong.without_self, "expected every row among its own neighbours, not found"),
            "distance to itself": (wrong.self_far, "expected every row at distance 0 from itself, found it farther"),
            "order": (wrong.self_later, "expected the row itself first, found it later"),
            "ids twice": (wrong.twice, "expected different neighbours, found one twice"),
            "NaN": (wrong.not_finite, "expected finite distances, found NaN or infinity"),
            "range": (wrong.out_of_range, "expected distances 1 - cosine from -1e-05 to 1 + 1e-05, found others"),
            "descending": (wrong.descending, "expected ascending distances, found descending ones"),
        }
        for check, (noted, told) in kinds.items():
            if noted.count:
                yield check, f"{told} in {noted.count:,} of {rows:,}: {noted}"
        if self._others.count:
            of = f"{self._others.count:,} of {len(self._compared):,} that were compared"
            yield "distances", f"expected 1 - cosine of these features, found other distances in {of}: {self._others}"

    def _tied(self) -> Iterator[str]:
        noted = self._wrong.self_later_tied
        if noted.count:
            yield f"the row itself stands behind others at the same distance in {noted.count:,}: {noted}"


def _in_row(which: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows that have one at least, shape (M,)."""
    rows: NDArray[np.bool_] = np.any(which, axis=1)
    return rows


def _is_own(ids: Integers, first: int) -> NDArray[np.bool_]:
    """Which ids are the number of their row, shape (M, k)."""
    return np.asarray(ids == np.arange(first, first + len(ids))[:, None], np.bool_)
