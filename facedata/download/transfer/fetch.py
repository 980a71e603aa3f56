"""Download several files at once, each from the first of its links that gives the right file."""

from __future__ import annotations

import email.utils
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from facedata.download.transfer.options import (
    Fetched,
    FileRequest,
    Link,
    LinkError,
    TransferOptions,
    WrongChecksumError,
)
from facedata.download.transfer.partial import PartialFile
from facedata.download.walk import check_stop
from facedata.errors import (
    ChecksumError,
    FacedataError,
    InterruptedJobError,
    OptionError,
    TransferError,
    WebPageError,
)
from facedata.files import check_room
from facedata.jobs.signals import StopRequest
from facedata.text import listed, shown_url

__all__ = ["fetch_files"]

_TICK = 0.1
_REPORT_EVERY = 0.25
_GRACE = 0.5
_RESOLVE_WITHIN = 10.0
_log = logging.getLogger(__name__)


def fetch_files(
    requests: Sequence[FileRequest],
    options: TransferOptions = TransferOptions(),
    *,
    observer: Callable[[int, int], None] | None = None,
    on_fetched: Callable[[Fetched], None] | None = None,
    stop: StopRequest | None = None,
) -> list[Fetched]:
    """Download files, several at once; each gets its name once it is complete and checked.

    A partial file of an earlier call is resumed if it belongs to the same file.

    Parameters
    ----------
    requests : sequence of FileRequest
        For files on one disk.
    observer : callable, optional
        Called a few times per second with the bytes done and the bytes in all, 0 if these are not known.
    on_fetched : callable, optional
        Called with each file once it has its name, in the thread of the caller.

    Returns
    -------
    list of Fetched
        In the order of `requests`.

    Raises
    ------
    TransferError, WebPageError, ChecksumError
        If a file cannot be downloaded. The other files are downloaded all the same, and the message names each that
        failed.
    OutputError
        If a file cannot be written: it exists, another run is downloading it, or the disk is full.
    InterruptedJobError
        If `stop` is set; the same call resumes.
    """
    if options.connections < 1:
        raise OptionError(f"{options.connections} connections: at least 1 is needed")
    if len({request.path for request in requests}) < len(requests):
        raise OptionError("the same file is requested twice")
    if not requests:
        return []
    cancel, downloads = threading.Event(), list[_FileDownload]()

    def check_room_for_all(more: int) -> None:
        size = sum(download.bytes_left() for download in downloads) + more
        check_room(requests[0].path.parent, size, "the rest of the download", "what is downloaded already is kept")

    downloads += [_FileDownload(request, options, cancel, check_room_for_all) for request in requests]
    check_room_for_all(0)
    _check_names(requests, options.timeout, stop)
    threads, results = _start_threads(downloads, options.connections, cancel)
    done: dict[_FileDownload, Fetched | Exception] = {}

    def report() -> None:
        progress = [download.progress() for download in downloads]
        totals = [total for _, total in progress if total is not None]
        if observer:
            observer(sum(done for done, _ in progress), sum(totals) if len(totals) == len(progress) else 0)

    def take_result(timeout: float) -> None:
        with suppress(queue.Empty):
            download, result = results.get(timeout=timeout)
            done[download] = result
            if on_fetched and isinstance(result, Fetched):
                on_fetched(result)

    report_at = 0.0
    try:
        while len(done) < len(downloads):
            if stop:
                raise InterruptedJobError(
                    f"stopped by {stop.signal_name or 'request'} after {len(done)} of {len(downloads)} files; what is "
                    "downloaded is kept: run the same command again to resume"
                )
            if time.monotonic() > report_at:
                report()
                report_at = time.monotonic() + _REPORT_EVERY
            take_result(_TICK)
    finally:
        cancel.set()
        deadline = time.monotonic() + _GRACE
        for thread in threads:  # one that waits for a server is left behind
            thread.join(max(deadline - time.monotonic(), 0))
        while not results.empty():  # files that were completed just before a stop are reported too
            take_result(0)
    report()
    if failures := [result for result in done.values() if isinstance(result, Exception)]:
        raise _one_error(failures, len(downloads))
    return [result for download in downloads if isinstance(result := done[download], Fetched)]


