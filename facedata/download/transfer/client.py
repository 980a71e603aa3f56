"""HTTP requests: redirects, time limits, and what each error means."""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from facedata import __version__
from facedata.download.transfer.options import CancelledError, LinkError, TransferOptions, TransientError
from facedata.text import plain_line, shown_url

__all__ = ["Response", "Session", "contacted_host"]

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_RETRIES_TO_CONNECT = 3
_STATUS_NAMES = {
    401: "login required",
    403: "forbidden",
    404: "not found",
    407: "the proxy requires a login",
    410: "gone",
    429: "too many requests",
}


class Session(requests.Session):
    """Asks for files as they are, and follows redirects, but never from https to http.

    `cancel` ends the reading of bodies with a `CancelledError`, once the next bytes arrive.
    """

    def __init__(self, options: TransferOptions, cancel: threading.Event) -> None:
        super().__init__()
        self._options, self._cancel = options, cancel
        self.headers.update({"User-Agent": f"facedata/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"})

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Always None: requests would read the body of a redirect, however long. `ask` follows redirects instead."""
        return None

    def ask(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", json: Any = None
    ) -> Response:
        """Send a request, follow redirects, and return the response once its headers are there, whatever its status.

        Raises a `LinkError` if the URL or a redirect is invalid or not allowed, a `TransientError` if there is no
        response.
        """
        urls, headers, timeout = [url], dict(headers or {}), self._options.timeout
        while True:
            try:
                response = self.request(
                    method, urls[-1], headers=headers, json=json, stream=True, timeout=timeout, allow_redirects=False
                )
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise _explain(error, urls[-1]) from error
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return Response(response, self._options, self._cancel)
            response.close()
            urls.append(_redirect_target(urls, response.headers["location"]))
            if urlsplit(urls[-1]).netloc != urlsplit(urls[-2]).netloc:
                headers.pop("Authorization", None)


def contacted_host(url: str) -> str:
    """The host that a request for this URL connects to, a proxy perhaps; empty if the URL is invalid."""
    try:
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
        parts = urlsplit(url)
        host = (urlsplit(proxy) if proxy else parts).hostname or ""
    except ValueError:
        return ""
    return host if parts.scheme in ("http", "https") and re.fullmatch(r"[\w.:-]+", host) else ""


class ContentRange(NamedTuple):
    """The bytes from `first` to `last` of `total`, which is None if the server does not know it."""

    first: int
    last: int
    total: int | None


class Response:
    """A response whose headers are there and whose body can be read."""

    def __init__(self, response: requests.Response, options: TransferOptions, cancel: threading.Event) -> None:
        self._response, self._options, self._cancel = response, options, cancel
        self._pushed_back, self._has_begun, self._bytes, self._seconds = b"", False, 0, 0.0
        self.status, self.url = response.status_code, response.url
        header = response.headers.get
        self.etag, self.last_modified = _validator(header("etag")), _validator(header("last-modified"))
        self.validators = _strong_validators(self.etag, self.last_modified, header("date"))
        self.content_type = header("content-type", "")
        self.is_attachment = "content-disposition" in response.headers
        self.accepts_ranges = self.status == 206 or header("accept-ranges", "").strip().lower() == "bytes"
        self.encoding = header("content-encoding", "").strip().lower().replace("identity", "")
        chunked = "transfer-encoding" in response.headers
        self.length = None if chunked else _number(header("content-length"))
        self.has_end = chunked or self.length is not None  # else the end of the connection is the end of the body
        is_range = self.status == 206 and not self.content_type.strip().lower().startswith("multipart/byteranges")
        self.range = _content_range(header("content-range", "")) if is_range else None
        self.total_of_416 = _number(header("content-range", "").partition("*/")[2])

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def raise_for_status(self) -> None:
        """Raise a `TransientError` or `LinkError` unless the status is 2xx or 416."""
        if 200 <= self.status < 300 or self.status == 416:
            return
        name = _STATUS_NAMES.get(self.status) or plain_line(self._response.reason or "")
        reason = f"the server answers {self.status} {name}".rstrip()
        if self.status in _TRANSIENT:
            raise TransientError(reason, after=_retry_after(self._response.headers.get("retry-after", "").strip()))
        raise LinkError(reason)

    def read(self, size: int) -> bytes:
        """Read the next bytes as soon as there are any, at most `size`; no bytes at the end.

        Raises a `TransientError` if the connection breaks, is too slow, or is silent for too long.
        """
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back[:size], self._pushed_back[size:]
            return data
        if self._cancel.is_set():
            raise CancelledError
        begin = time.monotonic()
        try:
            data = self._response.raw.read1(size, decode_content=False) or b""
        except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            raise _explain(error, self.url) from error
        if self._has_begun:  # the speed counts from the second block on, over one period after another
            self._bytes += len(data)
            self._seconds += time.monotonic() - begin
            if self._seconds >= self._options.timeout:
                if data and self._bytes < self._options.least_speed * self._seconds:
                    raise TransientError(f"only {self._bytes:,} bytes arrived in {self._seconds:.1f} s")
                self._bytes, self._seconds = 0, 0.0
        self._has_begun = True
        return data

    def read_all(self, most: int) -> bytes:
        """Read the body up to its end or to `most` bytes."""
        body = b""
        while len(body) < most and (data := self.read(most - len(body))):
            body += data
        return body

    def push_back(self, data: bytes) -> None:
        """Make `read` return these bytes again."""
        self._pushed_back = data + self._pushed_back


def _redirect_target(urls: list[str], location: str) -> str:
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode()  # http.client decodes headers as Latin-1
    try:
        url = urljoin(urls[-1], location)
        before, after = urlsplit(urls[-1]).scheme.lower(), urlsplit(url).scheme.lower()
    except ValueError as error:
        raise LinkError(f"redirects to an invalid URL: {plain_line(location)}") from error
    if after not in ("http", "https"):
        raise LinkError(f"redirects to {shown_url(url)}, which is neither http nor https")
    if before == "https" and after == "http":
        raise LinkError(f"redirects from https to http ({shown_url(url)}), which is refused")
    if len(urls) > _MOST_REDIRECTS:
        how = "redirects in a circle" if len(set(urls)) < len(urls) else f"redirects more than {_MOST_REDIRECTS} times"
        raise LinkError(f"{how}: {' -> '.join(shown_url(each) for each in [*urls[-2:], url])}")
    return url


def _explain(error: Exception, url: str) -> Exception:
    """What an exception of requests, urllib3 or the socket means."""
    invalid = (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema)
    text = str(error)
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return LinkError("the proxy that the environment names has no valid address; check http_proxy and https_proxy")
    if isinstance(error, (*invalid, UnicodeError, urllib3.exceptions.LocationParseError)):
        return LinkError(f"{shown_url(url)} is not a URL that can be downloaded")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = plain_line(text.partition("CERTIFICATE_VERIFY_FAILED]")[2].partition("(_ssl")[0])
        return LinkError(f"its certificate is not trusted ({why or 'verification failed'})")
    if "NameResolutionError" in text or "Name or service not known" in text:
        return TransientError(f"the host name {urlsplit(url).hostname} cannot be resolved", retries=_RETRIES_TO_CONNECT)
    if "timed out" in text.lower():
        return TransientError("the server does not answer in time")
    if "Connection refused" in text:
        return TransientError("the connection is refused", retries=_RETRIES_TO_CONNECT)
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    reason = plain_line(str(cause) or type(cause).__name__)
    if isinstance(cause, IncompleteRead) and isinstance(cause.expected, int):
        reason = f"{cause.expected:,} bytes before its end"
    if isinstance(error, requests.exceptions.ProxyError):
        return TransientError(f"the proxy does not connect: {reason}", retries=_RETRIES_TO_CONNECT)
    return TransientError(f"the connection broke ({reason})")


def _retry_after(value: str) -> float | None:
    """The seconds of a ``Retry-After`` header, which holds a number or a date; None if it is missing or invalid."""
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _number(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else None


def _validator(value: str | None) -> str | None:
    return value if value and value.isascii() and value.isprintable() and len(value) < 1000 else None


def _strong_validators(etag: str | None, last_modified: str | None, date: str | None) -> tuple[str, ...]:
    """The validators that prove that two responses are of the same bytes, if they are equal: an ETag, or a date.

    A file may change twice in the second of its Last-Modified, so Date, that of the response, must be later (RFC 9110,
    8.8.2.2).
    """
    found = [etag] if etag and not etag.startswith("W/") else []
    with suppress(ValueError, OverflowError):
        sent = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
        if last_modified and sent - email.utils.parsedate_to_datetime(last_modified).timestamp() >= 1:
            found.append(last_modified)
    return tuple(found)


def _content_range(value: str) -> ContentRange | None:
    match = re.fullmatch(r"\s*bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)\s*", value)
    if not match:
        return None
    first, last, total = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
    return ContentRange(first, last, total) if first <= last and (total is None or last < total) else None
