"""Tasks for the tests of the engine, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facedata.jobs.journal import ShardResult


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
class KillSelf:
    """Kills its worker, the first `times` times that it runs."""

    folder: str
    shard: int
    times: int

    def __call__(self) -> ShardResult:
        for attempt in range(self.times):
            mark = Path(self.folder, f"killed-{self.shard}-{attempt}")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return Note(self.folder, self.shard)()


@dataclass(frozen=True)
class FullDisk:
    """Fails as a write to a full disk does."""

    def __call__(self) -> ShardResult:
        raise OSError(28, "No space left on device")


@dataclass
class PlainOutput:
    """A job output that keeps whatever the tasks leave."""

    root: str
    finished: int = 0

    def owns(self, name: str) -> bool:
        return name.startswith(("begun-", "done-", "killed-"))

    def named_files(self) -> list[str]:
        return []

    def prepare(self) -> None: ...

    def finish(self, shards: int) -> Mapping[str, Any]:
        self.finished += 1
        return {"shards": shards}

    def clean_up(self) -> None: ...
