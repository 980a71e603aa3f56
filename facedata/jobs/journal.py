"""The journal: the record in the output folder of which shards of a job are done.

Its files are hidden, and none that stays is a folder, because readers of image folders take each folder for a class:

- ``.facedata-plan.json`` says which job writes this output; without ``.facedata-summary.json`` it is unfinished;
- ``.facedata-journal*.jsonl`` has one line for each shard that is done or failed; each part appends to its own file;
- ``.facedata-lock`` is locked byte by byte, one byte per shard, so that two runs never write the same shard at once;
- ``.facedata-publishing`` has a mark of each file that a run was about to give its final name;
- ``failures.jsonl`` names each sample that could not be delivered, ``skipped.jsonl`` each that was not wanted;
- ``.facedata-summary.json`` is written last.
"""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

from facedata.errors import (
    FormatError,
    InputNotFoundError,
    InputUnfinishedError,
    OptionError,
    OutputError,
    OutputMismatchError,
)
from facedata.files import (
    StrPath,
    atomic_writer,
    lock_region,
    open_new,
    open_own,
    open_regular,
    read_small,
    rename_new,
    temporary_name,
    write_fully,
)
from facedata.jobs.plan import (
    LARGEST,
    MOST_SHARDS,
    Part,
    Plan,
    check_line,
    checked_summary,
    dumped,
    sealed,
    unsealed,
)

__all__ = [
    "BESIDE",
    "BUILDING",
    "EXTRACTING",
    "FAILURES",
    "PREFIX",
    "SKIPPED",
    "JobState",
    "Journal",
    "JournalWriter",
    "ShardLock",
    "ShardResult",
    "done_entry",
    "job_folder",
    "refuse_unfinished",
]

_Value = TypeVar("_Value")

PREFIX = ".facedata-"
BESIDE = ".facedata"
BUILDING = f"{PREFIX}building"
PLAN = f"{PREFIX}plan.json"
SUMMARY = f"{PREFIX}summary.json"
PUBLISHING = f"{PREFIX}publishing"
CLEARING = f"{PREFIX}clearing"
EXTRACTING = f"{PREFIX}extracting"
FAILURES = "failures.jsonl"
SKIPPED = "skipped.jsonl"
_LONGEST_CAUSE = 40
_LARGEST_NOTE = 1 << 20
_LONGEST_LINE = 32 << 20  # bytes of a line of a journal, which has each sample of a shard that failed
_MOST_RUNS = 100_000  # that are listed
_RUN = b'{"run":'
_FINISHING = 1 << 40  # the byte that stands for publishing the result, far beyond those of the shards


@dataclass(frozen=True)
class ShardResult:
    """The result of one shard.

    Attributes
    ----------
    samples, bytes : int
        Delivered, and their encoded size.
    digest : str
        CRC-32 over label and bytes of each sample delivered, in order; 8 hexadecimal digits.
    labels : tuple of int, optional
        The smallest and the largest label delivered.
    failures : sequence of mapping
        One for each sample that was not delivered: ``set``, ``key``, ``index``, ``offset``, ``reason``; and
        ``transient``, if it may be readable later.
    seconds : float
        Time spent on it.
    block : object, optional
        What the single writer of an `OrderedOutput` writes, prepared in the worker.
    skipped : sequence of mapping
        As `failures`, for the samples that are not wanted: an image without a face.
    file_size : int, optional
        Of the file that the shard has for itself, see `Output.shard_file`.
    """

    samples: int
    bytes: int
    digest: str
    labels: tuple[int, int] | None
    failures: tuple[Mapping[str, Any], ...]
    seconds: float
    block: Any = None
    skipped: tuple[Mapping[str, Any], ...] = ()
    file_size: int | None = None


