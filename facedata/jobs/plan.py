"""The plan of a job: its inputs and options, cut into shards. The same inputs give the same plan.

Also the checks of all that is read from the files of a job, which may be damaged or forged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any
from zlib import crc32

from facedata.errors import OptionError, input_error
from facedata.files import boot_id, retried
from facedata.text import plain_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "COUNT",
    "LARGEST",
    "MOST_SHARDS",
    "OBJECT",
    "TEXT",
    "InputTimes",
    "Part",
    "Plan",
    "Shape",
    "check_line",
    "check_shape",
    "checked_summary",
    "cut_by_size",
    "dumped",
    "sealed",
    "shard_count",
    "unsealed",
]

LARGEST = 16 << 20  # bytes of a plan or a summary
MOST_SHARDS = 1 << 20  # also parts
_CLOCK = 60_000_000_000  # nanoseconds that the clock of a server may gain while the inputs are written
_COARSE = 2_000_000_000  # nanoseconds by which a copy may lose its time: FAT counts every other second
_SHOWN = 10  # differences from another job
_DEEPEST = 12  # objects and lists in each other

_SAMPLES_PER_SHARD = 8192
_CUT_BLOCK = 1 << 16
_VERSION = 2  # of the plan: raised when jobs in progress cannot be continued by the code that follows


def shard_count(samples: int, size: int, limit: int = 1 << 26, most: int | None = None) -> int:
    """The number of shards of a job: about 8,192 samples or 64 MiB each, whichever is less.

    Copying that takes a fraction of a second on a local disk and up to ten seconds on a slow network file system. The
    number depends on the input alone, so every run of a job cuts it in the same way.

    Parameters
    ----------
    samples, size : int
        The input's samples, and its bytes or an estimate that is always the same for the same input.
    limit, most : int, optional
        Bytes and samples in a shard, if not 64 MiB and 8,192: slow work is cut finer.
    """
    return min(max(-(-samples // (most or _SAMPLES_PER_SHARD)), -(-size // limit), 1), max(samples, 1))


def cut_by_size(sizes: NDArray[np.integer[Any]], limit: int, count: int | None = None) -> tuple[int, ...]:
    """Cut samples into runs of at most `limit` bytes, and of at most `count` samples.

    A sample that is larger than `limit` is a run of its own. `sizes` has the bytes of each sample, shape (N,). Returns
    where each run ends.
    """
    ends: list[int] = []
    begin = 0
    while begin < len(sizes):
        end = min(begin + _CUT_BLOCK, len(sizes)) if count is None else min(begin + count, len(sizes))
        room, place = limit, begin
        while place < end:  # a block at a time: the sums of all would take 8 bytes a sample
            sums = sizes[place : min(place + _CUT_BLOCK, end)].cumsum(dtype="int64")
            fitting = int(sums.searchsorted(room, side="right"))
            place += fitting
            if fitting < len(sums):
                break
            room -= int(sums[-1])
            if count is None:
                end = min(place + _CUT_BLOCK, len(sizes))
        begin = max(place, begin + 1)
        ends.append(begin)
    return tuple(ends) or (0,)


@dataclass(frozen=True)
class Part:
    """One element of a job array: the `number`-th of `count` parts, counted from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise OptionError(
                f"part {self.number}/{self.count}: parts are counted from 1/{self.count} to {self.count}/{self.count}"
            )
        if self.count > MOST_SHARDS:
            raise OptionError(f"part {self.number}/{self.count}: a job may have at most {MOST_SHARDS:,} parts")

    def shards(self, plan: Plan) -> range:
        """The shards of `plan` that belong to this part: neighbours, as files are read fastest in order."""
        return range(plan.shards * (self.number - 1) // self.count, plan.shards * self.number // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class InputTimes:
    """When the input files of a job were last changed; kept with the plan, but not part of its fingerprint.

    The time of modification always counts; a copy on another machine must keep it. The time of the last change of the
    inode, which a copy cannot keep, counts for the same path on the same device of a machine that has not restarted.

    Attributes
    ----------
    boot : str
        The machine since it started, see `boot_id`.
    latest : int
        Nanoseconds: an image that has a later time was changed after the job began.
    files : tuple of (path, device, modified, changed)
        In the order of the inputs; both times are 0 for a folder, whose files are checked one by one as they are read.
    """

    boot: str
    latest: int
    files: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, paths: Iterable[str]) -> InputTimes:
        """Look at these files and folders; raises `InputError` if that is not possible."""
        files, latest = [], time.time_ns()
        for path in map(os.path.realpath, paths):
            try:
                status = retried(os.stat, path)
            except OSError as error:
                raise input_error(error, path) from error
            times = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_mtime_ns, status.st_ctime_ns)
            if min(status.st_mtime_ns, status.st_ctime_ns) > latest:  # the clock of a file server is ahead
                latest = min(status.st_mtime_ns, status.st_ctime_ns) + _CLOCK
            files.append((path, status.st_dev, *times))
        return cls(boot_id(), latest, tuple(files))

    def is_place_of(self, now: InputTimes) -> bool:
        """Whether these are the same paths on the same devices of one machine."""
        return self.boot == now.boot and [each[:2] for each in self.files] == [each[:2] for each in now.files]

    def changed(self, now: InputTimes) -> str | None:
        """A file that has changed, if there is one, or that is new or gone."""
        for before, after in zip_longest(self.files, now.files, fillvalue=("", 0, 0, 0)):
            same_place = self.boot == now.boot and before[:2] == after[:2]
            slack = 0 if same_place else _COARSE
            if abs(before[2] - after[2]) > slack or (same_place and before[3] != after[3]):
                return after[0] or before[0]
        return None


