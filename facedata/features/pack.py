"""Arrays of features into feature sets, and back: every row is checked, and files appear only when complete."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED, integers, read_label_lines, read_labels
from facedata.converters.convert import open_inputs
from facedata.dataset import split_spec
from facedata.errors import (
    DiskFullError,
    FacedataError,
    FormatError,
    InputError,
    InterruptedJobError,
    OptionError,
    OutputError,
    OutputExistsError,
    output_error,
)
from facedata.features.arrays import open_npy
from facedata.features.feature_set import NPY_MAGIC, VALUE_BYTES, FeatureSet, FeatureSource, check_rows, label_array
from facedata.files import (
    StrPath,
    atomic_writer,
    check_room,
    open_regular,
    opened_regular,
    output_errors,
    read_exactly,
    remove_stale_temporaries,
)
from facedata.jobs.journal import refuse_unfinished
from facedata.jobs.output import new_folders
from facedata.jobs.signals import StopRequest

__all__ = [
    "NO_LABELS",
    "UNLABELLED_ROWS",
    "Labels",
    "PackOptions",
    "Packed",
    "meta_lines",
    "open_labels",
    "pack_features",
    "save_features",
]

_BLOCK = 1 << 20  # labels
_FIRST_LINE = 1 << 12
_LARGEST = 10**18 - 1  # the most digits that a line of a .meta may have

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Labels:
    """Labels in order, read again each time."""

    title: str
    """The file or dataset."""
    read: Callable[[], Iterator[Integers]]
    """Yields the labels block by block, shape (M,)."""
    stop: StopRequest | None = None
    """Ends the reading between two blocks: the labels of a dataset may take minutes to read."""

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """All labels in order, block by block, each from -1 to the largest that a ``.meta`` may contain.

        Raises `InputError` if they cannot be read; `FormatError` if one is not an integer or is out of range;
        `InterruptedJobError` after a stop.
        """
        first = 0
        for block in self.read():
            if self.stop:
                raise _stopped(self.title, "while reading labels")
            wrong = np.flatnonzero((block < UNLABELLED) | (block > _LARGEST))
            if len(wrong):
                label = int(block[wrong[0]])
                expected = f"at most {_LARGEST}" if label > _LARGEST else "an integer from 0, or -1 for unlabelled"
                raise FormatError(
                    f"{self.title}: the label of row {first + int(wrong[0]):,} is {label}; expected {expected}; rows "
                    "count from 0"
                )
            first += len(block)
            yield block.astype(np.int64, copy=False)

    def count(self, limit: int | None = None) -> tuple[int, int]:
        """How many labels there are, and how many classes the first `limit` rows have; raises as `blocks`."""
        rows, classes = 0, np.empty(0, np.int64)
        for block in self.blocks():
            classes = np.union1d(classes, block if limit is None else block[: max(limit - rows, 0)])
            rows += len(block)
        return rows, int((classes != UNLABELLED).sum())


def open_labels(where: StrPath) -> Labels:
    """Open labels for the rows of a matrix, in the order of the rows.

    They are text with an integer a line, as a ``.meta``; a list of ``path label`` lines; an ``.npy`` of integers, shape
    (N,); a folder of class folders, in the order and with the labels of ``open_dataset("folder:...")``; or any other
    dataset as ``format:path``.

    Raises `InputError` if there is nothing, it cannot be read or is of a job that has not finished; `FormatError` if it
    does not contain labels.
    """
    path = os.fspath(where)
    if split_spec(path)[0] is not None and not os.path.lexists(path):
        return _labels_of_dataset(path)
    if os.path.isdir(path):
        return _labels_of_dataset(f"folder:{path}")
    refuse_unfinished(path)
    with opened_regular(path) as descriptor:
        head = read_exactly(descriptor, _FIRST_LINE, 0)
    if head.startswith(NPY_MAGIC):
        array = open_npy(path)
        shape = array.header.shape
        if array.header.dtype.kind not in "iu" or len(shape) != 1:
            raise FormatError(
                f"{path}: expected labels as integers of shape (rows,), found {array.dtype} of shape {shape}; "
                "in Python: np.save(name, labels.ravel().astype(np.int64))"
            )
        return Labels(path, lambda: array.blocks(_BLOCK))
    if len(head.partition(b"\n")[0].split()) > 1:
        return Labels(path, lambda: iter([read_label_lines(path).labels]))
    return Labels(path, lambda: read_labels(path))


def _labels_of_dataset(spec: str) -> Labels:
    source = open_inputs([spec])[0].source

    def read() -> Iterator[Integers]:
        first = 0
        for block in source.label_blocks():
            unknown = np.flatnonzero(block < 0)
            if len(unknown):
                sample = first + int(unknown[0])
                raise FormatError(f"{spec}: the label of sample {sample:,} is unknown; samples count from 0")
            first += len(block)
            yield block

    return Labels(spec, read)


def meta_lines(labels: Labels | str, rows: int) -> Iterator[bytes]:
    """The first `rows` labels, or as many -1, as the lines of a ``.meta``, many at a time.

    Raises `FormatError` if there are fewer labels.
    """
    if not isinstance(labels, Labels):
        yield from (b"%d\n" % UNLABELLED * min(_BLOCK, rows - begin) for begin in range(0, rows, _BLOCK))
        return
    left = rows
    for block in labels.blocks():
        for begin in range(0, min(len(block), left), _BLOCK):
            wanted = block[begin : min(begin + _BLOCK, left)].tolist()
            yield ("\n".join(map(str, wanted)) + "\n").encode()
        left -= min(len(block), left)
    if left:
        raise FormatError(f"{labels.title}: has {rows - left:,} labels, but {rows:,} rows need one each")


UNLABELLED_ROWS = "unlabelled"
"""Instead of labels: -1 for every row."""
NO_LABELS = "none"
"""Instead of labels: no ``.meta``."""

_EXTENSIONS = (".npy", ".bin")
_NPY_HEADER = 128  # bytes of the header that np.save writes for a matrix, whatever its shape
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackOptions:
    """How a matrix is written."""

    allow_zero: bool = False
    """Accept rows of zeros, which have no direction: normalised, they become NaN."""
    allow_nan: bool = False
    """Accept rows with NaN or infinity, such as ``extract-features --on-error nan`` writes."""
    limit: int | None = None
    """Write only the first rows."""
    overwrite: bool = False
    dry_run: bool = False
    """Only check: all labels, and the header of the matrix; write nothing."""
    observer: Callable[[int, int], None] | None = None
    """Called with the bytes written and the total (0 if it is unknown)."""
    stop: StopRequest | None = None
    labels_npy: bool = False
    """Write ``labels/NAME.npy`` too."""


@dataclass(frozen=True)
class Packed:
    """What was written, or would be: the file of the matrix, and the ``.meta`` if there is one."""

    features: str
    labels: str | None
    rows: int | None
    """None if only reading the source shows it, and it was not read."""
    dimensions: int
    dtype: str
    """The type in the source; what is written is float32."""
    classes: int | None = None
    """Different labels other than -1, if there is a ``.meta``."""


def pack_features(
    source: FeatureSource, output: FeatureSet, labels: Labels | str, options: PackOptions = PackOptions()
) -> Packed:
    """Write a matrix as a feature set: ``features/NAME.bin`` and ``labels/NAME.meta``.

    `labels` has a label for each row of the source, or is `UNLABELLED_ROWS` or `NO_LABELS`. Both files appear when both
    are complete, the matrix last. If the process is killed, the same call starts again; a matrix that is there
    already, with the same bytes, is kept. After an error, no partial file remains.

    Raises `InputError` if the source or the labels cannot be read; `FormatError` if a row is not finite, all zero, or
    too large for float32, or if there is not a label for each row; `OutputError` if the output exists or cannot be
    written; `InterruptedJobError` if it was stopped.
    """
    limit, overwrite = options.limit, options.overwrite
    if isinstance(labels, Labels) and options.stop is not None:
        labels = replace(labels, stop=options.stop)
    # refuse what can be refused before the matrix is read
    rows = _limited(source.rows, limit)
    there = not overwrite and _may_be_complete(output.features, rows, source.dimensions)
    _check_replaceable(output.features, source.path, overwrite=overwrite or there)
    if rows is not None:
        _check_label_count(source, labels, rows, limit)
        _check_labels_replaceable(output, labels, rows, options)
    meta = None if labels == NO_LABELS else output.labels
    classes = labels.count(limit)[1] if isinstance(labels, Labels) else None if meta is None else 0
    packed = Packed(output.features, meta, rows, source.dimensions, source.dtype, classes)
    if options.dry_run:
        _check_room(packed)
        return packed
    folders = [os.path.dirname(path) for path in (output.features, meta) if path]
    with new_folders(output.root, *folders), ExitStack() as stack:
        for folder in folders:
            remove_stale_temporaries(folder)
        if not there:
            _check_room(packed)
        features = stack.enter_context((_compared if there else _written)(packed.features))
        rows = _write_rows(features, packed.features, source, options)
        if packed.rows is None:  # only now it is known
            _check_label_count(source, labels, rows, limit)
        files = [features]
        if meta is not None:  # it gets its name before the matrix: contexts end in reverse order
            files.append(stack.enter_context(_written(meta)))
            files[-1].writelines(meta_lines(labels, rows))
        if options.labels_npy:
            files.append(stack.enter_context(_written(output.label_array)))
            files[-1].writelines(label_array(map(integers, meta_lines(labels, rows)), rows))
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        # something may have appeared in the meantime
        _check_replaceable(output.features, source.path, overwrite=overwrite or there)
        _check_labels_replaceable(output, labels, rows, options)
        if overwrite:  # at no moment may a reader find a matrix with the labels of another
            with output_errors(output.features), suppress(FileNotFoundError):
                os.unlink(output.features)
        if meta is None and os.path.lexists(output.labels):
            _log.warning("%s: removed; these were the labels of the previous features", output.labels)
            with output_errors(output.labels):
                os.unlink(output.labels)
    others = () if options.labels_npy else (output.label_array,)
    for path in (os.path.dirname(output.neighbours("any", 1)), output.keys, *others):
        if os.path.lexists(path):
            _log.warning("%s: belongs to the previous features of this name; remove it, or create it again", path)
    return replace(packed, rows=rows)


def save_features(source: FeatureSource, path: StrPath, options: PackOptions = PackOptions()) -> Packed:
    """Write a matrix as one file: ``.npy`` as ``np.save`` writes it, or ``.bin`` without a header.

    Raises `OptionError` if the name has neither extension; `InputError` or `FormatError` or `OutputError` or
    `InterruptedJobError` as `pack_features`.
    """
    path = os.fspath(path)
    if not path.endswith(_EXTENSIONS):
        raise OptionError(f"{path}: expected a name that ends in {' or '.join(_EXTENSIONS)}")
    rows, header = _limited(source.rows, options.limit), _NPY_HEADER if path.endswith(".npy") else 0
    there = not options.overwrite and _may_be_complete(path, rows, source.dimensions, header)
    _check_replaceable(path, source.path, overwrite=options.overwrite or there)
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: the folder {folder} does not exist")
    packed = Packed(path, None, rows, source.dimensions, source.dtype)
    if not options.dry_run:
        with suppress(OSError):
            remove_stale_temporaries(folder)
    if not there:
        _check_room(packed)
    if options.dry_run:
        return packed
    with (_compared if there else _written)(path) as file:
        file.seek(header)
        rows = _write_rows(file, path, source, options)
        if header:
            file.seek(0)
            described = {"descr": "<f4", "fortran_order": False, "shape": (rows, source.dimensions)}
            np.lib.format.write_array_header_1_0(file, described)
        _check_replaceable(path, source.path, overwrite=options.overwrite or there)
    return replace(packed, rows=rows)


def _stopped(path: str, when: str) -> InterruptedJobError:
    return InterruptedJobError(f"{path}: stopped {when}; nothing is kept: run the same command to start again")


def _limited(rows: int | None, limit: int | None) -> int | None:
    return rows if rows is None or limit is None else min(rows, limit)


def _check_label_count(source: FeatureSource, labels: Labels | str, rows: int, limit: int | None) -> None:
    """Check that each row of the source has a label; `rows` are those that are written."""
    if isinstance(labels, Labels):
        count, expected = labels.count()[0], source.rows if source.rows is not None else rows
        unknown_rest = source.rows is None and rows == limit  # the rows after the limit were not counted
        if count < expected or (count > expected and not unknown_rest):
            raise FormatError(
                f"{labels.title}: has {count:,} labels, but {source.title} has {expected:,} rows: expected one for "
                "each row; nothing was written"
            )


def _check_labels_replaceable(output: FeatureSet, labels: Labels | str, rows: int, options: PackOptions) -> None:
    """Refuse to replace a ``.meta`` with other labels; equal ones were left by a killed run, or are the input."""
    overwrite = options.overwrite
    if options.labels_npy and os.path.lexists(output.label_array):
        array = label_array(map(integers, meta_lines(labels, rows)), rows)
        same = _same_bytes(output.label_array, array)
        _check_replaceable(output.label_array, "", overwrite=overwrite or same)
    if not os.path.lexists(output.labels):
        return
    if labels == NO_LABELS:
        if not overwrite or os.path.isdir(output.labels):
            raise OutputExistsError(
                f"{output.labels}: already exists, and would be taken for the labels of these features; choose another "
                "name, or --overwrite to remove it"
            )
    elif not _same_bytes(output.labels, meta_lines(labels, rows)):
        source = labels.title if isinstance(labels, Labels) else ""
        _check_replaceable(output.labels, source, overwrite=overwrite)


def _check_replaceable(path: str, source: str, *, overwrite: bool) -> None:
    """Refuse an output that is the input, a folder or, without `overwrite`, an existing file."""
    is_input = False
    with suppress(OSError):
        is_input = os.path.samefile(path, source)
    if is_input:
        raise OutputError(f"{path}: is the input itself; choose another output")
    if os.path.isdir(path):
        raise OutputExistsError(f"{path}: is a folder; expected no file or a file there")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


def _exists(path: str) -> OutputExistsError:
    return OutputExistsError(f"{path}: already exists; choose another name, or --overwrite to replace it")


def _may_be_complete(path: str, rows: int | None, dimensions: int, header: int = 0) -> bool:
    """Whether a run that was killed at its very end may have left this file: a matrix of the right size."""
    with suppress(OSError):
        found = os.lstat(path)
        size = found.st_size if rows is None else header + rows * dimensions * VALUE_BYTES
        return stat.S_ISREG(found.st_mode) and found.st_size == size
    return False


class _Comparison(io.FileIO):
    """A file that is compared with what is written to it: raises `OutputExistsError` if it has other bytes."""

    end = 0

    def write(self, data: Any, /) -> int:
        part = memoryview(data).cast("B")
        if read_exactly(self.fileno(), len(part), self.tell()) != part:
            raise _exists(str(self.name))
        self.end = max(self.end, self.seek(len(part), os.SEEK_CUR))
        return len(part)


@contextmanager
def _compared(path: str) -> Iterator[BinaryIO]:
    """Open a file that may be complete, in the place of `_written`; it must have the bytes that are written."""
    with output_errors(path), _Comparison(path) as file:
        yield file
        if os.fstat(file.fileno()).st_size != file.end:
            raise _exists(path)


def _same_bytes(path: str, parts: Iterable[bytes]) -> bool:
    """Whether a regular file consists of exactly these parts."""
    with suppress(OSError, InputError), open(open_regular(path), "rb") as file:
        return all(file.read(len(part)) == part for part in parts) and not file.read(1)
    return False


def _check_room(packed: Packed) -> None:
    if packed.rows is not None:
        size = packed.rows * packed.dimensions * VALUE_BYTES
        check_room(packed.features, size, "the matrix", "or choose another output; nothing was written")


@contextmanager
def _written(path: str) -> Iterator[BinaryIO]:
    """An `atomic_writer` whose errors say how much was written."""
    size = 0
    try:
        with atomic_writer(path) as file:
            try:
                yield file
            finally:
                with suppress(OSError):
                    size = os.fstat(file.fileno()).st_size
    except FacedataError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{path}: {(error.strerror or 'disk full').lower()} after {size:,} bytes; nothing is kept: free some "
                "space and run the same command to start again"
            ) from error
        raise output_error(error, path) from error


def _write_rows(file: BinaryIO, path: str, source: FeatureSource, options: PackOptions) -> int:
    """Write the rows of a source as float32, each of them checked; returns how many there were."""
    if source.dtype in ("float16", "float64"):
        _log.info("%s: %s becomes float32", source.title, source.dtype)
    done, row, limit = 0, source.dimensions * VALUE_BYTES, options.limit
    total = (_limited(source.rows, limit) or 0) * row
    for block in source.blocks():
        if options.stop:
            raise _stopped(path, f"after {done:,} rows")
        if limit is not None:
            block = block[: limit - done]
        with np.errstate(all="ignore"):
            rows = np.ascontiguousarray(block, np.dtype("<f4"))
            squares = np.einsum("ij,ij->i", rows, rows)
        if not (squares.min() > 0 and squares.max() < np.inf):
            # also if squares overflow, or underflow to zero, and their values do not
            too_large = np.flatnonzero((np.isinf(rows) & np.isfinite(block)).any(axis=1))
            if len(too_large):
                values = block[too_large[0]]
                largest = np.abs(values[np.isfinite(values)]).max()
                raise FormatError(
                    f"{source.title}: row {done + int(too_large[0]):,} has {largest:.3g}, which is too large for "
                    "float32 (3.4e38); rows count from 0"
                )
            looked_at = np.where(np.isfinite(rows), rows, np.float32(1)) if options.allow_nan else rows
            check_rows(looked_at, done, source.title, zero=not options.allow_zero)
        file.write(rows.data)
        done += len(rows)
        if options.observer:
            options.observer(done * row, total)
        if done == limit:
            break
    return done
