"""What a download writes into ``provenance.json`` on its way, and what it reads from there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facedata.download.catalogue import CatalogueSet, Download
from facedata.download.checksums import hash_file
from facedata.download.digest import Digest
from facedata.download.found import Found, is_archive, target
from facedata.download.provenance import change_provenance, now, read_all_provenance, read_provenance
from facedata.download.transfer import Fetched
from facedata.download.transfer.pages import shown_url
from facedata.download.verify import Result
from facedata.errors import InterruptedJobError
from facedata.jobs.signals import StopRequest

__all__ = [
    "is_finished",
    "owner",
    "record_fetched",
    "record_finish",
    "record_found",
    "record_restart",
    "renewed",
]


def record_fetched(entry: CatalogueSet, root: Path, name: str, fetched: Fetched) -> None:
    """Where a download was fetched from, when, and with which checksum."""
    facts = {
        "from": fetched.final_url,
        "link": f"{fetched.link.kind} {shown_url(fetched.link.address)}",
        "at": now(),
        "bytes": fetched.size,
        "etag": fetched.etag,
        "last_modified": fetched.last_modified,
    }
    _record(entry, root, name, facts | _checksum(fetched.digest))


def record_found(entry: CatalogueSet, root: Path, found: Mapping[str, Found], stop: StopRequest | None = None) -> None:
    """Where downloads lay that nobody fetched now; what has no published checksum is hashed for the record.

    Raises
    ------
    InterruptedJobError
        Where `stop` was asked for.
    """

    def advance(_: int) -> None:
        if stop:
            raise InterruptedJobError(f"stopped by {stop.signal_name}; run the same command again to go on")

    known = read_provenance(root, entry.name).get("downloads", {})
    for name, one in found.items():
        if one.given or name not in known:
            digest = one.digest or hash_file(one.path, "sha256", advance=advance, ahead=True).digest
            facts = {"from": os.path.abspath(one.path), "at": now(), "bytes": one.path.stat().st_size}
            _record(entry, root, name, facts | _checksum(digest))


def record_restart(entry: CatalogueSet, root: Path) -> None:
    """The set is no longer what it was when it was finished; what was downloaded before is marked as old."""
    with change_provenance(root, entry.name) as record:
        record.pop("finished", None)
        for facts in record.get("downloads", {}).values():
            if isinstance(facts, dict):
                facts["old"] = True


def renewed(record: Mapping[str, Any]) -> set[str]:
    """Which downloads were recorded since the set was last restarted."""
    downloads = record.get("downloads", {})
    return {name for name, facts in downloads.items() if isinstance(facts, dict) and "old" not in facts}


def owner(entry: CatalogueSet, download: Download, root: Path) -> str:
    """The other set whose download of the same name lies in the root; empty where there is none."""
    if not is_archive(entry, download) or not target(download, root).exists():
        return ""
    sets = read_all_provenance(root)
    if download.name in sets.get(entry.name, {}).get("downloads", {}):
        return ""
    return next((name for name, record in sets.items() if download.name in record.get("downloads", {})), "")


def record_finish(entry: CatalogueSet, root: Path, placed: Iterable[str], results: Sequence[Result]) -> None:
    """All is in its place and right: which files with which sizes, by what each was checked, and when."""
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
        record["downloads"] = dict(sorted(downloads.items()))  # else in the order in which they happened to end
        record["title"] = entry.title
        record["files"] = files
        record["checked"] = dict(sorted((result.path, result.how) for result in right))
        record["finished"] = now()


def is_finished(record: Mapping[str, Any], root: Path) -> bool:
    """Whether an earlier download did it all, and its files are still there, with the sizes they had."""
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


def _record(entry: CatalogueSet, root: Path, name: str, facts: dict[str, Any]) -> None:
    with change_provenance(root, entry.name) as record:
        record.setdefault("downloads", {})[name] = facts


def _checksum(digest: Digest | None) -> dict[str, str]:
    return {digest.algorithm: digest.value} if digest else {}
