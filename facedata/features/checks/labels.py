"""The labels of a set, the sizes of its classes, and the keys of its rows."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED, read_labels
from facedata.errors import FormatError, input_error
from facedata.features.checks.findings import Finding, Noted
from facedata.files import open_regular

__all__ = ["Classes", "best_share", "check_keys", "check_labels", "class_figures", "class_sizes"]

_CHUNK = 1 << 20

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """How rows are spread over classes.

    Attributes
    ----------
    classes : int
    unlabelled : int
        Rows with -1.
    smallest, median, largest : int, float, int
        Rows of a class; 0 where there is none.
    singletons : int
        Classes of one row.
    """

    classes: int
    unlabelled: int
    smallest: int
    median: float
    largest: int
    singletons: int


def check_labels(path: str) -> tuple[Integers | None, list[Finding]]:
    """Read a ``.meta``: its labels, None where it is not one, and what is wrong with them.

    Raises
    ------
    InputError
        Where it cannot be read.
    """
    again = "mend it, or write the labels again: facedata pack-features"
    try:
        blocks = list(read_labels(path))
    except FormatError as error:
        return None, [Finding(path, "labels", str(error).removeprefix(f"{path}: "), again)]
    if not blocks:
        return None, [Finding(path, "labels", "expected a label for each row, found no line", again)]
    labels = np.concatenate(blocks)
    return labels, _odd_labels(path, labels)


def _odd_labels(path: str, labels: Integers) -> list[Finding]:
    below, findings = np.flatnonzero(labels < UNLABELLED), []
    if len(below):
        noted = Noted()
        noted.add(below.tolist())
        found = f"expected labels from 0 on, or -1, found {len(below):,} below: {noted}"
        findings.append(Finding(path, "labels", found, "write -1 for what has no label"))
    unlabelled = int((labels == UNLABELLED).sum())
    if 0 < unlabelled < len(labels):
        found = f"expected labels, or -1 on every line, found -1 on {unlabelled:,} of {len(labels):,}"
        advice = "a reader may take these rows for one class: leave them out, unless yours knows better"
        findings.append(Finding(path, "unlabelled rows", found, advice, wrong=False))
    return findings


def class_sizes(labels: Integers) -> Integers:
    """Rows of each class, in the order of the labels; unlabelled rows are none."""
    sizes: Integers = np.unique(labels[labels > UNLABELLED], return_counts=True)[1].astype(np.int64)
    return sizes


def class_figures(labels: Integers, sizes: Integers) -> Classes:
    """The sum of `class_sizes`."""
    known = len(sizes) > 0
    return Classes(
        classes=len(sizes),
        unlabelled=int((labels <= UNLABELLED).sum()),
        smallest=int(sizes.min()) if known else 0,
        median=float(np.median(sizes)) if known else 0.0,
        largest=int(sizes.max()) if known else 0,
        singletons=int((sizes == 1).sum()),
    )


def best_share(labels: Integers, rows: Integers, neighbours: int) -> float:
    """The largest share of neighbours with the same label that the classes of these labelled rows allow."""
    known, sizes = np.unique(labels, return_counts=True)
    others = sizes[np.searchsorted(known, labels[rows])] - 1
    return float(np.minimum(others, neighbours).mean() / neighbours)


def check_keys(path: str, rows: int) -> list[Finding]:
    """Whether a file of keys has a line for each row, and no blank one.

    Raises
    ------
    InputError
        Where it cannot be read.
    """
    lines, blank = _count_lines(path)
    again = "without it nobody knows which row is which image: write it again, or remove it"
    findings = []
    if lines != rows:
        findings.append(Finding(path, "keys", f"expected {rows:,} lines, one a row, found {lines:,}", again))
    if blank:
        findings.append(Finding(path, "keys", f"expected a key a line, found {blank:,} blank", again))
    return findings


def _count_lines(path: str) -> tuple[int, int]:
    """Lines, the last with or without its end; and how many of them are empty."""
    lines, blank, last = 0, 0, b"\n"
    descriptor = open_regular(path)
    try:
        while chunk := os.read(descriptor, _CHUNK):
            lines += chunk.count(b"\n")
            ends = np.frombuffer(last + chunk, np.uint8) == 10
            blank += int((ends[1:] & ends[:-1]).sum())
            last = chunk[-1:]
    except OSError as error:
        raise input_error(error, path) from error
    finally:
        os.close(descriptor)
    return lines + (last != b"\n"), blank