@dataclass
class JobState:
    """The state of a job, from all of its journals.

    Attributes
    ----------
    done : bytearray of length shards
        1 for each shard that is done.
    samples, bytes, failures, skipped : int
        Delivered, their encoded size, not delivered, and not wanted, in the shards that are done.
    failed_shards : dict of int to str
        Shards that could not be done, with the reason.
    output_ends : dict of int to mapping
        Where an `OrderedOutput` ends after each shard, as its writer returned it.
    file_sizes : dict of int to int
        Bytes of the files of the shards that have one for themselves.
    damaged : int
        Lines that are damaged and do not count; `damage` says where the first one is, and what is wrong with it.
    """

    done: bytearray
    samples: int = 0
    bytes: int = 0
    failures: int = 0
    skipped: int = 0
    largest_label: int = -1
    seconds: float = 0.0
    failed_shards: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    output_ends: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    file_sizes: dict[int, int] = field(default_factory=dict)
    damaged: int = 0
    damage: str = ""

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return all(self.done)

    def conclude(self, summary: Mapping[str, Any]) -> str:
        """Take the counts from the summary of the finished job; return what is wrong with the journals, in words."""
        counts = {name: summary[name] for name in ("samples", "bytes", "failures", "skipped", "largest_label")}
        agrees = self.complete and all(getattr(self, name) == count for name, count in counts.items())
        listed = f"it lists {sum(self.done)} of {len(self.done)} shards{self.damage and ', and '}{self.damage}"
        vars(self).update(counts, done=bytearray(b"\1") * len(self.done), failed_shards={})
        note = f"the journal of this finished job is damaged or gone: {listed}; the counts are those of the summary"
        return "" if agrees else note

    def damage_in_words(self) -> str:
        """What is wrong with the journals of a job that is not complete; empty if nothing is known to be."""
        others = f", and {self.damaged - 1:,} more" if self.damaged > 1 else ""
        return f"{self.damage}{others}; what is damaged does not count" if self.damaged and not self.complete else ""

    def add(self, shard: int, entry: Mapping[str, Any]) -> None:
        """Add a line of a journal; a shard counts once."""
        if self.done[shard]:
            return
        if "failed" in entry:
            self.failed_shards[shard] = entry["failed"]
            return
        self.failed_shards.pop(shard, None)
        self.done[shard] = 1
        self.samples += entry["samples"]
        self.bytes += entry["bytes"]
        self.seconds += entry["seconds"]
        self.failures += len(entry["failures"])
        self.skipped += len(entry.get("skipped", ()))
        self.digests[shard] = entry["digest"]
        if "end" in entry:
            self.output_ends[shard] = entry["end"]
        if "file_size" in entry:
            self.file_sizes[shard] = entry["file_size"]
        if entry["labels"]:
            self.largest_label = max(self.largest_label, entry["labels"][1])


