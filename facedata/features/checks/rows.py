"""One pass over the rows of a matrix: what is not finite, what is zero, norms, and rows that are there twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError, input_error
from facedata.features.checks.findings import Finding, Noted, Observer
from facedata.features.matrix import BLOCK_BYTES, VALUE_BYTES, Floats, Matrix
from facedata.files import open_regular

__all__ = ["Duplicates", "Norms", "RowCheck", "check_all_rows", "find_duplicates", "row_norms", "rows_at"]

UNIT = 1e-3
"""How far from 1 a norm of unit length may be: as far as float16 brings it."""

_SQUARABLE = (1e-18, 1.8e19)
"""Lengths whose square float32 holds without a loss."""

_SEED = 0x5EED
_EXAMPLES = 5
_OF_EACH = 4

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Norms:
    """Of the rows that are finite and not zero; `unit` is the share whose norm is 1, give or take 0.001."""

    smallest: float
    mean: float
    largest: float
    unit: float


@dataclass(frozen=True)
class Duplicates:
    """Rows that have the bytes of an earlier one.

    Attributes
    ----------
    rows : int
        How many could go without a loss.
    groups : int
    other_labels : int
        Groups whose rows have different labels.
    examples : list of list of int
        Some groups, the first rows of each.
    """

    rows: int
    groups: int
    other_labels: int
    examples: list[list[int]]


@dataclass
class RowCheck:
    """What one pass came to.

    Attributes
    ----------
    norms : ndarray of shape (N,), float32
        NaN where the row is not finite.
    hashes : ndarray of shape (N,), uint64
        Equal for equal rows.
    not_a_number, infinite, zero : Noted
    extreme : Noted
        So long or so short that float32 cannot hold the squares.
    """

    norms: Floats
    hashes: NDArray[np.uint64]
    not_a_number: Noted = field(default_factory=Noted)
    infinite: Noted = field(default_factory=Noted)
    zero: Noted = field(default_factory=Noted)
    extreme: Noted = field(default_factory=Noted)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which rows are finite and not zero, shape (N,)."""
        return self.norms > 0

    def figures(self) -> Norms | None:
        """The sum of the norms; None where no row has one."""
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
        again = "extract them again, or leave them out together with their labels"
        kinds = {"NaN": self.not_a_number, "infinite values": self.infinite}
        findings = [
            Finding(path, kind, f"expected finite values, found {kind} in {noted.count:,}: {noted}", again)
            for kind, noted in kinds.items()
            if noted.count
        ]
        if self.zero.count:
            found = f"expected no row of zeros, found {self.zero.count:,}: {self.zero}"
            findings.append(Finding(path, "zero rows", found, f"they become NaN when a reader normalises; {again}"))
        if self.extreme.count:
            found = f"expected lengths that float32 can square, found others in {self.extreme.count:,}: {self.extreme}"
            advice = "they become zero or infinite when a reader normalises in float32; normalise them in float64"
            findings.append(Finding(path, "extreme rows", found, advice, wrong=False))
        return findings


def check_all_rows(matrix: Matrix, observer: Observer | None = None) -> RowCheck:
    """Read a matrix once, in blocks; 12 bytes a row are kept.

    Raises
    ------
    InputError, FormatError
        Where it cannot be read, or has become shorter.
    """
    factors = np.random.default_rng(_SEED).integers(0, 1 << 64, matrix.dimensions, np.uint64) | np.uint64(1)
    check = RowCheck(np.empty(matrix.rows, np.float32), np.empty(matrix.rows, np.uint64))
    row = matrix.dimensions * VALUE_BYTES
    for first, block in matrix.blocks():
        end = first + len(block)
        # 32-bit words times odd 64-bit factors, modulo 2**64 (multiply-shift hashing, Dietzfelbinger 1996)
        check.hashes[first:end] = np.einsum("ij,j->i", block.view(np.uint32), factors)
        check.norms[first:end] = _block_norms(block, first, check)
        if observer is not None:
            observer(end * row, matrix.rows * row)
    return check


def row_norms(block: Floats) -> Floats:
    """Euclidean norms, shape (M,); NaN or infinite where the row is; exact for tiny and huge values, too."""
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", block, block)
        norms: Floats = np.sqrt(squares)
        # below: too small for the squares to be told from nothing in float32, or too large
        doubtful = np.flatnonzero(~((squares > 1e-20) & (squares < 1e30)))
        norms[doubtful] = np.linalg.norm(block[doubtful].astype(np.float64), axis=1)
    return norms


