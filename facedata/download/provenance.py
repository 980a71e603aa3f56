"""``provenance.json``: which terms were accepted, where the files came from, when, and with which checksums."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facedata import __version__
from facedata.download.catalogue import CatalogueSet
from facedata.download.checksums import Digest
from facedata.download.schema import PROVENANCE
from facedata.download.verify import Result
from facedata.errors import FormatError, output_error
from facedata.files import atomic_writer, open_locked, read_small

__all__ = [
    "PROVENANCE",
    "Accept",
    "accept_terms",
    "change_provenance",
    "is_accepted",
    "is_finished",
    "read_all_provenance",
    "read_provenance",
    "record_download",
    "record_finish",
    "record_restart",
]

Accept = Callable[[CatalogueSet], str]
"""Shows the terms and asks for them to be accepted; returns how they were, or raises `OptionError`."""

_LOCK = ".facedata-provenance-lock"
_LARGEST = 64 << 20


def read_provenance(root: Path, name: str) -> dict[str, Any]:
    """The record of the set with that name in `root`, empty if there is none; raises as `read_all_provenance`."""
    return read_all_provenance(root).get(name, {})


def read_all_provenance(root: Path) -> dict[str, dict[str, Any]]:
    """The records of all sets in `root`, by name.

    Raises
    ------
    FormatError
        If the file is not one of facedata's.
    InputError
        If it cannot be read.
    """
    path = root / PROVENANCE
    if not os.path.lexists(path):
        return {}
    try:
        whole = json.loads(read_small(path, _LARGEST))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not a record of downloads: {error}; move it away") from error
    sets: Any = whole.get("sets") if isinstance(whole, dict) else None
    records = sets.values() if isinstance(sets, dict) else [None]
    for record in records:
        tables = (record.get("downloads", {}), record.get("files", {})) if isinstance(record, dict) else (None,)
        if not all(isinstance(table, dict) for table in tables):
            raise FormatError(f"{path}: is not a record of downloads: its 'sets' are invalid; move it away")
    return dict(sets)


@contextmanager
def change_provenance(root: Path, name: str) -> Iterator[dict[str, Any]]:
    """The record of a set, to be changed; written when the block ends without an error.

    Records of other sets in the same root are kept, also those that another process writes meanwhile.
    """
    path = root / PROVENANCE
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open_locked(root / _LOCK, wait=True)
        try:
            sets = read_all_provenance(root)
            yield sets.setdefault(name, {})
            text = json.dumps({"sets": sets, "facedata": __version__}, indent=2, ensure_ascii=False)
            with atomic_writer(path) as file:
                file.write(text.encode(errors="backslashreplace") + b"\n")
        finally:
            os.close(lock)
    except OSError as error:
        raise output_error(error, path) from error


def _now() -> str:
    """The time in UTC, to the second, in the format of ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def is_accepted(entry: CatalogueSet, record: Mapping[str, Any]) -> bool:
    """Whether these very terms have been accepted before, or there is nothing to accept."""
    before = record.get("accepted")
    return not entry.asks or (isinstance(before, dict) and before.get("digest") == _digest_of_terms(entry))


def accept_terms(entry: CatalogueSet, root: Path, accept: Accept) -> None:
    """Ask for the terms to be accepted, and record what was accepted and when; `OptionError` if they are not."""
    how = accept(entry)
    with change_provenance(root, entry.name) as record:
        record["accepted"] = {
            "at": _now(),
            "how": how,
            "status": list(entry.status),
            "terms": entry.terms,
            "digest": _digest_of_terms(entry),
        }


def _digest_of_terms(entry: CatalogueSet) -> str:
    return hashlib.sha256("\n".join(entry.terms).encode()).hexdigest()


def record_download(
    entry: CatalogueSet, root: Path, name: str, origin: str, size: int, digest: Digest, **more: str | None
) -> None:
    """Record where a download came from, a URL or a path, when, and with which size and checksum."""
    facts = {"from": origin, "at": _now(), "bytes": size, **more, digest.algorithm: digest.value}
    with change_provenance(root, entry.name) as record:
        record.setdefault("downloads", {})[name] = facts


def record_restart(entry: CatalogueSet, root: Path) -> None:
    """Record that the set is no longer finished, and mark what was downloaded before as old."""
    with change_provenance(root, entry.name) as record:
        record.pop("finished", None)
        for facts in record.get("downloads", {}).values():
            if isinstance(facts, dict):
                facts["old"] = True


def record_finish(entry: CatalogueSet, root: Path, placed: Iterable[str], results: Sequence[Result]) -> None:
    """Record that all files are in place and right: their sizes, how each was checked, and when."""
    right = [result for result in results if result.verdict == "OK"]
    files: dict[str, int | None] = {}
    for path in [*placed, *(result.found_at or result.path for result in right)]:
        whole = root / path
        if whole.exists():
            files[path] = None if whole.is_dir() else whole.stat().st_size
    with change_provenance(root, entry.name) as record:
        downloads = record.get("downloads", {})
        for facts in downloads.values():
            if isinstance(facts, dict):
                facts.pop("old", None)
        record["downloads"] = dict(sorted(downloads.items()))  # they end in any order
        record["title"] = entry.title
        record["files"] = files
        record["checked"] = dict(sorted((result.path, result.how) for result in right))
        record["finished"] = _now()


def is_finished(record: Mapping[str, Any], root: Path) -> bool:
    """Whether an earlier download finished, and its files still exist with the sizes they had."""
    files = record.get("files")
    if "finished" not in record or not isinstance(files, dict):
        return False
    try:
        return all(
            os.path.isdir(root / path) if size is None else os.path.getsize(root / path) == size
            for path, size in files.items()
        )
    except (OSError, ValueError):  # a name that no file can have
        return False
