"""Sources of features: files of several kinds, each read in blocks of rows and never whole."""

from __future__ import annotations

import os
from collections.abc import Callable

from facedata.errors import FormatError, OptionError
from facedata.features.sources.binary import open_binary
from facedata.features.sources.npz import is_torch_archive, open_npz
from facedata.features.sources.numpy_array import MAGIC, ArrayInFile, open_npy
from facedata.features.sources.parquet import open_parquet_column
from facedata.features.sources.source import FLOATS, FeatureSource, Rows, opened
from facedata.features.sources.text import open_text

__all__ = ["FLOATS", "ArrayInFile", "FeatureSource", "Rows", "open_features"]

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
    path: str | os.PathLike[str],
    *,
    dimensions: int | None = None,
    dtype: str | None = None,
    array: str | None = None,
    column: str | None = None,
) -> FeatureSource:
    """Open a matrix of features; its kind is told by what the file begins with, else by its name.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz``, ``.bin``, ``.parquet``, or ``.csv``, ``.tsv`` or ``.txt`` with numbers.
    dimensions : int, optional
        For ``.bin``: values in a row.
    dtype : str, optional
        For ``.bin``: one of `FLOATS`.
    array : str, optional
        For ``.npz``: the name of the array.
    column : str, optional
        For ``.parquet``: the name of the column.

    Raises
    ------
    InputError
        Where the file cannot be read.
    FormatError
        Where it is no matrix of floats; a pickle, PyTorch's files among them, is never loaded.
    OptionError
        Where an option does not belong to such a file, or one is missing.
    """
    path = os.fspath(path)
    kind = _kind_of(path)
    given = {"--dim": dimensions, "--dtype": dtype, "--array": array, "--column": column}
    for option, value in given.items():
        if value is not None and _OPTION_OF[option] != kind:
            raise OptionError(
                f"{option} is for .{_OPTION_OF[option]} files, and {path} is read as .{kind}: leave it out"
            )
    openers: dict[str, Callable[[], FeatureSource]] = {
        "npy": lambda: open_npy(path),
        "npz": lambda: open_npz(path, array),
        "bin": lambda: open_binary(path, dimensions, dtype),
        "parquet": lambda: open_parquet_column(path, column),
        "csv": lambda: open_text(path),
    }
    return openers[kind]()


def _kind_of(path: str) -> str:
    extension = os.path.splitext(path)[1].lower()
    with opened(path) as descriptor:
        head = os.pread(descriptor, 8, 0)
    if extension in (*_PICKLES, *_TORCH):
        _refuse_pickle(path, torch=extension in _TORCH)
    if head.startswith(MAGIC):
        return "npy"
    if head.startswith(_ZIP) and extension != ".bin":
        if is_torch_archive(path):
            _refuse_pickle(path, torch=True)
        return "npz"
    if head.startswith(_PARQUET) and extension != ".bin":
        return "parquet"
    if extension not in _KINDS:
        raise FormatError(f"{path}: is of no kind that is known here; expected one of {', '.join(_KINDS)}")
    return _KINDS[extension]


def _refuse_pickle(path: str, *, torch: bool) -> None:
    target = f"{os.path.splitext(os.path.basename(path))[0]}.npy"
    loaded = f"torch.load({path!r}, map_location='cpu', weights_only=True).detach().float().numpy()"
    unpickled = f"pickle.load(open({path!r}, 'rb'))"
    raise FormatError(
        f"{path}: is a pickle, which may run any program when it is loaded, so facedata never does. If you trust it, "
        f"these two lines of Python convert it:\n  import numpy, {'torch' if torch else 'pickle'}\n"
        f"  numpy.save({target!r}, {loaded if torch else unpickled})"
    )
