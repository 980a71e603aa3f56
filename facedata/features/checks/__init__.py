"""Check whether a feature set is what it says it is: sizes, labels, values, neighbours, and the features' quality.

No check holds more of a set in memory than a block and 32 bytes a row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED, read_labels
from facedata.errors import FormatError, InputError, InputNotFoundError, OptionError, input_error
from facedata.features.checks.neighbours import check_neighbours, neighbour_files
from facedata.features.checks.report import Classes, Finding, NeighbourFile, NotedRows, SetReport, Watch, unwatched
from facedata.features.checks.rows import check_all_rows, find_duplicates, sample_pairs, sampled_share, similarity
from facedata.features.feature_set import (
    NPY_MAGIC,
    VALUE_BYTES,
    FeatureSet,
    Matrix,
    open_matrix,
    other_kind,
    size_and_head,
)
from facedata.files import StrPath, opened_regular
from facedata.identify import identify
from facedata.jobs.journal import refuse_unfinished
from facedata.matrix_size import size_problem

__all__ = ["CheckOptions", "check_feature_set", "check_matrix", "set_names"]

_USUAL_DIMENSIONS = (256, 512, 128, 1024, 64, 2048)  # 256 first: learn-to-cluster's own
_DEFAULT_K = 80
_CHUNK = 1 << 20
_WRITE_AGAIN = "write it again as float32 without a header: facedata pack-features"

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and how closely."""

    dimensions: int | None = None
    """Values in a row; by default the size of the matrix divided by the lines of the labels."""
    k: int | None = None
    """Check only files of this k, the row itself counted; also how many neighbours of the sample are searched."""
    sample: int = 2_000
    """Rows whose neighbours are searched if no file has them; 0 for none, and no pairs either."""


