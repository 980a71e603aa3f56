"""The hidden folder that an archive is unpacked into, and its journal.

``.facedata-extract-<id>/`` lies in the output, so that what is finished is renamed, not copied:

- ``tree/`` holds the members under their own names;
- ``journal.jsonl`` says up to where the archive has been unpacked. A line survives the death of this process; after
  a power cut only what lay on the disk before counts, which a line of its own says;
- ``refused.jsonl`` names each member that was not unpacked.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from facedata.download.archives.safety import OWN_PREFIX
from facedata.errors import output_error
from facedata.files import atomic_writer, write_fully

__all__ = ["Staging", "Tally", "sync_disk"]

_MOST_TOPS = 1000
_SAMPLES = 64
_BOOT = "/proc/sys/kernel/random/boot_id"
_log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What has been unpacked so far.

    Attributes
    ----------
    mark : int
        Where a later run goes on.
    files, folders, bytes, refused : int
    listed : int
        Bytes of the list of refused members.
    tops : dict of str
        Names at the top, in order, at most 1000.
    digests : dict of str to (algorithm, value)
        Of the members that were to be hashed.
    samples : list of (name, size)
        Some files, at most 64, spread over the archive.
    proven : bool
        All is unpacked, proven and on the disk.
    """

    mark: int = 0
    files: int = 0
    folders: int = 0
    bytes: int = 0
    refused: int = 0
    listed: int = 0
    tops: dict[str, None] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    samples: list[tuple[str, int]] = field(default_factory=list)
    proven: bool = False
    _stride: int = 1
    _passed: int = 0

    def add_top(self, name: str) -> None:
        """Note the name at the top of a member's path."""
        if len(self.tops) < _MOST_TOPS:
            self.tops[name.partition("/")[0]] = None

    def add_sample(self, name: str, size: int) -> None:
        """Keep every n-th of them, n doubling, so that they stay few and spread."""
        if self._passed % self._stride == 0:
            self.samples.append((name, size))
            if len(self.samples) >= _SAMPLES:
                self.samples, self._stride = self.samples[::2], 2 * self._stride
        self._passed += 1

    def take_in(self, line: Mapping[str, Any]) -> None:
        """Go forward to a line of the journal."""
        for name in _COUNTS:
            setattr(self, name, int(line[name]))
        for top in line["tops"]:
            self.tops[str(top)] = None
        for name, (algorithm, value) in line["digests"].items():
            self.digests[name] = (str(algorithm), str(value))
        for name, size in line["samples"]:
            self.add_sample(str(name), int(size))

    def to_line(self, since: Tally | None = None) -> dict[str, Any]:
        """The line of the journal; with `since`, only what is new of what grows."""
        tops, digests = list(self.tops), self.digests
        if since is not None:
            tops = tops[len(since.tops) :]
            digests = {name: value for name, value in digests.items() if since.digests.get(name) != value}
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {**counts, "tops": tops, "digests": digests, "samples": self.samples}


_COUNTS = ("mark", "files", "folders", "bytes", "refused", "listed")


