"""The record of an archive that has been unpacked, so that the same command does nothing the next time."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facedata.download.archives import kinds
from facedata.download.archives.parts import Archive
from facedata.download.archives.safety import OWN_PREFIX
from facedata.download.archives.staging import Tally
from facedata.download.digest import Digest
from facedata.files import atomic_writer, file_identity

__all__ = ["Extraction", "archive_identity", "read_record", "write_record"]


@dataclass(frozen=True)
class Extraction:
    """What came of unpacking an archive.

    Attributes
    ----------
    archive : str
        Its name.
    output : str
    files, folders, bytes : int
        Unpacked; a name that the archive has twice counts twice.
    refused_count : int
        Members that were not unpacked.
    refused : tuple of (name, reason)
        The first of them, at most 100.
    refused_list : str or None
        The file that names all of them, one JSON object a line.
    top_level : tuple of str
        The names at the top, at most 1000.
    digests : dict of str to Digest
        Of the members that were to be hashed.
    done_before : bool
        An earlier run did it all; this one did nothing.
    """

    archive: str
    output: str
    files: int
    folders: int
    bytes: int
    refused_count: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    refused_list: str | None = None
    top_level: tuple[str, ...] = ()
    digests: Mapping[str, Digest] = field(default_factory=dict)
    done_before: bool = False


def archive_identity(archive: Archive) -> tuple[str, list[dict[str, Any]]]:
    """What tells the archive from others, whatever its parts are called: a short digest, and the parts' identities.

    Where the archive itself proves its content, a glance at it is enough. A plain tar archive does not: the one that is
    fetched after a damaged one has been unpacked looks the same at a glance, and must not count as unpacked.
    """
    parts = [file_identity(part) for part in archive.parts]
    if archive.kind == "tar":
        statuses = [kinds.check_regular(part) for part in archive.parts]
        parts = [
            {**part, "written": f"{one.st_mtime_ns} {one.st_ino}"} for part, one in zip(parts, statuses, strict=True)
        ]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8)
    return digest.hexdigest(), parts


def record_path(output: Path, identity: str) -> Path:
    """Where the record lies."""
    return output / f"{OWN_PREFIX}ed-{identity}.json"


def refused_path(output: Path, identity: str) -> Path:
    """Where the list of refused members lies."""
    return output / f"{OWN_PREFIX}ed-{identity}-refused.jsonl"


def write_record(
    archive: Archive,
    output: Path,
    identity: str,
    parts: list[dict[str, Any]],
    tally: Tally,
    refused: tuple[tuple[str, str], ...],
) -> Extraction:
    """Say that the archive has been unpacked; the last thing written."""
    value = {
        "archive": archive.name,
        "parts": [{"name": path.name, **part} for path, part in zip(archive.parts, parts, strict=True)],
        "files": tally.files,
        "folders": tally.folders,
        "bytes": tally.bytes,
        "refused_count": tally.refused,
        "refused": refused,
        "top_level": list(tally.tops),
        "digests": tally.digests,
        "samples": [sample for sample in tally.samples if _is_file(output / sample[0], sample[1])],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_writer(record_path(output, identity)) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")
    return _extraction(value, output, identity, done_before=False)


def read_record(output: Path, identity: str) -> Extraction | None:
    """What an earlier run unpacked, if it is still there: a damaged record is none."""
    try:
        value = json.loads(record_path(output, identity).read_bytes())
        samples = [(str(name), int(size)) for name, size in value["samples"]]
        extraction = _extraction(value, output, identity, done_before=True)
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return None
    if not all(_is_file(output / name, size) for name, size in samples):
        return None
    return extraction if all(os.path.lexists(output / top) for top in extraction.top_level) else None


def _extraction(value: Mapping[str, Any], output: Path, identity: str, *, done_before: bool) -> Extraction:
    return Extraction(
        archive=str(value["archive"]),
        output=str(output),
        files=int(value["files"]),
        folders=int(value["folders"]),
        bytes=int(value["bytes"]),
        refused_count=int(value["refused_count"]),
        refused=tuple((str(name), str(reason)) for name, reason in value["refused"]),
        refused_list=str(refused_path(output, identity)) if value["refused_count"] else None,
        top_level=tuple(map(str, value["top_level"])),
        digests={name: Digest(algorithm, digits) for name, (algorithm, digits) in value["digests"].items()},
        done_before=done_before,
    )


def _is_file(path: Path, size: int) -> bool:
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size
