"""One pass over the rows of a matrix: values that are not finite, rows of zeros, norms, and duplicate rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from facedata.features.checks.report import Duplicates, Finding, Norms, NotedRows, Observer
from facedata.features.feature_set import BLOCK_BYTES, VALUE_BYTES, Floats, Matrix
from facedata.text import counted

__all__ = ["RowCheck", "check_all_rows", "find_duplicates", "unit_rows"]

UNIT = 1e-3
"""How far from 1 a norm of unit length may be: float16 does not bring it closer."""

_SQUARABLE = (1e-18, 1.8e19)  # norms whose squares float32 holds without a loss
_SEED = 0x5EED
_GROUPS_SHOWN = 5
_ROWS_SHOWN = 4

Integers = NDArray[np.int64]


@dataclass
class RowCheck:
    """The result of one pass over a matrix of N rows."""

    norms: Floats
    """Shape (N,); NaN if the row is not finite."""
    hashes: NDArray[np.uint64]
    """Shape (N,); equal for equal rows."""
    nan: NotedRows = field(default_factory=NotedRows)
    infinite: NotedRows = field(default_factory=NotedRows)
    zero: NotedRows = field(default_factory=NotedRows)
    extreme: NotedRows = field(default_factory=NotedRows)
    """So long or so short that float32 cannot hold the squares."""

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which rows are finite and not zero, shape (N,)."""
        return self.norms > 0

    def figures(self) -> Norms | None:
        """The range and mean of the norms; None if no row has one."""
        norms = self.norms[self.usable]
        if not len(norms):
            return None
        return Norms(
            smallest=float(norms.min()),
            mean=float(norms.mean(dtype=np.float64)),
            largest=float(norms.max()),
            unit=float(np.mean(np.abs(norms - 1) <= UNIT)),
        )

    def findings(self, path: str) -> list[Finding]:
        """What is wrong with the rows."""
        again = "extract them again, or remove them together with their labels"
        zeros = f"they become NaN when a reader normalises; {again}"
        extremes = "they become zero or infinite when a reader normalises in float32; normalise them in float64"
        kinds = (
            ("NaN", self.nan, "finite values, found NaN in", again),
            ("infinite values", self.infinite, "finite values, found infinite values in", again),
            ("zero rows", self.zero, "no row of zeros, found", zeros),
            ("extreme rows", self.extreme, "norms that float32 can square, found others in", extremes),
        )
        return [
            Finding(path, kind, f"expected {message} {noted.count:,}: {noted}", advice, wrong=kind != "extreme rows")
            for kind, noted, message, advice in kinds
            if noted.count
        ]


def check_all_rows(matrix: Matrix, observer: Observer | None = None) -> RowCheck:
    """Read a matrix once, in blocks; 12 bytes a row are kept.

    Raises
    ------
    InputError, FormatError
        If it cannot be read, or has become shorter.
    """
    factors = np.random.default_rng(_SEED).integers(0, 1 << 64, matrix.dimensions, np.uint64) | np.uint64(1)
    check = RowCheck(np.empty(matrix.rows, np.float32), np.empty(matrix.rows, np.uint64))
    row = matrix.dimensions * VALUE_BYTES
    for first, block in matrix.blocks():
        end = first + len(block)
        # 32-bit words times odd 64-bit factors, modulo 2**64 (multiply-shift hashing, Dietzfelbinger 1996)
        check.hashes[first:end] = np.einsum("ij,j->i", block.view(np.uint32), factors)
        norms = check.norms[first:end] = _norms(block)
        odd = np.flatnonzero(~((norms > _SQUARABLE[0]) & (norms < _SQUARABLE[1])))
        if len(odd):
            rows = block[odd]
            nan, finite = np.isnan(rows).any(axis=1), np.isfinite(rows).all(axis=1)
            zero = finite & (rows == 0).all(axis=1)
            check.nan.add(odd[nan] + first)
            check.infinite.add(odd[~nan & ~finite] + first)
            check.zero.add(odd[zero] + first)
            extreme = odd[finite & ~zero]
            check.extreme.add(extreme + first)
            check.norms[first + odd[~finite]] = np.nan
            # finite values whose norm float32 cannot hold
            check.norms[first + extreme] = np.clip(norms[extreme], 1e-45, np.finfo(np.float32).max)
        if observer is not None:
            observer(end * row, matrix.rows * row)
    return check


