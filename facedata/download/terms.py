"""What a user must know of a set before fetching it, and the record of having accepted it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from facedata.download.catalogue import CatalogueSet
from facedata.download.provenance import change_provenance, now
from facedata.download.schema import STATUSES

__all__ = ["Accept", "accept_terms", "accepted", "terms"]

Accept = Callable[[CatalogueSet], str]
"""Shows the terms and has them accepted; returns how, or raises `OptionError`."""


def terms(entry: CatalogueSet) -> list[str]:
    """The status of a set in words, its licence, and what was said of it."""
    lines = [STATUSES[one] for one in entry.status]
    if entry.status_note:
        lines.append(entry.status_note)
    if entry.licence:
        lines.append(f"licence: {entry.licence}")
    if "unknown" in entry.status:
        lines.append("find out from the publisher what you may do with it")
    return lines


def accepted(entry: CatalogueSet, record: Mapping[str, Any]) -> bool:
    """Whether these very terms have been accepted before, or there is nothing to accept."""
    before = record.get("accepted")
    return not entry.asks or (isinstance(before, dict) and before.get("digest") == _digest(entry))


def accept_terms(entry: CatalogueSet, root: Path, accept: Accept) -> None:
    """Have the terms accepted, and record what was accepted and when.

    Raises
    ------
    OptionError
        Where they are not accepted.
    """
    how = accept(entry)
    with change_provenance(root, entry.name) as record:
        record["accepted"] = {
            "at": now(),
            "how": how,
            "status": list(entry.status),
            "terms": terms(entry),
            "digest": _digest(entry),
        }


def _digest(entry: CatalogueSet) -> str:
    return hashlib.sha256("\n".join(terms(entry)).encode()).hexdigest()
