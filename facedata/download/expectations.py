"""What the catalogue knows of a set's files, as expectations for `verify`, and checks of files without a checksum.

The checks of structure find a file that is cut short, empty, from another set or with another type of number; they do
not find a flipped bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from facedata.columns import count_labels
from facedata.download.catalogue import CatalogueSet, KnownFile
from facedata.download.provenance import read_provenance
from facedata.download.verify import Expectation, Finding, Structure, Verification, verify
from facedata.download.walk import check_stop
from facedata.errors import FormatError, InputError, OptionError
from facedata.files import opened_regular
from facedata.jobs.signals import StopRequest

__all__ = [
    "FeatureMatrix",
    "IndexLines",
    "LabelLines",
    "RecordFile",
    "TextLines",
    "check_feature_sets",
    "file_expectations",
    "set_expectations",
    "verify_set",
]

_BLOCK = 1 << 20
_DIMENSIONS = 256
_SAMPLES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextLines:
    """Check that a text file has so many lines, the last one with or without a newline.

    Parameters
    ----------
    lines : int
    """

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

    Parameters
    ----------
    lines : int, optional
        The expected number of lines: images + people + 1 in a complete InsightFace set.
    """

    lines: int | None = None

    def check(self, path: str) -> Finding:
        """Count the lines."""
        from facedata.converters.rec.index import read_index

        with opened_regular(path):
            return _compare(len(read_index(path)), self.lines, "lines")


@dataclass(frozen=True)
class RecordFile:
    """Check a ``train.rec``: records begin where the index says, and the last one ends where the file ends.

    Parameters
    ----------
    index : str
        The index file, relative to the folder of the record file.
    lines : int, optional
        Lines of the index; without it, any record file that fits its own index is good.
    """

    index: str = "train.idx"
    lines: int | None = None

    def check(self, path: str) -> Finding:
        """Look at the last record and at a few dozen others."""
        from facedata.converters.rec.index import read_index
        from facedata.converters.rec.recordio import CHUNK_HEADER_SIZE, RecordReader, padded

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
        if end > reader.size:
            return Finding(False, f"cut short: its last record ends at byte {end:,}, the file at {reader.size:,}")
        if end < reader.size:
            return Finding(False, f"its last record by {self.index} ends at byte {end:,}, the file at {reader.size:,}")
        return Finding(True, f"its size fits {self.index}")


@dataclass(frozen=True)
class LabelLines:
    """Check a ``.meta``: one integer a line, -1 for unlabelled.

    Parameters
    ----------
    lines : int, optional
    classes : int, optional
        The expected number of different labels other than -1.
    """

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
        return Finding(found.good, f"{counted.text}, {found.text}" if found.good else found.text)


@dataclass(frozen=True)
class FeatureMatrix:
    """Check a matrix of float32 without a header, the features of learn-to-cluster.

    Parameters
    ----------
    dimensions : int
        Values in a row.
    rows : int, optional
        By default as many as the labels have lines.
    labels : str, optional
        The label file that gives the number of rows, relative to the folder of the matrix:
        ``../labels/part1_test.meta``.
    """

    dimensions: int
    rows: int | None = None
    labels: str | None = None

    def check(self, path: str) -> Finding:
        """Compare the size with rows * dimensions * 4 bytes; if it is another, guess why."""
        from facedata.features.feature_set import what_is_wrong

        with opened_regular(path) as descriptor:
            size, head = os.fstat(descriptor).st_size, os.pread(descriptor, 16, 0)
        rows, source = self.rows, ""
        if rows is None and self.labels is not None:
            labels = os.path.normpath(os.path.join(os.path.dirname(path), self.labels))
            rows, source = count_labels(labels)[0], f", as many as {os.path.basename(labels)} has lines"
        if wrong := what_is_wrong(size, self.dimensions, rows, head):
            return Finding(False, wrong + source)
        shape = f"rows of {self.dimensions:,} float32"
        return Finding(
            True, f"{size:,} bytes are {shape}" if rows is None else f"{size:,} bytes, {rows:,} {shape}{source}"
        )


def _compare(found: int, expected: int | None, what: str) -> Finding:
    if expected is None and found == 0:
        return Finding(False, f"has no {what}")  # no set is empty: its content was lost
    if expected is None or found == expected:
        return Finding(True, f"{found:,} {what}")
    return Finding(False, f"expected {expected:,} {what}, found {found:,}")


