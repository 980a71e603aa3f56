"""Where the files of a feature set lie: ``features/NAME.bin``, ``labels/NAME.meta``, ``knns/NAME/METHOD_k_K.npz``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from facedata.columns import read_labels
from facedata.errors import FormatError, InputNotFoundError, OptionError
from facedata.features.matrix import VALUE_BYTES, Matrix, open_matrix
from facedata.files import open_regular
from facedata.jobs.journal import refuse_unfinished

__all__ = ["FeatureSet", "OpenedSet", "open_feature_set"]


@dataclass(frozen=True)
class FeatureSet:
    """The paths of a set.

    Attributes
    ----------
    root : str
        The folder with ``features/`` and ``labels/`` in it.
    name : str

    Raises
    ------
    OptionError
        Where the name is none for a file.
    """

    root: str
    name: str

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name or not self.name.isprintable():
            raise OptionError(f"--name '{self.name}': is no name for a file: expected no slash, no dot at its start")

    @property
    def features(self) -> str:
        """The matrix: float32, row by row, no header."""
        return os.path.join(self.root, "features", f"{self.name}.bin")

    @property
    def labels(self) -> str:
        """The labels: a line for each row, -1 for unlabelled."""
        return os.path.join(self.root, "labels", f"{self.name}.meta")

    @property
    def keys(self) -> str:
        """Which row is which image: a key a line."""
        return os.path.join(self.root, "features", f"{self.name}.keys.txt")

    def neighbours(self, method: str, k: int) -> str:
        """The nearest neighbours, as learn-to-cluster looks for them: ``faiss_k_80.npz``."""
        return os.path.join(self.root, "knns", self.name, f"{method}_k_{k}.npz")


@dataclass(frozen=True)
class OpenedSet:
    """A set whose matrix and labels fit each other.

    Attributes
    ----------
    files : FeatureSet
    matrix : Matrix
    labelled : bool
        Whether there is a ``.meta``.
    """

    files: FeatureSet
    matrix: Matrix
    labelled: bool


def open_feature_set(root: str | os.PathLike[str], name: str, dimensions: int | None = None) -> OpenedSet:
    """Open a set, and check that its files fit each other.

    Parameters
    ----------
    root : path
    name : str
    dimensions : int, optional
        Values in a row; by default what the size of the matrix and the lines of the labels come to.

    Raises
    ------
    InputError
        Where a file is not there or cannot be read, or belongs to a job that has not ended.
    FormatError
        Where the labels are no labels, or the matrix has another size than they say; guesses why.
    OptionError
        Where there are no labels to tell the dimensions by, and none are given.
    """
    files = FeatureSet(os.fspath(root), name)
    if not os.path.lexists(files.features):
        raise InputNotFoundError(f"{files.features}: no such file; a set has features/NAME.bin and labels/NAME.meta")
    refuse_unfinished(files.features)
    labelled = os.path.lexists(files.labels)
    rows = sum(map(len, read_labels(files.labels))) if labelled else None
    if rows == 0:
        raise FormatError(f"{files.labels}: has no line; expected a label for each row of {files.features}")
    if dimensions is None:
        dimensions = _dimensions(files, rows)
    return OpenedSet(files, open_matrix(files.features, dimensions, rows, counted_in=files.labels), labelled)


def _dimensions(files: FeatureSet, rows: int | None) -> int:
    if rows is None:
        raise OptionError(f"{files.features}: there is no {files.labels} to tell its dimensions by; say --dim")
    descriptor = open_regular(files.features)
    status = os.fstat(descriptor)
    os.close(descriptor)
    size = status.st_size
    dimensions, rest = divmod(size, rows * VALUE_BYTES)
    if rest or not dimensions:
        raise FormatError(
            f"{files.features}: {size:,} bytes are no whole number of float32 for each of the {rows:,} lines of "
            f"{files.labels}; say --dim, and what is wrong can be told"
        )
    return dimensions
