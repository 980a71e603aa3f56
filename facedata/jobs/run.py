"""Running a job: shards to an executor, results to the journal, until all are done or somebody says stop."""

from __future__ import annotations

import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Protocol

from facedata.errors import InterruptedJobError, WorkerStartError
from facedata.jobs.executors import ExecutorFactory
from facedata.jobs.journal import ShardResult
from facedata.jobs.signals import StopRequest, stop_on_signals

__all__ = ["Recorder", "ShardTask", "run_shards"]

GRACE = 10.0
"""Seconds that shards being worked on have to finish after a request to stop; SLURM kills after 30."""
_TICK = 0.25
_TICKS_TO_NOTICE = 2
_DEATHS_TO_FAIL = 2
_IDLE_DEATHS_TO_FAIL = 5

_log = logging.getLogger(__name__)

ShardTask = Callable[[], ShardResult]
"""Does one shard; picklable, for it is sent to a worker."""


class Recorder(Protocol):
    """Keeps what the shards come to."""

    def has_room(self, shard: int) -> bool:
        """Whether `shard` may be begun now; where nothing else is at work it always may."""
        ...

    def add(self, shard: int, result: ShardResult) -> None:
        """Keep the result of a shard."""
        ...

    def fail(self, shard: int, reason: str) -> bool:
        """Note that a shard cannot be done; returns whether the others can be done without it."""
        ...

    def tick(self) -> None:
        """Called a few times a second."""
        ...

    def counts(self) -> tuple[int, int]:
        """How many shards are done, and how many there are."""
        ...


@dataclass(frozen=True)
class _Sendable:
    """A task whose errors can be sent back: one that cannot be unpickled would look like a worker's death."""

    task: ShardTask

    def __call__(self) -> ShardResult:
        try:
            return self.task()
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
            except Exception:
                raise RuntimeError(f"{type(error).__name__}: {error}") from error
            raise


@dataclass
class _Shards:
    """The shards of this run that are still to do."""

    waiting: deque[int]
    suspects: deque[int]
    deaths: dict[int, int]

    def __len__(self) -> int:
        return len(self.waiting) + len(self.suspects)


def run_shards(
    todo: Iterable[int],
    make_task: Callable[[int], ShardTask],
    *,
    recorder: Recorder,
    workers: int,
    executor_factory: ExecutorFactory,
) -> None:
    """Do the shards `todo`, at most ``workers + 1`` of them at a time, and hand each result to the recorder.

    A worker that dies takes the whole executor with it; the shards that were being worked on are then tried again,
    one at a time, and one that has been part of two deaths and alone in the second is recorded as failed.

    Parameters
    ----------
    todo : iterable of int
    make_task : callable
        Gives the task of a shard; called just before it is handed to the executor.
    recorder : Recorder
    workers : int
    executor_factory : callable

    Raises
    ------
    InterruptedJobError
        After SIGINT or SIGTERM.
    Exception
        Whatever a task raises ends the run: tasks record bad samples themselves, so this is a full disk or a bug.
    """
    runner = _Runner(_Shards(deque(todo), deque(), {}), make_task, recorder, workers, executor_factory)
    with stop_on_signals() as stop:
        runner.run(stop)


