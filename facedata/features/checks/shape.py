"""Whether a matrix has the size that it should have, and whether its bytes are float32 at all."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from facedata.errors import OptionError
from facedata.features.checks.findings import Finding
from facedata.features.matrix import VALUE_BYTES, Floats, Matrix, open_matrix, what_is_wrong
from facedata.files import open_regular

__all__ = ["check_kind", "check_size", "other_kind"]

_USUAL = (256, 512, 128, 1024, 64, 2048)  # 256 first: learn-to-cluster's own
_NPY = b"\x93NUMPY"
_LOOKED_AT = 1 << 16  # values
_SENSIBLE = (1e-8, 1e6)
_LIKELY, _ENOUGH = 0.9, 0.999  # the share of sensible values in what may be right, and in what else it may be
_OTHER_KINDS = {"float64": "<f8", "float16": "<f2", "big-endian float32": ">f4", "big-endian float64": ">f8"}
_WRITE_AGAIN = "write it again as float32 without a header: facedata pack-features"


def check_size(
    path: str, dimensions: int | None, rows: int | None, counted_in: str
) -> tuple[Matrix | None, list[Finding]]:
    """Compare the size of a matrix with its labels and dimensions.

    Parameters
    ----------
    path : str
    dimensions : int, optional
        By default what size and rows come to.
    rows : int, optional
        Lines of the labels, where there are any.
    counted_in : str
        Where the rows were counted.

    Returns
    -------
    Matrix or None
        What can be looked into nevertheless: with as many rows as the file has, where these are whole.
    list of Finding

    Raises
    ------
    InputError
        Where it cannot be opened.
    OptionError
        Where nothing tells its dimensions.
    """
    size, head = _size_and_head(path)
    if dimensions is None:
        dimensions = _tell_dimensions(path, size, rows, head)
    wrong = what_is_wrong(size, dimensions, rows, head)
    findings = []
    if wrong is not None:
        counted = "" if rows is None else f" ({rows:,} lines in {counted_in})"
        findings = [Finding(path, "size", wrong + counted, _advice(size, dimensions, rows, head))]
    whole = size > 0 and size % (dimensions * VALUE_BYTES) == 0 and not head.startswith(_NPY)
    return (open_matrix(path, dimensions) if whole else None), findings


def check_kind(matrix: Matrix) -> list[Finding]:
    """Whether the first values look like float32: NumPy takes any bytes for any numbers."""
    kind = other_kind(matrix)
    if kind is None:
        return []
    found = f"expected float32, found bytes that make sense only as {kind}"
    return [Finding(matrix.path, "kind of number", found, _WRITE_AGAIN)]


def other_kind(matrix: Matrix) -> str | None:
    """What the first values look like, where not like float32 and like something else.

    Raises
    ------
    InputError, FormatError
        Where they cannot be read.
    """
    rows = min(max(_LOOKED_AT // matrix.dimensions, 1), matrix.rows)
    block = matrix.block(0, rows)
    if _sensible(block) >= _LIKELY:
        return None
    raw = block.tobytes()
    for kind, code in _OTHER_KINDS.items():
        if len(raw) % np.dtype(code).itemsize == 0 and _sensible(np.frombuffer(raw, code)) >= _ENOUGH:
            return kind
    return None


def _size_and_head(path: str) -> tuple[int, bytes]:
    descriptor = open_regular(path)
    status = os.fstat(descriptor)
    try:
        return status.st_size, os.pread(descriptor, 16, 0)
    finally:
        os.close(descriptor)


def _tell_dimensions(path: str, size: int, rows: int | None, head: bytes) -> int:
    """What size and rows come to; else the usual number with which the file has about as many rows."""
    if head.startswith(_NPY):
        return _USUAL[0]  # it is wrong in any case
    if rows is None:
        raise OptionError(f"{path}: nothing tells how many values a row has: say --dim, as --dim 256")
    if rows and size and size % (rows * VALUE_BYTES) == 0:
        return size // (rows * VALUE_BYTES)
    whole = [one for one in _USUAL if size % (one * VALUE_BYTES) == 0] or list(_USUAL)
    return min(whole, key=lambda one: abs(size / (one * VALUE_BYTES) - rows))


def _advice(size: int, dimensions: int, rows: int | None, head: bytes) -> str:
    if size == 0:
        return "write it again"
    if rows is not None and size % (dimensions * VALUE_BYTES) == 0 and not head.startswith(_NPY):
        twice_or_half = size in (2 * rows * dimensions * VALUE_BYTES, rows * dimensions * VALUE_BYTES // 2)
        return _WRITE_AGAIN if twice_or_half else "find the labels of this matrix, or say the right --dim"
    return _WRITE_AGAIN


def _sensible(values: Floats | NDArray[np.floating]) -> float:
    """The share of values that are zero or of a size that features have."""
    with np.errstate(all="ignore"):
        sizes = np.abs(values.astype(np.float64))
        return float(np.mean((sizes == 0) | (sizes > _SENSIBLE[0]) & (sizes < _SENSIBLE[1])))
