"""The plan of a job: its inputs and options, cut into shards. The same inputs give the same plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from facedata.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Part", "Plan", "cut_by_size", "shard_count"]

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

    def shards(self, plan: Plan) -> range:
        """The shards of `plan` that belong to this part: neighbours, as files are read fastest in order."""
        return range(plan.shards * (self.number - 1) // self.count, plan.shards * self.number // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


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
    """

    command: str
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    samples: int
    shards: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[int, ...] | None = None

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
        return {**self.deciding(), "fingerprint": self.fingerprint, "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` made.

        Raises
        ------
        ValueError
            If it is not a plan, or another version of facedata wrote it.
        """
        version = value.get("version", 1)
        if version != _VERSION:
            raise ValueError(
                f"was written by another version of facedata (plan version {version}; this one continues version "
                f"{_VERSION}): finish the job with that version, or start it again with --overwrite"
            )
        plan = cls(
            value["command"],
            dict(value["inputs"]),
            dict(value["options"]),
            int(value["samples"]),
            int(value["shards"]),
            dict(value["facts"]),
            None if value.get("ends") is None else tuple(map(int, value["ends"])),
        )
        if plan.ends is not None and len(plan.ends) != plan.shards:
            raise ValueError(f"{len(plan.ends)} ends of {plan.shards} shards")
        return plan

    def differences(self, other: Plan) -> list[str]:
        """How `other`, the job whose output exists, differs from this plan, in words."""
        mine, theirs = _causes(self), _causes(other)
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return [f"{name} was {theirs.get(name, 'none')}, is now {mine.get(name, 'none')}" for name in names]


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
