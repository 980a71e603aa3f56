"""Running shards on an executor until all are done or a stop is requested, and recording results and progress."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING, Any

from facedata.dataset import OrderedWriter
from facedata.errors import InterruptedJobError, TooManyFailuresError, WorkerStartError
from facedata.files import no_later
from facedata.jobs.journal import JobState, JournalWriter, ShardResult, done_entry
from facedata.jobs.signals import StopRequest, stop_on_signals
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.jobs.culprits import CulpritSearch

__all__ = [
    "ExecutorFactory",
    "LocalExecutor",
    "Observer",
    "Progress",
    "ProgressMeter",
    "Recorder",
    "ShardRunner",
    "ShardTask",
    "check_in_place",
    "die_with_parent",
    "report_progress",
]

GRACE = 10.0
"""Seconds that running shards have to finish after a request to stop; SLURM kills after 30."""
_TICK = 0.25
_TICKS_TO_NOTICE = 2
_DEATHS_TO_FAIL = 2
_IDLE_DEATHS_TO_FAIL = 5
_BLOCKS_AHEAD = 2
_MOST_BLOCKS_AHEAD = 16  # blocks in memory at once, however many workers there are

_SECONDS_TO_LOSE = 2.0  # of work on a shard, which a stop may drop
_SLOTS = 4096  # far more shards than run at once
_BEGUN, _REPORTED = 1, 2  # what is in a slot: 0, or this, or this and the samples done

_PR_SET_PDEATHSIG = 1
_TICK_AT_END = 0.1
_SECONDS_TO_END = 2.0  # for workers that are idle, after one of them died

_log = logging.getLogger(__name__)

ShardTask = Callable[[], ShardResult]
"""Does one shard; picklable, because it is sent to a worker."""

ExecutorFactory = Callable[[int], Executor]
"""Makes an executor with that many workers; called again after the workers of the last one died."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    total, before, done : int
        Samples of this run, including those that earlier runs did; of these, done by earlier runs; delivered or failed
        so far.
    bytes, failures : int
        Of this run.
    seconds : float
        Since this run began.
    """

    total: int
    before: int
    done: int
    bytes: int
    failures: int
    seconds: float

    @property
    def rate(self) -> float:
        """Samples per second in this run."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def byte_rate(self) -> float:
        """Bytes per second in this run."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time left at this rate, or None before there is a rate."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


Observer = Callable[[Progress], None]
"""Called a few times a second while a job runs, and once when it ends."""


class ProgressMeter:
    """Counts what is done and calls an observer; `total` and `before` as for `Progress`."""

    def __init__(self, total: int, before: int, observer: Observer | None) -> None:
        self._total, self._before, self._observer = total, before, observer
        self._done, self._bytes, self._failures, self._underway = before, 0, 0, 0
        self._begin = time.monotonic()

    def add(self, samples: int, size: int, failures: int) -> None:
        """Count a shard."""
        self._done += samples + failures
        self._bytes += size
        self._failures += failures

    def tick(self, underway: int = 0) -> None:
        """Call the observer, so that a display goes on; `underway` samples are done, of shards that are not."""
        self._underway = underway
        if self._observer:
            self._observer(self.progress())

    def progress(self) -> Progress:
        """The progress now."""
        seconds = time.monotonic() - self._begin
        done = min(self._done + self._underway, self._total)
        return Progress(self._total, self._before, done, self._bytes, self._failures, seconds)


class Recorder:
    """Records the results of shards in the journal; for an output with a single writer, first in the output.

    Without a writer, shards are recorded in the order in which they end. With one, their blocks are written in the
    order of the shards. A block that ends early waits in memory, so only a few shards run ahead of the next one.

    Once more samples of the whole job than `failures_allowed` have failed, `TooManyFailuresError` is raised.

    Attributes
    ----------
    check : callable
        Called before anything is written, also in the workers: raises if the output is not in its place any more.
    """

    def __init__(
        self,
        state: JobState,
        journal: JournalWriter,
        meter: ProgressMeter,
        writer: OrderedWriter | None = None,
        workers: int = 1,
        failures_allowed: int | None = None,
    ) -> None:
        self.state, self.meter, self._failures_allowed = state, meter, failures_allowed
        self._journal, self._writer, self.check = journal, writer, journal.check_in_place
        self._next = 0 if writer is None else writer.done
        self._window = min(workers + _BLOCKS_AHEAD, _MOST_BLOCKS_AHEAD)
        self._waiting: dict[int, ShardResult] = {}

    def has_room(self, shard: int) -> bool:
        """Whether `shard` may start now."""
        return self._writer is None or shard < self._next + self._window

    def add(self, shard: int, result: ShardResult) -> bool:
        """Record that `shard` is done, once all shards before it are written; return whether others can be done too."""
        if self._writer is None:
            return self._note(shard, result, None)
        self._waiting[shard] = result
        while (ready := self._waiting.pop(self._next, None)) is not None:
            if not self._note(self._next, ready, self._writer):
                return False
            self._next += 1
        return True

    def _note(self, shard: int, result: ShardResult, writer: OrderedWriter | None) -> bool:
        self.check()
        transient = [failure for failure in result.failures if failure.get("transient")]
        if transient and self._failures_allowed is None:  # the next run does the shard again
            first = transient[0]
            reason = f"{counted(len(transient), 'sample')} not read: {first['set']}: {first['key']}: {first['reason']}"
            _log.error(
                "shard %d: %s; the same command tries again, --max-failures gives such samples up", shard, reason
            )
            return self.fail(shard, reason, transient)
        if writer is None:
            entry = done_entry(shard, result)
        else:
            entry = done_entry(shard, result, writer.write(shard, result.block))
            self.check()
            writer.commit(entry)
        self._journal.append(entry)
        self.state.add(shard, entry)
        self.meter.add(result.samples + len(result.skipped), result.bytes, len(result.failures))
        if self._failures_allowed is not None and self.state.failures > self._failures_allowed:
            raise TooManyFailuresError
        return True

    def tick(self, underway: int) -> None:
        """Show the progress, with samples of running shards and of those that wait for an earlier one."""
        waiting = sum(result.samples + len(result.failures) + len(result.skipped) for result in self._waiting.values())
        self.meter.tick(underway + waiting)

    def fail(self, shard: int, reason: str, failures: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Record that `shard` cannot be done; return whether the others can be done without it."""
        entry = {"shard": shard, "failed": reason, **({"failures": failures} if failures else {})}
        self._journal.append(entry)
        self.state.add(shard, entry)
        return self._writer is None


