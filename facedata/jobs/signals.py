"""SIGINT and SIGTERM as requests to stop, which a job looks at between shards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "interrupt", "stop_on_signals"]

_lost: list[int] = []


class StopRequest:
    """Whether the job was asked to stop, and how urgently."""

    def __init__(self) -> None:
        self.count = 0
        self.signal_name = ""

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def at_once(self) -> bool:
        """Whether it was asked twice: running shards are dropped."""
        return self.count > 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal while no job runs: raise KeyboardInterrupt, and note the signal for a job that may start.

    If the interpreter is in a callback from C, for example during an import, the exception is printed and lost.
    """
    _lost.append(number)
    raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Count SIGINT and SIGTERM instead of dying of them while the block runs.

    Python allows no handlers outside the main thread: there nothing changes.
    """
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        stop.count += 1
        stop.signal_name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    while _lost:
        note(_lost.pop(), None)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