def set_names(root: StrPath) -> list[str]:
    """The names of the sets in a folder: those of ``features/*.bin``, sorted.

    Raises `InputError` if there is no such folder, it cannot be read, or it has no set.
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
    root: StrPath, name: str, options: CheckOptions | None = None, *, watch: Watch = unwatched
) -> SetReport:
    """Check everything about a set in the folder `root`: matrix, labels, keys, and files of neighbours.

    Raises `InputError` if a file does not exist or cannot be read, or a job has not finished the set; what is wrong in
    it is a finding; `OptionError` if the dimensions are unknown.
    """
    files = FeatureSet(os.fspath(root), name)
    if not os.path.lexists(files.features):
        raise InputNotFoundError(f"{files.features}: no such file; a set has features/NAME.bin and labels/NAME.meta")
    refuse_unfinished(files.features)
    return _check(SetReport(name, files.features), files, options or CheckOptions(), watch)


def check_matrix(path: StrPath, options: CheckOptions | None = None, *, watch: Watch = unwatched) -> SetReport:
    """Check a matrix without labels; `options.dimensions` must say how many values a row has.

    Raises as `check_feature_set`.
    """
    path = os.fspath(path)
    refuse_unfinished(path)
    return _check(SetReport(os.path.basename(path), path), None, options or CheckOptions(), watch)


def _check(report: SetReport, files: FeatureSet | None, options: CheckOptions, watch: Watch) -> SetReport:
    """Fill in the report of a set, or of a matrix alone."""
    labels_path = files.labels if files and os.path.lexists(files.labels) else None
    labels = _read_labels(labels_path, report) if labels_path else None
    if labels_path and labels is None and options.dimensions is None:
        return report  # once the labels are corrected, they give the dimensions
    matrix = _open_matrix(report, options.dimensions, None if labels is None else len(labels), labels_path or "")
    if matrix is None:
        return report
    report.rows, report.dimensions = matrix.rows, matrix.dimensions
    if (kind := other_kind(matrix)) is not None:
        found = f"expected float32, found bytes that make sense only as {kind}"
        report.findings.append(Finding(matrix.path, "kind of number", found, _WRITE_AGAIN))
        return report  # other findings about such rows would mean nothing
    if labels is not None and len(labels) != matrix.rows:  # which row they belong to is unknown
        labels, report.class_sizes = None, report.class_sizes[:0]

    with watch("reading rows") as observer:
        rows = check_all_rows(matrix, observer)
    report.norms, report.zero = rows.figures(), rows.zero.count
    report.not_finite = rows.nan.count + rows.infinite.count
    report.duplicates, notes = find_duplicates(matrix, rows, labels)
    report.findings += [*rows.findings(matrix.path), *notes]
    rows.hashes = rows.hashes[:0]  # 8 bytes a row that are not needed any more
    usable = rows.usable
    report.row_norms = rows.norms[usable]

    if files is not None:
        if os.path.lexists(files.keys):
            report.keys = True
            report.findings += _check_keys(files.keys, matrix.rows)
        for path in neighbour_files(os.path.join(files.root, "knns", files.name), options.k):
            try:
                with watch(f"reading {os.path.basename(path)}") as observer:
                    file, findings = check_neighbours(path, matrix.rows, labels, matrix, observer)
            except InputError as error:
                found = f"expected a file that can be read: {str(error).removeprefix(f'{path}: ')}"
                file, findings = NeighbourFile(path), [Finding(path, "neighbours: file", found, "fix or remove it")]
            report.neighbours.append(file)
            report.findings += findings
            report.same_label = report.same_label or file.same_label

    if labels is not None and options.sample:
        if report.same_label is None:
            with watch("searching neighbours") as observer:
                k = options.k or _DEFAULT_K
                report.same_label = sampled_share(matrix, labels, usable, k - 1, options.sample, observer)
        report.same_cosines, report.other_cosines = sample_pairs(matrix, labels, usable)
        report.same, report.other = similarity(report.same_cosines), similarity(report.other_cosines)
    return report


def _read_labels(path: str, report: SetReport) -> Integers | None:
    """Read a ``.meta`` and report its classes and what is wrong with it; None if a line is not a label."""
    advice = "correct it, or write the labels again: facedata pack-features"
    try:
        blocks = list(read_labels(path))
    except FormatError as error:
        report.findings.append(Finding(path, "labels", str(error).removeprefix(f"{path}: "), advice))
        return None
    if not blocks:
        report.findings.append(Finding(path, "labels", "expected a label for each row, found no line", advice))
        return None
    labels = np.concatenate(blocks)
    below = NotedRows()
    below.add(np.flatnonzero(labels < UNLABELLED))
    if below.count:
        found = f"expected labels from 0 on, or -1, found {below.count:,} below: {below}"
        report.findings.append(Finding(path, "labels", found, "write -1 for rows without a label"))
    missing = int((labels == UNLABELLED).sum())
    if 0 < missing < len(labels):
        found = f"expected labels, or -1 on every line, found -1 on {missing:,} of {len(labels):,}"
        advice = "many readers treat -1 as a class; remove these rows unless yours handles -1"
        report.findings.append(Finding(path, "unlabelled rows", found, advice, wrong=False))
    sizes = report.class_sizes = np.unique(labels[labels > UNLABELLED], return_counts=True)[1].astype(np.int64)
    report.classes = Classes(
        classes=len(sizes),
        unlabelled=int((labels <= UNLABELLED).sum()),
        smallest=int(sizes.min()) if len(sizes) else 0,
        median=float(np.median(sizes)) if len(sizes) else 0.0,
        largest=int(sizes.max()) if len(sizes) else 0,
        singletons=int((sizes == 1).sum()),
    )
    return labels


def _open_matrix(report: SetReport, dimensions: int | None, rows: int | None, counted_in: str) -> Matrix | None:
    """Report what is wrong with the size of a matrix; open it if it has whole rows, however many."""
    path = report.path
    size, head = size_and_head(path)
    npy = head.startswith(NPY_MAGIC)
    if dimensions is None:
        if npy:
            dimensions = _USUAL_DIMENSIONS[0]  # it is wrong in any case
        elif rows is None:
            raise OptionError(f"{path}: how many values a row has is unknown: give --dim, such as --dim 256")
        elif size and size % (rows * VALUE_BYTES) == 0:
            dimensions = size // (rows * VALUE_BYTES)
        else:  # the usual number that gives the most similar number of rows
            whole = [d for d in _USUAL_DIMENSIONS if size % (d * VALUE_BYTES) == 0] or _USUAL_DIMENSIONS
            dimensions = min(whole, key=lambda d: abs(size / (d * VALUE_BYTES) - rows))
    row = dimensions * VALUE_BYTES
    is_whole = size > 0 and size % row == 0 and not npy
    wrong = size_problem(size, dimensions, rows, head)
    if wrong is not None and (what := identify(path)) is not None and what.sure and "features" not in what.uses:
        report.findings.append(Finding(path, "size", f"expected features, found {what.kind}", what.advice))
    elif wrong is not None:
        advice = _WRITE_AGAIN if size else "write it again"
        if is_whole and rows is not None and size not in (2 * rows * row, rows * row // 2):
            advice = "find the labels of this matrix, or give the right --dim"
        counted = "" if rows is None else f" ({rows:,} lines in {counted_in})"
        report.findings.append(Finding(path, "size", wrong + counted, advice))
    return open_matrix(path, dimensions) if is_whole else None


def _check_keys(path: str, rows: int) -> list[Finding]:
    """Check that a file of keys has a line for each row, and no blank one."""
    lines, blank, last = 0, 0, b"\n"
    with opened_regular(path) as descriptor:
        while chunk := os.read(descriptor, _CHUNK):
            lines += chunk.count(b"\n")
            ends = np.frombuffer(last + chunk, np.uint8) == 10
            blank += int((ends[1:] & ends[:-1]).sum())
            last = chunk[-1:]
    lines += last != b"\n"  # the last line may lack its end
    advice = "without it the image of each row is unknown: write it again, or remove it"
    findings = []
    if lines != rows:
        findings.append(Finding(path, "keys", f"expected {rows:,} lines, one a row, found {lines:,}", advice))
    if blank:
        findings.append(Finding(path, "keys", f"expected a key a line, found {blank:,} blank", advice))
    return findings
