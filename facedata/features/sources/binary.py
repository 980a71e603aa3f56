"""A ``.bin`` without a header, as learn-to-cluster has it; what it holds must be said, or be told by its labels."""

from __future__ import annotations

import os

from facedata.columns import count_labels
from facedata.errors import EmptyDatasetError, FormatError, OptionError
from facedata.features.checks.shape import other_kind
from facedata.features.feature_set import FeatureSet, open_feature_set
from facedata.features.matrix import Matrix, open_matrix
from facedata.features.sources.numpy_array import ArrayInFile
from facedata.features.sources.source import FLOATS, check_shape, opened

__all__ = ["open_binary", "set_of"]

_FLOAT32 = "float32"


def set_of(path: str) -> FeatureSet | None:
    """The feature set that a file is the matrix of, by where it lies: ``ROOT/features/NAME.bin``."""
    folder, name = os.path.split(path)
    if os.path.basename(os.path.abspath(folder)) != "features" or not name.endswith(".bin") or name.startswith("."):
        return None
    above = os.path.dirname(folder) or "." if os.path.basename(folder) == "features" else os.path.join(folder, "..")
    return FeatureSet(above, name.removesuffix(".bin"))


def open_binary(path: str, dimensions: int | None = None, dtype: str | None = None) -> ArrayInFile:
    """A matrix without a header.

    Parameters
    ----------
    path : str
    dimensions : int, optional
        Values in a row; may be left out where the ``.meta`` of the set, or one beside the file, tells how many rows
        there are.
    dtype : str, optional
        One of `FLOATS`, little-endian; float32 by default, and then bytes that make sense only as something else are
        refused.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where its size does not fit, or its bytes are no float32; guesses why.
    OptionError
        Where nothing tells the dimensions.
    """
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
    if not size:
        raise EmptyDatasetError(f"{path}: is empty")
    labels = _labels_of(path)
    if dtype in (None, _FLOAT32):
        matrix = _open_float32(path, dimensions, labels)
        if dtype is None:
            _refuse_other_kind(matrix)
        return ArrayInFile(path, path, 0, matrix.rows, matrix.dimensions, "<f4")
    assert dtype is not None
    if dimensions is None:
        raise OptionError(f"{path}: --dtype needs --dim too")
    return _open_other(path, size, dimensions, dtype, labels)


def _labels_of(path: str) -> str | None:
    """The ``.meta`` of the set, or one beside the file."""
    files = set_of(path)
    places = [path.removesuffix(".bin") + ".meta"] if files is None else [files.labels]
    return next(filter(os.path.lexists, places), None)


def _open_float32(path: str, dimensions: int | None, labels: str | None) -> Matrix:
    if labels is None:
        if dimensions is None:
            raise OptionError(
                f"{path}: has no header, and there is no .meta beside it that tells how many rows it has; say --dim"
            )
        return open_matrix(path, dimensions)
    files = set_of(path)
    if files is not None:
        return open_feature_set(files.root, files.name, dimensions).matrix
    rows, _ = count_labels(labels)
    if dimensions is None:
        dimensions, rest = divmod(os.path.getsize(path), max(rows, 1) * FLOATS[_FLOAT32])
        if rest or not dimensions:
            raise FormatError(
                f"{path}: {os.path.getsize(path):,} bytes are no whole number of float32 for each of the {rows:,} "
                f"lines of {labels}; say --dim, and what is wrong can be told"
            )
    return open_matrix(path, dimensions, rows, counted_in=labels)


def _refuse_other_kind(matrix: Matrix) -> None:
    """Half as many rows of float64 have the same size."""
    kind = other_kind(matrix)
    if kind is None:
        return
    way = f"say --dtype {kind}, with the --dim of such rows"
    if kind not in FLOATS:
        stored = f">f{FLOATS[kind.rpartition(' ')[2]]}"
        way = f"in Python: numpy.fromfile(name, '{stored}').astype('<f4').tofile(other_name)"
    raise FormatError(
        f"{matrix.path}: expected float32, found bytes that make sense only as {kind}: {way}; or --dtype float32, to "
        "take them as they are"
    )


def _open_other(path: str, size: int, dimensions: int, dtype: str, labels: str | None) -> ArrayInFile:
    check_shape(path, None, dimensions)
    row = dimensions * FLOATS[dtype]
    rows = size // row if labels is None else count_labels(labels)[0]
    if size != rows * row or not rows:
        said = "" if labels is None else f" ({rows:,} lines in {labels})"
        wanted = f"a multiple of {row:,}" if labels is None else f"{rows * row:,}"
        raise FormatError(f"{path}: expected {wanted} bytes for {dimensions:,} {dtype} a row, found {size:,}{said}")
    return ArrayInFile(path, path, 0, rows, dimensions, f"<f{FLOATS[dtype]}")