def _check_names(requests: Sequence[FileRequest], timeout: float, stop: StopRequest | None) -> None:
    """Raise a `TransferError` if not one host of all links has an address: each link would only find that out again."""
    from facedata.download.transfer.client import contacted_host

    links = [link for request in requests for link in request.links]
    hosts = dict.fromkeys(contacted_host(link.page) for link in links)
    if not all(hosts):  # an invalid URL has an error of its own
        return
    reasons = dict.fromkeys(hosts, f"no answer in {(limit := min(timeout, _RESOLVE_WITHIN)):.0f} s")
    ended = queue.SimpleQueue[bool]()

    def look_up(host: str) -> None:
        for wait in (0, 1, 2):  # the failure may be that of a moment
            time.sleep(wait)
            try:
                socket.getaddrinfo(host, None)
                ended.put(True)
                return
            except (OSError, UnicodeError) as error:
                reasons[host] = getattr(error, "strerror", None) or str(error)
        ended.put(False)

    for host in hosts:
        threading.Thread(target=look_up, args=(host,), daemon=True).start()
    deadline, failed = time.monotonic() + limit, 0
    while failed < len(hosts) and time.monotonic() < deadline:
        check_stop(stop)
        with suppress(queue.Empty):
            if ended.get(timeout=_TICK):
                return
            failed += 1
    pages = " and ".join(dict.fromkeys(shown_url(link.page) for link in links[:3]))
    why = ", ".join(sorted(set(reasons.values())))
    raise TransferError(
        f"cannot resolve {listed(list(hosts), quote='')} ({why}). What to do: check the network and name service of "
        f"this machine, and HTTPS_PROXY if it needs a proxy; or open {pages} in a browser elsewhere, save it, and "
        "give its folder with --from-dir"
    )


def _start_threads(
    downloads: Sequence[_FileDownload], connections: int, cancel: threading.Event
) -> tuple[list[threading.Thread], queue.SimpleQueue[_Result]]:
    """Start the threads that download, and one that forces what they write to the disk now and then.

    They are not those of a ThreadPoolExecutor: at its exit, Python would wait for one that waits for a connection.
    """
    waiting, results = queue.SimpleQueue[_FileDownload](), queue.SimpleQueue[_Result]()
    for download in downloads:
        waiting.put(download)

    def work() -> None:
        with suppress(OSError):
            # a thread that receives mostly waits: it should not interrupt one that hashes whenever bytes arrive
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with suppress(queue.Empty):
            while not cancel.is_set():
                download = waiting.get_nowait()
                try:
                    results.put((download, download.run()))
                except Exception as error:  # it is raised in the thread of the caller
                    results.put((download, error))

    def force_to_disk() -> None:
        while not cancel.wait(_TICK):
            for download in downloads:
                if download.partial is not None:
                    with suppress(OSError):
                        download.partial.checkpoint()

    targets = [*[work] * min(connections, len(downloads)), force_to_disk]
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    return threads, results


