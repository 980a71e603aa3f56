"""One file from Google Drive, through gdown, which knows its pages; what is kept, checked and told is ours."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from facedata.download.digest import Digest, new_hasher
from facedata.download.transfer.accept import page_trouble
from facedata.download.transfer.job import FileJob, Origin
from facedata.download.transfer.pages import page_instead_of_file, plain_line
from facedata.download.transfer.retry import (
    CancelledError,
    LinkError,
    PassingError,
    Patience,
    StartOverError,
    pause,
)
from facedata.download.transfer.state import boot_id
from facedata.errors import FacedataError, output_error

__all__ = ["DriveDownload", "remove_drive_halves"]

_COOKIES = "~/.cache/gdown/cookies.txt"
_HEAD = 4096
_log = logging.getLogger(__name__)


class DriveDownload:
    """Fetches a file by its id.

    gdown keeps its half in a hidden file of its own; a record beside it says what it is a half of.

    Parameters
    ----------
    job : FileJob
    """

    def __init__(self, job: FileJob) -> None:
        self._job, self._options = job, job.around.options
        self._half = _Half(job.request.path)
        self._patience = Patience(self._options.retries, self._options.first_wait)
        self._watch = _Watch(self._options.least_speed, self._options.timeout)
        self._done, self.received = 0, 0
        self._total: int | None = None
        self._digest: Digest | None = None

    def progress(self) -> tuple[int, int | None]:
        """Bytes done, and in all where that is known."""
        return self._done, self._total

    def tick(self) -> None:
        """Break off what is too slow, or not wanted any more; to be called now and then from another thread."""
        self._watch.look(self._done, cancelled=self._job.around.cancel.is_set())

    def run(self) -> Origin:
        """Fetch the file into the half of the job.

        Raises
        ------
        LinkError
            Where Google Drive does not give it, in plain words.
        CancelledError
        FacedataError
            Where it cannot be written.
        """
        if not re.fullmatch(r"[-\w]{8,200}", self._job.link.address, re.ASCII):
            raise LinkError(f"'{plain_line(self._job.link.address)}' is no id of a file on Google Drive")
        self._half.leave_foreign(self._job.link.address, provable=self._job.request.digest is not None)
        while not self._half.is_whole():
            try:
                self._ask()
                break
            except StartOverError as reason:
                _log.warning("%s: %s; starting over", self._job.request.path, reason)
                self._half.remove()
                self._wait(PassingError(str(reason)))
            except PassingError as trouble:
                self._wait(trouble)
        self._take_over()
        return Origin(self._job.link.page, digest=self._digest)

    def _wait(self, trouble: PassingError) -> None:
        self._patience.progressed(self._done)
        wait = self._patience.wait_after(trouble)
        _log.info("%s: Google Drive: %s; trying again in %.0f s", self._job.request.path.name, trouble, wait)
        pause(wait, self._job.around.cancel)

    def _ask(self) -> None:
        algorithm = self._job.request.digest.algorithm if self._job.request.digest else "sha256"
        hasher, before = new_hasher(algorithm), self._half.size()
        self._done, self._total = before, None
        try:
            _download(self._job, self._half.finished, hasher, self._note, self._watch.begin())
        except FacedataError:
            raise
        except OSError as error:  # those of the network come as other kinds
            raise output_error(error, self._half.finished) from error
        finally:
            self.received += self._done - before
        if self._watch.too_slow:
            raise PassingError(f"less than {self._options.least_speed:,} bytes a second came")
        self._digest = Digest(algorithm, hasher.hexdigest())

    def _note(self, done: int, total: int | None) -> None:
        """So many bytes are in the half."""
        self._done = done
        if total is not None and self._total is None:
            self._total = total
            self._check_total(total)
            self._job.around.disk.expect({self._job.request.path: total - done})

    def _check_total(self, total: int) -> None:
        size, before = self._job.request.size, self._half.total
        if size is not None and total != size:
            self._half.remove()
            raise LinkError(f"the file there has {total:,} bytes, not the {size:,} that were published")
        if before is not None and before != total:
            raise StartOverError(f"the file on Google Drive has changed (it had {before:,} bytes, and has {total:,})")
        self._half.record(self._job.link.address, total)

    def _take_over(self) -> None:
        path = self._half.whole_file()
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        title = page_instead_of_file(self._job.request.path.name, "", head)
        size, found = self._job.request.size, path.stat().st_size
        if title is None and size in (None, found):
            self._job.part.take_over(path, self._job.link_name)
            self._half.remove()
            return
        self._half.remove()
        if title is not None:
            raise page_trouble(title)
        raise LinkError(f"the file there has {found:,} bytes, not the {size:,} that were published")


class _Half:
    """The files of gdown: ``finished`` once all is there, before that the same with eight letters and ``.part``."""

    def __init__(self, target: Path) -> None:
        self.finished = target.with_name(f".facedata-drive-{target.name}")
        self._record = target.with_name(f"{self.finished.name}.json")
        self.total: int | None = None

    def parts(self) -> list[Path]:
        prefix, size = self.finished.name, len(self.finished.name) + len("12345678.part")
        names = [n for n in os.listdir(self.finished.parent) if n.startswith(prefix) and n.endswith(".part")]
        return [self.finished.with_name(name) for name in names if len(name) == size]

    def size(self) -> int:
        parts = self.parts()
        return parts[0].lstat().st_size if parts else 0

    def is_whole(self) -> bool:
        return self.finished.is_file() or (self.total is not None and self.size() == self.total)

    def whole_file(self) -> Path:
        return self.finished if self.finished.is_file() else self.parts()[0]

    def leave_foreign(self, identity: str, *, provable: bool) -> None:
        """Remove what is not a half of this file, or may have lost bytes in a power cut that no checksum would show."""
        try:
            value = json.loads(self._record.read_bytes())
            belongs = value["id"] == identity and (provable or (value["boot"] and value["boot"] == boot_id()))
            self.total = value["total"] if isinstance(value["total"], int) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            belongs = False
        if not belongs or len(self.parts()) > 1:
            self.remove()

    def record(self, identity: str, total: int) -> None:
        self.total = total
        self._record.write_text(json.dumps({"id": identity, "total": total, "boot": boot_id()}))

    def remove(self) -> None:
        self.total = None
        for path in [*self.parts(), self.finished, self._record]:
            path.unlink(missing_ok=True)


class _Watch:
    """Sets the event that stops gdown, where it is too slow or cancelled."""

    def __init__(self, least: int, window: float) -> None:
        self._least, self._window = least, window
        self._event = threading.Event()
        self._since, self._before = time.monotonic(), 0
        self.too_slow = False

    def begin(self) -> threading.Event:
        self._event, self.too_slow = threading.Event(), False
        self._since, self._before = time.monotonic(), -1
        return self._event

    def look(self, done: int, *, cancelled: bool) -> None:
        seconds = time.monotonic() - self._since
        window = self._window if self._before >= 0 else 4 * self._window  # there are pages before the first byte
        if self._before < 0 and done:
            self._since, self._before = time.monotonic(), done
        elif seconds > window:
            self.too_slow |= done - max(self._before, 0) < self._least * seconds
            self._since, self._before = time.monotonic(), done
        if cancelled or self.too_slow:
            self._event.set()


def remove_drive_halves(target: Path) -> None:
    """Remove what earlier tries of Google Drive left of a file."""
    with suppress(OSError):
        _Half(target).remove()


def _download(job: FileJob, output: Path, hasher: Any, progress: Any, cancel: threading.Event) -> None:
    """Call gdown, and say what its errors mean."""
    import gdown
    import requests
    from gdown.exceptions import DownloadCancelled, DownloadError, FileURLRetrievalError

    timeout = job.around.options.timeout
    try:
        gdown.download(
            id=job.link.address,
            output=os.fspath(output),
            quiet=True,
            resume=True,
            hasher=hasher,
            progress=progress,
            timeout=(timeout, timeout),
            cancel=cancel,
            use_cookies=os.path.isfile(os.path.expanduser(_COOKIES)),  # else it would make one
        )
    except DownloadCancelled as error:
        if job.around.cancel.is_set():
            raise CancelledError from error
    except FileURLRetrievalError as error:
        raise _in_plain_words(str(error)) from error
    except requests.HTTPError as error:
        raise _status_trouble(error) from error
    except requests.RequestException as error:
        raise PassingError(f"the connection broke ({plain_line(str(error))})") from error
    except DownloadError as error:
        raise _incomplete(plain_line(str(error))) from error
    except (KeyError, AttributeError, AssertionError, IndexError) as error:
        raise LinkError(f"Google Drive answers in a way that gdown does not know ({type(error).__name__})") from error


def _in_plain_words(text: str) -> LinkError:
    lower = " ".join(text.lower().split())
    if "too many users" in lower or "quota" in lower:
        return LinkError(
            "Google Drive gives this file to nobody more for now, because too many have fetched it (its quota); that "
            "passes within a day, and a browser that is signed in to Google often gets it at once"
        )
    if "cannot retrieve the public link" in lower:
        return LinkError(
            "Google Drive gives no public link to it: the file was removed, is not shared with everyone, or is asked "
            "for too often; a browser shows which"
        )
    return LinkError(f"Google Drive refuses it: {plain_line(text)}")


def _status_trouble(error: Any) -> Exception:
    status = error.response.status_code if error.response is not None else 0
    reason = f"Google Drive answers {status}"
    return PassingError(reason) if status == 429 or status >= 500 else LinkError(reason)


def _incomplete(text: str) -> Exception:
    if "byte range" in text or "multiple temporary files" in text:
        return StartOverError("Google Drive does not go on with this half")
    return PassingError(text.partition(". The received bytes are kept")[0])
