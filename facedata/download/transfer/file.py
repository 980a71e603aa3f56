"""One file from the first link that gives the right one."""

from __future__ import annotations

import email.utils
import logging
from typing import Protocol

from facedata.download.digest import Digest
from facedata.download.links import Link
from facedata.download.transfer.download import Download
from facedata.download.transfer.files import Fetched, FileRequest
from facedata.download.transfer.hashing import FrontHasher
from facedata.download.transfer.job import FileJob, Origin, Surroundings
from facedata.download.transfer.keeper import Keeper
from facedata.download.transfer.pages import shown_url
from facedata.download.transfer.partial import PartFile
from facedata.download.transfer.retry import LinkError, WrongChecksumError
from facedata.errors import ChecksumError, FacedataError, TransferError, WebPageError, output_error

__all__ = ["FileFetch"]

_log = logging.getLogger(__name__)


class _Transfer(Protocol):
    @property
    def received(self) -> int: ...

    def run(self) -> Origin: ...

    def tick(self) -> None: ...

    def progress(self) -> tuple[int, int | None]: ...


class FileFetch:
    """Fetches one file, in a thread of its own.

    Parameters
    ----------
    request : FileRequest
    around : Surroundings
    """

    def __init__(self, request: FileRequest, around: Surroundings) -> None:
        self.request, self._around = request, around
        self._algorithm = request.digest.algorithm if request.digest else "sha256"
        self._part: PartFile | None = None
        self._transfer: _Transfer | None = None
        self._received = 0
        self._hasher: FrontHasher | None = None
        self._final_size: int | None = None
        self._troubles: list[tuple[Link, LinkError]] = []

    def progress(self) -> tuple[int, int | None]:
        """Bytes done, and in all where that is known."""
        if self._final_size is not None:
            return self._final_size, self._final_size
        done, total = self._transfer.progress() if self._transfer else (0, None)
        return done, self.request.size if total is None else total

    def abandon(self) -> None:
        """Record what there is, whatever the thread is doing: the run ends."""
        if self._part is not None:
            self._part.abandon()

    def run(self) -> Fetched:
        """Fetch the file, check it, and give it its name.

        Raises
        ------
        TransferError, WebPageError, ChecksumError
            Where no link gives it.
        OutputError
            Where it cannot be written.
        CancelledError
        """
        part = self._part = PartFile(self.request.path, overwrite=self._around.options.overwrite)
        try:
            for link in self.request.links:
                fetched = self._from_link(part, link)
                if fetched is not None:
                    return fetched
            raise self._no_link_left(part)
        finally:
            self._around.disk.forget(self.request.path)
            self._close_hasher()
            part.close()

    def _from_link(self, part: PartFile, link: Link) -> Fetched | None:
        """The file from this link; None where it does not give it. Another file than the right one is fetched twice."""
        for again in (False, True):
            try:
                return self._fetch(FileJob(self.request, part, link, self._around, other_encoding=again))
            except LinkError as trouble:
                self._troubles.append((link, trouble))
                if not isinstance(trouble, WrongChecksumError) or trouble.known:
                    break
        return None

    def _fetch(self, job: FileJob) -> Fetched:
        part = job.part
        transfer = self._transfer = _transfer(job)
        if self._hasher is None:
            self._hasher = FrontHasher(part, self._algorithm)
        try:
            with Keeper(part, lambda: self._tick(transfer)):
                origin = transfer.run()
        finally:
            self._received += transfer.received
        digest = origin.digest or self._finish_hash(part)
        self._close_hasher()
        self._check(part, digest, job.link)
        self._final_size = part.done
        part.publish(_timestamp(origin.last_modified))
        _forget_other_halves(self.request)
        return Fetched(
            self.request.path,
            self._final_size,
            digest,
            job.link,
            origin.final_url,
            origin.etag,
            origin.last_modified,
            self._received,
        )

    def _tick(self, transfer: _Transfer) -> None:
        transfer.tick()
        done, total = transfer.progress()
        if total is not None:
            self._around.disk.came(self.request.path, total - done)

    def _finish_hash(self, part: PartFile) -> Digest:
        assert self._hasher is not None
        try:
            return self._hasher.finish(self._around.cancel)
        except OSError as error:
            raise output_error(error, part.path) from error

    def _close_hasher(self) -> None:
        if self._hasher is not None:
            self._hasher.close()
            self._hasher = None

    def _check(self, part: PartFile, digest: Digest, link: Link) -> None:
        expected, what = self.request.digest, self.request.known.get(digest.value)
        if digest == expected or (expected is None and what is None):
            return
        aside = part.set_aside(f"{self.request.path.name}.wrong-{digest.value[:8]}")
        wanted = f"expected {expected}, " if expected else ""
        reason = f"wrong checksum: {wanted}found {digest}{f', which is {what}' if what else ''}"
        _log.warning("%s: %s; from %s, kept aside as %s", self.request.path, reason, shown_url(link.page), aside.name)
        raise WrongChecksumError(reason, known=what is not None)

    def _no_link_left(self, part: PartFile) -> FacedataError:
        kind = TransferError
        troubles = [trouble for _, trouble in self._troubles]
        if any(isinstance(trouble, WrongChecksumError) for trouble in troubles):
            return ChecksumError(self._story(part))
        if troubles and all(trouble.page for trouble in troubles):
            kind = WebPageError
        return kind(self._story(part))

    def _story(self, part: PartFile) -> str:
        told = dict.fromkeys(f"{shown_url(link.page)}: {trouble}" for link, trouble in self._troubles)
        pages = " or ".join(dict.fromkeys(shown_url(link.page) for link in self.request.links))
        by_hand = f"open {pages} in a browser, save the file, and give its folder with --from-dir"
        kept = "the half is kept, the same command goes on from there; or " if part.done else ""
        why = "; ".join(told) or "no link to it is known"
        return f"{self.request.path}: cannot be fetched: {why}. What to do: {kept}{by_hand if pages else '--from-dir'}"


def _transfer(job: FileJob) -> _Transfer:
    if job.link.kind == "google-drive":
        from facedata.download.transfer.drive import DriveDownload

        return DriveDownload(job)
    return Download(job)


def _forget_other_halves(request: FileRequest) -> None:
    if any(link.kind == "google-drive" for link in request.links):
        from facedata.download.transfer.drive import remove_drive_halves

        remove_drive_halves(request.path)


def _timestamp(last_modified: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(last_modified or "").timestamp()
    except (ValueError, OverflowError):
        return None
