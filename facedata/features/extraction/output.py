"""The output of an extraction: rows at their places in one file, labels and keys beside it; published as a whole.

Many processes write at once: the file has its full size from the start, and each shard writes its rows where they
belong. Nothing of it bears the name of a feature set before it is whole; the matrix gets its name last.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from facedata.columns import count_labels
from facedata.dataset import Output
from facedata.errors import (
    DiskFullError,
    EmptyDatasetError,
    FacedataError,
    InputError,
    OptionError,
    OutputMismatchError,
    output_error,
)
from facedata.features.extraction.fragments import Fragment, fragment_exists, read_fragments
from facedata.features.feature_set import BLOCK_BYTES, VALUE_BYTES, FeatureSet
from facedata.files import atomic_writer, remove_stale_temporaries
from facedata.jobs.journal import BESIDE, FAILURES, PREFIX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FAIL", "NAN", "ON_ERROR", "SKIP", "FeatureOutput", "RowFile"]

FAIL, SKIP, NAN = "fail", "skip", "nan"
ON_ERROR = (FAIL, SKIP, NAN)

_BUILDING = f"{PREFIX}building"
_ROWS = "matrix"
_log = logging.getLogger(__name__)


class RowFile:
    """The matrix that is being written.

    Parameters
    ----------
    path : str
    dimensions : int
    """

    def __init__(self, path: str, dimensions: int) -> None:
        self._row = dimensions * VALUE_BYTES
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, first: int, rows: NDArray[np.float32]) -> None:
        """Put rows at their places; `first` is the number of the first."""
        data = memoryview(rows.astype("<f4", copy=False).tobytes())
        place = first * self._row
        while len(data):
            written = os.pwrite(self._descriptor, data, place)
            data, place = data[written:], place + written


@dataclass(frozen=True)
class FeatureOutput(Output):
    """The `Output` of an extraction.

    Attributes
    ----------
    target : FeatureSet
        What is published.
    rows : int
        Images in all, those that fail too.
    dimensions : int
    on_error : {'fail', 'skip', 'nan'}
        What becomes of the rows of images that failed. The work that is done holds for all three.
    """

    target: FeatureSet
    rows: int
    dimensions: int
    on_error: str = FAIL

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise OptionError(f"--on-error {self.on_error}: there are {', '.join(ON_ERROR)}")

    @property
    def root(self) -> str:
        """The folder of the journal, beside the matrix: several sets share the folders that they are published in."""
        return self.target.features + BESIDE

    @property
    def building(self) -> str:
        """The folder with what is not whole yet."""
        return os.path.join(self.root, _BUILDING)

    @property
    def _matrix(self) -> str:
        return os.path.join(self.building, _ROWS)

    @property
    def _size(self) -> int:
        return self.rows * self.dimensions * VALUE_BYTES

    def owns(self, name: str) -> bool:
        """What is not whole yet; the rest of the folder is the journal's."""
        return name == _BUILDING

    def named_files(self) -> list[str]:
        """The set's three files."""
        return [self.target.features, self.target.labels, self.target.keys]

    def make_folders(self) -> None:
        """``features/`` and ``labels/``; raises `OutputError` where they cannot be made."""
        for path in self.named_files():
            folder = os.path.dirname(path)
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                raise output_error(error, folder) from error

    def prepare(self) -> None:
        """Make the matrix at its full size, where there is room for it."""
        try:
            os.makedirs(self.building, exist_ok=True)
            if not os.path.exists(self._matrix) and fragment_exists(self.building):
                raise OutputMismatchError(
                    f"{self._matrix}: was written by this job and is gone; --overwrite starts it afresh"
                )
            with open(self._matrix, "ab") as file:
                self._refuse_small_disk(os.fstat(file.fileno()))
                file.truncate(self._size)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.building) from error

    def _refuse_small_disk(self, status: os.stat_result) -> None:
        """It is known beforehand how large the matrix gets; to run for hours first would help nobody."""
        missing = self._size - status.st_blocks * 512
        free = shutil.disk_usage(self.building).free
        if missing > free:
            raise DiskFullError(
                f"{self.target.features}: {self.rows:,} rows of {self.dimensions:,} float32 need {missing:,} bytes "
                f"more, and {free:,} are free; what is finished is kept: free some space and run the same command again"
            )

    @contextmanager
    def open_rows(self) -> Iterator[RowFile]:
        """The matrix, for a worker to put rows in."""
        with RowFile(self._matrix, self.dimensions) as file:
            yield file

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Publish labels and keys, then the matrix.

        Raises
        ------
        InputError
            Where images failed and that is not wanted; nothing is published then, and nothing is lost.
        EmptyDatasetError
            Where all failed.
        """
        failed = sum(len(one.failed) for one in read_fragments(self.building, shards))
        self._take_back()
        self._refuse_failures(failed)
        leave_out = bool(failed) and self.on_error == SKIP
        rows = self.rows - failed if leave_out else self.rows
        try:
            self._publish_lines(shards, leave_out=leave_out)
            self._publish_matrix(shards, leave_out=leave_out)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.target.features) from error
        return {"rows": rows, "dimensions": self.dimensions, "on_error": self.on_error, **self._classes(rows)}

    def _take_back(self) -> None:
        """Undo what a run did that was killed before its summary: labels may now be others than those of its matrix."""
        kept = os.path.exists(self._matrix)
        path = self._matrix if kept else self.target.features
        if not os.path.exists(path) or os.path.getsize(path) != self._size:
            raise OutputMismatchError(f"{path}: what was done of it is gone; --overwrite starts afresh")
        try:
            if kept:
                with suppress(FileNotFoundError):
                    os.unlink(self.target.features)
            else:
                os.replace(self.target.features, self._matrix)
        except OSError as error:
            raise output_error(error, self.target.features) from error

    def _refuse_failures(self, failed: int) -> None:
        told = os.path.join(self.root, FAILURES)
        if failed == self.rows:
            raise EmptyDatasetError(f"{self.target.features}: not one image has an embedding; {told} says why")
        if failed and self.on_error == FAIL:
            raise InputError(
                f"{self.target.features}: is not published, for {failed:,} of {self.rows:,} images failed: see {told}. "
                "All others are done and kept: the same command with --on-error skip leaves those out, with their "
                "labels and keys; --on-error nan gives them rows of NaN, which check-features refuses"
            )
        if failed and self.on_error == NAN:
            _log.warning(
                "%s: rows of images that failed, all NaN: %d; clustering cannot take them", self.target.features, failed
            )

    def _publish_lines(self, shards: int, *, leave_out: bool) -> None:
        with atomic_writer(self.target.keys) as keys, atomic_writer(self.target.labels) as labels:
            for one in read_fragments(self.building, shards):
                label_lines, key_lines = one.without_failed() if leave_out and one.failed else (one.labels, one.keys)
                labels.write(label_lines)
                keys.write(key_lines)

    def _publish_matrix(self, shards: int, *, leave_out: bool) -> None:
        if leave_out:
            with open(self._matrix, "rb", buffering=0) as source, atomic_writer(self.target.features) as target:
                self._compact(source, target, read_fragments(self.building, shards))
            return
        with open(self._matrix, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._matrix, self.target.features)

    def _compact(self, source: BinaryIO, target: BinaryIO, fragments: Iterable[Fragment]) -> None:
        """Copy the rows that there are, some at a time."""
        row, begin = self.dimensions * VALUE_BYTES, 0
        for one in fragments:
            for first, end in one.kept():
                place, last = (begin + first) * row, (begin + end) * row
                while place < last:
                    block = os.pread(source.fileno(), min(BLOCK_BYTES, last - place), place)
                    if not block:
                        raise OutputMismatchError(f"{self._matrix}: was cut short; --overwrite starts the job afresh")
                    target.write(block)
                    place += len(block)
            begin += one.rows

    def _classes(self, rows: int) -> dict[str, int]:
        _, classes = count_labels(self.target.labels)
        if classes == 1 and rows > 1:
            _log.warning(
                "%s: all rows have the same label; of a dataset without labels --unlabeled writes -1",
                self.target.labels,
            )
        return {"classes": classes}

    def clean_up(self) -> None:
        """Remove what was only needed until then, and what killed runs left."""
        shutil.rmtree(self.building, ignore_errors=True)
        for folder in {os.path.dirname(path) for path in self.named_files()}:
            with suppress(OSError):
                remove_stale_temporaries(folder)
