"""Showing progress: a bar on a terminal, a log line every 30 seconds elsewhere, nothing if quiet."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from facedata.text import escaped

if TYPE_CHECKING:
    from facedata.jobs.engine import Observer, Progress

__all__ = [
    "human_bytes",
    "human_seconds",
    "output_name",
    "show_bytes",
    "show_progress",
    "shown_path",
]

_LINE_EVERY = 30.0
_NARROWEST = 20
_log = logging.getLogger("facedata")


@contextmanager
def show_progress(unit: str, *, quiet: bool) -> Iterator[Observer | None]:
    """An observer for a job that counts `unit`."""
    if quiet:
        yield None
    elif _shows_bars():
        with _Bar(unit=f" {unit}") as bar:
            yield lambda progress: bar.show(
                progress.done,
                progress.total,
                initial=progress.before,
                postfix=(f"{progress.byte_rate / 1e6:.0f} MB/s" if progress.bytes else "") + _failed(progress),
            )
    else:
        yield _LogLines(unit)


@contextmanager
def show_bytes(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A callable for ``(bytes done, bytes in total)``; the total is 0 if it is unknown.

    What is done at its first call does not count for the rate.
    """
    if quiet:
        yield None
    elif _shows_bars():
        with _Bar(desc=escaped(what), unit="B", unit_scale=True) as bar:
            yield lambda done, total: bar.show(done, total, initial=done)
    else:
        yield _ByteLines(what)


def _shows_bars() -> bool:
    """Whether stderr is a terminal that is wide enough."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > _NARROWEST


class _Bar:
    """A bar on the terminal that appears at the first call of `show`, and is removed when it is closed."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int, *, initial: int = 0, postfix: str | None = None) -> None:
        if self._bar is not None and total != (self._bar.total or 0):
            self._bar.total = total or None
        if self._bar is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # with its thread, forking workers would be unsafe
            options = {"dynamic_ncols": True, "leave": False, **self._options}
            self._bar = tqdm(file=sys.stderr, total=total or None, initial=initial, **options)
        self._bar.set_postfix_str(postfix or "", refresh=False)
        self._bar.update(done - self._bar.n)
        if postfix is not None:
            self._bar.refresh()


def _failed(progress: Progress) -> str:
    return f", {progress.failures} failed" if progress.failures else ""


class _LogLines:
    def __init__(self, unit: str) -> None:
        self._unit, self._last = unit, time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY:
            return
        self._last = now
        left = "" if progress.seconds_left is None else f", {human_seconds(progress.seconds_left)} left"
        _log.info(
            "%s of %s %s (%.1f %%), %s/s, %.0f MB/s%s%s",
            f"{progress.done:,}",
            f"{progress.total:,}",
            self._unit,
            100 * progress.done / max(progress.total, 1),
            f"{progress.rate:,.0f}",
            progress.byte_rate / 1e6,
            left,
            _failed(progress),
        )


class _ByteLines:
    def __init__(self, what: str) -> None:
        self._what, self._begin = what, time.monotonic()
        self._last, self._before = self._begin, -1

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._before < 0:
            self._before = done
        if now - self._last < _LINE_EVERY:
            return
        self._last = now
        rate = (done - self._before) / (now - self._begin)
        of_all = f" of {human_bytes(total)} ({100 * done / total:.1f} %)" if total else ""
        left = f", {human_seconds((total - done) / rate)} left" if total and rate else ""
        _log.info("%s: %s%s, %s/s%s", self._what, human_bytes(done), of_all, human_bytes(rate), left)


def output_name(root: str) -> str:
    """The output as the user named it: the journal of a single file is in a folder beside it."""
    from facedata.jobs.journal import BESIDE

    return "null" if "facedata-null-" in root else root.removesuffix(BESIDE)


def shown_path(path: str) -> str:
    """A path as a user would type it: relative if it lies below the current folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def human_seconds(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def human_bytes(size: float) -> str:
    """In the decimal unit that fits: ``512 bytes``, ``4.4 kB``, ``128.3 GB``."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
