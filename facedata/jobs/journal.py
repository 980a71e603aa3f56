"""The journal: what of a job is done, on disk, in the output folder itself.

All its files lie in the folder, hidden, and none that stays is a folder, because readers of image folders take each
for a class:

- ``.facedata-plan.json`` says whose output this is; without ``.facedata-summary.json`` beside it, it is unfinished;
- ``.facedata-journal*.jsonl`` has one line for each shard done or failed; every run, or part of one, appends to
  its own;
- ``.facedata-lock`` is locked byte by byte, one byte a shard, so that two runs never write the same shard at once;
- ``failures.jsonl`` names each sample that could not be delivered;
- ``.facedata-summary.json`` is written last.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from facedata.errors import FormatError, InputNotFoundError, InputUnfinishedError, input_error
from facedata.files import atomic_writer, temporary_name, write_fully
from facedata.jobs.plan import Part, Plan

__all__ = ["PREFIX", "JobState", "Journal", "JournalWriter", "ShardResult", "done_entry", "refuse_unfinished"]

PREFIX = ".facedata-"
BESIDE = ".facedata"
PLAN = f"{PREFIX}plan.json"
SUMMARY = f"{PREFIX}summary.json"
PUBLISHING = f"{PREFIX}publishing"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard.

    Attributes
    ----------
    samples : int
        Samples delivered.
    bytes : int
        Their encoded images, in bytes.
    digest : str
        CRC-32 over label and bytes of each sample delivered, in order; 8 hexadecimal digits.
    labels : tuple of int, optional
        The smallest and the largest label delivered.
    failures : sequence of mapping
        One for each sample that was not delivered: ``set``, ``key``, ``index``, ``offset``, ``reason``.
    seconds : float
        Time spent on it.
    block : object, optional
        What an output with a single writer is to write, made ready in the worker; see `OrderedOutput`.
    """

    samples: int
    bytes: int
    digest: str
    labels: tuple[int, int] | None
    failures: tuple[Mapping[str, Any], ...]
    seconds: float
    block: Any = None


@dataclass
class JobState:
    """What all journals of a job say together.

    Attributes
    ----------
    done : bytearray of length shards
        1 for each shard that is done.
    samples, bytes, failures : int
        Delivered, and not delivered, in the shards that are done.
    failed_shards : dict of int to str
        Shards that could not be done, with the reason.
    """

    done: bytearray
    samples: int = 0
    bytes: int = 0
    failures: int = 0
    largest_label: int = -1
    seconds: float = 0.0
    failed_shards: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    ends: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return all(self.done)

    def add(self, shard: int, entry: Mapping[str, Any]) -> None:
        """Count a line of a journal; a shard counts once."""
        if self.done[shard]:
            return
        if "failed" in entry:
            self.failed_shards[shard] = str(entry["failed"])
            return
        self.failed_shards.pop(shard, None)
        self.done[shard] = 1
        self.samples += int(entry["samples"])
        self.bytes += int(entry["bytes"])
        self.seconds += float(entry["seconds"])
        self.failures += len(entry["failures"])
        self.digests[shard] = str(entry["digest"])
        if "end" in entry:
            self.ends[shard] = dict(entry["end"])
        if entry["labels"]:
            self.largest_label = max(self.largest_label, int(entry["labels"][1]))