class Staging:
    """The unfinished state of one archive in one output.

    Parameters
    ----------
    output : Path
    identity : str
        Of the archive.
    parts : list
        What tells whether the parts are still the very same files.
    """

    def __init__(self, output: Path, identity: str, parts: list[Any]) -> None:
        self.folder = output / f"{OWN_PREFIX}-{identity}"
        self.tree = self.folder / "tree"
        self.refused = self.folder / "refused.jsonl"
        self._journal = self.folder / "journal.jsonl"
        self._parts = parts
        self._written = Tally()
        self._guard = threading.Lock()
        self._file: IO[bytes] | None = None

    def open(self) -> Tally:
        """Go on where an earlier run was, or begin; returns what is there."""
        self._remove_orphans()
        tally = self._load()
        if tally is None:
            self.remove()
            tally = Tally()
        try:
            self.tree.mkdir(parents=True, exist_ok=True)
            if tally.mark:
                sync_disk(self.folder)
            self._begin(tally)
            if not tally.proven:  # else the list may be at its place already
                with open(self.refused, "ab") as file:
                    file.truncate(tally.listed)
        except OSError as error:
            raise output_error(error, self.folder) from error
        return tally

    def close(self) -> None:
        """Close the journal."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete all that was unpacked and is not published."""
        self.close()
        if self.folder.is_symlink() or self.folder.exists():
            try:
                self.folder.unlink() if self.folder.is_symlink() else shutil.rmtree(self.folder)
            except OSError as error:
                raise output_error(error, self.folder) from error

    def checkpoint(self, tally: Tally, samples: Sequence[tuple[str, int]]) -> None:
        """Say that all before ``tally.mark`` is unpacked, `samples` among it."""
        for sample in samples:
            tally.add_sample(*sample)
        line = {**tally.to_line(self._written), "samples": samples}
        self._append(line)
        self._written = Tally(tops=dict(tally.tops), digests=dict(tally.digests))

    def sync(self, mark: int, *, proven: bool = False) -> None:
        """Bring all to the disk, then say so of what lies before `mark`."""
        sync_disk(self.folder)
        self._append({"synced": mark, "proven": proven})
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._guard:
                if self._file is not None:
                    write_fully(self._file.fileno(), _dump(line))
        except OSError as error:
            raise output_error(error, self._journal) from error

    def _begin(self, tally: Tally) -> None:
        """Write the journal anew: what it said in one line, and who is at work."""
        run = {"boot": _boot(), "host": socket.gethostname(), "pid": os.getpid()}
        with atomic_writer(self._journal) as file:
            file.write(_dump({"parts": self._parts}) + _dump({"run": run}))
            if tally.mark or tally.proven:
                file.write(_dump(tally.to_line()) + _dump({"synced": tally.mark, "proven": tally.proven}))
        self._file = open(self._journal, "ab", buffering=0)  # noqa: SIM115, `close` closes it
        self._written = Tally(tops=dict(tally.tops), digests=dict(tally.digests))

    def _load(self) -> Tally | None:
        """What an earlier run left, as far as it can be trusted."""
        lines = list(_lines(self._journal))
        if not lines or self.folder.is_symlink():
            return None
        if lines[0].get("parts") != self._parts:
            _log.info("%s: what was unpacked before is of other files of these names; begins afresh", self.folder)
            return None
        boots = [line["run"].get("boot") for line in lines if isinstance(line.get("run"), dict)]
        synced = max((line["synced"] for line in lines if "synced" in line), default=0)
        same_boot = bool(boots) and boots[-1] == _boot() != ""
        tally = Tally()
        try:
            for line in lines:
                if "mark" in line and (same_boot or line["mark"] <= synced):
                    tally.take_in(line)
        except (KeyError, TypeError, ValueError):
            return None
        tally.proven = any(line.get("proven") for line in lines)
        return tally

    def _remove_orphans(self) -> None:
        """What an earlier run unpacked of the same files before they were replaced by others is of no use."""
        with suppress(OSError):
            for folder in self.folder.parent.glob(f"{OWN_PREFIX}-*"):
                lines = _lines(folder / "journal.jsonl") if folder != self.folder else iter(())
                if _paths(next(lines, {}).get("parts")) & _paths(self._parts):
                    _log.info("%s: what was unpacked of parts that have changed since is deleted", folder)
                    shutil.rmtree(folder)


def _paths(parts: Any) -> set[str]:
    return {str(part[0]) for part in parts if part} if isinstance(parts, list) else set()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal."""
    try:
        with open(path, "rb") as file:
            for line in file:
                value = _parsed(line)
                if value is not None:
                    yield value
    except OSError:
        return


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _boot() -> str:
    try:
        return Path(_BOOT).read_text().strip()
    except OSError:
        return ""


def sync_disk(folder: Path) -> None:
    """Wait until all that was written to the file system of `folder` is on the disk."""
    import ctypes

    try:
        syncfs = ctypes.CDLL(None).syncfs
    except (AttributeError, OSError):
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if syncfs(descriptor) != 0:
            os.sync()
    finally:
        os.close(descriptor)
