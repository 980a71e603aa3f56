"""Files of nearest neighbours: their layouts, and what must be true of each row."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError
from facedata.features.arrays import StoredArray, open_arrays, open_npy
from facedata.features.checks.report import Finding, NeighbourFile, NotedRows, Observer
from facedata.features.checks.rows import SameLabelCount, unit_rows
from facedata.features.feature_set import BLOCK_BYTES, Matrix

__all__ = ["check_neighbours", "neighbour_files"]

TOLERANCE = 1e-5
"""How far learn-to-cluster's graph code lets a distance lie outside [0, 1]."""

_LEARN_TO_CLUSTER, _CDP, _GCN, _NPY = "learn-to-cluster", "cdp", "gcn", "npy"
_IDS, _DISTANCES = ".ids.npy", ".distances.npy"
_EXPECTED = (
    "expected 'data' of shape (N, 2, k), or 'idx' and 'dist' of (N, k), or integers (N, k + 1) in an .npy, "
    "or .ids.npy and .distances.npy of (N, k)"
)
_EXACT = {"float16": 1 << 11, "float32": 1 << 24}  # the integers that they hold
_COMPARED = 256  # rows whose distances are computed again
_COMPARED_VALUES = 1 << 26
_DISTANCE_TOLERANCE = 0.01  # float16 on a GPU is wrong by some thousandths
_SEED = 0x5EED
_K_IN_NAME = re.compile(r"_k_([0-9]{1,9})\.")

Integers = NDArray[np.int64]


def neighbour_files(folder: str, k: int | None = None) -> list[str]:
    """The ``.npz`` and ``.npy`` files of a set's folder below ``knns/``, by name; only those of one `k`, if given.

    Of two files for ids and distances only that of the ids is listed.
    """
    patterns = ("*.np[yz]",) if k is None else (f"*_k_{k}.np[yz]", f"*_k_{k}.*.np[yz]")
    found = {path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(folder), pattern))}
    belonging = {path.removesuffix(_IDS) + _DISTANCES for path in found if path.endswith(_IDS)}
    return sorted(found - belonging)


def _open_neighbours(path: str) -> tuple[NeighbourFile, list[StoredArray]]:
    """Open a file of neighbours, or the two files of ids and distances, and recognise the layout."""
    arrays = open_arrays(path)
    beside = path.removesuffix(_IDS) + _DISTANCES
    if path.endswith(_IDS) and os.path.lexists(beside):
        arrays = {"ids": open_npy(path), "distances": open_npy(beside)}
    shapes = {name: array.header.shape for name, array in arrays.items()}
    types = {name: array.header.dtype for name, array in arrays.items()}
    found = ", ".join(f"{name[:40]!r} {types[name]} {shapes[name]}".removeprefix("'' ") for name in arrays)
    if any(types[name].kind not in "iuf" or 0 in shapes[name] for name in arrays):
        raise FormatError(f"{path}: {_EXPECTED}; found {found}")
    for array in arrays.values():
        if array.header.fortran:
            raise FormatError(f"{array.title}: is stored column by column; save it from np.ascontiguousarray(array)")
    for name in ("data", ""):
        if len(shapes.get(name, ())) == 3 and shapes[name][1] == 2:
            rows, _, k = shapes[name]
            return NeighbourFile(path, _LEARN_TO_CLUSTER, rows, k, types[name].name), [arrays[name]]
    for layout, names in ((_CDP, ("idx", "dist")), (_NPY, ("ids", "distances")), (_GCN, ("",))):
        shape = shapes.get(names[0], ())
        fits = len(shape) == 2 and all(shapes.get(name) == shape for name in names)
        if fits and (layout != _GCN or types[""].kind in "iu"):
            rows, k = shape
            return NeighbourFile(path, layout, rows, k, types[names[-1]].name), [arrays[name] for name in names]
    raise FormatError(f"{path}: {_EXPECTED}; found {found}")


