"""One HTTP request and its answer: redirects, ranges, and every way in which a server can fail."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from facedata import __version__
from facedata.download.transfer.files import TransferOptions
from facedata.download.transfer.pages import plain_line, shown_url
from facedata.download.transfer.retry import CancelledError, LinkError, PassingError, retry_after
from facedata.download.transfer.sockets import Sockets, WatchedAdapter
from facedata.download.transfer.speed import SpeedWatch

__all__ = ["Answer", "Session"]

_PASSING = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_TRIES_TO_REACH = 3
_PLAIN_WORDS = {
    401: "wants a login",
    403: "forbidden",
    404: "not found",
    407: "the proxy wants a login",
    410: "gone",
    429: "too many requests",
}


class Session(requests.Session):
    """Asks for files as they are, and follows redirects, though never from https to http.

    Parameters
    ----------
    sockets : Sockets
        Gets to know its connections.
    options : TransferOptions
        Their timeout is that of the connection and of each next byte; the head of an answer may take twice as long.
    """

    def __init__(self, sockets: Sockets, options: TransferOptions) -> None:
        super().__init__()
        self.sockets, self._options = sockets, options
        self.headers.update({"User-Agent": f"facedata/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"})
        for scheme in ("https://", "http://"):
            self.mount(scheme, WatchedAdapter(sockets))

    def close(self) -> None:
        """Close its connections."""
        super().close()
        self.sockets.forget()

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None: requests would read the body of a redirect, however long; `ask` follows them instead."""
        return None

    def ask(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", json: Any = None
    ) -> Answer:
        """The answer at the end of all redirects, whatever its status.

        Raises
        ------
        LinkError
            Where the URL or a redirect is none to follow.
        PassingError
            Where there was no answer.
        """
        seen, headers = [url], headers or {}
        while True:
            response = self._send(method, seen[-1], headers, json)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return Answer(response, self.sockets, SpeedWatch(self._options.least_speed, self._options.timeout))
            response.close()
            seen.append(_next_url(seen, response.headers["location"]))
            if urlsplit(seen[-1]).netloc != urlsplit(seen[-2]).netloc:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}

    def _send(self, method: str, url: str, headers: Mapping[str, str], json: Any) -> requests.Response:
        if self.sockets.cancel.is_set():
            raise CancelledError
        self.sockets.expect_within(2 * self._options.timeout + 1)
        try:
            response = self.request(
                method,
                url,
                headers=dict(headers),
                json=json,
                stream=True,
                timeout=self._options.timeout,
                allow_redirects=False,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            in_time = self.sockets.answered()
            raise _meaning(error if in_time else TimeoutError("timed out"), url, self.sockets) from error
        if not self.sockets.answered():  # a head that was broken off looks like one that is complete
            response.close()
            raise PassingError("no answer in time")
        return response


@dataclass(frozen=True)
class ContentRange:
    """Which bytes of how many an answer with status 206 holds; `total` is None where the server does not know."""

    first: int
    last: int
    total: int | None


class Answer:
    """An answer whose head has been read.

    Parameters
    ----------
    response : requests.Response
    sockets : Sockets
    watch : SpeedWatch
        Measures the reading of its body.
    """

    def __init__(self, response: requests.Response, sockets: Sockets, watch: SpeedWatch) -> None:
        self._response, self._sockets, self._watch = response, sockets, watch
        self._pushed_back = b""
        self.status, self.url = response.status_code, response.url
        header = response.headers.get
        self.etag, self.last_modified = _validator(header("etag")), _validator(header("last-modified"))
        self.content_type = header("content-type", "")
        self.offers_ranges = self.status == 206 or header("accept-ranges", "").strip().lower() == "bytes"
        self.encoding = header("content-encoding", "").strip().lower()
        self.length = _length(header("content-length")) if "transfer-encoding" not in response.headers else None
        self.delimited = self.length is not None or "transfer-encoding" in response.headers
        self.range = _content_range(header("content-range", ""))
        self.unsatisfied_total = _length(header("content-range", "").partition("*/")[2])

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def refuse_errors(self) -> None:
        """Raise `PassingError` or `LinkError` unless the status is that of a success, 2xx, or 416."""
        if 200 <= self.status < 300 or self.status == 416:
            return
        words = _PLAIN_WORDS.get(self.status) or plain_line(self._response.reason or "")
        reason = f"the server answers {self.status} {words}".rstrip()
        if self.status in _PASSING:
            raise PassingError(reason, after=retry_after(self._response.headers.get("retry-after")))
        raise LinkError(reason)

    def read(self, most: int) -> bytes:
        """The next bytes, at most so many and as soon as there are any; nothing at the end.

        Raises
        ------
        PassingError
            Where the connection is cut, too slow, or silent for too long.
        CancelledError
        """
        if self._pushed_back:
            again, self._pushed_back = self._pushed_back[:most], self._pushed_back[most:]
            return again
        begin = time.monotonic()
        # a socket's timeout is begun anew with every byte, also with those around the data of a chunk
        self._sockets.expect_within(2 * self._watch.window + 1)
        try:
            data: bytes = self._response.raw.read1(most, decode_content=False) or b""
        except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            in_time = self._sockets.answered()
            raise _meaning(error if in_time else TimeoutError("timed out"), self.url, self._sockets) from error
        self._refuse_broken_off()
        self._watch.count(len(data), time.monotonic() - begin)
        return data

    def _refuse_broken_off(self) -> None:
        """A body that was broken off on purpose looks like one that has come to its end."""
        in_time = self._sockets.answered()
        if self._sockets.cancel.is_set():
            raise CancelledError
        if not in_time:
            raise PassingError("no answer in time")

    def push_back(self, data: bytes) -> None:
        """Let `read` give these bytes once more."""
        self._pushed_back = data + self._pushed_back

    def read_all(self, most: int) -> bytes:
        """The whole body, if it has not more than `most` bytes; else as much of it."""
        body = b""
        while len(body) < most and (data := self.read(most - len(body))):
            body += data
        return body


def _next_url(seen: list[str], location: str) -> str:
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()  # http.client takes headers for Latin-1
    try:
        url = urljoin(seen[-1], location)
        before, after = urlsplit(seen[-1]).scheme.lower(), urlsplit(url).scheme.lower()
    except ValueError as error:
        raise LinkError(f"redirects to what is no URL: {plain_line(location)}") from error
    if after not in ("http", "https"):
        raise LinkError(f"redirects to {shown_url(url)}, which is neither http nor https")
    if before == "https" and after == "http":
        raise LinkError(f"redirects from https to http ({shown_url(url)}), which is refused")
    if len(seen) > _MOST_REDIRECTS:
        how = "redirects in a circle" if len(set(seen)) < len(seen) else f"redirects more than {_MOST_REDIRECTS} times"
        raise LinkError(f"{how}: {' -> '.join(shown_url(one) for one in [*seen[-2:], url])}")
    return url


def _meaning(error: Exception, url: str, sockets: Sockets) -> Exception:
    """What an exception of any of the layers below means; a connection that was broken off on purpose has no fault."""
    return CancelledError() if sockets.cancel.is_set() else _trouble(error, url)


def _trouble(error: Exception, url: str) -> Exception:
    unusable = (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema)
    text = str(error)
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return LinkError("the proxy that the environment names has no address that can be used; look at http_proxy")
    if isinstance(error, (*unusable, UnicodeError, urllib3.exceptions.LocationParseError)):
        return LinkError(f"{shown_url(url)} is no URL that can be fetched")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = plain_line(text.partition("CERTIFICATE_VERIFY_FAILED]")[2].partition("(_ssl")[0])
        return LinkError(f"its certificate is not trusted ({why or 'verification failed'})")
    if "NameResolutionError" in text or "Name or service not known" in text:
        return PassingError(f"the name {urlsplit(url).hostname} cannot be resolved", tries=_TRIES_TO_REACH)
    if "timed out" in text.lower():
        return PassingError("no answer in time")
    if "Connection refused" in text:
        return PassingError("the connection is refused", tries=_TRIES_TO_REACH)
    if isinstance(error, requests.exceptions.ProxyError):
        return PassingError(f"the proxy does not connect: {_innermost(error)}", tries=_TRIES_TO_REACH)
    return PassingError(f"the connection broke ({_innermost(error)})")


def _innermost(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return plain_line(str(error) or type(error).__name__)


def _length(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else None


def _validator(value: str | None) -> str | None:
    return value if value and value.isprintable() and len(value) < 1000 else None


def _content_range(value: str) -> ContentRange | None:
    match = re.fullmatch(r"\s*bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)\s*", value)
    if not match:
        return None
    total = None if match[3] == "*" else int(match[3])
    if int(match[1]) > int(match[2]) or (total is not None and int(match[2]) >= total):
        return None
    return ContentRange(int(match[1]), int(match[2]), total)