def _block_norms(block: Floats, first: int, check: RowCheck) -> Floats:
    norms = row_norms(block)
    bad = np.flatnonzero(~((norms > _SQUARABLE[0]) & (norms < _SQUARABLE[1])))
    if not len(bad):
        return norms
    rows = block[bad]
    nan, finite = np.isnan(rows).any(axis=1), np.isfinite(rows).all(axis=1)
    zero = finite & (rows == 0).all(axis=1)
    check.not_a_number.add((bad[nan] + first).tolist())
    check.infinite.add((bad[~nan & ~finite] + first).tolist())
    check.zero.add((bad[zero] + first).tolist())
    check.extreme.add((bad[finite & ~zero] + first).tolist())
    norms[bad[~finite]] = np.nan
    with np.errstate(over="ignore"):  # finite values whose norm float32 cannot hold
        norms[bad[finite & ~zero]] = np.clip(norms[bad[finite & ~zero]], 1e-45, np.finfo(np.float32).max)
    return norms


def find_duplicates(matrix: Matrix, check: RowCheck, labels: Integers | None) -> Duplicates:
    """Rows with the same bytes; those whose 64-bit hashes agree are read again and compared by 128-bit digests.

    Parameters
    ----------
    matrix : Matrix
    check : RowCheck
        Of this matrix.
    labels : ndarray of shape (N,), int64, optional
        To tell groups that have several.
    """
    candidates = _same_hash(check)
    if not len(candidates):
        return Duplicates(0, 0, 0, [])
    digests = np.concatenate([_digests(matrix, part) for part in _parts(candidates, matrix)])
    order = np.lexsort((candidates, digests[:, 1], digests[:, 0]))
    rows, changes = candidates[order], (np.diff(digests[order], axis=0) != 0).any(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    sizes = np.diff(np.append(starts, len(rows)))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    first = np.argsort(rows[starts], kind="stable")[:_EXAMPLES].tolist()
    return Duplicates(
        rows=int((sizes - 1).sum()),
        groups=len(starts),
        other_labels=0 if labels is None else _groups_with_several(labels[rows], starts, sizes),
        examples=[rows[starts[one] : starts[one] + min(sizes[one], _OF_EACH)].tolist() for one in first],
    )


def _same_hash(check: RowCheck) -> Integers:
    """Usable rows whose hash another one has, in order."""
    order = np.argsort(check.hashes, kind="stable")
    same = np.diff(check.hashes[order]) == 0
    twice = np.zeros(len(order), np.bool_)
    twice[:-1] |= same
    twice[1:] |= same
    rows = np.sort(order[twice])
    chosen: Integers = rows[check.usable[rows]]
    return chosen


def _groups_with_several(labels: Integers, starts: Integers, sizes: Integers) -> int:
    if not len(starts):
        return 0
    bounds = np.stack([starts, starts + sizes], axis=1).reshape(-1)
    padded = np.append(labels, labels[-1])  # reduceat wants every bound inside
    smallest, largest = np.minimum.reduceat(padded, bounds)[::2], np.maximum.reduceat(padded, bounds)[::2]
    return int((smallest != largest).sum())


def _digests(matrix: Matrix, rows: Integers) -> NDArray[np.uint64]:
    block = rows_at(matrix, rows)
    joined = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in block)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def _parts(rows: Integers, matrix: Matrix) -> Iterator[Integers]:
    step = max(BLOCK_BYTES // (matrix.dimensions * VALUE_BYTES), 1)
    return (rows[begin : begin + step] for begin in range(0, len(rows), step))


def rows_at(matrix: Matrix, rows: Integers) -> Floats:
    """The rows with these numbers, shape (M, dimensions); fastest in order.

    Raises
    ------
    InputError, FormatError
        Where they cannot be read, or are no longer there.
    """
    block = np.empty((len(rows), matrix.dimensions), "<f4")
    size = matrix.dimensions * VALUE_BYTES
    descriptor = open_regular(matrix.path)
    try:
        for row, place in zip(block, rows.tolist(), strict=True):
            if os.preadv(descriptor, [row.view(np.uint8).data], place * size) != size:
                raise FormatError(f"{matrix.path}: was cut short while it was being read, at row {place:,}")
    except OSError as error:
        raise error if isinstance(error, FormatError) else input_error(error, matrix.path) from error
    finally:
        os.close(descriptor)
    return block