@dataclass(frozen=True)
class _PicklableTask:
    """A task whose errors can be sent back: an error that cannot be unpickled would look like a dead worker."""

    task: ShardTask
    shard: int
    check: Callable[[], None]
    latest: tuple[int, bool] | None = None

    def __call__(self) -> ShardResult:
        global _slot
        _slot = 2 * (self.shard % _SLOTS)
        if _counts is not None:
            _counts[_slot] = _BEGUN
        try:
            self.check()
            _running.check = self.check
            with no_later(self.latest):
                return self.task()
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
            except Exception:
                raise RuntimeError(f"{type(error).__name__}: {error}") from error
            raise


_counts: Any = None  # in a worker: for each slot, the samples done and all samples of a running shard
_slot = 0
_running = threading.local()  # its `check` is that of the task that runs in a thread


def check_in_place() -> None:
    """Raise, in a task that is about to write by name, if the folder of its job is not in its place any more."""
    getattr(_running, "check", bool)()


def report_progress(done: int, total: int) -> None:
    """Report, in a task that is at work, how many of its samples are done; costs less than a microsecond."""
    if _counts is not None:
        _counts[_slot + 1] = total
        _counts[_slot] = _REPORTED + done


class ShardRunner:
    """Runs shards on executors, at most ``workers + 1`` of them at a time.

    A worker that dies breaks the whole executor. The shards that were running are then tried again, one at a time. If
    one ends its worker twice by itself, the samples that are to blame are searched for, and it is done without them. If
    none is to blame, or its task cannot be divided, it is recorded as failed.

    `make_task` gives the task of a shard, just before it is submitted; `executor_factory` is called again after the
    workers of the last executor died. In the tasks images that are later than `latest` are refused, see `no_later`.
    """

    def __init__(
        self,
        todo: Iterable[int],
        make_task: Callable[[int], ShardTask],
        recorder: Recorder,
        workers: int,
        executor_factory: ExecutorFactory,
        latest: tuple[int, bool] | None = None,
    ) -> None:
        self._todo, self._latest = list(todo), latest
        self._waiting, self._suspects = deque(self._todo), deque[int]()
        self._begun: dict[int, float] = {}
        self._counts: Any = None
        self._deaths: dict[int, int] = {}
        self._searches: dict[int, CulpritSearch] = {}
        self._culprits = 0
        self._make_task, self._recorder = make_task, recorder
        self._workers, self._executor_factory = workers, executor_factory
        self._running: dict[Future[ShardResult], int] = {}

    def run(self) -> None:
        """Run all shards.

        Raises
        ------
        InterruptedJobError
            After SIGINT or SIGTERM.
        Exception
            Whatever a task raises ends the run: tasks record bad samples themselves, so this is a full disk or a bug.
        """
        idle_deaths = 0
        with stop_on_signals() as stop:
            while (self._waiting or self._suspects) and not stop:
                executor = self._executor_factory(min(self._workers, len(self._waiting) + len(self._suspects)))
                try:
                    was_idle = self._use(executor, stop)
                except BaseException:
                    for future in self._running:
                        future.cancel()
                    _kill(executor)
                    raise
                finally:
                    executor.shutdown(wait=True)
                idle_deaths += was_idle
                if idle_deaths > _IDLE_DEATHS_TO_FAIL:
                    raise RuntimeError(f"the workers died {idle_deaths} times before they were given any work")
            state = self._recorder.state
            done = state.done
            if stop and not all(done[shard] or shard in state.failed_shards for shard in self._todo):
                raise InterruptedJobError(f"stopped by {stop.signal_name}: {sum(done)} of {len(done)} shards are done")

    def _use(self, executor: Executor, stop: StopRequest) -> bool:
        """Give shards to one executor until none is left, it breaks, or a stop is requested.

        Returns whether it broke while no shard was running, so that no shard is to blame.
        """
        has_dead_worker = getattr(executor, "has_dead_worker", bool)
        self._counts = getattr(executor, "counts", None)
        ticks_with_dead_worker = 0
        while (self._waiting or self._suspects or self._running) and not stop:
            # submit as many shards as may run; suspects run alone
            queue, most = (self._suspects, 1) if self._suspects else (self._waiting, self._workers + 1)
            while queue and len(self._running) < most and not (self._running and not self._recorder.has_room(queue[0])):
                task = self._make_task(queue[0])
                if (search := self._searches.get(queue[0])) is not None:
                    task = search.next_task(task)  # type: ignore[arg-type]
                self._begun.pop(queue[0], None)
                if self._counts is not None:
                    self._counts[2 * (queue[0] % _SLOTS)] = 0
                try:
                    future = executor.submit(_PicklableTask(task, queue[0], self._recorder.check, self._latest))
                except BrokenExecutor:
                    break
                except OSError as error:
                    raise WorkerStartError(
                        f"{self._workers} workers cannot be started: {error.strerror}; give fewer --workers, or ask "
                        "for a larger limit (ulimit -u, ulimit -n)"
                    ) from error
                self._running[future] = queue.popleft()
            if not self._running:
                _kill(executor)
                return True
            done, _ = wait(self._running, timeout=_TICK, return_when=FIRST_COMPLETED)
            broken = any(isinstance(future.exception(), BrokenExecutor) for future in done)
            # a worker that dies while it sends a result breaks no executor: the executor waits for the rest
            ticks_with_dead_worker = ticks_with_dead_worker + 1 if not done and has_dead_worker() else 0
            if broken or ticks_with_dead_worker > _TICKS_TO_NOTICE:
                self._handle_dead_worker(executor, stop)
                return False
            self._collect(done)
        if stop:
            self._drain(executor, stop)
        return False

    def _collect(self, done: Iterable[Future[ShardResult]]) -> None:
        for future in sorted(done, key=self._running.__getitem__):  # not in the order of their addresses
            self._finish(self._running.pop(future), future.result())
        underway, now = 0, time.monotonic()
        for shard in self._running.values() if self._counts is not None else ():
            if count := self._counts[2 * (shard % _SLOTS)]:
                self._begun.setdefault(shard, now)
                underway += max(count - _REPORTED, 0)
        self._recorder.tick(underway)

    def _finish(self, shard: int, result: ShardResult) -> None:
        search = self._searches.get(shard)
        if search is None or search.over:
            if not self._recorder.add(shard, result):
                self._waiting.clear()
                self._suspects.clear()
        else:
            search.survived()
            self._suspects.appendleft(shard)

    def _handle_dead_worker(self, executor: Executor, stop: StopRequest) -> None:
        """Keep the results that arrived before the executor broke, and plan to try the other shards again."""
        _kill(executor)  # a worker that was just starting may have missed the executor's own SIGTERM
        time.sleep(_TICK)  # if SIGTERM went to the whole process group, it arrives here now
        unfinished = []
        for future, shard in self._running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._finish(shard, future.result())
            else:
                unfinished.append(shard)
        self._running.clear()
        if stop:
            return
        how = getattr(executor, "ending", lambda: "reason unknown")()
        for shard in unfinished:
            search = self._searches.get(shard)
            self._deaths[shard] = deaths = self._deaths.get(shard, 0) + (len(unfinished) == 1)
            if search is not None and not search.over:
                if search.died(how):
                    self._culprits += 1
                    progress = self._recorder.meter.progress()
                    search.check(self._culprits, progress.done - progress.before)
                self._suspects.appendleft(shard)
            elif deaths < _DEATHS_TO_FAIL:
                _log.warning("a worker was killed (%s); shard %d is tried again by itself", how, shard)
                self._suspects.append(shard)
            elif search is None and self._begin_search(shard, how):
                _log.warning("a worker was killed again (%s); looking for the sample of shard %d to blame", how, shard)
                self._suspects.appendleft(shard)
            else:
                reason = f"its worker was killed twice ({how})"
                if search is not None:
                    reason = f"its worker is killed ({how}), though none of its samples does that by itself"
                _log.error("shard %d: %s", shard, reason)
                if not self._recorder.fail(shard, reason):
                    self._waiting.clear()
                    self._suspects.clear()

    def _begin_search(self, shard: int, how: str) -> bool:
        """Begin to look for the samples of a shard that end its worker; return False if its task cannot be divided."""
        from facedata.jobs.culprits import CulpritSearch, DivisibleTask

        task = self._make_task(shard)
        if isinstance(task, DivisibleTask):
            self._searches[shard] = search = CulpritSearch(task)
            search.died(how)
        return shard in self._searches

    def _drain(self, executor: Executor, stop: StopRequest) -> None:
        """Let running shards finish if they do so soon and have done much; drop the others."""
        for future in list(self._running):
            if future.cancel():
                del self._running[future]
        deadline = time.monotonic() + GRACE
        if any(map(self._is_worth_waiting, self._running.values())):
            _log.warning("%s: finishing the running shards; a second signal drops them", stop.signal_name)
        while any(map(self._is_worth_waiting, self._running.values())):
            if time.monotonic() > deadline or stop.at_once:
                break
            done, _ = wait(self._running, timeout=_TICK, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenExecutor) for future in done):
                break
            self._collect(done)
        _kill(executor)

    def _is_worth_waiting(self, shard: int) -> bool:
        """Whether a running shard would lose much if it was dropped, and is likely to end soon; True if unknown."""
        if self._counts is None:
            return True
        count, total = self._counts[(slot := 2 * (shard % _SLOTS)) : slot + 2]
        if count <= _BEGUN:
            return bool(count)
        seconds, done = time.monotonic() - self._begun.get(shard, time.monotonic()), count - _REPORTED
        return done > 0 and seconds >= _SECONDS_TO_LOSE and seconds * (total - done) / done <= GRACE