class Journal:
    """The journal in the folder of a job."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._mark: str | None = None

    def hold(self) -> None:
        """Remember which folder this is; from now on writing anything else there is refused, see `check_in_place`."""
        self._mark = _mark_of(self.folder / PLAN)

    def check_in_place(self) -> None:
        """Raise if the folder was moved away since `hold`, so that nothing is written to what has taken its name.

        Raises
        ------
        OutputMismatchError
        """
        if self._mark is None:
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            if self._mark == _mark_of(self.folder / PLAN):
                return
        raise OutputMismatchError(
            f"{self.folder}: was moved away or replaced while this job was writing it, so the job stopped; what is "
            "finished is in the moved folder. Move it back, or name its new place, and run the same command to resume"
        )

    def read_plan(self, ours: Plan | None = None) -> Plan | None:
        """The plan of the job that writes this folder, or None if there is none.

        `ours` is returned in place of one that is damaged, if the journals show that they are those of `ours`.

        Raises
        ------
        FormatError
            If it is damaged, or was written by another version of facedata.
        """
        try:
            return self._read(PLAN, Plan.from_json)
        except FormatError:
            if ours is None or all(run["fingerprint"] != ours.fingerprint for run in self.runs()):
                raise
            return ours

    def require_plan(self) -> Plan:
        """The plan of the job that writes this folder.

        Raises
        ------
        InputNotFoundError
            If there is no such folder, or no job in it.
        """
        if not self.folder.is_dir():
            raise InputNotFoundError(f"{self.folder}: no such folder")
        plan = self.read_plan()
        if plan is None:
            raise InputNotFoundError(f"{self.folder}: is not the output of a facedata job (no {PLAN} in it)")
        return plan

    def lock(self) -> ShardLock:
        """The lock of the job, not yet taken."""
        return ShardLock(self.folder / f"{PREFIX}lock")

    def publish(self, source: StrPath, target: StrPath) -> None:
        """Give a file of this job its final name; replaces nothing. What file it is is noted first."""
        self.check_in_place()
        with open(self.folder / PUBLISHING, "ab", opener=open_own) as note:
            note.write(f"\n{_mark_of(source)}\n".encode())  # a line that a killed run left may have no end
            note.flush()
            os.fsync(note.fileno())
        rename_new(source, target)

    def has_published(self, path: StrPath) -> bool:
        """Whether a file at a final name is one that `publish` put there, unchanged since."""
        try:
            marks = read_small(self.folder / PUBLISHING, _LARGEST_NOTE).decode(errors="replace").splitlines()
            return _mark_of(path) in marks
        except FileNotFoundError:
            return False

    def forget_publishing(self) -> None:
        """Remove the note of what was published; a summary makes it obsolete."""
        (self.folder / PUBLISHING).unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a finished job, or None; raises `FormatError` if it is damaged."""
        return self._read(SUMMARY, checked_summary)

    def _read(self, name: str, check: Callable[[dict[str, Any]], _Value]) -> _Value | None:
        path = self.folder / name
        try:
            return check(unsealed(read_small(path, LARGEST)))
        except InputNotFoundError:
            return None
        except FormatError as error:
            wrong = str(error)
        except ValueError as error:
            wrong = f"{path}: {error}"
        way = "" if "another version" in wrong else "writes it again if the journal is whole, and "
        raise FormatError(f"{wrong}; the command that wrote this folder {way}starts again with --overwrite")

    def write_plan(self, plan: Plan, *, replace: bool = False) -> None:
        """Write the plan if there is none yet; another run that starts at the same moment may be faster.

        With `replace`, write it in place of one that is damaged. Raises `OptionError` if it is too large to be read.
        """
        path = self.folder / PLAN
        draft = Path(temporary_name(path))
        data = sealed(plan.to_json(), indent=2)
        if plan.shards > MOST_SHARDS or len(data) > LARGEST:
            raise OptionError(f"{self.folder}: the job would have {plan.shards:,} shards; larger files make it fewer")
        try:
            with open(draft, "wb", opener=open_new) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                (os.replace if replace else os.link)(draft, path)
            except FileExistsError:  # a planted link would be followed by those who read it
                os.close(open_regular(path, follow_symlinks=False))
            except PermissionError:  # a file system without hard links
                os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Mark the job as finished; the last file written."""
        self.check_in_place()
        with atomic_writer(self.folder / SUMMARY) as file:
            file.write(sealed(summary, indent=2))

    def load(self, plan: Plan) -> JobState:
        """Read all journals of the job."""
        state = JobState(bytearray(plan.shards))
        lost = Counter(entry["shard"] for _, _, entry in self._entries(plan) if "lost" in entry)
        for _, _, entry in self._entries(plan, state):
            shard = entry["shard"]
            if lost[shard] and "digest" in entry:  # what this line says was written is not there any more
                lost[shard] -= 1
            elif "lost" not in entry:
                state.add(shard, entry)
        return state

    def runs(self) -> list[dict[str, Any]]:
        """The runs that have worked on the job, in order of their journals: host, pid, part, start."""
        runs: list[dict[str, Any]] = []
        for path in self._paths():
            for _, _, line in _lines(path):
                with suppress(ValueError):
                    if line.startswith(_RUN) and len(runs) < _MOST_RUNS:
                        check_line(value := unsealed(line), 1)
                        runs.append(value["run"])
        return runs

    def write_failures(self, plan: Plan) -> None:
        """Update ``failures.jsonl`` and ``skipped.jsonl`` from the journals.

        The lines are in the order of the samples. Without any there is no file.
        """
        self.check_in_place()
        written = set()
        with atomic_writer(self.folder / FAILURES) as failures, atomic_writer(self.folder / SKIPPED) as skipped:
            for name, line in self._listed(plan):
                written.add(name)
                (failures if name == FAILURES else skipped).write(dumped(line) + b"\n")
        for name in {FAILURES, SKIPPED} - written:
            (self.folder / name).unlink(missing_ok=True)

    def causes(self, plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
        """How many samples failed, and how many were skipped, for each cause, the most frequent first."""
        counts = {FAILURES: Counter[str](), SKIPPED: Counter[str]()}
        for name, line in self._listed(plan):
            if "shard" not in line:
                counts[name][_cause(line["reason"])] += 1
        return dict(counts[FAILURES].most_common()), dict(counts[SKIPPED].most_common())

    def undelivered(self, plan: Plan) -> set[int]:
        """The numbers of the samples that failed or were skipped."""
        return {line["index"] for _, line in self._listed(plan) if "index" in line}

    def _listed(self, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
        """The lines of ``failures.jsonl`` and ``skipped.jsonl``, in the order of the samples."""
        places: dict[int, tuple[Path, int]] = {}
        for path, place, entry in self._entries(plan):
            if "digest" in entry or (entry["shard"] not in places and "failed" in entry):
                places[entry["shard"]] = (path, place)
        for shard in sorted(places):
            path, place = places[shard]
            with _opened(path) as journal:
                journal.seek(place)
                entry = unsealed(journal.readline(_LONGEST_LINE), plan.fingerprint)
            if "failed" in entry:
                yield FAILURES, {"shard": shard, "samples": list(plan.bounds(shard)), "reason": entry["failed"]}
            for name, kind in ((FAILURES, "failures"), (SKIPPED, "skipped")):
                for line in entry.get(kind, ()):
                    yield name, {"shard": shard, **line} if "failed" in entry else line

    def files(self) -> list[Path]:
        """Every file of the journal except the lock, the plan last."""
        names = [SUMMARY, FAILURES, SKIPPED]
        if self.folder.is_dir():
            names += [n for n in sorted(os.listdir(self.folder)) if n.startswith(PREFIX) and n != f"{PREFIX}lock"]
        ordered = sorted(set(names), key=lambda name: name == PLAN)
        return [self.folder / name for name in ordered if (self.folder / name).is_file()]

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}journal*.jsonl"))

    def _entries(self, plan: Plan, state: JobState | None = None) -> Iterator[tuple[Path, int, dict[str, Any]]]:
        """Every whole line about a shard of this plan, with its file and its offset there; `state` gets the damage."""
        fingerprint = plan.fingerprint
        for path in self._paths():
            belongs: bool | None = None  # not known if the first line is damaged, but a checksum shows it too
            for number, place, line in _lines(path):
                is_run = line.startswith(_RUN)
                try:
                    entry = unsealed(line, "" if is_run else fingerprint)
                    check_line(entry, plan.shards)
                except ValueError as error:
                    if state is not None and belongs is not False:
                        state.damaged += 1
                        state.damage = state.damage or f"{path}: line {number} {error}"
                    continue
                if is_run:
                    belongs = entry["run"]["fingerprint"] == fingerprint
                elif belongs or (belongs is None and "crc" in entry):
                    yield path, place, entry


class JournalWriter:
    """Appends to the journal file of a run, or of one part of a job.

    A line survives the death of this process once it is written. It is not forced to the disk: the images are not
    either, and a power cut must not leave the line without them.
    """

    def __init__(self, journal: Journal, plan: Plan, part: Part) -> None:
        suffix = "" if part.count == 1 else f"-{part.number}-of-{part.count}"
        self._file: IO[bytes] = _open_after_last_whole_line(journal.folder / f"{PREFIX}journal{suffix}.jsonl")
        run = {
            "fingerprint": plan.fingerprint,
            "part": str(part),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._seed = ""
        self.append({"run": run})
        self._seed = plan.fingerprint
        self.check_in_place = journal.check_in_place

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append a line; raises `OutputError` if it is too long to be read."""
        line = sealed(entry, seed=self._seed) + b"\n"
        if len(line) > _LONGEST_LINE:
            raise OutputError(
                f"{self._file.name}: the list of images that failed, of shard {entry['shard']} alone, has "
                f"{len(line):,} bytes; is the input what it should be? Smaller files have shorter lists"
            )
        write_fully(self._file.fileno(), line)