class _Runner:
    def __init__(
        self,
        shards: _Shards,
        make_task: Callable[[int], ShardTask],
        recorder: Recorder,
        workers: int,
        executor_factory: ExecutorFactory,
    ) -> None:
        self._shards, self._make_task, self._recorder = shards, make_task, recorder
        self._workers, self._executor_factory = workers, executor_factory
        self._running: dict[Future[ShardResult], int] = {}
        self._idle_deaths = self._ticks_with_dead = 0

    def run(self, stop: StopRequest) -> None:
        while self._shards and not stop:
            executor = self._executor_factory(
                min(self._workers, len(self._shards.waiting) + len(self._shards.suspects))
            )
            try:
                self._use(executor, stop)
            except BaseException:
                for future in self._running:
                    future.cancel()
                _kill(executor)
                raise
            finally:
                executor.shutdown(wait=True)
        if stop:
            done, shards = self._recorder.counts()
            raise InterruptedJobError(f"stopped by {stop.signal_name}: {done} of {shards} shards are done")

    def _use(self, executor: Executor, stop: StopRequest) -> None:
        """Give shards to one executor, until none is left, it breaks, or there is a request to stop."""
        while (self._shards or self._running) and not stop:
            self._submit(executor)
            if not self._running:
                _kill(executor)
                self._note_idle_death()
                return
            done, _ = wait(self._running, timeout=_TICK, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenExecutor) for future in done) or self._is_stuck(executor, done):
                self._note_deaths(executor, stop)
                return
            self._collect(done)
            self._recorder.tick()
        if stop:
            self._drain(executor, stop)

    def _is_stuck(self, executor: Executor, done: Collection[Future[ShardResult]]) -> bool:
        """Whether a worker has been dead for a while, and the executor has not noticed."""
        has_dead_worker = getattr(executor, "has_dead_worker", bool)
        self._ticks_with_dead = self._ticks_with_dead + 1 if not done and has_dead_worker() else 0
        return self._ticks_with_dead > _TICKS_TO_NOTICE

    def _submit(self, executor: Executor) -> None:
        alone = bool(self._shards.suspects)
        while len(self._running) < (1 if alone else self._workers + 1):
            queue = self._shards.suspects if self._shards.suspects else self._shards.waiting
            if not queue or (alone and queue is self._shards.waiting):
                return
            if self._running and not self._recorder.has_room(queue[0]):
                return
            shard = queue.popleft()
            task = _Sendable(self._make_task(shard))
            try:
                self._running[executor.submit(task)] = shard
                continue
            except BrokenExecutor:
                pass
            except OSError as error:
                raise WorkerStartError(
                    f"{self._workers} workers cannot be started: {error.strerror}; give fewer --workers, or ask for a "
                    "larger limit (ulimit -u, ulimit -n)"
                ) from error
            queue.appendleft(shard)
            return

    def _collect(self, done: Iterable[Future[ShardResult]]) -> None:
        for future in done:
            shard = self._running.pop(future)
            self._recorder.add(shard, future.result())

    def _note_deaths(self, executor: Executor, stop: StopRequest) -> None:
        """A worker died, and with it the executor: find out what each shard that was running came to."""
        _kill(executor)  # a worker that was just starting may have missed the executor's own SIGTERM, and be waited for
        time.sleep(_TICK)  # where SIGTERM went to the whole process group, our own copy of it is on its way
        unfinished = []
        for future, shard in self._running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._recorder.add(shard, future.result())
            else:
                unfinished.append(shard)
        self._running.clear()
        if not stop:
            for shard in unfinished:
                self._note_death(shard, alone=len(unfinished) == 1)

    def _note_idle_death(self) -> None:
        """The executor broke while nothing was running: no shard is to blame, but it must not go on for ever."""
        self._idle_deaths += 1
        if self._idle_deaths > _IDLE_DEATHS_TO_FAIL:
            raise RuntimeError(f"the workers died {self._idle_deaths} times before they were given any work")

    def _note_death(self, shard: int, *, alone: bool) -> None:
        self._shards.deaths[shard] = deaths = self._shards.deaths.get(shard, 0) + 1
        if alone and deaths >= _DEATHS_TO_FAIL:
            reason = "its worker was killed twice (out of memory?)"
            _log.error("shard %d: %s", shard, reason)
            if not self._recorder.fail(shard, reason):
                self._shards.waiting.clear()
                self._shards.suspects.clear()
            return
        _log.warning("a worker was killed (out of memory?); shard %d is tried again by itself", shard)
        self._shards.suspects.append(shard)

    def _drain(self, executor: Executor, stop: StopRequest) -> None:
        """Finish what is being worked on if that goes quickly; drop the rest."""
        _log.warning("%s: finishing the shards at work; once more drops them", stop.signal_name)
        for future in list(self._running):
            if future.cancel():
                del self._running[future]
        deadline = time.monotonic() + GRACE
        while self._running and time.monotonic() < deadline and not stop.at_once:
            done, _ = wait(self._running, timeout=_TICK, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenExecutor) for future in done):
                break
            self._collect(done)
            self._recorder.tick()
        _kill(executor)


def _kill(executor: Executor) -> None:
    """End the workers at once, where the executor can; the shards they were at are simply not done."""
    kill = getattr(executor, "kill", None)
    if kill is not None:
        kill()