def check_neighbours(
    path: str, rows: int, labels: Integers | None = None, matrix: Matrix | None = None, observer: Observer | None = None
) -> tuple[NeighbourFile, list[Finding]]:
    """Check a file of neighbours of a matrix with `rows` rows, some thousand rows at a time.

    `labels`, of shape (N,), are there to count neighbours with the label of their row, and `matrix` to compute the
    distances of some rows again. Raises `InputError` if the file cannot be read.
    """
    try:
        file, arrays = _open_neighbours(path)
        if wrong := _wrong_shape(file, rows):
            return file, [_finding(path, "shape", wrong)]
        # learn-to-cluster's readers request a k by the name of the file; others may not count the row itself in it
        named = _K_IN_NAME.search(os.path.basename(path))
        if file.layout == _LEARN_TO_CLUSTER and named is not None and int(named[1]) != file.k:
            wrong = f"expected k = {int(named[1]):,} from its name, found {file.k:,} neighbours of a row"
            return file, [_finding(path, "name", wrong)]
        return _NeighbourCheck(file, arrays, labels, matrix).run(observer)
    except FormatError as error:
        return NeighbourFile(path), [_finding(path, "file", str(error).removeprefix(path).lstrip(":, "))]


def _wrong_shape(file: NeighbourFile, rows: int) -> str:
    if file.rows != rows:
        return f"expected neighbours of {rows:,} rows, found those of {file.rows:,}"
    if file.k > rows:
        return f"expected at most {rows:,} neighbours, as many as there are rows, found k = {file.k:,}"
    if file.layout == _LEARN_TO_CLUSTER:
        if not file.dtype.startswith("float"):
            return f"expected float32 or float64, since distances are in it too, found {file.dtype}"
        limit = _EXACT.get(file.dtype, rows)
        if rows > limit:
            return f"{file.dtype} holds row numbers up to {limit:,} only, but there are {rows:,} rows"
    return ""


def _finding(path: str, check: str, message: str, *, wrong: bool = True) -> Finding:
    note = "readers that take the first neighbour for the row itself are wrong there"
    advice = "build it again: facedata build-knn" if wrong else note
    return Finding(path, f"neighbours: {check}", message, advice, wrong)