class ShardLock:
    """A lock file with one byte per shard; the kernel drops the locks however the process ends.

    The file is created if it is missing, and left there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = open_own(path)

    def __enter__(self) -> ShardLock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def take(self, shards: range) -> None:
        """Lock `shards` until the lock is closed.

        Raises
        ------
        OutputLockedError
            If another run has one of them.
        """
        lock_region(self._descriptor, self._path.parent, shards.start, len(shards))

    def take_finishing(self) -> None:
        """Lock the right to publish the result; waits for another part that has it."""
        lock_region(self._descriptor, self._path.parent, _FINISHING, 1, wait=True)


def done_entry(shard: int, result: ShardResult, end: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The journal line of a shard that is done; `end` is where the output of a single writer then ends."""
    entry: dict[str, Any] = {
        "shard": shard,
        "samples": result.samples,
        "bytes": result.bytes,
        "digest": result.digest,
        "labels": result.labels,
        "failures": list(result.failures),
        "seconds": round(result.seconds, 3),
    }
    if result.skipped:
        entry["skipped"] = list(result.skipped)
    if result.file_size is not None:
        entry["file_size"] = result.file_size
    return entry if end is None else {**entry, "end": dict(end)}


def refuse_unfinished(path: str | os.PathLike[str]) -> None:
    """Raise if `path` is, or lies in, the output of a job that has not finished.

    Raises
    ------
    InputUnfinishedError
        It names the command that finishes the job.
    """
    start = Path(path).absolute()
    for folder in (start, Path(f"{start}{BESIDE}"), *start.parents):
        if folder in start.parents and not any(
            map(_is_of_owner, (folder / EXTRACTING, folder / CLEARING, folder / PLAN))
        ):
            continue
        if _is_file(folder / EXTRACTING):
            raise InputUnfinishedError(
                f"{folder}: an archive was unpacked into it, and not all of it is in place; run the same "
                "'facedata extract' again"
            )
        journal = Journal(folder)
        if _is_file(folder / CLEARING) or (_is_file(folder / PLAN) and journal.read_summary() is None):
            plan = journal.read_plan()
            unfinished = InputUnfinishedError(f"{folder}: is the output of a job that has not finished; finish it with")
            raise unfinished.with_command("" if plan is None else plan.command_line)


