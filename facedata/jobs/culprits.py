"""The search for the samples of a shard that end its worker: a decoder that crashes, a model that takes all memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from facedata.errors import WorkerCrashError
from facedata.jobs.journal import ShardResult

__all__ = ["CulpritSearch", "DivisibleTask"]

_FEW = 10  # samples that may crash a worker whatever the size of the job; beyond that, one in a hundred
_PAIR = 2  # so many samples of a small job may be all that there are


@runtime_checkable
class DivisibleTask(Protocol):
    """The task of a shard that can be done for some of its samples."""

    @property
    def samples(self) -> range:
        """The numbers of its samples in the job."""
        ...

    def part(self, samples: range, culprits: Mapping[int, str]) -> DivisibleTask:
        """The task for these of its samples; `culprits` fail for the reason given there, and are not even read."""
        ...

    def __call__(self) -> ShardResult:
        """Do it. A part writes where the whole task writes, which is then done again from its start."""
        ...


class CulpritSearch:
    """Halves the samples of a shard that has killed its worker, until it is known which of them do so.

    Each range is tried by itself. A sample is blamed if it ends its worker twice, with no other sample, the second time
    in a new process: a worker may also be killed because other processes take the memory. When the search is over, the
    whole task is done without the samples that are to blame.

    Attributes
    ----------
    culprits : dict of int to str
        The samples that are to blame, and why.
    """

    def __init__(self, task: DivisibleTask) -> None:
        self.culprits: dict[int, str] = {}
        self._count = len(task.samples)
        self._left = [task.samples]  # ranges to try, the next one last; none of them holds a sample of another
        self._accused = -1

    @property
    def over(self) -> bool:
        """Whether every range was tried."""
        return not self._left

    def next_task(self, task: DivisibleTask) -> DivisibleTask:
        """What is to be done next of the task of the shard."""
        return task.part(self._left[-1] if self._left else task.samples, self.culprits)

    def survived(self) -> None:
        """Note that the last part was done."""
        self._left.pop()

    def died(self, how: str) -> bool:
        """Note that the last part ended its worker; `how` says how it ended. Return whether a sample is to blame."""
        samples = self._left[-1]
        if len(samples) > 1:
            self._left.pop()
            middle = len(samples) // 2
            self._left += [samples[middle:], samples[:middle]]
        elif samples.start == self._accused:
            self._left.pop()
            self.culprits[samples.start] = f"crashed its worker ({how}), twice and by itself"
            return True
        else:
            self._accused = samples.start
        return False

    def check(self, culprits: int, samples: int) -> None:
        """Raise `WorkerCrashError` if so many samples are to blame that the fault is hardly theirs.

        That is `culprits` of the `samples` that are done in this run, or all samples of this shard.
        """
        if culprits > max(_FEW, samples // 100) or (len(self.culprits) == self._count > _PAIR):
            last = max(self.culprits)
            raise WorkerCrashError(
                f"{culprits} samples end the process that works on them; sample {last} of the input, counted from 0, "
                f"{self.culprits[last]}. So many are hardly all damaged: check the libraries, the model and the "
                "memory, and run the same command again to resume, perhaps with fewer --workers"
            )
