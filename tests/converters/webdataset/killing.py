"""A source that ends processes, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support import MemorySource

from facedata.dataset import Sample
from facedata.errors import SampleError

PARENT, WORKER = "parent", "worker"


@dataclass(frozen=True)
class KillingSource(MemorySource):
    """Kills with SIGKILL, once, when the sample of the key `at` is asked for."""

    at: str = ""
    victim: str = PARENT
    mark: str = ""

    def read(self) -> Iterator[Sample | SampleError]:
        for item in self.items:
            if item.key == self.at and not Path(self.mark).exists():
                Path(self.mark).touch()
                os.kill(os.getppid() if self.victim == PARENT else os.getpid(), signal.SIGKILL)
                signal.pause()
            yield item
