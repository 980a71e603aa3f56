"""The output of an extraction: a matrix, its labels and its keys, published together.

Many processes write at once: the matrix has its full size from the start, and each shard writes its rows where they
belong. Nothing has the name of a feature set before it is complete, and the matrix is the last to get its name.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.columns import count_labels, read_labels
from facedata.dataset import Publish
from facedata.errors import EmptyDatasetError, FormatError, InputError, OptionError, OutputMismatchError
from facedata.features.feature_set import VALUE_BYTES, FeatureSet, Matrix, label_array
from facedata.files import atomic_writer, check_room, open_own, output_errors, write_fully
from facedata.jobs.journal import FAILURES, Journal
from facedata.jobs.output import StagedOutput

__all__ = ["FAIL", "NAN", "ON_ERROR", "SKIP", "FeatureOutput", "encoded_key"]

FAIL, SKIP, NAN = "fail", "skip", "nan"
ON_ERROR = (FAIL, SKIP, NAN)

_BREAKS = {ord(letter): letter.encode("unicode_escape").decode() for letter in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}
_log = logging.getLogger(__name__)


def encoded_key(key: str) -> bytes:
    """A key as a line of its own: line breaks in it are written as ``\\n`` and the like."""
    key = key.translate(_BREAKS)
    try:
        return os.fsencode(key)
    except UnicodeEncodeError:  # half a surrogate pair
        return key.encode(errors="backslashreplace")


@dataclass(frozen=True)
class FeatureOutput(StagedOutput):
    """The output of an extraction; picklable."""

    target: FeatureSet
    """The set that is published."""
    rows: int
    """Images in all, including those that fail."""
    dimensions: int
    on_error: str = FAIL
    """What to do with the rows of images that failed: one of `ON_ERROR`. All three use the same work."""
    labels_npy: bool = False
    """Write the labels as ``.npy`` too."""

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise OptionError(f"--on-error {self.on_error}: expected one of {', '.join(ON_ERROR)}")

    @property
    def path(self) -> str:
        """The file of the matrix."""
        return self.target.features

    @property
    def _matrix(self) -> str:
        return os.path.join(self.staging, "matrix")

    @property
    def _matrix_bytes(self) -> int:
        return self.rows * self.dimensions * VALUE_BYTES

    def named_files(self) -> list[str]:
        """The set's files."""
        files = self.target
        return [files.features, files.labels, files.keys, *([files.label_array] if self.labels_npy else [])]

    def prepare(self) -> None:
        """Make the matrix at its full size.

        Raises `DiskFullError` if the disk is too small for it: that is better known before hours of work; `OutputError`
        if it cannot be written, or rows of it were written and it no longer exists.
        """
        super().prepare()
        with output_errors(self.staging):
            if not os.path.exists(self._matrix) and os.listdir(self.staging):
                raise OutputMismatchError(
                    f"{self._matrix}: this job wrote the file, but it no longer exists; --overwrite starts the job over"
                )
            with open(self._matrix, "ab", opener=partial(open_own, published=self.path)) as file:
                there = os.fstat(file.fileno()).st_blocks * 512
                what = f"the matrix of {self.rows:,} rows of {self.dimensions:,} float32"
                check_room(self._matrix, self._matrix_bytes - there, what, "what is finished is kept")
                file.truncate(self._matrix_bytes)

    @contextmanager
    def open_rows(self) -> Iterator[Callable[[int, NDArray[np.float32]], None]]:
        """Open the matrix in a worker: yields a function that writes rows, given the number of the first of them."""
        descriptor = os.open(self._matrix, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        row = self.dimensions * VALUE_BYTES
        try:
            yield lambda first, rows: write_fully(descriptor, rows.astype("<f4", copy=False).tobytes(), first * row)
        finally:
            os.close(descriptor)

    def write_lines(self, shard: int, labels: Sequence[int], keys: Sequence[str], failed: Sequence[int]) -> None:
        """Write the labels and keys of a shard's rows, and which of the rows, counted from 0, have no embedding."""
        self.write_part(shard, json.dumps({"labels": labels, "keys": keys, "failed": failed}).encode())

    def _read_lines(self, shards: int) -> Iterator[tuple[list[int], list[str], list[int]]]:
        for shard in range(shards):
            data = self.read_part(shard)
            try:
                part = json.loads(data)
                labels, keys, failed = part["labels"], part["keys"], part["failed"]
                good = len(labels) == len(keys)
            except (ValueError, KeyError, TypeError, RecursionError):
                good = False
            if not good:
                raise FormatError(f"{self.part_path(shard)}: is corrupt; --overwrite starts the job over")
            yield labels, keys, failed

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Publish labels and keys, then the matrix.

        Raises `InputError` if images failed and `on_error` is ``"fail"``: then nothing is published, and all work is
        kept; `EmptyDatasetError` if all images failed; `OutputError` if a file cannot be written, or a part was lost.
        """
        with output_errors(self.path):
            good = self._choose_rows(shards)
            self._publish(shards, good, publish)
            rows, classes = count_labels(self.target.labels)
        if classes == 1 and rows > 1:
            _log.warning(
                "%s: all rows have the same label; for a dataset without labels, --unlabeled writes -1",
                self.target.labels,
            )
        return {"rows": rows, "dimensions": self.dimensions, "on_error": self.on_error, "classes": classes}

    def _choose_rows(self, shards: int) -> NDArray[np.bool_]:
        """Which rows are published, shape (N,); takes back what a killed run has published."""
        good, first = np.ones(self.rows, np.bool_), 0
        for labels, _, failed in self._read_lines(shards):
            good[[first + row for row in failed]] = False
            first += len(labels)

        # A run that was killed may have published files: they must never lie beside those of another answer.
        journal = Journal(self.root)
        is_staged = os.path.exists(self._matrix)
        matrix = self._matrix if is_staged else self.path
        if first != self.rows or not os.path.exists(matrix) or os.path.getsize(matrix) != self._matrix_bytes:
            raise OutputMismatchError(f"{matrix}: rows that were written are lost; --overwrite starts the job over")
        for path in (name for name in self.named_files() if journal.has_published(name)):
            if path == self.path and not is_staged:
                os.replace(path, self._matrix)
            else:
                os.unlink(path)

        failures, log = int((~good).sum()), os.path.join(self.root, FAILURES)
        if failures == self.rows:
            raise EmptyDatasetError(f"{self.path}: no image has an embedding; see {log} for the reasons")
        if failures and self.on_error == FAIL:
            raise InputError(
                f"{self.path}: is not published, because {failures:,} of {self.rows:,} images failed: see {log}. "
                "All others are done and kept: the same command with --on-error skip leaves out those that failed, "
                "with their labels and keys; --on-error nan gives them rows of NaN, which check-features refuses"
            )
        if failures and self.on_error == NAN:
            _log.warning(
                "%s: %d rows are NaN because their images failed; clustering cannot use them", self.path, failures
            )
        return good if self.on_error == SKIP else np.ones_like(good)

    def _publish(self, shards: int, good: NDArray[np.bool_], publish: Publish) -> None:
        first = 0
        writer = partial(atomic_writer, rename=publish)
        with writer(self.target.keys) as key_file, writer(self.target.labels) as label_file:
            for labels, keys, _ in self._read_lines(shards):
                kept = good[first : first + len(labels)].tolist()
                label_file.writelines(b"%d\n" % label for label in compress(labels, kept))
                key_file.writelines(encoded_key(key) + b"\n" for key in compress(keys, kept))
                first += len(labels)
        if self.labels_npy:
            with writer(self.target.label_array) as file:
                file.writelines(label_array(read_labels(self.target.labels), int(good.sum())))
        if good.all():
            with open(self._matrix, "rb") as file:
                os.fsync(file.fileno())
            publish(self._matrix, self.path)
        else:
            with writer(self.path) as target:
                for first, block in Matrix(self._matrix, self.rows, self.dimensions).blocks():
                    target.write(block[good[first : first + len(block)]].tobytes())
