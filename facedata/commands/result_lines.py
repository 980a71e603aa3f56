"""Telling what came of checking files: a line each, as ``md5sum -c`` has it, and the sum."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facedata.download.verify import Result, Verification

__all__ = ["result_line", "sum_facts", "tell_sum"]

_log = logging.getLogger("facedata")


def result_line(result: Result) -> bytes:
    """``NAME: OK``, as ``md5sum -c`` has it, with what a person should know besides in brackets."""
    from facedata.download.manifest import escaped

    notes = [f"{result.how}: {result.detail}" if result.how == "structure" else result.detail] if result.detail else []
    if result.found_at is not None:
        notes.append(f"found at {escaped(result.found_at)}")
    bracket = f" ({'; '.join(notes)})" if notes else ""
    return os.fsencode(f"{escaped(result.path)}: {result.verdict}{bracket}\n")


def sum_facts(root: str, done: Verification, results: list[Result]) -> dict[str, Any]:
    """The sum for ``--json``, with the results that are not plainly OK."""
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


def tell_sum(done: Verification, *, good: bool) -> None:
    """Log the sum, and what to do where something is wrong."""
    from facedata.commands.progress import counted, human_bytes, human_seconds

    verdicts = ", ".join(
        f"{done.verdicts[one]:,} {one}" for one in ("OK", "FAILED", "MISSING", "EXTRA") if done.verdicts[one]
    )
    weaker = ", ".join(f"{number:,} by {how}" for how, number in done.hows.items() if how != "checksum")
    notes = [f"{weaker} for want of a checksum"] if weaker else []
    notes += [f"{done.from_cache:,} unchanged since read before"] if done.from_cache else []
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
        _log.warning("what has FAILED is not the file that was published, or is damaged: fetch it again")
    if done.verdicts["MISSING"]:
        _log.warning("what is MISSING was looked for in the whole folder, by name; is --root the right folder?")