class Journal:
    """The journal in the folder of a job.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def read_plan(self) -> Plan | None:
        """The plan of the job whose output the folder is, or None where there is none."""
        value = self._read_json(PLAN)
        try:
            return None if value is None else Plan.from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{self.folder / PLAN}: is not a plan that this version of facedata knows") from error

    def note_publishing(self) -> None:
        """Note that files appear at their final names from now on: what is found there later is this job's own."""
        (self.folder / PUBLISHING).touch()

    def forget_publishing(self) -> None:
        """Remove that note; once there is a summary it says nothing more."""
        (self.folder / PUBLISHING).unlink(missing_ok=True)

    def is_publishing(self) -> bool:
        """Whether a run has begun to publish, or has."""
        return (self.folder / PUBLISHING).exists() or self.read_summary() is not None

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a finished job, or None."""
        return self._read_json(SUMMARY)

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            value = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise input_error(error, path) from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: is damaged (not JSON); remove the folder, or give --overwrite") from error
        if not isinstance(value, dict):
            raise FormatError(f"{path}: is damaged (not a JSON object); remove the folder, or give --overwrite")
        return value

    def write_plan(self, plan: Plan) -> None:
        """Write the plan if there is none yet; a run that begins at the same moment may have been faster."""
        path = self.folder / PLAN
        draft = Path(temporary_name(path))
        try:
            with open(draft, "wb") as file:
                file.write(_dump(plan.to_json(), indent=2))
                file.flush()
                os.fsync(file.fileno())
            _link(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Say that the job is finished; the last thing written."""
        with atomic_writer(self.folder / SUMMARY) as file:
            file.write(_dump(summary, indent=2))

    def load(self, plan: Plan) -> JobState:
        """Read all journals of the job."""
        state = JobState(bytearray(plan.shards))
        for _, _, entry in self._entries(plan):
            state.add(entry["shard"], entry)
        return state

    def runs(self) -> list[dict[str, Any]]:
        """The runs that have worked on the job, in order of their journals: host, pid, part, start."""
        return [line["run"] for path in self._paths() for _, line in _lines(path) if isinstance(line.get("run"), dict)]

    def write_failures(self, plan: Plan) -> int:
        """Bring ``failures.jsonl`` up to date from the journals; returns how many lines it has.

        The lines are in the order of the samples, and the file is there only if there is something to say.
        """
        places: dict[int, tuple[Path, int]] = {}
        for path, place, entry in self._entries(plan):
            if entry["shard"] not in places or "failed" not in entry:
                places[entry["shard"]] = (path, place)
        lines = 0
        with atomic_writer(self.folder / FAILURES) as file:
            for shard in sorted(places):
                for failure in _failures_of(plan, shard, _line_at(*places[shard])):
                    file.write(_dump(failure) + b"\n")
                    lines += 1
        if not lines:
            (self.folder / FAILURES).unlink(missing_ok=True)
        return lines

    def writer(self, plan: Plan, part: Part) -> JournalWriter:
        """Open the journal of a run, or of one part of it, to append to."""
        suffix = "" if part.count == 1 else f"-{part.number}-of-{part.count}"
        return JournalWriter(self.folder / f"{PREFIX}journal{suffix}.jsonl", plan, part)

    def files(self) -> list[Path]:
        """Every file of the journal, the lock aside, the plan last."""
        names = [SUMMARY, FAILURES]
        if self.folder.is_dir():
            names += [n for n in sorted(os.listdir(self.folder)) if n.startswith(PREFIX) and n != f"{PREFIX}lock"]
        ordered = sorted(set(names), key=lambda name: name == PLAN)
        return [self.folder / name for name in ordered if (self.folder / name).is_file()]

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}journal*.jsonl"))

    def _entries(self, plan: Plan) -> Iterator[tuple[Path, int, dict[str, Any]]]:
        """Every whole line about a shard of this very plan, with its file and its place there."""
        fingerprint = plan.fingerprint
        for path in self._paths():
            belongs = False
            for place, line in _lines(path):
                if "run" in line:
                    belongs = line["run"].get("fingerprint") == fingerprint
                elif belongs and isinstance(line.get("shard"), int) and 0 <= line["shard"] < plan.shards:
                    yield path, place, line


