"""Stopping politely: SIGINT and SIGTERM set a flag that the job looks at between shards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "interrupt", "stop_on_signals"]

_unheard: list[int] = []


class StopRequest:
    """Whether, and how urgently, the job was asked to stop."""

    def __init__(self) -> None:
        self.count = 0
        self.signal_name = ""

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def at_once(self) -> bool:
        """Asked twice: drop what is being worked on."""
        return self.count > 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal where no job runs: raise KeyboardInterrupt, and note it for the job that may begin.

    Where the interpreter is just calling back from C, while it imports say, the exception is printed and lost.
    """
    _unheard.append(number)
    raise KeyboardInterrupt


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Count SIGINT and SIGTERM instead of dying of them, while the block runs.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        stop.count += 1
        stop.signal_name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    while _unheard:
        note(_unheard.pop(), None)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
