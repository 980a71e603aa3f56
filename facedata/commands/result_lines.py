"""Show the results of checking files: a line each, in the format of ``md5sum -c``, and the sum."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facedata.download.verify import Result, Verification

__all__ = ["log_sum", "result_line", "sum_facts"]

_log = logging.getLogger("facedata")


def result_line(result: Result) -> bytes:
    """``NAME: OK``, in the format of ``md5sum -c``, with details in brackets."""
    from facedata.download.manifest import escaped

    notes = [f"{result.how}: {result.detail}" if result.how == "structure" else result.detail] if result.detail else []
    if result.found_at is not None:
        notes.append(f"found at {escaped(result.found_at)}")
    bracket = f" ({'; '.join(notes)})" if notes else ""
    return os.fsencode(f"{escaped(result.path)}: {result.verdict}{bracket}\n")


def sum_facts(root: str, done: Verification, results: list[Result]) -> dict[str, Any]:
    """The sum for ``--json``, with the results that are not simply OK by checksum."""
    return {
        "root": root,
        "files": sum(done.verdicts.values()),
        "verdicts": {verdict: done.verdicts[verdict] for verdict in ("OK", "FAILED", "MISSING", "EXTRA")},
        "checked_by": dict(done.hows),
        "from_cache": done.from_cache,
        "bytes_read": done.bytes_read,
        "seconds": round(done.seconds, 3),
        "not_plainly_ok": [asdict(result) for result in results],
    }


def log_sum(done: Verification, *, good: bool) -> None:
    """Log the sum, and what to do if something is wrong."""
    from facedata.commands.progress import human_bytes, human_seconds
    from facedata.text import counted

    verdicts = ", ".join(
        f"{done.verdicts[verdict]:,} {verdict}"
        for verdict in ("OK", "FAILED", "MISSING", "EXTRA")
        if done.verdicts[verdict]
    )
    weaker = ", ".join(f"{number:,} by {how}" for how, number in done.hows.items() if how != "checksum")
    notes = [f"{weaker}, because no checksum is published"] if weaker else []
    notes += [f"{done.from_cache:,} unchanged since they were read before"] if done.from_cache else []
    notes += [f"{human_bytes(done.bytes_read)} read in {human_seconds(done.seconds)}"]
    files = counted(sum(done.verdicts.values()), "file")
    _log.log(
        logging.INFO if good else logging.WARNING,
        "%s: %s (%s)",
        files,
        verdicts or "nothing to check",
        "; ".join(notes),
    )
    if done.verdicts["FAILED"]:
        _log.warning("a FAILED file is damaged or is not the published one: fetch it again")
    if done.verdicts["MISSING"]:
        _log.warning("a MISSING file was searched for by name in the whole folder; is --root the right folder?")
