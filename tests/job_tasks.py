"""Tasks and outputs for tests of jobs, in a module that worker processes can import."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from facedata.dataset import OrderedOutput, OrderedWriter, Output, Publish
from facedata.errors import ModelError, OutputLockedError
from facedata.jobs.engine import report_progress
from facedata.jobs.journal import ShardLock, ShardResult

HELD = ExitStack()
COUNTS = ("samples", "bytes", "failures", "skipped", "largest_label")
SUMMARY: dict[str, Any] = {**dict.fromkeys(COUNTS, 0), "digest": "00", "facts": {}}


def result(samples: int = 1) -> ShardResult:
    return ShardResult(samples, 10 * samples, "00000000", (0, 0), (), 0.0)


@dataclass(frozen=True)
class Note:
    """Leaves a file named after its shard; sleeps first if asked to."""

    folder: str
    shard: int
    seconds: float = 0.0

    def __call__(self) -> ShardResult:
        Path(self.folder, f"begun-{self.shard}").touch()
        time.sleep(self.seconds)
        Path(self.folder, f"done-{self.shard}").touch()
        return result()


@dataclass(frozen=True)
class Count(Note):
    """As `Note`, and reports four samples, one after another."""

    def __call__(self) -> ShardResult:
        for done in range(4):
            report_progress(done, 4)
            Path(self.folder, f"begun-{self.shard}").touch()
            time.sleep(self.seconds / 4)
        return replace(Note(self.folder, self.shard)(), samples=4)


@dataclass(frozen=True)
class KillSelf:
    """Kills its worker, the first `times` times that it runs: at work, or while that is sending a large result."""

    folder: str
    shard: int
    times: int = 1
    sending: bool = False

    def __call__(self) -> ShardResult:
        block = bytes(10_000) if self.sending else None
        tried = len(list(Path(self.folder).glob(f"killed-{self.shard}-*")))
        if tried == self.times:
            return replace(Note(self.folder, self.shard)(), block=block)
        Path(self.folder, f"killed-{self.shard}-{tried}").touch()
        if not self.sending:
            os.kill(os.getpid(), signal.SIGKILL)
        Connection._send = _send_half_and_die  # type: ignore[attr-defined]
        return replace(result(), block=block)


def _send_half_and_die(connection: Connection, buffer: memoryview) -> None:
    os.write(connection.fileno(), bytes(buffer[: len(buffer) // 2]))
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FullDisk:
    """Fails as a write to a full disk does."""

    seconds: float = 0.0

    def __call__(self) -> ShardResult:
        time.sleep(self.seconds)
        raise OSError(28, "No space left on device")


@dataclass
class PlainOutput(Output):
    """A job output that keeps whatever the tasks leave."""

    root: str

    def owns(self, name: str) -> bool:
        return name.startswith(("begun-", "done-", "killed-"))


@dataclass(frozen=True)
class Encode:
    """Makes the block of a shard ready: its number, as a line; some take longer than those behind them."""

    folder: str
    shard: int
    kill_times: int = 0

    def __call__(self) -> ShardResult:
        time.sleep(0.02 * (self.shard % 3 == 0))
        if self.kill_times:
            KillSelf(self.folder, self.shard, self.kill_times)()
        return replace(result(), block=b"%d\n" % self.shard)


@dataclass(frozen=True)
class LineFile(OrderedOutput):
    """An output with a single writer: a file with a line for each shard, and beside it the last line committed."""

    root: str
    die_at: tuple[int, str] | None = None

    def owns(self, name: str) -> bool:
        return name in ("lines", "lines.building", "last") or name.startswith(("begun-", "done-", "killed-"))

    def files(self, shards: int) -> list[str]:
        return [os.path.join(self.root, "lines")]

    def open_writer(self, ends: Mapping[int, Mapping[str, Any]]) -> LineWriter:
        return LineWriter(self, ends)

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        building = Path(self.root, "lines.building")
        if building.exists():
            publish(building, Path(self.root, "lines"))
        return {"lines": shards}

    def clean_up(self) -> None:
        Path(self.root, "last").unlink(missing_ok=True)


class LineWriter(OrderedWriter):
    """Commits a shard by leaving its entry in a file of its own."""

    def __init__(self, output: LineFile, ends: Mapping[int, Mapping[str, Any]]) -> None:
        self._output, self._last = output, Path(output.root, "last")
        self.done, unrecorded = len(ends), list[Mapping[str, Any]]()
        self.unrecorded = unrecorded
        end = ends[self.done - 1]["bytes"] if ends else 0
        if self._last.exists() and (entry := json.loads(self._last.read_text()))["shard"] == self.done:
            self.done, end = self.done + 1, entry["end"]["bytes"]
            unrecorded.append(entry)
        self._file = open(Path(output.root, "lines.building"), "ab", buffering=0)  # noqa: SIM115, closed on exit
        self._file.truncate(end)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, shard: int, block: bytes) -> Mapping[str, Any]:
        self._file.write(block)
        self._die(shard, "written")
        return {"bytes": self._file.tell()}

    def commit(self, entry: Mapping[str, Any]) -> None:
        temporary = self._last.with_suffix(".new")
        temporary.write_text(json.dumps(entry))
        temporary.rename(self._last)
        self._die(entry["shard"], "committed")

    def _die(self, shard: int, phase: str) -> None:
        if self._output.die_at == (shard, phase):
            os.kill(os.getpid(), signal.SIGKILL)


def hold_shards(lock: Path, first: int, end: int) -> str:
    """Lock these shards, in place of those before, while the process lives; returns why that was refused, if it was."""
    HELD.close()
    try:
        HELD.enter_context(ShardLock(lock)).take(range(first, end))
    except OutputLockedError as error:
        return str(error)
    return "taken"


# Functions for `run_isolated`


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do in the subprocess what the request names, or return it."""
    kind = request.get("kind")
    if kind == "abort":
        os.abort()
    if kind == "exit":
        sys.stderr.write("out of cheese\n")
        sys.exit(3)
    if kind == "sleep":
        time.sleep(60)
    if kind == "allocate":
        bytearray(1 << 40)
    if kind == "import":
        raise ImportError("libcudart.so is missing")
    if kind == "refuse":
        raise ModelError("net.onnx: is not a model")
    return request