def _norms(block: Floats) -> Floats:
    """Euclidean norms, shape (M,); NaN or infinite if the row is; exact for tiny and huge values too."""
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", block, block)
        norms: Floats = np.sqrt(squares)
        inexact = np.flatnonzero(~((squares > 1e-20) & (squares < 1e30)))
        norms[inexact] = np.linalg.norm(block[inexact].astype(np.float64), axis=1)
    return norms


def unit_rows(rows: Floats) -> Floats:
    """Rows of norm 1; a row that is zero or not finite becomes zero."""
    norms = _norms(rows)
    good = (norms > 0) & (norms < np.inf)
    unit: Floats = np.zeros_like(rows)
    np.divide(rows, norms[:, None], out=unit, where=good[:, None])
    return unit


def find_duplicates(matrix: Matrix, check: RowCheck, labels: Integers | None) -> tuple[Duplicates, list[Finding]]:
    """Find rows with the same bytes; rows with equal 64-bit hashes are read again and compared by 128-bit digests.

    `labels`, of shape (N,), are there to count groups with several labels.
    """
    # the usable rows whose hash another row has
    order = np.argsort(check.hashes, kind="stable")
    same = np.diff(check.hashes[order]) == 0
    shared = np.append(same, np.False_) | np.insert(same, 0, np.False_)
    candidates = np.sort(order[shared])
    candidates = candidates[check.usable[candidates]]
    if not len(candidates):
        return Duplicates(), []
    # group them by digest, some MiB of rows at a time
    step = max(BLOCK_BYTES // (matrix.dimensions * VALUE_BYTES), 1)
    joined = bytearray()
    for begin in range(0, len(candidates), step):
        for row in matrix.rows_at(candidates[begin : begin + step]):
            joined += hashlib.blake2b(row, digest_size=16).digest()
    digests = np.frombuffer(joined, np.uint64).reshape(-1, 2)
    order = np.lexsort((candidates, digests[:, 1], digests[:, 0]))
    rows, changes = candidates[order], (np.diff(digests[order], axis=0) != 0).any(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    ends = np.append(starts[1:], len(rows))
    groups = np.flatnonzero(ends - starts > 1)
    if not len(groups):
        return Duplicates(), []
    starts, ends = starts[groups], ends[groups]
    other_labels = 0
    if labels is not None:
        padded = np.append(labels[rows], 0)  # reduceat needs every bound inside
        bounds = np.stack([starts, ends], axis=1).reshape(-1)
        smallest, largest = np.minimum.reduceat(padded, bounds)[::2], np.maximum.reduceat(padded, bounds)[::2]
        other_labels = int((smallest != largest).sum())
    shown = np.argsort(rows[starts], kind="stable")[:_GROUPS_SHOWN].tolist()
    examples = [rows[starts[group] : min(ends[group], starts[group] + _ROWS_SHOWN)].tolist() for group in shown]
    duplicates = Duplicates(int((ends - starts - 1).sum()), len(starts), other_labels, examples)
    listed = "; ".join(", ".join(f"{row:,}" for row in example) for example in examples)
    several = f", {other_labels:,} of them with several labels" if other_labels else ""
    found = (
        f"expected each row once, found {counted(duplicates.rows, 'copy', 'copies')} of others in "
        f"{counted(duplicates.groups, 'group')}{several}: rows {listed}"
    )
    advice = "is the same image there twice? duplicates are allowed, but make the figures better than they are"
    return duplicates, [Finding(matrix.path, "duplicate rows", found, advice, wrong=False)]
