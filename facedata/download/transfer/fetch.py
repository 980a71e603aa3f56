"""Fetching several files at once, under one supervisor that can always be interrupted."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from facedata.download.transfer.files import Fetched, FileRequest, TransferOptions
from facedata.errors import FacedataError, InterruptedJobError, OptionError, TransferError
from facedata.jobs.signals import StopRequest

if TYPE_CHECKING:
    from facedata.download.transfer.file import FileFetch
    from facedata.download.transfer.job import Surroundings

__all__ = ["fetch_files"]

_TICK = 0.1
_SHOW_EVERY = 0.25
_GRACE = 0.5

Observer = Callable[[int, int], None]


def fetch_files(
    requests: Sequence[FileRequest],
    options: TransferOptions = TransferOptions(),
    *,
    observer: Observer | None = None,
    on_fetched: Callable[[Fetched], None] | None = None,
    stop: StopRequest | None = None,
) -> list[Fetched]:
    """Fetch files, several at once, each checked before it gets its name.

    What an earlier call left in ``<name>.part`` is gone on with, where it is of the same file.

    Parameters
    ----------
    requests : sequence of FileRequest
    options : TransferOptions
    observer : callable, optional
        Called a few times a second with bytes done and bytes in all, 0 where nobody knows.
    on_fetched : callable, optional
        Called with each file as soon as it is there, in the thread of the caller.
    stop : StopRequest, optional

    Returns
    -------
    list of Fetched
        In the order of `requests`.

    Raises
    ------
    TransferError, WebPageError, ChecksumError
        Where a file cannot be had; with several, the message names each. The other files are fetched all the same.
    OutputError
        Where a file cannot be written: it exists, is being fetched by another run, or the disk is full.
    InterruptedJobError
        Where `stop` asked for it; the same call goes on.
    """
    if options.connections < 1:
        raise OptionError(f"{options.connections} connections: at least 1 is needed")
    if len({request.path for request in requests}) < len(requests):
        raise OptionError("the same file is asked for twice")
    return _Run(requests, options, observer, on_fetched, stop).run() if requests else []


class _Run:
    """One call of `fetch_files`."""

    def __init__(
        self,
        requests: Sequence[FileRequest],
        options: TransferOptions,
        observer: Observer | None,
        on_fetched: Callable[[Fetched], None] | None,
        stop: StopRequest | None,
    ) -> None:
        self._observer, self._on_fetched, self._stop = observer, on_fetched, stop
        self._around = _surroundings(options)
        self._files = _files(requests, self._around)
        self._around.disk.expect({request.path: _to_come(request) for request in requests})
        self._waiting: queue.SimpleQueue[FileFetch] = queue.SimpleQueue()
        for file in self._files:
            self._waiting.put(file)
        self._results: queue.SimpleQueue[tuple[FileFetch, Fetched | Exception]] = queue.SimpleQueue()
        count = min(options.connections, len(self._files))
        self._threads = [threading.Thread(target=self._work, daemon=True, name="facedata-file") for _ in range(count)]
        self._shown = 0.0

    def run(self) -> list[Fetched]:
        for thread in self._threads:
            thread.start()
        results: dict[FileFetch, Fetched | Exception] = {}
        try:
            self._supervise(results)
        finally:
            self._end()
            while not self._results.empty():  # what was finished just before a stop is told, too
                self._take_result(results, timeout=0)
        self._show(at_once=True)
        failures = [result for result in results.values() if isinstance(result, Exception)]
        if failures:
            raise _one_error(failures, len(self._files))
        return [result for file in self._files if isinstance(result := results[file], Fetched)]

    def _supervise(self, results: dict[FileFetch, Fetched | Exception]) -> None:
        while len(results) < len(self._files):
            if self._stop:
                raise InterruptedJobError(_interrupted(self._stop, len(results), len(self._files)))
            self._around.sockets.break_overdue()
            self._show()
            self._take_result(results, timeout=_TICK)

    def _take_result(self, results: dict[FileFetch, Fetched | Exception], timeout: float) -> None:
        try:
            file, result = self._results.get(timeout=timeout)
        except queue.Empty:
            return
        results[file] = result
        if self._on_fetched and isinstance(result, Fetched):
            self._on_fetched(result)

    def _work(self) -> None:
        with suppress(OSError):
            # who receives waits most of the time, and should not take the processor from who hashes whenever it wakes
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while not self._around.cancel.is_set():
            try:
                file = self._waiting.get_nowait()
            except queue.Empty:
                return
            with self._around.slots:
                try:
                    self._results.put((file, file.run()))
                except Exception as error:  # whatever it is, the supervisor raises it where the caller sees it
                    self._results.put((file, error))

    def _end(self) -> None:
        """Leave nothing running; a thread that hangs in the network is left to itself, and can do no harm."""
        self._around.sockets.break_all()
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        for file in self._files:
            file.abandon()

    def _show(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._observer is None or (now - self._shown < _SHOW_EVERY and not at_once):
            return
        self._shown = now
        progress = [file.progress() for file in self._files]
        known = [total for _, total in progress if total is not None]
        self._observer(sum(done for done, _ in progress), sum(known) if len(known) == len(progress) else 0)


def _surroundings(options: TransferOptions) -> Surroundings:
    from facedata.download.transfer.disk import DiskLedger
    from facedata.download.transfer.job import Surroundings
    from facedata.download.transfer.sockets import Sockets

    return Surroundings(options, Sockets(), DiskLedger(options.reserve), threading.Semaphore(options.connections))


def _files(requests: Sequence[FileRequest], around: Surroundings) -> list[FileFetch]:
    from facedata.download.transfer.file import FileFetch

    return [FileFetch(request, around) for request in requests]


def _to_come(request: FileRequest) -> int:
    """Bytes of the disk that the file will still take, as far as anybody knows."""
    try:
        there = request.path.with_name(f"{request.path.name}.part").lstat().st_blocks * 512
    except OSError:
        there = 0
    return max((request.size or 0) - there, 0)


def _interrupted(stop: StopRequest, done: int, files: int) -> str:
    return (
        f"stopped by {stop.signal_name or 'request'} with {done} of {files} files fetched; "
        "what has come is kept: run the same command again to go on"
    )


def _one_error(failures: Sequence[Exception], files: int) -> Exception:
    for failure in failures:
        if not isinstance(failure, FacedataError):
            return failure
    if len(failures) == 1:
        return failures[0]
    kinds = {type(failure) for failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else TransferError
    lines = "".join(f"\n  {failure}" for failure in failures)
    return kind(f"{len(failures)} of {files} files could not be fetched:{lines}")