def file_expectations(entry: CatalogueSet, placed: Iterable[str] = ()) -> list[Expectation]:
    """What the set's files in their final places must be.

    Parameters
    ----------
    entry : CatalogueSet
    placed : iterable of str
        Files that a download placed, relative to the root. In a learn-to-cluster set, features and labels that the
        catalogue does not name are checked against each other.
    """
    counts = {file.path: file.lines for file in entry.files}
    plain = {place: download for download in entry.downloads if (place := entry.place_of(download))}
    files = [file for file in entry.files if file.digest or file.path not in plain or not plain[file.path].digest]
    known = [
        Expectation(
            path=file.path,
            digest=file.digest,
            size=file.size,
            structure=None if file.digest else _structure(file, counts),
            optional=file.optional,
        )
        for file in files
    ]
    known += [
        Expectation(path=place, digest=download.digest, size=download.size, known=download.superseded)
        for place, download in plain.items()
        if place not in {file.path for file in files}
    ]
    if entry.layout == "learn-to-cluster":
        names = {expectation.path for expectation in known}
        paths = sorted(path for path in placed if path not in names)
        labels = {PurePosixPath(path).stem: path for path in paths if path.startswith("labels/")}
        for path in map(PurePosixPath, paths):
            structure: Structure | None = None
            if path.parts[0] == "features" and path.suffix == ".bin":
                beside = labels.get(path.stem)
                structure = FeatureMatrix(_DIMENSIONS, labels=os.path.relpath(beside, path.parent) if beside else None)
            elif path.parts[0] == "labels" and path.suffix == ".meta":
                structure = LabelLines()
            known.append(Expectation(path=str(path), structure=structure))
    return known


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

    Parameters
    ----------
    entry : CatalogueSet
    root : path
    record : mapping
        What `read_provenance` returns for the set.
    """
    files = file_expectations(entry, placed=record.get("files", {}))
    unpacked = any((root / file.path).exists() for file in files) or "finished" in record
    archives = [
        Expectation(
            path=download.name,
            digest=download.digest,
            size=download.size,
            known=download.superseded,
            optional=bool(files) and unpacked,
        )
        for download in entry.downloads
        if entry.is_archive(download)
    ]
    return [*archives, *files] if unpacked or not archives else archives


def verify_set(entry: CatalogueSet, root: Path, *, extra: bool = True, **options: Any) -> Verification:
    """Check the files of a dataset of the catalogue; warn of files with the names of an older release.

    Parameters
    ----------
    entry : CatalogueSet
    root : path
    extra : bool
        Report files that are not expected, if the catalogue knows all files of the set.
    **options
        For `verify`, which also says what is raised.
    """
    for download in entry.downloads:
        what = next(iter(download.superseded.values()), "an older release")
        for name in download.superseded_names:
            if name != download.name and (root / name).is_file():
                _log.warning("%s: has the name of %s; the current one is %s", root / name, what, download.name)
    expectations = set_expectations(entry, root, read_provenance(root, entry.name))
    folders = [entry.folder] if extra and entry.complete and (root / entry.folder).is_dir() else []
    return verify(root, expectations, extra_in=folders, **options)


def check_feature_sets(
    root: Path,
    paths: Iterable[str],
    *,
    watch: Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]] | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Log what `check_feature_set` finds in the feature sets among some files, without a search for neighbours.

    A finding is not a failure: checksums and sizes have shown that these are the published files, and another
    download would give the same ones.

    Parameters
    ----------
    root : path
    paths : iterable of str
        Files below the root, ``/`` between names.
    watch : callable, optional
        Gives observers of the progress in bytes.
    stop : StopRequest, optional

    Raises
    ------
    InterruptedJobError
        If `stop` is set.
    """

    @contextmanager
    def watched(what: str) -> Iterator[Callable[[int, int], None]]:
        with watch(f"{name}: {what}") if watch else nullcontext() as observer:

            def report(done: int, total: int) -> None:
                check_stop(stop)
                if observer is not None:
                    observer(done, total)

            yield report

    names = set()
    for path in map(PurePosixPath, paths):
        if len(path.parts) == 2 and path.parts[0] == "features" and path.suffix == ".bin":
            names.add(path.stem)
        elif len(path.parts) == 3 and path.parts[0] == "knns":
            names.add(path.parts[1])
    for name in sorted(names):
        if not ((root / "features" / f"{name}.bin").is_file() and (root / "labels" / f"{name}.meta").is_file()):
            continue
        from facedata.features.check import CheckOptions, check_feature_set  # loads NumPy

        try:
            report = check_feature_set(root, name, CheckOptions(sample=0), watch=watched)
        except (InputError, OptionError) as error:
            _log.warning("%s", error)
            continue
        size = f"{report.rows:,} rows of {report.dimensions:,} values" if report.rows and report.dimensions else "?"
        classes = f", {report.classes.classes:,} classes" if report.classes else ""
        _log.info("%s: %s%s: %s", name, size, classes, "good" if report.good else "has faults as published")
        for finding in report.findings:
            level = logging.WARNING if finding.wrong else logging.INFO
            _log.log(level, "%s: %s", finding.path, finding.message)
