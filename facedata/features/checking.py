"""Is a feature set what it says it is: sizes, labels, values, neighbours, and how good the features are.

Every check is a module of `facedata.features.checks`; none holds more of a set than a block and 32 bytes a row.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import InputError, InputNotFoundError, input_error
from facedata.features.checks.findings import Finding, Watch, counted, unwatched
from facedata.features.checks.labels import Classes, check_keys, check_labels, class_figures, class_sizes
from facedata.features.checks.layouts import neighbour_files
from facedata.features.checks.neighbours import NeighbourFile, check_neighbours
from facedata.features.checks.pairs import Pairs, Similarity, sample_pairs, similarity
from facedata.features.checks.rows import Duplicates, Norms, RowCheck, check_all_rows, find_duplicates
from facedata.features.checks.shape import check_kind, check_size
from facedata.features.checks.shares import Share, sampled_share
from facedata.features.feature_set import FeatureSet
from facedata.features.matrix import Floats, Matrix

__all__ = ["CheckOptions", "Drawable", "Finding", "SetReport", "check_feature_set", "check_matrix", "set_names"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and how closely.

    Attributes
    ----------
    dimensions : int, optional
        Values in a row; by default what the size of the matrix and the lines of the labels come to.
    k : int, optional
        Look at files of neighbours of this k only, the row itself counted; so many are taken of the sample, too.
    sample : int
        Rows whose neighbours are searched, where no file has them; 0 for none, and no pairs either.
    """

    dimensions: int | None = None
    k: int | None = None
    sample: int = 2_000


@dataclass(frozen=True)
class Drawable:
    """What a plot shows and a sum does not.

    Attributes
    ----------
    norms : ndarray of shape (M,), float32
        Of the rows that are finite and not zero.
    class_sizes : ndarray of shape (C,), int64
    pairs : Pairs, optional
    """

    norms: Floats
    class_sizes: Integers
    pairs: Pairs | None = None


