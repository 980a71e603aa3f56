"""``provenance.json``: what was accepted, when, from where the files came, and with which checksums."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facedata._version import __version__
from facedata.errors import FormatError, input_error, output_error
from facedata.files import atomic_writer
from facedata.jobs.journal import ShardLock

__all__ = ["PROVENANCE", "change_provenance", "now", "read_all_provenance", "read_provenance"]

PROVENANCE = "provenance.json"
_LOCK = ".facedata-provenance-lock"
_LARGEST = 64 << 20
_TABLES = ("downloads", "files")
_threads = threading.Lock()  # the lock on the file keeps out other processes only


def now() -> str:
    """The time, as ISO 8601 has it, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_provenance(root: Path, name: str) -> dict[str, Any]:
    """What is recorded of the set of that name in `root`; empty where nothing is.

    Raises
    ------
    FormatError
        Where the file is not one of facedata's.
    InputError
        Where it cannot be read.
    """
    return read_all_provenance(root).get(name, {})


def read_all_provenance(root: Path) -> dict[str, dict[str, Any]]:
    """What is recorded of all sets in `root`, by name; raises as `read_provenance` does."""
    sets: dict[str, dict[str, Any]] = _read(root / PROVENANCE)["sets"]
    return sets


@contextmanager
def change_provenance(root: Path, name: str) -> Iterator[dict[str, Any]]:
    """The record of that set, to be changed; written when the block ends without an error.

    Records of other sets in the same root are kept, also those that another process writes meanwhile.
    """
    path = root / PROVENANCE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _threads, ShardLock(root / _LOCK) as lock:
            lock.take_finishing()
            whole = _read(path)
            record = whole["sets"].setdefault(name, {})
            yield record
            whole["facedata"] = __version__
            with atomic_writer(path) as file:
                file.write(json.dumps(whole, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    except OSError as error:
        raise output_error(error, path) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if not os.path.lexists(path):
            return {"sets": {}}
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise FormatError(f"{path}: is not a record of downloads; move it away")
        whole = json.loads(path.read_bytes())
    except OSError as error:
        raise input_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not a record of downloads: {error}; move it away") from error
    if not isinstance(whole, dict) or not isinstance(whole.get("sets"), dict):
        raise FormatError(f"{path}: is not a record of downloads: it has no 'sets'; move it away")
    for name, record in whole["sets"].items():
        if not isinstance(record, dict) or not all(isinstance(record.get(key, {}), dict) for key in _TABLES):
            raise FormatError(f"{path}: is not a record of downloads: what it has of {name!a} is none; move it away")
    return whole