def _is_of_owner(path: Path) -> bool:
    """Whether a file is there and is of this user or of who has its folder: in /tmp, anyone may plant one."""
    try:
        return path.lstat().st_uid in (os.getuid(), path.parent.stat().st_uid)
    except OSError:
        return False


def _mark_of(path: StrPath) -> str:
    """What tells a file from another one that gets its name; the device has another number on each machine."""
    status = os.stat(path, follow_symlinks=False)
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # reading the input itself reports what is wrong
        return False


def job_folder(output: str | os.PathLike[str]) -> str:
    """The folder of the journal: the output itself, or ``<file>.facedata`` beside an output that is a single file."""
    beside = os.fspath(output).rstrip("/") + BESIDE
    return beside if not os.path.isdir(output) and os.path.isdir(beside) else os.fspath(output)


def _open_after_last_whole_line(path: Path) -> IO[bytes]:
    """Open for appending; remove an incomplete last line that a killed run left."""
    file = open(path, "a+b", buffering=0, opener=open_own)  # noqa: SIM115, the caller closes it
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


def _opened(path: Path) -> IO[bytes]:
    return open(path, "rb", opener=lambda name, _: open_regular(name, follow_symlinks=False))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines, each with its number and offset; a kill or a full disk may have cut the last one, which is left out.

    Raises `FormatError` if one is longer than any that a job writes.
    """
    offset = 0
    with _opened(path) as file:
        for number in count(1):
            line = file.readline(_LONGEST_LINE + 1)
            if len(line) > _LONGEST_LINE:
                raise FormatError(
                    f"{path}: line {number} has more than {_LONGEST_LINE:,} bytes, so it is not of a journal; "
                    "the command that wrote this folder starts again with --overwrite"
                )
            if not line.endswith(b"\n"):
                return
            yield number, offset, line
            offset += len(line)


def _cause(reason: str) -> str:
    """The words of a reason before its details, if they say it in short and without a number."""
    head = re.split(r" ?[:;,(]", reason, maxsplit=1)[0]
    return head if len(head) <= _LONGEST_CAUSE and not re.search(r"\d", head) else "cannot be read"