@dataclass(frozen=True)
class Plan:
    """A job cut into shards.

    Attributes
    ----------
    command : str
        The command whose job it is.
    inputs : mapping
        What identifies the inputs, as JSON values.
    options : mapping
        Every option that decides what is written, as JSON values, including versions that matter.
    ends : tuple of int, optional
        Where each shard ends, if they are not all of one size.
    facts : mapping
        Other facts to keep with the job (paths, the command line, label ranges); not part of the fingerprint.
    times : InputTimes, optional
        When the inputs were last changed; not part of the fingerprint either.
    """

    command: str
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    samples: int
    shards: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[int, ...] | None = None
    times: InputTimes | None = None

    def bounds(self, shard: int) -> tuple[int, int]:
        """The first sample of `shard`, and the one after its last."""
        if self.ends is not None:
            return self.ends[shard - 1] if shard else 0, self.ends[shard]
        return self.samples * shard // self.shards, self.samples * (shard + 1) // self.shards

    def sample_count(self, shard: int) -> int:
        """The number of samples in `shard`."""
        first, end = self.bounds(shard)
        return end - first

    def deciding(self) -> dict[str, Any]:
        """Everything that decides the output, which the fingerprint is made of."""
        value = {
            "version": _VERSION,
            "command": self.command,
            "inputs": dict(self.inputs),
            "options": dict(self.options),
            "samples": self.samples,
            "shards": self.shards,
        }
        return value if self.ends is None else {**value, "ends": list(self.ends)}

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits; equal for jobs that write the same bytes."""
        text = json.dumps(self.deciding(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, with its fingerprint."""
        value = {**self.deciding(), "fingerprint": self.fingerprint, "facts": dict(self.facts)}
        return value if self.times is None else {**value, "times": vars(self.times)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` made.

        Raises
        ------
        ValueError
            If it is not a plan, or another version of facedata wrote it; its text is a predicate.
        """
        version = value.get("version", 1)
        if version != _VERSION:
            raise ValueError(
                f"was written by another version of facedata (plan version {_found(version)}; this one continues "
                f"version {_VERSION}), which can finish the job"
            )
        check_shape(value, _PLAN)
        ends = None if value.get("ends") is None else tuple(value["ends"])
        plan = cls(
            value["command"],
            value["inputs"],
            value["options"],
            value["samples"],
            value["shards"],
            value["facts"],
            ends,
            (times := value.get("times"))
            and InputTimes(times["boot"], times["latest"], tuple(map(tuple, times["files"]))),
        )
        if ends is not None and (len(ends) != plan.shards or ends[-1] != plan.samples):
            raise ValueError(f"is damaged: {len(ends)} ends of {plan.shards} shards, {plan.samples} samples")
        if value.get("fingerprint") != plan.fingerprint:
            raise ValueError("is damaged: its content does not have its fingerprint")
        return plan

    @property
    def command_line(self) -> str:
        """The command line in the facts, which resumes the job; empty if facedata does not write such a line.

        Someone else may have written it, for people to paste it into a shell.
        """
        line = self.facts.get("command_line", "")
        try:
            words = shlex.split(line)
        except ValueError:
            return ""
        return line if words[:1] == ["facedata"] and line.isprintable() and shlex.join(words) == line else ""

    def differences(self, other: Plan) -> list[str]:
        """How `other`, the job whose output exists, differs from this plan, in words."""
        mine, theirs = _causes(self), _causes(other)
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        shown = [f"{name} was {theirs.get(name, 'none')}, is now {mine.get(name, 'none')}" for name in names[:_SHOWN]]
        return [plain_line(text, 300) for text in shown] + ["and more"] * (len(names) > _SHOWN)


def _causes(plan: Plan) -> dict[str, Any]:
    """What decides the output, by a name for each value."""
    counts = {"number of samples": plan.samples, "number of shards": plan.shards}
    causes = {"command": plan.command, **dict(_leaves(plan.inputs)), **dict(_leaves(plan.options)), **counts}
    return {name: "none" if value is None else value for name, value in causes.items()}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value, 1):
            yield from _leaves(inner, f"{name} {number}")
    else:
        yield name, value


def dumped(value: Any, indent: int | None = None) -> bytes:
    """A value as JSON."""
    # a file name that is not UTF-8 has lone surrogates, and their escape is JSON's own
    return json.dumps(value, ensure_ascii=False, indent=indent).encode(errors="backslashreplace")


def sealed(value: Mapping[str, Any], indent: int | None = None, seed: str = "") -> bytes:
    """A value as JSON that ends with the CRC-32 of `seed` and of its own text, by which damage is noticed."""
    text = dumped(value, indent)[:-1].rstrip()
    space, end = (b" ", b"") if indent is None else (b"\n" + b" " * indent, b"\n")
    return b'%b,%b"crc": "%08x"%b}' % (text, space, crc32(text, crc32(seed.encode())), end)


def unsealed(data: bytes, seed: str = "") -> dict[str, Any]:
    """The value that was `sealed`, with its ``crc``; or one without, as facedata wrote it before.

    Raises
    ------
    ValueError
        If it is damaged; its text is a predicate.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is damaged: it is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"is damaged: it is {_found(value)}, expected a JSON object")
    if "crc" in value:
        text, _, end = data.rpartition(b'"crc": "')
        right = b"%08x" % crc32(text.rstrip()[:-1], crc32(seed.encode()))
        if not re.fullmatch(re.escape(right) + rb'"\s*\}\s*', end):
            raise ValueError("is damaged: it does not have its checksum")
    return value


Shape = Mapping[str, tuple[Callable[[Any], bool], str]]
"""For each key a test of its value, and in words what is expected; a key with ``?`` at its end may be missing."""


def check_shape(value: Mapping[str, Any], shape: Shape) -> None:
    """Raise a ValueError that says, as a predicate, what is wrong with a value that was read from a file."""
    for key, (test, expected) in shape.items():
        name = key.removesuffix("?")
        if name not in value:
            if name != key:
                continue
            raise ValueError(f"is damaged: it has no '{name}', expected {expected}")
        if not test(value[name]):
            raise ValueError(f"is damaged: '{name}' is {_found(value[name])}, expected {expected}")


def _found(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return plain_line(repr(value), 40)


def _is_count(value: Any, least: int = 0, end: int = 1 << 53) -> bool:
    return type(value) is int and least <= value < end


def _is_object(value: Any, levels: int = _DEEPEST) -> bool:
    """Whether it is an object without very deep levels, which end whatever goes down in it."""
    inner = list(value.values()) if isinstance(value, dict) else value
    nested = [each for each in inner if isinstance(each, dict | list)]
    return isinstance(value, dict | list) and levels > 0 and all(_is_object(each, levels - 1) for each in nested)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_rising(value: Any, least: int = 0) -> bool:
    return (
        isinstance(value, list)
        and all(_is_count(each, least) for each in value)
        and all(low <= high for low, high in pairwise(value))
    )


def _are_times(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("boot"), str)
        and type(value.get("latest")) is int
        and isinstance(value.get("files"), list)
        and all(
            isinstance(file, list) and [type(each) for each in file] == [str, int, int, int] for file in value["files"]
        )
    )


def _are_lines(value: Any) -> bool:
    """Whether these can be lines of ``failures.jsonl``: a `reason`, and other texts and numbers."""
    return isinstance(value, list) and all(
        isinstance(line, dict)
        and isinstance(line.get("reason"), str)
        and _is_count(line.get("index", 0))
        and all(isinstance(each, str | int | None) for each in line.values())
        for line in value
    )


COUNT = (_is_count, "a whole number from 0")
TEXT = (lambda value: isinstance(value, str), "a text")
OBJECT = (lambda value: isinstance(value, dict) and _is_object(value), "an object")
_DIGEST = (lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{1,64}", value)), "a hexadecimal number")
_LINES = (_are_lines, "a list of samples, each with a reason")
_PLAN: Shape = {
    "command": TEXT,
    "inputs": OBJECT,
    "options": OBJECT,
    "samples": COUNT,
    "shards": (lambda value: _is_count(value, 1, MOST_SHARDS + 1), f"a number from 1 to {MOST_SHARDS:,}"),
    "ends?": (lambda value: value is None or _are_rising(value), "a list of rising numbers"),
    "times?": (lambda value: value is None or _are_times(value), "the times of files"),
    "facts": (
        lambda value: (
            OBJECT[0](value)
            and isinstance(value.get("command_line", ""), str)
            and _are_texts(value.get("named_files", []))
        ),
        "an object, with a text 'command_line' and a list of texts 'named_files', if it has them",
    ),
}
_SUMMARY: Shape = {
    **dict.fromkeys(("samples", "bytes", "failures", "skipped"), COUNT),
    "largest_label": (lambda value: _is_count(value, -1), "a whole number from -1"),
    "digest": _DIGEST,
    "facts": OBJECT,
}
_RUN: Shape = {
    "fingerprint": TEXT,
    "part": (
        lambda value: isinstance(value, str) and bool(re.fullmatch("[1-9][0-9]{0,6}/[1-9][0-9]{0,6}", value)),
        "i/n",
    ),
    "host": TEXT,
    "pid": COUNT,
    "started": TEXT,
}
_FAILED: Shape = {"failed": TEXT, "failures?": _LINES}
_LOST: Shape = {"lost": (lambda value: value is True, "true")}
_DONE: Shape = {
    "samples": COUNT,
    "bytes": COUNT,
    "digest": _DIGEST,
    "labels": (
        lambda value: value is None or (_are_rising(value, -1 << 53) and len(value) == 2),
        "null or the smallest and the largest label",
    ),
    "failures": _LINES,
    "seconds": (lambda value: type(value) in (int, float) and 0 <= value < 1e12, "a number from 0"),
    "skipped?": _LINES,
    "file_size?": COUNT,
    "end?": (lambda value: isinstance(value, dict) and all(map(_is_count, value.values())), "an object of numbers"),
}


def checked_summary(value: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a job; raise a ValueError if `value` is not one."""
    check_shape(value, _SUMMARY)
    return value


def check_line(value: Mapping[str, Any], shards: int) -> None:
    """Raise a ValueError if `value` is not a line of the journal of a job with so many shards."""
    if "run" in value:
        check_shape(value, {"run": OBJECT})
        check_shape(value["run"], _RUN)
    else:
        shard = (lambda number: _is_count(number, end=shards), f"a number from 0 to {shards - 1:,}")
        check_shape(value, {"shard": shard, **(_LOST if "lost" in value else _FAILED if "failed" in value else _DONE)})