class _NeighbourCheck:
    """One pass over a file of neighbours: rows that are wrong, by what is wrong with them."""

    def __init__(
        self, file: NeighbourFile, arrays: list[StoredArray], labels: Integers | None, matrix: Matrix | None
    ) -> None:
        self._file, self._arrays, self._matrix = file, arrays, matrix
        self._counts = None if labels is None else SameLabelCount(labels)
        self._noted: dict[str, NotedRows] = {}
        self._compared = np.empty(0, np.int64)
        if matrix is not None:
            count = max(min(_COMPARED, file.rows, _COMPARED_VALUES // (file.k * matrix.dimensions)), 1)
            self._compared = np.sort(np.random.default_rng(_SEED).choice(file.rows, count, replace=False))

    def run(self, observer: Observer | None) -> tuple[NeighbourFile, list[Finding]]:
        """Read the file once; returns its figures and what is wrong."""
        file, row_bytes = self._file, sum(array.row_bytes for array in self._arrays)
        first, step = 0, max(BLOCK_BYTES // (file.k * 16), 1)
        for parts in zip(*(array.blocks(step) for array in self._arrays), strict=True):
            if file.layout == _LEARN_TO_CLUSTER:
                parts = (parts[0][:, 0], parts[0][:, 1])
            integers = self._check_ids(first, parts[0])
            if len(parts) > 1:
                self._check_distances(first, integers, parts[1].astype(np.float64))
            end = first + len(integers)
            if self._counts is not None:
                self._counts.add(np.arange(first, end), integers)
            if observer is not None:
                observer(end * row_bytes, file.rows * row_bytes)
            first = end
        findings = self._findings()
        if self._counts is not None and not any(finding.wrong for finding in findings):
            share = self._counts.share(np.arange(file.rows), file.k - 1, file.path)
            file = replace(file, same_label=share)
        return file, findings

    def _note(self, kind: str, rows: NDArray[np.bool_], first: int) -> None:
        self._noted.setdefault(kind, NotedRows()).add(np.flatnonzero(rows) + first)

    def _check_ids(self, first: int, ids: NDArray[np.generic]) -> Integers:
        """Check the ids of a block; returns them as integers, each invalid one replaced by the number of its row."""
        values = ids.astype(np.float64)
        filled = (values == -1) & (self._file.layout == _CDP)  # its search found fewer than k
        bad = ~((values >= 0) & (values < self._file.rows) & (values == np.floor(values))) & ~filled
        own = np.arange(first, first + len(ids), dtype=np.int64)[:, None]
        with np.errstate(invalid="ignore"):
            integers: Integers = np.where(bad | filled, own, ids.astype(np.int64))
        self._note("ids", np.any(bad, axis=1), first)
        if self._file.layout != _CDP:
            twice = np.any(np.diff(np.sort(integers, axis=1), axis=1) == 0, axis=1)
            itself = integers == own
            self._note("ids twice", ~np.any(bad, axis=1) & twice, first)
            self._note("row itself", ~np.any(itself, axis=1), first)
            if self._file.layout == _GCN:
                self._note("order", np.any(itself, axis=1) & ~itself[:, 0], first)
        return integers

    def _check_distances(self, first: int, ids: Integers, distances: NDArray[np.float64]) -> None:
        not_finite = np.any(~np.isfinite(distances), axis=1)
        self._note("NaN", not_finite, first)
        if self._file.layout == _CDP:  # it has other distances, and -1 if there is none
            return
        distances = np.where(not_finite[:, None], 0.0, distances)
        self._note("descending", np.any(np.diff(distances, axis=1) < -TOLERANCE, axis=1), first)
        itself = ids == np.arange(first, first + len(ids))[:, None]
        there = np.any(itself, axis=1)
        later = there & ~itself[:, 0]
        to_itself = distances[np.arange(len(ids)), itself.argmax(axis=1)]
        far = there & (to_itself > _DISTANCE_TOLERANCE)
        tied = to_itself <= distances[:, 0] + TOLERANCE
        self._note("distance to itself", far, first)
        self._note("order", later & ~tied & ~far, first)
        self._note("tied", later & tied, first)
        self._note("range", np.any((distances < -TOLERANCE) | (distances > 1 + TOLERANCE), axis=1), first)
        if self._matrix is None:
            return
        # are these the distances of these features?
        begin, end = np.searchsorted(self._compared, [first, first + len(ids)])
        for row in self._compared[begin:end].tolist():
            unit = unit_rows(self._matrix.rows_at(np.array([row, *ids[row - first].tolist()])))
            computed = 1 - unit[1:] @ unit[0]
            known = np.any(unit[1:], axis=1) & (ids[row - first] != row) & bool(unit[0].any())
            difference = np.abs(np.clip(distances[row - first], 0, 1) - np.clip(computed, 0, 1))
            if (difference[known] > _DISTANCE_TOLERANCE).any():
                self._note("distances", np.ones(1, np.bool_), row)

    def _findings(self) -> list[Finding]:
        rows, path = self._file.rows, self._file.path
        kinds = {
            "ids": f"expected row numbers from 0 to {rows - 1:,}, found others",
            "row itself": "expected every row among its own neighbours, not found",
            "distance to itself": "expected every row at distance 0 from itself, found it farther away",
            "order": "expected the row itself first, found it later",
            "ids twice": "expected different neighbours, found one twice",
            "NaN": "expected finite distances, found NaN or infinity",
            "range": "expected distances 1 - cosine from -1e-05 to 1 + 1e-05, found others",
            "descending": "expected ascending distances, found descending ones",
        }
        noted = {kind: rows for kind, rows in self._noted.items() if rows.count}
        findings = [
            _finding(path, kind, f"{message} in {noted[kind].count:,} of {rows:,}: {noted[kind]}")
            for kind, message in kinds.items()
            if kind in noted
        ]
        if others := noted.get("distances"):
            found = f"{others.count:,} of {len(self._compared):,} that were compared: {others}"
            expected = "expected 1 - cosine of these features, found other distances in"
            findings.append(_finding(path, "distances", f"{expected} {found}"))
        if tied := noted.get("tied"):
            message = f"the row itself comes after others at the same distance in {tied.count:,}: {tied}"
            findings.append(_finding(path, "order", message, wrong=False))
        return findings
