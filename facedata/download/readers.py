"""Many files read at once, the answers given in order: the engine under checking and making lists of checksums.

Threads do it, because hashing and reading let go of Python's lock. A window of tasks is looked at ahead: of those the
largest begin first, so that no large file begins when all others have ended; small ones travel in batches.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, PriorityQueue, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from facedata.errors import InterruptedJobError
from facedata.jobs.signals import StopRequest

__all__ = ["Meter", "Task", "read_in_order"]

Answer = TypeVar("Answer")

_WINDOW = 2048
_SMALL = 1 << 20
_BATCH_TASKS, _BATCH_BYTES = 64, 8 << 20
_TICK = 0.1
_PATIENCE = 10.0


class _CancelledError(Exception):
    """Nobody wants the answer any more."""


class Meter:
    """What a thread tells of its work while it is at it.

    Parameters
    ----------
    cpus : int
        How many may be busy.
    """

    def __init__(self, cpus: int) -> None:
        self.done = 0
        self.cancelled = False
        self._cpus, self._wanted = cpus, 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Count `count` bytes as read; ends the work where nobody wants it any more."""
        if self.cancelled:
            raise _CancelledError
        with self._lock:
            self.done += count

    def want(self, count: int) -> None:
        """Count `count` more pieces of work as waiting or being done."""
        with self._lock:
            self._wanted += count

    @property
    def spare(self) -> bool:
        """Whether a CPU has nothing to do, so that a second thread for this work takes it from nobody."""
        return self._wanted < self._cpus


class Task(NamedTuple, Generic[Answer]):
    """Something to be read.

    Attributes
    ----------
    work : callable
        Called in a thread with a `Meter`.
    size : int
        Bytes to be read, as far as known.
    at_once : bool
        There is nothing to be read: called right where tasks are collected.
    """

    work: Callable[[Meter], Answer]
    size: int = 0
    at_once: bool = False


def read_in_order(
    tasks: Iterable[Task[Answer]],
    *,
    workers: int | None = None,
    stop: StopRequest | None = None,
    tick: Callable[[int, int], None] | None = None,
    completed: Callable[[Answer], None] | None = None,
) -> Generator[Answer, None, None]:
    """Do the tasks, `workers` at a time, and give their answers in order, each as early as that allows.

    Parameters
    ----------
    tasks : iterable of Task
        Taken from as needed: memory does not grow with their number.
    workers : int, optional
        Threads; by default the CPUs that this process may use.
    stop : StopRequest, optional
    tick : callable, optional
        Called in the caller's thread several times a second with the bytes read and those in all, 0 if not known yet.
    completed : callable, optional
        Called in the caller's thread with each answer as soon as it is there, in no order.

    Raises
    ------
    InterruptedJobError
        Where `stop` asked for it.
    """
    run: _Run[Answer] = _Run(tasks, workers, completed)
    try:
        yield from run.answers(stop, tick)
    finally:
        run.end()


class _Run(Generic[Answer]):
    def __init__(
        self, tasks: Iterable[Task[Answer]], workers: int | None, completed: Callable[[Answer], None] | None
    ) -> None:
        self._source, self._exhausted = iter(tasks), False
        self._completed = completed
        self._queue: PriorityQueue[tuple[int, int, list[Task[Answer]]]] = PriorityQueue()
        self._done: SimpleQueue[tuple[int, list[Answer] | BaseException]] = SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._taken = self._given = self._bytes = 0
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self.meter = Meter(workers or len(os.sched_getaffinity(0)))

    def answers(self, stop: StopRequest | None, tick: Callable[[int, int], None] | None) -> Iterator[Answer]:
        ticked = time.monotonic()
        while True:
            self._fill()
            while self._given in self._answers:
                self._given += 1
                yield self._answers.pop(self._given - 1)
            if self._exhausted and self._given == self._taken:
                return
            if self._given < self._taken:
                self._collect()
            if tick is not None and time.monotonic() - ticked >= _TICK:
                ticked = time.monotonic()
                tick(self.meter.done, self._bytes if self._exhausted else 0)
            if stop:
                raise InterruptedJobError(f"stopped by {stop.signal_name}")

    def _fill(self) -> None:
        batch: list[Task[Answer]] = []
        batch_bytes = 0
        while not self._exhausted and self._taken - self._given < _WINDOW:
            task = next(self._source, None)
            if task is None:
                self._exhausted = True
                break
            if task.at_once or task.size >= _SMALL or batch_bytes > _BATCH_BYTES or len(batch) >= _BATCH_TASKS:
                self._queue_up(batch, batch_bytes)  # a batch is a run without a gap
                batch, batch_bytes = [], 0
            self._taken += 1
            self._bytes += task.size
            if task.at_once:
                self._keep(self._taken - 1, task.work(self.meter))
            elif task.size >= _SMALL:
                self._queue_up([task], task.size)
            else:
                batch.append(task)
                batch_bytes += task.size
        self._queue_up(batch, batch_bytes)
        self._start_threads()

    def _queue_up(self, batch: list[Task[Answer]], size: int) -> None:
        """Queue the tasks that were taken last."""
        if batch:
            self.meter.want(1)
            self._queue.put((-size, self._taken - len(batch), batch))

    def _start_threads(self) -> None:
        """As many as there is work for; the first is at work while this one finds out how many it may start."""
        while self._queue.qsize() and (not self._threads or len(self._threads) < self._allowed()):
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def _allowed(self) -> int:
        if self._workers is None:
            from facedata.jobs.executors import available_cpus

            self._workers = available_cpus()
        return self._workers

    def _keep(self, place: int, answer: Answer) -> None:
        self._answers[place] = answer
        if self._completed is not None:
            self._completed(answer)

    def _collect(self) -> None:
        """Wait a moment for an answer, and take all that are there."""
        try:
            first, answers = self._done.get(timeout=_TICK)
            while True:
                if isinstance(answers, BaseException):
                    raise answers
                for place, answer in enumerate(answers, first):
                    self._keep(place, answer)
                first, answers = self._done.get_nowait()
        except Empty:
            return

    def _work(self) -> None:
        while True:
            _, first, batch = self._queue.get()
            if not batch or self.meter.cancelled:
                return
            try:
                self._done.put((first, [task.work(self.meter) for task in batch]))
            except BaseException as error:  # the caller's thread raises it
                self._done.put((first, error))
            self.meter.want(-1)

    def end(self) -> None:
        """End the threads; what they were at is dropped."""
        self.meter.cancelled = True
        for number in range(len(self._threads)):
            self._queue.put((1, number, []))
        for thread in self._threads:
            thread.join(_PATIENCE)  # one may hang in a file system that does not answer