def _one_error(failures: Sequence[Exception], files: int) -> Exception:
    for failure in failures:
        if len(failures) == 1 or not isinstance(failure, FacedataError):
            return failure
    kinds = {type(failure) for failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else TransferError
    lines = "".join(f"\n  {failure}" for failure in failures)
    return kind(f"{len(failures)} of {files} files could not be downloaded:{lines}")


class _FileDownload:
    """The download of one file: asks its links in turn, checks the file, publishes it."""

    def __init__(
        self,
        request: FileRequest,
        options: TransferOptions,
        cancel: threading.Event,
        check_room_for_all: Callable[[int], None],
    ) -> None:
        self._request, self._options, self._cancel = request, options, cancel
        self._check_room_for_all = check_room_for_all
        self.partial: PartialFile | None = None
        self._is_over = False

    def progress(self) -> tuple[int, int | None]:
        """Bytes done, and bytes in all if they are known."""
        if self.partial is None:
            return 0, self._request.size
        total = self.partial.state.total
        return self.partial.done, self._request.size if total is None else total

    def bytes_left(self) -> int:
        """Bytes that the file still needs on the disk, as far as its size is known."""
        done, total = self.progress()
        if self.partial is None:
            with suppress(OSError):
                done = self._request.path.with_name(f"{self._request.path.name}.part").lstat().st_size
        return 0 if self._is_over else max((total or 0) - done, 0)

    def run(self) -> Fetched:
        """Download the file, check it, and give it its name."""
        request = self._request
        partial = self.partial = PartialFile(
            request.path,
            algorithm=request.digest.algorithm if request.digest else "sha256",
            cancel=self._cancel,
            overwrite=self._options.overwrite,
        )
        errors: list[tuple[Link, LinkError]] = []
        try:
            for link in request.links:
                for _ in range(2):  # a wrong checksum may come from damage on the way: try again once
                    try:
                        return self._fetch_from(link, partial)
                    except LinkError as error:
                        errors.append((link, error))
                        if not isinstance(error, WrongChecksumError) or error.is_known:
                            break
            raise self._error(partial, errors)
        finally:
            self._is_over = True
            partial.close()

    def _fetch_from(self, link: Link, partial: PartialFile) -> Fetched:
        from facedata.download.transfer.http import LinkDownload

        request = self._request
        download = LinkDownload(request, link, partial, self._options, self._cancel, self._check_room_for_all)
        final_url = download.run()
        digest, modified = partial.digest(), None
        known_as = request.known.get(digest.value)
        if digest != request.digest and (request.digest or known_as):
            aside = partial.set_aside(f"{request.path.name}.wrong-{digest.value[:8]}")
            expected = f"expected {request.digest}, " if request.digest else ""
            reason = f"wrong checksum: {expected}found {digest}{f', which is {known_as}' if known_as else ''}"
            _log.warning("%s: %s; from %s, kept as %s", request.path, reason, shown_url(link.page), aside.name)
            raise WrongChecksumError(reason, is_known=known_as is not None)
        with suppress(ValueError, OverflowError):
            modified = email.utils.parsedate_to_datetime(partial.state.last_modified or "").timestamp()
        partial.publish(modified)
        etag, last_modified = partial.state.etag, partial.state.last_modified
        return Fetched(request.path, partial.done, digest, link, final_url, etag, last_modified, partial.received)

    def _error(self, partial: PartialFile, all_errors: Sequence[tuple[Link, LinkError]]) -> FacedataError:
        """What went wrong with each link, and what the user can do."""
        errors = [error for _, error in all_errors]
        kind: type[FacedataError] = TransferError
        if any(isinstance(error, WrongChecksumError) for error in errors):
            kind = ChecksumError
        elif errors and all(error.is_page for error in errors):
            kind = WebPageError
        reasons = dict.fromkeys(f"{shown_url(link.page)}: {error}" for link, error in all_errors)
        wrong = {link for link, error in all_errors if error.is_wrong}  # a browser would get the same file from them
        pages = " or ".join(dict.fromkeys(shown_url(link.page) for link in self._request.links if link not in wrong))
        can_resume = partial.done and partial.state.resumable
        resume = "run the same command again to resume (the partial file is kept); or " if can_resume else ""
        by_hand = f"open {pages} in a browser, save the file" if pages else "get the file from another source"
        return kind(
            f"{self._request.path}: cannot be downloaded: {'; '.join(reasons) or 'no link to it is known'}. "
            f"What to do: {resume}{by_hand}, and give its folder with --from-dir"
        )


_Result = tuple[_FileDownload, Fetched | Exception]
