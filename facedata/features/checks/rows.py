"""What the rows of a matrix show: bad values, norms, duplicates, and how well similarity separates labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.features.checks.report import Duplicates, Finding, Norms, NotedRows, Observer, Share, Similarity
from facedata.features.feature_set import BLOCK_BYTES, VALUE_BYTES, Floats, Matrix
from facedata.text import counted

__all__ = [
    "RowCheck",
    "SameLabelCount",
    "check_all_rows",
    "find_duplicates",
    "sample_pairs",
    "sampled_share",
    "similarity",
    "unit_rows",
]

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

    Raises `InputError` or `FormatError` if it cannot be read, or has become shorter.
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


_ROWS_AT_ONCE = 4096
_MOST_BYTES = 1 << 28  # of sampled rows, and of one block
_PAIRS = 5_000  # rows are read one by one: on a spinning disk this takes a minute
_PAIRS_AT_ONCE = 1_000


@dataclass
class SameLabelCount:
    """Counts neighbours with the label of their row, some rows at a time."""

    labels: Integers
    """Shape (N,)."""
    rows: int = 0
    pairs: int = 0
    same: int = 0
    nearest: int = 0
    nearest_same: int = 0

    def add(self, rows: Integers, ids: Integers) -> None:
        """Count the neighbours `ids`, shape (M, k), nearest first, of the rows with these numbers, shape (M,).

        The rows themselves may be among their neighbours.
        """
        own, others = self.labels[rows][:, None], self.labels[ids]
        counts = (ids != rows[:, None]) & (others > UNLABELLED) & (own > UNLABELLED)
        same = counts & (others == own)
        self.rows += int((own > UNLABELLED).sum())
        self.pairs += int(counts.sum())
        self.same += int(same.sum())
        first = counts.argmax(axis=1)[:, None]
        self.nearest += int(np.take_along_axis(counts, first, 1).sum())
        self.nearest_same += int(np.take_along_axis(same, first, 1).sum())

    def share(self, rows: Integers, neighbours: int, source: str) -> Share | None:
        """The share for these rows with so many neighbours each; None if no neighbour was counted."""
        if not self.pairs:
            return None
        known, sizes = np.unique(self.labels, return_counts=True)
        labelled = self.labels[rows][self.labels[rows] > UNLABELLED]
        others = sizes[np.searchsorted(known, labelled)] - 1
        possible = float(np.minimum(others, neighbours).mean() / neighbours)
        return Share(self.same / self.pairs, self.nearest_same / self.nearest, possible, neighbours, self.rows, source)


def sampled_share(
    matrix: Matrix,
    labels: Integers,
    usable: NDArray[np.bool_],
    neighbours: int,
    sample: int,
    observer: Observer | None = None,
) -> Share | None:
    """Search the exact neighbours, by cosine, of a fixed sample of rows among all rows, and return their share.

    `labels`, int64, and `usable`, bool, have the shape (N,); rows that are not usable, that is finite and not zero, are
    not neighbours of any row. `sample` is the number of labelled rows in the sample, `neighbours` that of the
    neighbours of each, at most as many as there are. None if no row has a label, or there is only one row.
    """
    candidates = np.flatnonzero(usable & (labels > UNLABELLED))
    neighbours = min(neighbours, int(usable.sum()) - 1)
    room = _MOST_BYTES // max(matrix.dimensions * VALUE_BYTES, _ROWS_AT_ONCE * VALUE_BYTES, neighbours * 64)
    count = min(sample, len(candidates), max(room, 1))
    if neighbours < 1 or count < 1:
        return None
    chosen: Integers = np.sort(np.random.default_rng(_SEED).choice(candidates, count, replace=False))
    counts = SameLabelCount(labels)
    counts.add(chosen, _nearest(matrix, chosen, usable, neighbours, observer))
    return counts.share(chosen, neighbours, f"exact neighbours of {count:,} rows")


def _nearest(
    matrix: Matrix, chosen: Integers, usable: NDArray[np.bool_], wanted: int, observer: Observer | None
) -> Integers:
    """The nearest others of the chosen rows, nearest first, shape (M, wanted)."""
    vectors, count = unit_rows(matrix.rows_at(chosen)), len(chosen)
    row = matrix.dimensions * VALUE_BYTES
    # candidates are collected, and sorted only now and then: below the limits, a row is not among the nearest
    limits = np.full(count, -np.inf, np.float32)
    found: list[tuple[Integers, Integers, Floats]] = []
    unsorted = 0
    for first, block in matrix.blocks(min(_ROWS_AT_ONCE * row, _MOST_BYTES)):
        end = first + len(block)
        scores = vectors @ unit_rows(block).T
        scores[:, ~usable[first:end]] = -np.inf
        begin, after = np.searchsorted(chosen, [first, end])
        scores[np.arange(begin, after), chosen[begin:after] - first] = -np.inf  # not the row itself
        better = scores > limits[:, None]
        if np.count_nonzero(better) > count * wanted and len(block) > wanted:
            best = np.zeros_like(better)
            columns = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
            np.put_along_axis(best, columns, values=True, axis=1)
            better &= best
        queries, columns = np.nonzero(better)
        found.append((queries, columns + first, scores[queries, columns]))
        unsorted += len(queries)
        if unsorted >= count * wanted or end == matrix.rows:
            queries, ids, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
            order = np.lexsort((ids, -cosines, queries))
            queries, ids, cosines = queries[order], ids[order], cosines[order]
            rank = np.arange(len(queries)) - np.searchsorted(queries, np.arange(count))[queries]
            last, kept = rank == wanted - 1, rank < wanted
            limits[queries[last]] = cosines[last]
            found, unsorted = [(queries[kept], ids[kept], cosines[kept])], 0
        if observer is not None:
            observer(end * row, matrix.rows * row)
    return found[0][1].reshape(count, wanted)


def sample_pairs(matrix: Matrix, labels: Integers, usable: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The cosines of sampled pairs of rows with the same label, and with different labels, each of shape (M,).

    Each row of a class of two or more is equally likely to be in a pair of the same label. Rows that are not `usable`
    or have no label are in no pair. The same set gives the same pairs.
    """
    random = np.random.default_rng(_SEED)
    rows = np.flatnonzero(usable & (labels > UNLABELLED))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    count = max(min(_PAIRS, _MOST_BYTES // (4 * matrix.dimensions * VALUE_BYTES)), 1)
    same = rows[_places_of_one_class(labels[rows], count, random)]
    chosen = rows[random.integers(0, len(rows), (count, 2))] if len(rows) else same[:0]
    other = chosen[labels[chosen[:, 0]] != labels[chosen[:, 1]]]
    wanted, places = np.unique(np.concatenate([same, other]), return_inverse=True)
    unit = unit_rows(matrix.rows_at(wanted))
    cosines = np.empty(len(same) + len(other), np.float32)
    for begin in range(0, len(cosines), _PAIRS_AT_ONCE):  # in parts: pairs take no more memory than the rows themselves
        part = places.reshape(-1, 2)[begin : begin + _PAIRS_AT_ONCE]
        cosines[begin : begin + len(part)] = np.einsum("ij,ij->i", unit[part[:, 0]], unit[part[:, 1]])
    return cosines[: len(same)], cosines[len(same) :]


def _places_of_one_class(labels: Integers, count: int, random: np.random.Generator) -> Integers:
    """Pairs of different places with the same label in sorted labels, shape (count, 2), or (0, 2)."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    sizes = np.diff(np.append(starts, len(labels)))
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)  # of the class of each place
    candidates = np.flatnonzero(size > 1)
    if not len(candidates):
        return np.empty((0, 2), np.int64)
    first = random.choice(candidates, count)
    step = random.integers(1, size[first])  # to another place of the class, past its end to its start
    second = start[first] + (first - start[first] + step) % size[first]
    return np.stack([first, second], axis=1)


def similarity(cosines: Floats) -> Similarity | None:
    """Summarise some cosines; None if there are none."""
    if not len(cosines):
        return None
    low, high = np.percentile(cosines, [5, 95])
    return Similarity(len(cosines), float(cosines.mean(dtype=np.float64)), float(low), float(high))