def _kill(executor: Executor) -> None:
    """End the workers at once if the executor can; their shards are simply not done."""
    kill = getattr(executor, "kill", None)
    if kill is not None:
        kill()


class LocalExecutor(ProcessPoolExecutor):
    """Processes on this machine that die with their parent, however it dies."""

    def __init__(self, workers: int) -> None:
        self.counts = RawArray(ctypes.c_long, 2 * _SLOTS)
        super().__init__(workers, mp_context=_context(), initializer=_start_worker, initargs=(self.counts,))

    def kill(self) -> None:
        """Kill the workers at once, whatever they are doing.

        A worker that was sending a result leaves a part of it in the pipe. The executor's own thread would wait for
        the rest forever, because this process holds the pipe open for writing too: so close it.
        """
        for process in list((self._processes or {}).values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(AttributeError, OSError):
            self._result_queue._writer.close()  # type: ignore[attr-defined]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers. One that is killed just now may hold a lock that the others need to end: kill those too."""
        manager: threading.Thread | None = self._executor_manager_thread  # type: ignore[assignment]
        processes = list((self._processes or {}).values())
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        if wait and manager is not None:
            while manager.is_alive() and not any(process.exitcode for process in processes):
                manager.join(_TICK_AT_END)
            manager.join(_SECONDS_TO_END)
            for process in processes if manager.is_alive() else ():
                process.kill()
            manager.join()

    def ending(self) -> str:
        """How the worker ended that ended first, as far as that is known: ``"SIGSEGV"``."""
        codes = {process.exitcode or 0 for process in list((self._processes or {}).values())}
        if crashes := codes - {0, -signal.SIGKILL, -signal.SIGTERM}:  # these two also end the others
            code = max(crashes)
            return f"exit status {code}" if code > 0 else signal.Signals(-code).name
        return "out of memory?"

    def has_dead_worker(self) -> bool:
        """Whether a worker has ended. The executor does not notice while it waits for the rest of a result."""
        sentinels = [process.sentinel for process in list((self._processes or {}).values())]
        return bool(sentinels and connection.wait(sentinels, timeout=0))


def _context() -> multiprocessing.context.BaseContext:
    """Fork if that is safe: a fork starts at once and shares the index. Otherwise start new processes."""
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def _start_worker(counts: Any) -> None:
    global _counts
    _counts = counts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, on Linux, even if a stuck sibling holds our pipe open."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
