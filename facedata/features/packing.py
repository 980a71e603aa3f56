"""Matrices of one's own into feature sets, and back: every row is checked on its way, and none is ever shifted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from facedata.errors import FormatError, InterruptedJobError, OptionError, OutputError
from facedata.features.feature_set import FeatureSet
from facedata.features.label_sources import Labels, meta_lines, unlabelled_lines
from facedata.features.matrix import VALUE_BYTES, check_rows
from facedata.features.sources import FeatureSource, Rows
from facedata.features.writing import (
    NPY_HEADER,
    SideFile,
    check_labels_in_the_way,
    check_replaceable,
    check_room,
    made_folders,
    npy_header,
    publish_set,
    refuse_input,
    same_bytes,
)
from facedata.jobs.signals import StopRequest

__all__ = ["NO_LABELS", "UNLABELLED_ROWS", "Allowed", "Packed", "pack_features", "save_features"]

UNLABELLED_ROWS = "unlabelled"
"""In the place of labels: -1 for every row."""

NO_LABELS = "none"
"""In the place of labels: no ``.meta``."""

_EXTENSIONS = (".npy", ".bin")
_log = logging.getLogger(__name__)

Observer = Callable[[int, int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Allowed:
    """Rows that are taken though a reader may stumble over them.

    Attributes
    ----------
    zero : bool
        Rows of zeros, which have no direction: normalised, they become NaN.
    nan : bool
        Rows with NaN or infinity: such as `extract-features --on-error nan` leaves.
    """

    zero: bool = False
    nan: bool = False


@dataclass(frozen=True)
class Packed:
    """What was written, or would be.

    Attributes
    ----------
    features : str
        The file of the matrix.
    labels : str, optional
        The ``.meta``.
    rows : int, optional
        None where only reading the source tells, and it was not read.
    dimensions : int
    dtype : str
        What the source holds; float32 is what is written.
    classes : int, optional
        Different labels other than -1, where there is a ``.meta``.
    """

    features: str
    labels: str | None
    rows: int | None
    dimensions: int
    dtype: str
    classes: int | None = None


def pack_features(
    source: FeatureSource,
    output: FeatureSet,
    labels: Labels | str,
    *,
    allowed: Allowed = Allowed(),
    limit: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
) -> Packed:
    """Write a matrix as a feature set: ``features/NAME.bin`` and ``labels/NAME.meta``.

    Both appear when both are whole; the matrix last. A run that was killed leaves nothing under these names but perhaps
    the labels; the same call starts again.

    Parameters
    ----------
    source : FeatureSource
    output : FeatureSet
    labels : Labels or str
        A label for each row of the source; or `UNLABELLED_ROWS`, or `NO_LABELS`.
    allowed : Allowed
    limit : int, optional
        Only the first rows.
    overwrite : bool
        Replace the set that is there.
    dry_run : bool
        Only look, at the labels whole and at the header of the matrix; write nothing.
    observer : callable, optional
        Called with bytes written and in all (0 where nobody knows).
    stop : StopRequest, optional

    Raises
    ------
    InputError
        Where the source or the labels cannot be read.
    FormatError
        Where a row is not finite, all zero, or too large for float32; or where there is not a label for each row.
    OutputError
        Where there is something else at its place, or it cannot be written; nothing is left behind.
    InterruptedJobError
        Where it was stopped; nothing is left behind.
    """
    if isinstance(labels, Labels) and stop is not None:
        labels = _stopping(labels, stop)
    packed = _look_first(source, output, labels, limit, overwrite=overwrite)
    if dry_run:
        return packed
    _tell_conversion(source)
    checked = _CheckedRows(source, allowed, limit, observer, stop)
    with ExitStack() as stack:
        stack.enter_context(made_folders(*(os.path.dirname(path) for path in (packed.features, packed.labels) if path)))
        features = stack.enter_context(SideFile(packed.features))
        meta = stack.enter_context(SideFile(packed.labels)) if packed.labels else None
        rows = checked.write_to(features)
        if packed.rows is None:  # now it is known
            _check_labels(source, output, labels, rows, limit, overwrite=overwrite)
        if meta is not None:
            for lines in _lines_of(labels, rows):
                meta.write(lines)
        publish_set(output, features, meta, overwrite=overwrite)
    _tell_stale(output)
    return replace(packed, rows=rows)


def _stopping(labels: Labels, stop: StopRequest) -> Labels:
    """The same labels, which a stop does not have to wait for: those of a dataset may take minutes to read."""

    def read() -> Iterator[NDArray[np.int64]]:
        for block in labels.read():
            if stop:
                raise InterruptedJobError(
                    f"{labels.title}: stopped while labels were read; nothing is kept: the same command starts again"
                )
            yield block

    return replace(labels, read=read)


def _look_first(
    source: FeatureSource, output: FeatureSet, labels: Labels | str, limit: int | None, *, overwrite: bool
) -> Packed:
    """Refuse what can be refused before the matrix is read."""
    refuse_input(output.features, source.path)
    check_replaceable(output.features, overwrite=overwrite)
    rows = _fewer(source.rows, limit)
    if rows is not None:
        _check_labels(source, output, labels, rows, limit, overwrite=overwrite)
        check_room(output.features, rows * source.dimensions * VALUE_BYTES)
    meta = None if labels == NO_LABELS else output.labels
    classes = labels.count(limit).classes if isinstance(labels, Labels) else None if meta is None else 0
    return Packed(output.features, meta, rows, source.dimensions, source.dtype, classes)


def _fewer(rows: int | None, limit: int | None) -> int | None:
    return rows if rows is None or limit is None else min(rows, limit)


def _check_labels(
    source: FeatureSource, output: FeatureSet, labels: Labels | str, rows: int, limit: int | None, *, overwrite: bool
) -> None:
    """Whether there is a label for each row, and the ``.meta`` may be written; `rows` are those that are wanted."""
    if isinstance(labels, Labels):
        counted, whole = labels.count().rows, source.rows if source.rows is not None else rows
        cut = source.rows is None and rows == limit  # nobody knows how many rows there are behind
        if counted < whole or (counted > whole and not cut):
            raise FormatError(
                f"{labels.title}: has {counted:,} labels, and {source.title} has {whole:,} rows: expected one for each "
                "row; nothing was written"
            )
    _check_labels_there(output, labels, rows, overwrite=overwrite)


def _lines_of(labels: Labels | str, rows: int) -> Iterator[bytes]:
    return meta_lines(labels, rows) if isinstance(labels, Labels) else unlabelled_lines(rows)


def _check_labels_there(files: FeatureSet, labels: Labels | str, rows: int, *, overwrite: bool) -> None:
    """Whether what lies at the place of the labels may be replaced; the file that they are read of may not."""
    lines = None if labels == NO_LABELS else _lines_of(labels, rows)
    check_labels_in_the_way(files, lines, overwrite=overwrite)
    if overwrite and isinstance(labels, Labels) and not same_bytes(files.labels, _lines_of(labels, rows)):
        refuse_input(files.labels, labels.title)


def _tell_conversion(source: FeatureSource) -> None:
    if source.dtype in ("float16", "float64"):
        _log.info("%s: %s becomes float32", source.title, source.dtype)


def _tell_stale(files: FeatureSet) -> None:
    """What else has the name of the set was made of other features."""
    for path in (os.path.dirname(files.neighbours("any", 1)), files.keys):
        if os.path.lexists(path):
            _log.warning("%s: belongs to features of this name from before; remove it, or make it anew", path)


def save_features(
    source: FeatureSource,
    path: str | os.PathLike[str],
    *,
    allowed: Allowed = Allowed(),
    limit: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
) -> Packed:
    """Write a matrix as one file: ``.npy`` as ``np.save`` writes it, or ``.bin`` without a header.

    Parameters
    ----------
    source : FeatureSource
    path : path
    allowed, limit, overwrite, dry_run, observer, stop
        As for `pack_features`.

    Raises
    ------
    OptionError
        Where the name ends in neither.
    InputError, FormatError, OutputError, InterruptedJobError
        As for `pack_features`.
    """
    path = os.fspath(path)
    if not path.endswith(_EXTENSIONS):
        raise OptionError(f"{path}: expected a name that ends in {' or '.join(_EXTENSIONS)}")
    refuse_input(path, source.path)
    check_replaceable(path, overwrite=overwrite)
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: there is no folder {folder} to write it in")
    rows = _fewer(source.rows, limit)
    if rows is not None:
        check_room(path, rows * source.dimensions * VALUE_BYTES)
    if dry_run:
        return Packed(path, None, rows, source.dimensions, source.dtype)
    _tell_conversion(source)
    with SideFile(path) as file:
        if path.endswith(".npy"):
            file.write(bytes(NPY_HEADER))
        written = _CheckedRows(source, allowed, limit, observer, stop).write_to(file)
        if path.endswith(".npy"):
            file.write_first(npy_header(written, source.dimensions))
        file.sync()
        check_replaceable(path, overwrite=overwrite)
        file.publish()
    return Packed(path, None, written, source.dimensions, source.dtype)


@dataclass(frozen=True)
class _CheckedRows:
    """The rows of a source as float32, every one of them looked at."""

    source: FeatureSource
    allowed: Allowed
    limit: int | None
    observer: Observer | None
    stop: StopRequest | None

    def write_to(self, file: SideFile) -> int:
        """Write all rows; returns how many there are."""
        done, row = 0, self.source.dimensions * VALUE_BYTES
        total = (_fewer(self.source.rows, self.limit) or 0) * row
        for block in self._limited():
            if self.stop:
                raise InterruptedJobError(
                    f"{file.path}: stopped after {done:,} rows; nothing is kept: the same command starts again"
                )
            file.write(self._checked(block, done).data.cast("B"))
            done += len(block)
            if self.observer:
                self.observer(done * row, total)
        return done

    def _limited(self) -> Iterator[Rows]:
        left = self.limit
        for block in self.source.blocks():
            yield block if left is None else block[:left]
            if left is not None and (left := left - len(block)) <= 0:
                return

    def _checked(self, block: Rows, first: int) -> Floats:
        with np.errstate(all="ignore"):
            rows = np.ascontiguousarray(block, np.dtype("<f4"))
            squares = np.einsum("ij,ij->i", rows, rows)
        if not (squares.min() > 0 and squares.max() < np.inf):  # so for NaN too
            self._look_closely(block, rows, first)
        return rows

    def _look_closely(self, block: Rows, rows: Floats, first: int) -> None:
        """Squares may overflow, or come to nothing, where their values do not."""
        title = self.source.title
        lost = np.flatnonzero((np.isinf(rows) & np.isfinite(block)).any(axis=1))
        if len(lost):
            largest = np.abs(block[lost[0]], where=np.isfinite(block[lost[0]]), out=np.zeros(block.shape[1])).max()
            raise FormatError(
                f"{title}: row {first + int(lost[0]):,} has {largest:.3g}, which is too large for float32 (3.4e38); "
                "rows count from 0"
            )
        if self.allowed.nan:
            rows = np.where(np.isfinite(rows), rows, np.float32(1))
        check_rows(rows, first, title, zero=not self.allowed.zero)
