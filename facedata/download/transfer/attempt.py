"""Fetching what is missing of a file, over one connection, or over several where that is worth it."""

from __future__ import annotations

import logging
import threading
import time

from facedata.download.transfer.accept import accept_beginning, accept_rest
from facedata.download.transfer.encoding import Decoded
from facedata.download.transfer.http import Answer, Session
from facedata.download.transfer.job import FileJob
from facedata.download.transfer.pages import shown_url
from facedata.download.transfer.ranges import Segment, Segments
from facedata.download.transfer.retry import CancelledError, LinkError, PassingError, Patience, StartOverError, pause
from facedata.download.transfer.source import Source
from facedata.errors import FacedataError

__all__ = ["Attempt"]

_BLOCK = 1 << 19
_PROGRESS = 1 << 10
_LOOK_AT_DISK = 16 << 20
_WORTH_HELPING = 2.0
_log = logging.getLogger(__name__)


class Attempt:
    """Goes on with a half until it is whole, as long as it is a half of what the server has.

    Parameters
    ----------
    job : FileJob
    source : Source
    patience : Patience
    """

    def __init__(self, job: FileJob, source: Source, patience: Patience) -> None:
        self._job, self._source, self._patience = job, source, patience
        self._part, self._around = job.part, job.around
        state = self._part.state
        missing = [(0, None)] if state.total is None else self._part.missing(state.total)
        self._segments, self._generation = Segments(missing), self._part.generation
        self._helpers: list[threading.Thread] = []
        self._takes_helpers, self._over = True, False
        self._begun: tuple[float, int] | None = None
        self.final_url = ""

    def run(self) -> None:
        """Fetch what is missing.

        Raises
        ------
        StartOverError
            Where the half must be thrown away.
        LinkError
            Where the link does not give the file.
        CancelledError
        FacedataError
            Where it cannot be written.
        """
        try:
            with Session(self._around.sockets, self._around.options) as session:
                while not self._segments.finished:
                    if not self._work(session):
                        pause(0.02, self._around.cancel)  # the helpers have all that is left
        finally:
            self._over = True
            for helper in self._helpers:
                if helper.is_alive():  # else another thread may have its number by now
                    self._around.sockets.break_thread(helper.ident)

    def consider_helping(self) -> None:
        """Open one more connection if there is one to be had, and the file is not nearly done; call it now and then."""
        if self._begun is None or not self._takes_helpers or self._over or not self._part.state.resumable:
            return
        seconds, came = time.monotonic() - self._begun[0], self._part.received - self._begun[1]
        if seconds < 0.5 or self._segments.left * seconds < _WORTH_HELPING * came or not self._segments.worth_helping():
            return
        if self._around.slots.acquire(blocking=False):
            helper = threading.Thread(target=self._help, daemon=True, name="facedata-range")
            self._helpers.append(helper)
            helper.start()

    def _help(self) -> None:
        try:
            with Session(self._around.sockets, self._around.options) as session:
                while not self._over and (segment := self._segments.take()) is not None:
                    self._help_with(session, segment)
        except (LinkError, PassingError, StartOverError, CancelledError, FacedataError) as error:
            # what is wrong for good the first connection will find too; it also fetches what was left here
            self._takes_helpers = False
            _log.debug("%s: one connection fewer: %s", self._part.path, error)
        finally:
            self._around.slots.release()

    def _help_with(self, session: Session, segment: Segment) -> None:
        """Fetch a segment, without patience: a server that breaks off once is asked again, one that refuses is not."""
        begin = segment.position
        try:
            while segment.left != 0 and not self._over:
                self._ask(session, segment, None)
        except PassingError:
            if segment.position == begin:
                raise
        finally:
            self._segments.give_back(segment)

    def _work(self, session: Session) -> bool:
        """Fetch one segment; returns whether there was one."""
        segment = self._segments.take()
        if segment is None:
            return False
        try:
            while segment.left != 0:
                self._try(session, segment)
        finally:
            self._segments.give_back(segment)
        return True

    def _try(self, session: Session, segment: Segment) -> None:
        try:
            self._ask(session, segment, self._patience)
        except PassingError as trouble:
            if segment.position and not self._part.state.resumable:
                raise StartOverError(f"{trouble}, and the server gives the file only from its beginning") from trouble
            wait = self._patience.wait_after(trouble)
            level = logging.INFO if wait >= 1 else logging.DEBUG
            _log.log(level, "%s: %s; trying again in %.0f s", self._part.target.name, trouble, wait)
            pause(wait, self._around.cancel)

    def _ask(self, session: Session, segment: Segment, patience: Patience | None) -> None:
        position, anew = segment.position, segment.end is None
        with session.ask(self._source.url(session), self._headers(segment)) as answer:
            answer.refuse_errors()
            body: Answer | Decoded = answer
            if anew:
                body, segment.end = accept_beginning(answer, self._job)
                self._generation = self._part.generation
            else:
                accept_rest(answer, self._job, position)
                if patience is None:  # a helper, somewhere behind the front
                    self._part.unorder()
            self._note_origin(answer)
            ended = self._pump(body, segment, patience)
        if ended and segment.end is None:
            self._end_unannounced(segment, answer)
        elif ended and segment.position == position and segment.left:
            raise PassingError("the server sends nothing")

    def _headers(self, segment: Segment) -> dict[str, str]:
        if segment.end is None:
            return {"Range": "bytes=0-"}
        state = self._part.state
        headers = {"Range": f"bytes={segment.position}-{segment.end - 1}"}
        if state.validator and state.link == self._job.link_name:
            headers["If-Range"] = state.validator
        return headers

    def _note_origin(self, answer: Answer) -> None:
        if self._begun is None:
            self._begun = (time.monotonic(), self._part.received)
            self.final_url = shown_url(answer.url)

    def _pump(self, body: Answer | Decoded, segment: Segment, patience: Patience | None) -> bool:
        """Write what comes; returns whether the body came to its end, not only the segment."""
        size, came = self._job.request.size, 0
        while room := self._segments.room(segment, _BLOCK):
            data = body.read(room)
            if not data:
                return True
            if self._over:
                raise CancelledError
            with self._segments.claim(segment, len(data)) as (position, kept):
                if size is not None and position + kept > size:
                    raise LinkError(f"the server sends more than the {size:,} bytes that were published")
                if size is None and segment.end is None:
                    self._look_at_disk(position, position + kept)
                self._part.write(position, data[:kept], self._generation)
            came += kept
            if patience and came >= _PROGRESS:
                patience.progressed(self._part.done)
        return False

    def _look_at_disk(self, position: int, end: int) -> None:
        """A body of which nobody knows the end may have none; it stops while something of the disk is left."""
        if position // _LOOK_AT_DISK != end // _LOOK_AT_DISK:
            self._around.disk.expect({self._job.request.path: _LOOK_AT_DISK})

    def _end_unannounced(self, segment: Segment, answer: Answer) -> None:
        """The end of a body whose size was not said before."""
        size = self._job.request.size
        if size is not None and segment.position < size:
            raise PassingError(f"the answer ends after {segment.position:,} of {size:,} bytes")
        if size is None and self._job.request.digest is None and not answer.delimited:
            _log.warning(
                "%s: the server did not say how long the file is, and no checksum is known: it may be cut short",
                self._part.target,
            )
        segment.end = segment.position
        self._part.learn_total(segment.position)
