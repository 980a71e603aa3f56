"""Download one file from one link: find its URL, request what is missing, check the response, write it, retry."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import LoadError, MozillaCookieJar
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from facedata.download.transfer.client import Response, Session
from facedata.download.transfer.options import (
    CancelledError,
    FileRequest,
    Link,
    LinkError,
    RestartError,
    TransferOptions,
    TransientError,
)
from facedata.download.transfer.partial import PartialFile, State
from facedata.identify import page_instead_of_file
from facedata.text import plain_line, shown_url

__all__ = ["LinkDownload"]

_BLOCK = 1 << 19
_HEAD = 1 << 12
_PROGRESS = 1 << 10
_LONGEST_WAIT, _LONGEST_RETRY_AFTER = 60.0, 3600.0
_CHECK_ROOM_EVERY = 16 << 20
_URL_LIFETIME = 600.0
_GZIP, _GZIP_NAMES = b"\x1f\x8b", (".gz", ".tgz")

_LARGEST_ANSWER = 1 << 20
_DRIVE_PAGES = 3  # before the file: usually one, which asks to confirm that a large file was not checked for viruses
_DRIVE_COOKIES = "~/.cache/gdown/cookies.txt"  # a Google login that the user gave to gdown
_BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"

# What OneDrive's own web page uses. None of this is documented, and it has changed before: up to 2024,
# api.onedrive.com answered without a token.
_ONEDRIVE_TOKENS = "https://api-badgerp.svc.ms/v1.0/token"
_ONEDRIVE_SHARES = "https://my.microsoftpersonalcontent.com/_api/v2.0/shares"
_ONEDRIVE_APPLICATION = "5cbed6ac-a083-4e14-b191-b4ba07653de2"
_log = logging.getLogger(__name__)


@dataclass
class LinkDownload:
    """The download of one file from one link.

    `check_room` raises a `DiskFullError` if what all files still need does not fit on the disk, and so many further
    bytes.
    """

    request: FileRequest
    link: Link
    partial: PartialFile
    options: TransferOptions
    cancel: threading.Event
    check_room: Callable[[int], None]

    def __post_init__(self) -> None:
        self._link_name = shown_url(self.link.address)
        self._url, self._url_expires = self.link.address, 0.0
        self._failures, self._furthest = 0, 0
        self._asks_for_all = False  # without a range, after the server sent one of a file whose size it did not say

    def run(self) -> str:
        """Download what is missing of the partial file; return the final URL, as it may be recorded.

        Raises a `LinkError` if the link does not give the file, and an `OutputError` if it cannot be written.
        """
        partial, final_url = self.partial, self._link_name
        if (partial.done or partial.is_complete) and not self._can_resume():
            if partial.done:
                _log.warning("%s: the server cannot be asked for the rest of this file; starting over", partial.path)
            partial.restart()
        with Session(self.options, self.cancel) as session:
            while not partial.is_complete:
                try:
                    final_url = self._request_rest(session)
                except TransientError as error:
                    self._prepare_retry(error)
        if self.link.kind == "google-drive":
            return self.link.page
        return final_url if final_url == self._link_name else final_url.partition("?")[0]

    def _can_resume(self) -> bool:
        """Whether the rest surely belongs to the same file: because of a validator, or because a checksum decides."""
        state, digest = self.partial.state, self.request.digest
        is_same_link = state.link == self._link_name
        if self.partial.is_complete and (is_same_link or digest):
            return True
        return state.resumable and bool(digest or (is_same_link and state.validators))

    def _prepare_retry(self, error: TransientError) -> None:
        """Wait, and discard the partial file if it cannot be resumed; give up after enough failures in a row."""
        partial = self.partial
        if partial.done >= self._furthest + _PROGRESS:
            self._furthest, self._failures = partial.done, 0
        if not isinstance(error, RestartError) and partial.done and not partial.state.resumable:
            error = RestartError(f"{error}, and the file can be had only from its beginning")
        retries = self.options.retries if error.retries is None else min(self.options.retries, error.retries)
        if self._failures >= retries:
            attempts = f" (after {self._failures + 1} attempts)" if self._failures else ""
            raise LinkError(f"{error}{attempts}") from error
        wait = min(self.options.first_wait * 2.0**self._failures, _LONGEST_WAIT) * random.uniform(0.5, 1)
        wait = wait if error.after is None else min(max(error.after, wait), _LONGEST_RETRY_AFTER)
        self._failures += 1
        if isinstance(error, RestartError) and partial.done:
            _log.warning("%s: %s; starting over in %.0f s", partial.path, error, wait)
        else:
            level = logging.INFO if wait >= 1 else logging.DEBUG
            _log.log(level, "%s: %s; trying again in %.0f s", partial.target.name, error, wait)
        if isinstance(error, RestartError):
            partial.restart()
        if self.cancel.wait(wait):
            raise CancelledError

    def _request_rest(self, session: Session) -> str:
        if self.link.kind != "http" and time.monotonic() >= self._url_expires:
            find_url = _drive_url if self.link.kind == "google-drive" else _onedrive_url
            self._url = find_url(session, self.link.address)
            self._url_expires = time.monotonic() + _URL_LIFETIME
        state, position = self.partial.state, self.partial.done
        headers = {} if self._asks_for_all and not position else {"Range": f"bytes={position}-"}
        if position and state.validators and state.link == self._link_name:
            headers["If-Range"] = state.validators[0]
        with session.ask(self._url, headers) as response:
            response.raise_for_status()
            if position:
                self._accept_rest(response, position)
            else:
                self._accept_beginning(response)
            self._write_body(response)
        return shown_url(response.url)

    def _accept_beginning(self, response: Response) -> None:
        """Check the response to a request for the whole file, and begin the partial file."""
        name, size, digest = self.request.path.name, self.request.size, self.request.digest
        total = self._announced_size(response)
        head = b"" if total == 0 else response.read_all(_HEAD)
        response.push_back(head)
        if not head and not response.has_end and size is None and digest is None:
            raise TransientError("the server sends nothing")  # the connection may have broken within the headers
        unpacked = _gunzip_start(head) if response.encoding else b""
        for beginning in (head, unpacked):
            title = page_instead_of_file(name, response.content_type, beginning) if beginning else None
            if title is not None:
                if self.link.kind == "google-drive" and (quota := _quota_error(title)):
                    raise quota
                called = f', "{title}"' if title else ""
                raise LinkError(f"the server sends a web page instead of the file{called}", is_page=True)
        if response.encoding and not _is_mislabelled(response.encoding, name, head, unpacked):
            raise LinkError(
                f"the server sends the file in the encoding '{response.encoding[:20]}', although it was asked for the "
                "file as it is"
            )
        if total is not None and size is not None and total != size:
            raise LinkError(f"the file there has {total:,} bytes, not the {size:,} that were published", is_wrong=True)
        self.partial.restart(
            State(
                link=self._link_name,
                etag=response.etag,
                last_modified=response.last_modified,
                validators=response.validators,
                total=total,
                resumable=bool((response.validators or digest) and total is not None and response.accepts_ranges),
                encoding=response.encoding,
            )
        )
        self.check_room(0)

    def _announced_size(self, response: Response) -> int | None:
        """The size of the complete file that a response to a request for all of it announces."""
        if response.status == 206:
            if response.range is None or response.range.first != 0:
                raise LinkError(f"the server sends {_shown_range(response)}, but the whole file was requested")
            total = self.request.size if response.range.total is None else response.range.total
            if total is None:
                kind = LinkError if self._asks_for_all else TransientError
                self._asks_for_all = True
                raise kind(f"the server sends {_shown_range(response)}, and does not say of how many")
            return total
        announced = self.request.size if response.total_of_416 is None else response.total_of_416
        if response.status == 416 and announced == 0:  # an empty file has no byte that can be requested
            return 0
        if response.status != 200:
            raise LinkError(f"the server answers {response.status}, which contains no file")
        return response.length

    def _accept_rest(self, response: Response, position: int) -> None:
        """Check the response to a request for the bytes from `position` on: they must belong to the same file."""
        state, digest = self.partial.state, self.request.digest
        is_same_link = state.link == self._link_name
        if response.status == 416:
            raise RestartError(f"the file on the server has no byte {position:,} any more")
        total = response.range.total if response.range else response.length
        if total is not None and state.total is not None and total != state.total:
            change = f"it had {state.total:,} bytes, and has {total:,}"
        elif is_same_link and response.etag and state.etag and response.etag != state.etag:
            change = f"its ETag was {state.etag}, and is {response.etag}"
        elif is_same_link and response.last_modified and state.last_modified not in (None, response.last_modified):
            change = f"it was of {state.last_modified}, and is of {response.last_modified}"
        else:
            change = ""
        if response.status == 206 and (response.range is None or response.range.first != position):
            raise LinkError(f"the server sends {_shown_range(response)}, but those from {position:,} on were requested")
        if change:
            raise RestartError(f"the file on the server has changed ({change})")
        if response.status != 206:
            raise RestartError("the server sends the file only from its beginning")
        if not digest and not {response.etag, response.last_modified} & {*state.validators}:
            raise RestartError("the server does not say whether the rest belongs to the same version of the file")
        if response.encoding not in ("", state.encoding):
            raise LinkError(f"the server sends the rest of the file in the encoding '{response.encoding[:20]}'")
        if not is_same_link:
            self.partial.update(
                link=self._link_name,
                etag=response.etag,
                last_modified=response.last_modified,
                validators=response.validators,
            )

    def _write_body(self, response: Response) -> None:
        """Write the body up to its end or the end of the file."""
        partial, size, total = self.partial, self.request.size, self.partial.state.total
        end = min(total, response.range.last + 1) if response.range and total is not None else total
        while end is None or partial.done < end:
            data = response.read(_BLOCK if end is None else min(_BLOCK, end - partial.done))
            if not data:
                break
            done = partial.done + len(data)
            if size is not None and done > size:
                raise LinkError(f"the server sends more than the {size:,} bytes that were published", is_wrong=True)
            if total is None and size is None and done // _CHECK_ROOM_EVERY > partial.done // _CHECK_ROOM_EVERY:
                self.check_room(_CHECK_ROOM_EVERY)  # without a size, the body may be endless
            partial.write(data)
        expected = size if total is None else total
        if expected is not None and partial.done < expected:
            raise TransientError(f"the response ends after {partial.done:,} of {expected:,} bytes")
        if total is None:
            if size is None and self.request.digest is None and not response.has_end:
                _log.warning(
                    "%s: the server did not announce the size of the file, and no checksum is known: the file may be "
                    "cut short",
                    partial.target,
                )
            partial.update(total=partial.done)


def _is_mislabelled(encoding: str, name: str, head: bytes, unpacked: bytes) -> bool:
    """Whether the body is the file itself, although the server calls it an encoding of the file.

    Servers with a rule for ``.gz`` names call a ``.tar.gz`` an encoding of a ``.tar``, and send it as it is. A server
    that really compresses a ``.gz`` file sends a gzip stream within a gzip stream.
    """
    if encoding not in ("gzip", "x-gzip"):
        return False
    return not head.startswith(_GZIP) or (name.lower().endswith(_GZIP_NAMES) and not unpacked.startswith(_GZIP))


def _gunzip_start(head: bytes) -> bytes:
    """The first decompressed bytes of a gzip stream; no bytes if it is not one."""
    try:
        return zlib.decompressobj(31).decompress(head, 1024)
    except zlib.error:
        return b""


def _shown_range(response: Response) -> str:
    if response.status != 206:
        return f"an answer {response.status}"
    if response.range is None:
        return "an invalid Content-Range"
    return f"the bytes {response.range.first:,} to {response.range.last:,}"


def _drive_url(session: Session, identity: str) -> str:
    """The URL that gives the file of Google Drive with this id, for a while; gdown reads the pages before it."""
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    if not re.fullmatch(r"[-\w]{8,200}", identity, re.ASCII):
        raise LinkError(f"'{plain_line(identity)}' is not the id of a file on Google Drive")
    session.headers["User-Agent"] = _BROWSER  # other programs get other pages
    cookies = MozillaCookieJar(os.path.expanduser(_DRIVE_COOKIES))
    with suppress(OSError, LoadError, UnicodeError):
        cookies.load(ignore_discard=True, ignore_expires=True)
        for cookie in cookies:
            cookie.expires = cookie.expires or None  # browsers export 0 for a cookie that lasts as long as a session
        session.cookies.update(cookies)
    url = f"https://drive.google.com/uc?id={identity}"
    for _ in range(_DRIVE_PAGES):
        with session.ask(url) as response:
            if response.is_attachment:
                return url
            if response.status not in (401, 403, 404):
                response.raise_for_status()
            page = response.read_all(_LARGEST_ANSWER).decode(errors="replace")
        try:
            url = get_url_from_gdrive_confirmation(page)
        except FileURLRetrievalError as error:
            if "cannot retrieve the public link" in str(error).lower():
                raise LinkError(
                    "Google Drive gives no public link to this file: it was removed, is not shared with everyone, or "
                    "was requested too often; a browser shows which"
                ) from error
            refusal = LinkError(f"Google Drive refuses it: {plain_line(str(error))}")
            raise _quota_error(str(error)) or refusal from error
        except (KeyError, AssertionError) as error:
            raise LinkError(f"Google Drive sent a page that gdown does not understand ({error!r})") from error
        if "confirm=" in url:
            return url
    raise LinkError("Google Drive shows one page after another instead of the file")


def _quota_error(text: str) -> LinkError | None:
    """The error for a page of Google Drive that says that a quota is exceeded; None for any other page."""
    if "too many users" in text.lower() or "quota" in text.lower():
        return LinkError(
            "Google Drive's download quota for this file is exceeded; try again in 24 hours, or download it in a "
            "browser where you are signed in to Google"
        )
    return None


def _onedrive_url(session: Session, address: str) -> str:
    """The URL that gives the file of a share link of an organisation or a person, for about an hour."""
    parts = urlsplit(address)
    if (parts.hostname or "").lower().endswith("sharepoint.com"):
        # an organisation: with this option the link gives the file instead of a page about it
        query = [(name, value) for name, value in parse_qsl(parts.query) if name != "download"]
        return urlunsplit(parts._replace(query=urlencode([*query, ("download", "1")])))
    answer = session.ask(_ONEDRIVE_TOKENS, method="POST", json={"appId": _ONEDRIVE_APPLICATION})
    token = _read_json(answer, "a token").get("token", "")
    # the API names a share by its encoded link; the URL of a link that was opened in a browser contains that name
    encoded = parse_qs(parts.query).get("redeem", [""])[0] or base64.urlsafe_b64encode(address.encode()).decode()
    headers = {"Authorization": f"Badger {token}", "Prefer": "autoredeem", "Accept": "application/json"}
    answer = session.ask(f"{_ONEDRIVE_SHARES}/u!{encoded.rstrip('=')}/driveitem", headers)
    item = _read_json(answer, "the file")
    if "folder" in item:
        raise LinkError("the link leads to a folder on OneDrive, not to a file")
    url = item.get("@content.downloadUrl")
    if not isinstance(url, str) or not url.startswith("https://"):
        raise LinkError("OneDrive does not say where the file is; it may require a login, as in a browser")
    return url


def _read_json(response: Response, what: str) -> dict[str, Any]:
    with response:
        if response.status in (400, 401, 403):
            raise LinkError(f"OneDrive requires a login before it gives {what} ({response.status}), as in a browser")
        response.raise_for_status()
        body = response.read_all(_LARGEST_ANSWER)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LinkError(f"OneDrive sent an unknown answer instead of {what}")
    return value