class JournalWriter:
    """Appends to one journal file.

    A line survives the death of this process once it is written. It is not forced to the disk: the images that it
    speaks of are not either, and a power cut must not leave the line without them.
    """

    def __init__(self, path: Path, plan: Plan, part: Part) -> None:
        self._file: IO[bytes] = _open_behind_last_whole_line(path)
        run = {
            "fingerprint": plan.fingerprint,
            "part": str(part),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.append({"run": run})

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def done(self, shard: int, result: ShardResult) -> dict[str, Any]:
        """Record that `shard` is done; returns the entry."""
        entry = done_entry(shard, result)
        self.append(entry)
        return entry

    def failed(self, shard: int, reason: str) -> dict[str, Any]:
        """Record that `shard` could not be done; returns the entry."""
        entry = {"shard": shard, "failed": reason}
        self.append(entry)
        return entry

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append a line."""
        write_fully(self._file.fileno(), _dump(entry) + b"\n")


def done_entry(shard: int, result: ShardResult, end: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The line that says that `shard` is done, and how far the output of a single writer then is."""
    entry: dict[str, Any] = {
        "shard": shard,
        "samples": result.samples,
        "bytes": result.bytes,
        "digest": result.digest,
        "labels": result.labels,
        "failures": list(result.failures),
        "seconds": round(result.seconds, 3),
    }
    return entry if end is None else {**entry, "end": dict(end)}


def refuse_unfinished(path: str | os.PathLike[str]) -> None:
    """Raise where `path` is, or lies in, the output of a job that has not ended.

    Raises
    ------
    InputUnfinishedError
        With the command that finishes it.
    """
    start = Path(path).absolute()
    for folder in (start, Path(f"{start}{BESIDE}"), start.parent):
        journal = Journal(folder)
        if _is_file(folder / PLAN) and not _is_file(folder / SUMMARY):
            plan = journal.read_plan()
            command = plan.facts.get("command_line", "the same command") if plan else "the same command"
            raise InputUnfinishedError(
                f"{folder}: is the output of a job that has not finished; finish it with: {command}"
            )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # whoever reads the input itself will say what is wrong with it
        return False


def job_plan(folder: str | os.PathLike[str]) -> Plan:
    """The plan of the job whose output `folder` is. Raises `InputNotFoundError` where it is no job's output."""
    folder = job_folder(folder)
    if not os.path.isdir(folder):
        raise InputNotFoundError(f"{folder}: no such folder")
    plan = Journal(folder).read_plan()
    if plan is None:
        raise InputNotFoundError(f"{os.fspath(folder)}: is not the output of a facedata job (no {PLAN} in it)")
    return plan


def job_folder(output: str | os.PathLike[str]) -> str:
    """The folder with the journal: the output itself, or beside an output that is a single file ``<file>.facedata``."""
    beside = os.fspath(output).rstrip("/") + BESIDE
    return beside if not os.path.isdir(output) and os.path.isdir(beside) else os.fspath(output)


def _open_behind_last_whole_line(path: Path) -> IO[bytes]:
    """Open for appending; what a killed run left of a last line is cut off."""
    file = open(path, "a+b", buffering=0)  # noqa: SIM115, the caller closes it
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(end - (1 << 16), 0)
        newline = os.pread(file.fileno(), end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    file.truncate(end)
    return file


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that are whole JSON objects, each with its place; a line cut by a kill or a full disk is none."""
    place = 0
    with open(path, "rb") as file:
        for line in file:
            value = _parse(line)
            if value is not None:
                yield place, value
            place += len(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line_at(path: Path, place: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        file.seek(place)
        value: dict[str, Any] = json.loads(file.readline())
        return value


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except PermissionError:  # a file system without hard links
        os.replace(draft, path)


def _failures_of(plan: Plan, shard: int, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "failed" in entry:
        first, end = plan.bounds(shard)
        return [{"shard": shard, "samples": [first, end], "reason": entry["failed"]}]
    return list(entry["failures"])


def _dump(value: Any, indent: int | None = None) -> bytes:
    # a file name that is not UTF-8 has lone surrogates, and their escape is JSON's own
    return json.dumps(value, ensure_ascii=False, indent=indent).encode(errors="backslashreplace")
