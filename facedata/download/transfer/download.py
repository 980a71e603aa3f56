"""One file from one link over HTTP, begun anew as often as that makes sense."""

from __future__ import annotations

import logging

from facedata.download.transfer.attempt import Attempt
from facedata.download.transfer.job import FileJob, Origin
from facedata.download.transfer.retry import PassingError, Patience, StartOverError, pause
from facedata.download.transfer.source import Source

__all__ = ["Download"]

_log = logging.getLogger(__name__)


class Download:
    """Fetches what is missing of a file.

    Parameters
    ----------
    job : FileJob
    """

    def __init__(self, job: FileJob) -> None:
        self._job, self._source = job, Source(job.link)
        self._patience = Patience(job.around.options.retries, job.around.options.first_wait)
        self._attempt: Attempt | None = None
        self._received_before = job.part.received

    @property
    def received(self) -> int:
        """Bytes that came over the network."""
        return self._job.part.received - self._received_before

    def progress(self) -> tuple[int, int | None]:
        """Bytes done, and in all where that is known."""
        return self._job.part.done, self._job.part.state.total

    def run(self) -> Origin:
        """Fetch all that is missing.

        Raises
        ------
        LinkError
            Where the link does not give it.
        CancelledError
        FacedataError
            Where it cannot be written.
        """
        self._leave_foreign_half()
        while True:
            self._attempt = Attempt(self._job, self._source, self._patience)
            try:
                self._attempt.run()
                return self._origin(self._attempt)
            except StartOverError as reason:
                self._start_over(reason)

    def tick(self) -> None:
        """To be called now and then from another thread."""
        if self._attempt is not None:
            self._attempt.consider_helping()

    def _leave_foreign_half(self) -> None:
        """A half goes on where it came from, or where a checksum will tell whether going on was right."""
        part, digest = self._job.part, self._job.request.digest
        state = part.state
        same = state.link == self._job.link_name
        whole = state.total is not None and not part.missing(state.total)
        if not ((whole and (same or digest)) or (state.resumable and (digest or (same and state.validator)))):
            if part.done:
                _log.warning("%s: the server cannot be asked for the rest of this half; starting over", part.path)
            part.restart()

    def _start_over(self, reason: StartOverError) -> None:
        wait = self._patience.wait_after(PassingError(str(reason)))
        if self._job.part.done:
            _log.warning("%s: %s; starting over", self._job.part.path, reason)
        self._job.part.restart()
        pause(wait, self._job.around.cancel)

    def _origin(self, attempt: Attempt) -> Origin:
        state, address = self._job.part.state, self._job.link_name
        final = attempt.final_url or address
        return Origin(final if final == address else final.partition("?")[0], state.etag, state.last_modified)
