"""What the catalogue knows of a set's files, as expectations for `verify`, and checks of files without a checksum.

The checks of structure find a file that is cut short, empty, from another set or with another type of number; they do
not find a flipped bit.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from facedata.columns import count_labels
from facedata.converters.rec.recordio import CHUNK_HEADER_SIZE, RecordReader, padded, read_index
from facedata.download.available import read_provenance, recorded_digest
from facedata.download.catalogue import CatalogueSet, Download, KnownFile
from facedata.download.verify import Expectation, Finding, Structure, Verification, verify
from facedata.errors import FormatError
from facedata.files import opened_regular
from facedata.matrix_size import size_problem

__all__ = [
    "FeatureMatrix",
    "IndexLines",
    "LabelLines",
    "RecordFile",
    "SetState",
    "TextLines",
    "file_expectations",
    "set_expectations",
    "set_state",
    "verify_set",
]

_BLOCK = 1 << 20
_DIMENSIONS = 256
_SAMPLES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextLines:
    """Check that a text file has so many lines, the last one with or without a newline."""

    lines: int

    def check(self, path: str) -> Finding:
        """Count the lines."""
        found, last = 0, b"\n"
        with opened_regular(path) as descriptor:
            while block := os.read(descriptor, _BLOCK):
                found += block.count(b"\n")
                last = block[-1:]
        return _compare(found + (last != b"\n"), self.lines, "lines")


@dataclass(frozen=True)
class IndexLines:
    """Check a ``train.idx``: each line is a key and an offset, and no key occurs twice.

    A complete InsightFace set has images + people + 1 lines.
    """

    lines: int | None = None

    def check(self, path: str) -> Finding:
        """Count the lines."""
        with opened_regular(path):
            return _compare(len(read_index(path)), self.lines, "lines")


@dataclass(frozen=True)
class RecordFile:
    """Check a ``train.rec``: records begin where the index says, and the last one ends where the file ends.

    The `index` is relative to the folder of the record file. Without its number of `lines`, any record file that fits
    its own index is good.
    """

    index: str = "train.idx"
    lines: int | None = None

    def check(self, path: str) -> Finding:
        """Look at the last record and at a few dozen others."""
        index = os.path.join(os.path.dirname(path), self.index)
        with opened_regular(index):
            offsets = read_index(index).offsets
        counted = _compare(len(offsets), self.lines, "lines")
        if not counted.good or not len(offsets):
            return Finding(False, f"{self.index}: {counted.text}")
        end = int(offsets.max())
        with opened_regular(path) as descriptor:
            reader = RecordReader(path, descriptor)
            if reader.size <= end:
                text = f"cut short: {self.index} has a record at byte {end:,}, the file ends at {reader.size:,}"
                return Finding(False, text)
            try:
                for offset in offsets[:: -(-len(offsets) // _SAMPLES)].tolist():
                    reader.chunk(offset)
                flag = None
                while flag not in (0, 3):  # a whole record, or the last part of a split one
                    flag, length = reader.chunk(end)
                    end += CHUNK_HEADER_SIZE + padded(length)
            except FormatError as error:
                return Finding(False, f"is cut short or does not fit {self.index}: {error}")
        if end == reader.size:
            return Finding(True, f"its size fits {self.index}")
        cut = "cut short: " if end > reader.size else ""
        return Finding(False, f"{cut}its last record by {self.index} ends at byte {end:,}, the file at {reader.size:,}")


@dataclass(frozen=True)
class LabelLines:
    """Check a ``.meta``: one integer a line, and so many different ones, not counting -1 for unlabelled."""

    lines: int | None = None
    classes: int | None = None

    def check(self, path: str) -> Finding:
        """Count lines and classes."""
        lines, classes = count_labels(path)
        counted = _compare(lines, self.lines, "lines")
        if not counted.good:
            return counted
        if self.classes is None:  # all may be unlabelled
            return Finding(True, f"{counted.text}, {classes:,} classes")
        found = _compare(classes, self.classes, "classes")
        return Finding(True, f"{counted.text}, {found.text}") if found.good else found


@dataclass(frozen=True)
class FeatureMatrix:
    """Check a matrix of float32 without a header, the features of learn-to-cluster.

    By default it has as many rows as the file `labels`, relative to the folder of the matrix, has lines.
    """

    dimensions: int
    rows: int | None = None
    labels: str | None = None

    def check(self, path: str) -> Finding:
        """Compare the size with rows * dimensions * 4 bytes; if it is another, guess why."""
        with opened_regular(path) as descriptor:
            size, head = os.fstat(descriptor).st_size, os.pread(descriptor, 16, 0)
        rows, source = self.rows, ""
        if rows is None and self.labels is not None:
            labels = os.path.normpath(os.path.join(os.path.dirname(path), self.labels))
            rows, source = count_labels(labels)[0], f", as many as {os.path.basename(labels)} has lines"
        if wrong := size_problem(size, self.dimensions, rows, head):
            return Finding(False, wrong + source)
        shape = f"rows of {self.dimensions:,} float32"
        return Finding(True, f"{size:,} bytes{' are' if rows is None else f', {rows:,}'} {shape}{source}")


def _compare(found: int, expected: int | None, what: str) -> Finding:
    if expected is None and found == 0:
        return Finding(False, f"has no {what}")  # no set is empty: its content was lost
    if expected is None or found == expected:
        return Finding(True, f"{found:,} {what}")
    return Finding(False, f"expected {expected:,} {what}, found {found:,}")


def file_expectations(
    entry: CatalogueSet, placed: Iterable[str] = (), record: Mapping[str, Any] = {}
) -> list[Expectation]:
    """What the set's files in their final places must be.

    In a learn-to-cluster set, those files among `placed`, relative to the root, that the catalogue does not name are
    expected too, features and labels checked against each other. A download without a published checksum must have the
    one in the `record` of the set.
    """
    counts = {file.path: file.lines for file in entry.files}
    plain = {place: download for download in entry.downloads if (place := entry.place_of(download))}
    expected = {}
    for file in entry.files:
        if file.digest or file.path not in plain or not plain[file.path].digest:
            structure = None if file.digest else _structure(file, counts)
            expected[file.path] = Expectation(file.path, file.digest, file.size, structure, optional=file.optional)
    for place, download in plain.items():
        expected.setdefault(place, _download_expectation(place, download, record))
    if entry.layout == "learn-to-cluster":
        unknown = sorted(set(placed) - expected.keys())
        labels = {PurePosixPath(path).stem: path for path in unknown if path.startswith("labels/")}
        for path in map(PurePosixPath, unknown):
            structure = None
            if path.parts[0] == "features" and path.suffix == ".bin":
                beside = labels.get(path.stem)
                structure = FeatureMatrix(_DIMENSIONS, labels=os.path.relpath(beside, path.parent) if beside else None)
            elif path.parts[0] == "labels" and path.suffix == ".meta":
                structure = LabelLines()
            expected[str(path)] = Expectation(str(path), structure=structure)
    return list(expected.values())


def _download_expectation(
    path: str, download: Download, record: Mapping[str, Any], *, optional: bool = False
) -> Expectation:
    digest, note = download.digest, ""
    if digest is None and (digest := recorded_digest(record, download.name)):
        note = "no checksum is published, this one was recorded at the download"
    return Expectation(path, digest, download.size, known=download.superseded, optional=optional, note=note)


def _structure(file: KnownFile, counts: Mapping[str, int | None]) -> Structure | None:
    path = PurePosixPath(file.path)
    if file.index:
        return RecordFile(os.path.relpath(file.index, path.parent), counts.get(file.index))
    if path.suffix == ".idx":
        return IndexLines(file.lines)
    if path.suffix == ".meta":
        return LabelLines(file.lines, file.classes)
    if file.rows is not None:
        return FeatureMatrix(file.dimensions, file.rows)
    return TextLines(file.lines) if file.lines is not None else None


def set_expectations(entry: CatalogueSet, root: Path, record: Mapping[str, Any]) -> list[Expectation]:
    """What ``verify-md5 NAME`` checks: the files in their final places or, before they are unpacked, the downloads.

    The `record` of the set is what `read_provenance` returns.
    """
    files = file_expectations(entry, record.get("files", {}), record)
    unpacked = any((root / file.path).exists() for file in files) or "finished" in record
    archives = [
        _download_expectation(each.name, each, record, optional=bool(files) and unpacked)
        for each in entry.downloads
        if entry.is_archive(each)
    ]
    return [*archives, *files] if unpacked or not archives else archives


class SetState(NamedTuple):
    """What of a set is in a folder, by names and sizes alone.

    The `state` is ``whole``, ``damaged`` (files of a finished set are gone or have another size), ``incomplete``, or
    ``not unpacked``; `missing` are paths, `wrong` are paths and what is wrong with them.
    """

    name: str
    state: str
    files: int
    missing: list[str]
    wrong: dict[str, str]


def set_state(entry: CatalogueSet, root: Path) -> SetState | None:
    """What of a set is in `root`; None if nothing is."""
    record = read_provenance(root, entry.name)
    is_finished, recorded = "finished" in record, record.get("files", {})
    archives = {download.name for download in entry.downloads if entry.is_archive(download)}
    expected = set_expectations(entry, root, record)
    sizes: dict[str, int | None] = {each.path: each.size for each in expected if not each.optional}
    sizes = {path: size for path, size in sizes.items() if not (is_finished and path in archives)} | recorded
    missing, wrong, files = [], dict[str, str](), 0
    for path, size in sizes.items():
        try:
            found = os.stat(root / path)
        except (OSError, ValueError):
            missing.append(path)
            continue
        files += stat.S_ISREG(found.st_mode)
        if size is not None and size != found.st_size:
            wrong[path] = f"expected {size:,} bytes, found {found.st_size:,}"
    is_begun = any(os.path.exists(f"{download.path(root)}.part") for download in entry.downloads)
    if not (is_finished or is_begun or len(missing) < len(sizes)):
        return None
    state = "whole" if is_finished or not archives.intersection(sizes) else "not unpacked"
    if missing or wrong or is_begun:
        state = "damaged" if is_finished else "incomplete"
    return SetState(entry.name, state, files, missing, wrong)


def verify_set(entry: CatalogueSet, root: Path, *, extra: bool = True, **options: Any) -> Verification:
    """Check the files of a dataset as `verify` does; warn of files with the names of an older release.

    With `extra`, files that are not expected are reported, if the catalogue knows all files of the set.
    """
    for download in entry.downloads:
        what = next(iter(download.superseded.values()), "an older release")
        for name in download.superseded_names:
            if name != download.name and (root / name).is_file():
                _log.warning("%s: has the name of %s; the current one is %s", root / name, what, download.name)
    expectations = set_expectations(entry, root, read_provenance(root, entry.name))
    folders = [entry.folder] if extra and entry.complete and (root / entry.folder).is_dir() else []
    return verify(root, expectations, extra_in=folders, **options)
