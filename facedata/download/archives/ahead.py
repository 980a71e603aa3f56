"""Working ahead in a thread, with a bounded queue, so that inflating and writing happen at once."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Aside", "ReadAhead", "quick_turns"]

_T = TypeVar("_T")
_WAIT = 0.2  # seconds, after which a thread that waits looks up
_TURN = 0.0005


@contextmanager
def quick_turns() -> Iterator[None]:
    """Let a thread that comes back from inflating wait less for one that writes small files, which never sleeps long.

    Python's own 5 ms would keep it from working most of the time: 200,000 files take nearly twice as long then.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _TURN))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class ReadAhead(Generic[_T]):
    """Iterates over what a generator yields in a thread of its own; what it raises is raised here.

    Parameters
    ----------
    items : generator
        Closed in the thread, however it ends.
    depth : int
        How many items wait at most.
    look_up : callable
        Called now and then while nothing comes, and with each item, since many may be passed over; may raise.
    """

    def __init__(self, items: Iterator[_T], depth: int, look_up: Callable[[], None]) -> None:
        self._items, self._look_up = items, look_up
        self._queue: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[_T]:
        while True:
            item, error = self._get()
            if error is not None:
                self.close()
                if isinstance(error, StopIteration):
                    return
                raise error
            self._look_up()
            yield item  # type: ignore[misc]

    def _get(self) -> tuple[_T | None, BaseException | None]:
        while True:
            try:
                return self._queue.get(timeout=_WAIT)
            except queue.Empty:
                self._look_up()

    def close(self) -> None:
        """End the thread and wait for it."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            end = error
        finally:
            getattr(self._items, "close", lambda: None)()
        self._put((None, end))

    def _put(self, item: tuple[_T | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_WAIT)
                return True
            except queue.Full:
                continue
        return False


class Aside:
    """Does small pieces of work in order in a thread, started with the first of them.

    Parameters
    ----------
    depth : int
        How many pieces wait at most; whoever brings one more waits.
    """

    def __init__(self, depth: int) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Have it done; raises what an earlier piece raised."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
            self._thread.start()
        self._queue.put(work)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being done."""
        return self._queue.unfinished_tasks == 0

    def finish(self) -> None:
        """Wait until all is done; raises what a piece raised."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """End the thread and wait for it."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            try:
                if work is None:
                    return
                if self._error is None:
                    work()
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
