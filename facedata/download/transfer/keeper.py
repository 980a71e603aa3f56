"""The thread beside each transfer that keeps what has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from facedata.download.transfer.partial import PartFile

__all__ = ["Keeper"]

_TICK = 0.05
_SAVE_EVERY, _DURABLE_EVERY = 0.25, 5.0


class Keeper:
    """Records progress often, forces it to the disk now and then, and calls `tick` in between.

    Parameters
    ----------
    part : PartFile
    tick : callable
    """

    def __init__(self, part: PartFile, tick: Callable[[], None]) -> None:
        self._part, self._tick = part, tick
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="facedata-keep")

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        saved = durable = time.monotonic()
        while not self._end.wait(_TICK):
            self._tick()
            self._part.sync()  # early, so that the end need not wait for the disk
            now = time.monotonic()
            if now - durable > _DURABLE_EVERY:
                self._part.save(durably=True)
                saved = durable = now
            elif now - saved > _SAVE_EVERY:
                self._part.save()
                saved = now
