"""What the catalogue says of a set's files, as expectations to verify a folder against."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from facedata.download.catalogue import CatalogueSet, KnownFile
from facedata.download.structure import FeatureMatrix, Finding, IndexLines, LabelLines, RecordFile, Structure
from facedata.download.verify import Expectation
from facedata.errors import input_error
from facedata.files import open_regular

__all__ = ["TextLines", "file_expectations", "old_releases", "set_expectations"]

_CHUNK = 1 << 20
_DIMENSIONS = 256


@dataclass(frozen=True)
class TextLines:
    """A text file with so many lines, the last with or without its end.

    Parameters
    ----------
    lines : int
    """

    lines: int

    def check(self, path: str) -> Finding:
        """Count the lines."""
        found, last = 0, b"\n"
        descriptor = open_regular(path)
        try:
            while chunk := os.read(descriptor, _CHUNK):
                found += chunk.count(b"\n")
                last = chunk[-1:]
        except OSError as error:
            raise input_error(error, path) from error
        finally:
            os.close(descriptor)
        found += last != b"\n"
        good = found == self.lines
        return Finding(good, f"{found:,} lines" if good else f"expected {self.lines:,} lines, found {found:,}")


def file_expectations(entry: CatalogueSet, placed: Iterable[str] = ()) -> list[Expectation]:
    """What must hold of the set's files in their final places.

    Parameters
    ----------
    entry : CatalogueSet
    placed : iterable of str
        Files that a download placed, relative to the root: of learn-to-cluster sets whose files the catalogue does
        not name, features and labels are checked against each other.
    """
    counts = {file.path: file.lines for file in entry.files}
    plain = {place: one for one in entry.downloads if (place := entry.place_of(one))}
    files = [file for file in entry.files if file.digest or file.path not in plain or not plain[file.path].digest]
    known = [_known(file, counts) for file in files]
    known += [
        Expectation(path=place, digest=one.digest, size=one.size, known=one.superseded)
        for place, one in plain.items()
        if place not in {file.path for file in files}
    ]
    if entry.layout == "learn-to-cluster":
        names = {expectation.path for expectation in known}
        known += _clustering([path for path in placed if path not in names])
    return known


def set_expectations(entry: CatalogueSet, root: Path, record: Mapping[str, Any]) -> list[Expectation]:
    """What ``verify-md5 NAME`` checks: the files in their final places, or, before they are unpacked, the downloads.

    Parameters
    ----------
    entry : CatalogueSet
    root : path
    record : mapping
        What `read_provenance` has of the set.
    """
    files = file_expectations(entry, placed=record.get("files", {}))
    unpacked = any((root / file.path).exists() for file in files) or "finished" in record
    archives = [
        Expectation(
            path=one.name, digest=one.digest, size=one.size, known=one.superseded, optional=bool(files) and unpacked
        )
        for one in entry.downloads
        if not entry.place_of(one)
    ]
    return [*archives, *files] if unpacked or not archives else archives


def old_releases(entry: CatalogueSet, root: Path) -> list[str]:
    """Files in the root that bear the names of an older release, each with what is to be known of it."""
    said = []
    for download in entry.downloads:
        whats = list(download.superseded.values())
        for name in download.superseded_names:
            if name != download.name and (root / name).is_file():
                what = whats[0] if whats else "an older release"
                said.append(f"{root / name}: bears the name of {what}; the current one is {download.name}")
    return said


def _known(file: KnownFile, counts: Mapping[str, int | None]) -> Expectation:
    structure = None if file.digest else _structure(file, counts)
    return Expectation(path=file.path, digest=file.digest, size=file.size, structure=structure, optional=file.optional)


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


def _clustering(placed: Iterable[str]) -> list[Expectation]:
    """Features against the labels of the same name; other files need only be there."""
    paths = sorted(placed)
    labels = {PurePosixPath(path).stem: path for path in paths if path.startswith("labels/")}
    expectations = []
    for path in paths:
        one = PurePosixPath(path)
        structure: Structure | None = None
        if path.startswith("features/") and one.suffix == ".bin":
            beside = labels.get(one.stem)
            structure = FeatureMatrix(_DIMENSIONS, labels=os.path.relpath(beside, one.parent) if beside else None)
        elif path.startswith("labels/") and one.suffix == ".meta":
            structure = LabelLines()
        expectations.append(Expectation(path=path, structure=structure))
    return expectations
