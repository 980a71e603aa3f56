"""Sources of features: files of several kinds, each read in blocks of rows and never whole."""

from __future__ import annotations

import os

import numpy as np

from facedata.errors import EmptyDatasetError, FormatError, OptionError
from facedata.features.feature_set import NPY_MAGIC, labelled_rows, open_matrix, other_kind, size_and_head
from facedata.features.sources.arrays import ArrayInFile, Header, check_matrix, is_torch_archive, open_npy, open_npz
from facedata.features.sources.base import FLOATS, FeatureSource, Rows, check_shape
from facedata.features.sources.tables import open_parquet_column, open_text
from facedata.files import StrPath
from facedata.jobs.journal import refuse_unfinished

__all__ = ["FLOATS", "FeatureSource", "Rows", "open_features"]

_ZIP = b"PK\x03\x04"
_PARQUET = b"PAR1"
_PICKLES = (".pkl", ".pickle")
_TORCH = (".pt", ".pth", ".ckpt")
_KINDS = {
    ".npy": "npy",
    ".npz": "npz",
    ".bin": "bin",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
}
_OPTION_OF = {"--dim": "bin", "--dtype": "bin", "--array": "npz", "--column": "parquet"}


def open_features(
    path: StrPath,
    *,
    dimensions: int | None = None,
    dtype: str | None = None,
    array: str | None = None,
    column: str | None = None,
) -> FeatureSource:
    """Open a matrix of features; the kind of the file is known by its first bytes, else by its name.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz``, ``.bin``, ``.parquet``, or ``.csv``, ``.tsv`` or ``.txt`` with numbers.
    dimensions : int, optional
        For ``.bin``: values in a row. Not needed if the ``.meta`` of the set, or one beside the file, shows how many
        rows there are.
    dtype : str, optional
        For ``.bin``: one of `FLOATS`, little-endian; by default float32, and then bytes that make sense only as
        another type are refused.
    array : str, optional
        For ``.npz``: the name of the array.
    column : str, optional
        For ``.parquet``: the name of the column.

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If it is not a matrix of floats; pickles, PyTorch's files among them, are never loaded.
    OptionError
        If an option does not apply to such a file, or one is missing.
    """
    path = os.fspath(path)
    kind = _kind_of(path)
    given = {"--dim": dimensions, "--dtype": dtype, "--array": array, "--column": column}
    for option, value in given.items():
        if value is not None and _OPTION_OF[option] != kind:
            raise OptionError(
                f"{option} applies to .{_OPTION_OF[option]} files, but {path} is read as .{kind}: leave it out"
            )
    if kind == "npz":
        return open_npz(path, array)
    if kind == "bin":
        return _open_bin(path, dimensions, dtype)
    if kind == "parquet":
        return open_parquet_column(path, column)
    if kind == "csv":
        return open_text(path)
    opened = open_npy(path)
    check_matrix(opened)
    return opened


def _kind_of(path: str) -> str:
    extension = os.path.splitext(path)[1].lower()
    _, head = size_and_head(path)
    if extension in (*_PICKLES, *_TORCH):
        raise _pickle_error(path, torch=extension in _TORCH)
    if head.startswith(NPY_MAGIC):
        return "npy"
    if head.startswith(_ZIP) and extension != ".bin":
        if is_torch_archive(path):
            raise _pickle_error(path, torch=True)
        return "npz"
    if head.startswith(_PARQUET) and extension != ".bin":
        return "parquet"
    if extension not in _KINDS:
        raise FormatError(f"{path}: is not a known kind of file; expected one of {', '.join(_KINDS)}")
    return _KINDS[extension]


def _pickle_error(path: str, *, torch: bool) -> FormatError:
    target = f"{os.path.splitext(os.path.basename(path))[0]}.npy"
    loaded = f"torch.load({path!r}, map_location='cpu', weights_only=True).detach().float().numpy()"
    unpickled = f"pickle.load(open({path!r}, 'rb'))"
    return FormatError(
        f"{path}: is a pickle, which may run any program when it is loaded, so facedata never loads it. If you trust "
        f"it, these two lines of Python convert it:\n  import numpy, {'torch' if torch else 'pickle'}\n"
        f"  numpy.save({target!r}, {loaded if torch else unpickled})"
    )


def _open_bin(path: str, dimensions: int | None, dtype: str | None) -> ArrayInFile:
    """Open a matrix without a header, whose shape the options or the labels of its set must give."""
    refuse_unfinished(path)
    size, _ = size_and_head(path)
    if not size:
        raise EmptyDatasetError(f"{path}: is empty")
    labels = _labels_of(path)
    rows = labelled_rows(labels, path) if labels else None
    if dtype in (None, "float32"):
        matrix = open_matrix(path, dimensions, rows, counted_in=labels or "")
        # float64 of half as many rows has the same size
        if dtype is None and (kind := other_kind(matrix)) is not None:
            way = f"give --dtype {kind}, with the --dim of such rows"
            if kind not in FLOATS:
                code = f">f{FLOATS[kind.rpartition(' ')[2]]}"
                way = f"in Python: numpy.fromfile(name, '{code}').astype('<f4').tofile(other_name)"
            raise FormatError(
                f"{path}: expected float32, found bytes that make sense only as {kind}: {way}; or --dtype float32, to "
                "accept them as they are"
            )
        return _bin(path, matrix.rows, matrix.dimensions, "float32")
    assert dtype is not None
    if dimensions is None:
        raise OptionError(f"{path}: --dtype needs --dim too")
    check_shape(path, None, dimensions)
    row = dimensions * FLOATS[dtype]
    found = size // row if rows is None else rows
    if size != found * row or not found:
        expected, counted = f"{found * row:,}", f" ({rows:,} lines in {labels})"
        if rows is None:
            expected, counted = f"a multiple of {row:,}", ""
        raise FormatError(
            f"{path}: expected {expected} bytes for {dimensions:,} {dtype} a row, found {size:,}{counted}"
        )
    return _bin(path, found, dimensions, dtype)


def _bin(path: str, rows: int, dimensions: int, dtype: str) -> ArrayInFile:
    header = Header(np.dtype(dtype).newbyteorder("<"), (rows, dimensions), fortran=False, size=0)
    return ArrayInFile.of(path, path, header, 0)


def _labels_of(path: str) -> str | None:
    """The labels of the set ``ROOT/features/NAME.bin``, or else the ``.meta`` beside the file."""
    folder, name = os.path.split(path)
    stem = name.removesuffix(".bin")
    labels = os.path.join(folder, f"{stem}.meta")
    if os.path.basename(os.path.abspath(folder)) == "features" and stem != name:
        root = os.path.dirname(folder) if os.path.basename(folder) == "features" else os.path.join(folder, "..")
        labels = os.path.join(root, "labels", f"{stem}.meta")
    return labels if os.path.lexists(labels) else None