@dataclass
class SetReport:
    """What is known of a set after all checks.

    Attributes
    ----------
    name, path : str
        The set, and its matrix.
    rows, dimensions : int, optional
        None where the matrix has no whole number of rows.
    norms : Norms, optional
    not_finite, zero : int
        Rows.
    duplicates : Duplicates, optional
    classes : Classes, optional
        None without labels.
    keys : bool
        Whether there is a file of keys.
    neighbours : list of NeighbourFile
    same_label : Share, optional
        The figure of the features' quality: from the first file of neighbours that has one, else from a sample.
    same, other : Similarity, optional
        Of pairs with the same label, and with different ones.
    findings : list of Finding
    drawable : Drawable, optional
    """

    name: str
    path: str
    rows: int | None = None
    dimensions: int | None = None
    norms: Norms | None = None
    not_finite: int = 0
    zero: int = 0
    duplicates: Duplicates | None = None
    classes: Classes | None = None
    keys: bool = False
    neighbours: list[NeighbourFile] = field(default_factory=list)
    same_label: Share | None = None
    same: Similarity | None = None
    other: Similarity | None = None
    findings: list[Finding] = field(default_factory=list)
    drawable: Drawable | None = None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong; notes do not count."""
        return not any(finding.wrong for finding in self.findings)

    def facts(self) -> dict[str, Any]:
        """All figures and findings, as JSON values."""
        drawable, self.drawable = self.drawable, None
        try:
            return {"good": self.good, **{name: value for name, value in asdict(self).items() if name != "drawable"}}
        finally:
            self.drawable = drawable


def set_names(root: str | os.PathLike[str]) -> list[str]:
    """The names of the sets in a folder: those of ``features/*.bin``, sorted.

    Raises
    ------
    InputError
        Where there is no such folder, or it cannot be read.
    """
    folder = os.path.join(os.fspath(root), "features")
    try:
        names = sorted(name.removesuffix(".bin") for name in os.listdir(folder) if name.endswith(".bin"))
    except OSError as error:
        raise input_error(error, folder) from error
    names = [name for name in names if name and not name.startswith(".")]
    if not names:
        raise InputNotFoundError(f"{folder}: has no .bin file; a set has features/NAME.bin and labels/NAME.meta")
    return names


def check_feature_set(
    root: str | os.PathLike[str], name: str, options: CheckOptions | None = None, *, watch: Watch = unwatched
) -> SetReport:
    """Check everything about a set: matrix, labels, keys, and files of neighbours.

    Parameters
    ----------
    root : path
        The folder with ``features/``, ``labels/`` and ``knns/`` in it.
    name : str
    options : CheckOptions, optional
    watch : callable, optional
        Gives observers of the progress.

    Raises
    ------
    InputError
        Where a file is not there or cannot be read; what is wrong in it is a finding.
    OptionError
        Where nothing tells the dimensions.
    """
    files = FeatureSet(os.fspath(root), name)
    if not os.path.lexists(files.features):
        raise InputNotFoundError(f"{files.features}: no such file; a set has features/NAME.bin and labels/NAME.meta")
    return _Checking(SetReport(name, files.features), options or CheckOptions(), watch).run(files)


def check_matrix(
    path: str | os.PathLike[str], options: CheckOptions | None = None, *, watch: Watch = unwatched
) -> SetReport:
    """Check a matrix without labels; `options.dimensions` must say how many values a row has.

    Raises
    ------
    InputError, OptionError
        As `check_feature_set`.
    """
    path = os.fspath(path)
    return _Checking(SetReport(os.path.basename(path), path), options or CheckOptions(), watch).run(None)


class _Checking:
    """One set: its report, filled in step by step."""

    def __init__(self, report: SetReport, options: CheckOptions, watch: Watch) -> None:
        self._report, self._options, self._watch = report, options, watch

    def run(self, files: FeatureSet | None) -> SetReport:
        report = self._report
        counted_in = files.labels if files and os.path.lexists(files.labels) else None
        labels = self._labels(counted_in) if counted_in else None
        matrix = self._matrix(labels, counted_in)
        rows = matrix.rows if matrix else None
        if labels is not None and rows is not None and len(labels) != rows:
            labels = None  # nobody knows whose they are
        check = self._rows(matrix, labels) if matrix else None
        if files and rows is not None:
            self._keys(files.keys, rows)
            self._neighbours(os.path.join(files.root, "knns", files.name), rows, labels, matrix)
        if matrix and check and labels is not None and self._options.sample:
            self._quality(matrix, check, labels)
        return report

    def _labels(self, path: str) -> Integers | None:
        labels, findings = check_labels(path)
        self._report.findings += findings
        if labels is not None:
            self._report.classes = class_figures(labels, class_sizes(labels))
        return labels

    def _matrix(self, labels: Integers | None, counted_in: str | None) -> Matrix | None:
        report, dimensions = self._report, self._options.dimensions
        if dimensions is None and labels is None and counted_in is not None:
            return None  # the labels are none: mended, they tell the dimensions
        lines = None if labels is None else len(labels)
        matrix, findings = check_size(report.path, dimensions, lines, counted_in or "")
        report.findings += findings
        if matrix is not None:
            report.rows, report.dimensions = matrix.rows, matrix.dimensions
            if other := check_kind(matrix):
                report.findings += other
                return None  # whatever else was found of such rows would mean nothing
        return matrix

    def _rows(self, matrix: Matrix, labels: Integers | None) -> RowCheck:
        report = self._report
        with self._watch("reading rows") as observer:
            check = check_all_rows(matrix, observer)
        report.findings += check.findings(matrix.path)
        report.norms, report.zero = check.figures(), check.zero.count
        report.not_finite = check.not_a_number.count + check.infinite.count
        report.duplicates = find_duplicates(matrix, check, labels)
        self._tell_duplicates(report.duplicates)
        check.hashes = check.hashes[:0]
        sizes = class_sizes(labels) if labels is not None else np.empty(0, np.int64)
        report.drawable = Drawable(check.norms[check.usable], sizes)
        return check

    def _tell_duplicates(self, duplicates: Duplicates) -> None:
        if not duplicates.rows:
            return
        shown = "; ".join(", ".join(f"{row:,}" for row in rows) for rows in duplicates.examples)
        labels = f", {duplicates.other_labels:,} of them with several labels" if duplicates.other_labels else ""
        found = (
            f"expected each row once, found {counted(duplicates.rows, 'copy', 'copies')} of others in "
            f"{counted(duplicates.groups, 'group')}"
            f"{labels}: rows {shown}"
        )
        advice = "the same image twice? a set may have them; they make its figures look better than they are"
        self._report.findings.append(Finding(self._report.path, "duplicate rows", found, advice, wrong=False))

    def _keys(self, path: str, rows: int) -> None:
        if os.path.lexists(path):
            self._report.keys = True
            self._report.findings += check_keys(path, rows)

    def _neighbours(self, folder: str, rows: int, labels: Integers | None, matrix: Matrix | None) -> None:
        report = self._report
        for path in neighbour_files(folder, self._options.k):
            try:
                with self._watch(f"reading {os.path.basename(path)}") as observer:
                    file, findings = check_neighbours(path, rows, labels, matrix, observer)
            except InputError as error:
                file, findings = NeighbourFile(path), [_unreadable(path, error)]
            report.neighbours.append(file)
            report.findings += findings
            report.same_label = report.same_label or file.same_label

    def _quality(self, matrix: Matrix, check: RowCheck, labels: Integers) -> None:
        report, usable = self._report, check.usable
        if report.same_label is None:
            with self._watch("searching neighbours") as observer:
                k = self._options.k or 80
                report.same_label = sampled_share(matrix, labels, usable, k - 1, self._options.sample, observer)
        pairs = sample_pairs(matrix, labels, usable)
        report.same, report.other = similarity(pairs.same), similarity(pairs.other)
        if report.drawable is not None:
            report.drawable = Drawable(report.drawable.norms, report.drawable.class_sizes, pairs)


def _unreadable(path: str, error: InputError) -> Finding:
    message = f"expected a file that can be read: {str(error).removeprefix(f'{path}: ')}"
    return Finding(path, "neighbours: file", message, "mend or remove it")
