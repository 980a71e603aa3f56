"""HTTP requests: redirects, time limits, cancellation, and what each error means."""

from __future__ import annotations

import io
import re
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import wait_for_read

from facedata import __version__
from facedata.download.transfer.options import TransferOptions
from facedata.download.transfer.pages import plain_line, shown_url
from facedata.download.transfer.retry import CancelledError, LinkError, TransientError, retry_after

__all__ = ["Response", "Session"]

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_RETRIES_TO_CONNECT = 3
_LONGEST_POLL = 0.1  # seconds until a read notices a cancellation
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

    Parameters
    ----------
    options : TransferOptions
    cancel : threading.Event
        Ends all waiting for responses and bodies with a `CancelledError`.
    """

    def __init__(self, options: TransferOptions, cancel: threading.Event) -> None:
        super().__init__()
        self._timeout = options.timeout
        self.headers.update({"User-Agent": f"facedata/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"})
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Adapter(options, cancel))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Always None: requests would read the body of a redirect, however long. `ask` follows redirects instead."""
        return None

    def ask(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", json: Any = None
    ) -> Response:
        """Send a request, follow redirects, and return the response once its headers are there, whatever its status.

        Raises
        ------
        LinkError
            If the URL or a redirect is invalid or not allowed.
        TransientError
            If there is no response.
        CancelledError
        """
        urls, headers = [url], dict(headers or {})
        while True:
            try:
                response = self.request(
                    method,
                    urls[-1],
                    headers=headers,
                    json=json,
                    stream=True,
                    timeout=self._timeout,
                    allow_redirects=False,
                )
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise _explain(error, urls[-1]) from error
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return Response(response)
            response.close()
            urls.append(_redirect_target(urls, response.headers["location"]))
            if urlsplit(urls[-1]).netloc != urlsplit(urls[-2]).netloc:
                headers.pop("Authorization", None)


@dataclass(frozen=True)
class ContentRange:
    """The bytes from `first` to `last` of `total`, which is None if the server does not know it."""

    first: int
    last: int
    total: int | None


class Response:
    """A response whose headers are there and whose body can be read."""

    def __init__(self, response: requests.Response) -> None:
        self._response, self._pushed_back = response, b""
        self.status, self.url = response.status_code, response.url
        header = response.headers.get
        self.etag, self.last_modified = _validator(header("etag")), _validator(header("last-modified"))
        self.content_type = header("content-type", "")
        self.is_attachment = "content-disposition" in response.headers
        self.accepts_ranges = self.status == 206 or header("accept-ranges", "").strip().lower() == "bytes"
        self.encoding = header("content-encoding", "").strip().lower().replace("identity", "")
        chunked = "transfer-encoding" in response.headers
        self.length = None if chunked else _number(header("content-length"))
        self.has_end = chunked or self.length is not None  # else the end of the connection is the end of the body
        self.range = _content_range(header("content-range", ""))
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
            raise TransientError(reason, after=retry_after(self._response.headers.get("retry-after")))
        raise LinkError(reason)

    def read(self, size: int) -> bytes:
        """Read the next bytes as soon as there are any, at most `size`; no bytes at the end.

        Raises
        ------
        TransientError
            If the connection breaks, is too slow, or is silent for too long.
        CancelledError
        """
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back[:size], self._pushed_back[size:]
            return data
        try:
            return self._response.raw.read1(size, decode_content=False) or b""
        except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            raise _explain(error, self.url) from error

    def read_all(self, most: int) -> bytes:
        """Read the body up to its end or to `most` bytes."""
        body = b""
        while len(body) < most and (data := self.read(most - len(body))):
            body += data
        return body

    def push_back(self, data: bytes) -> None:
        """Make `read` return these bytes again."""
        self._pushed_back = data + self._pushed_back


class _Adapter(HTTPAdapter):
    """Makes connections, direct or through proxies, whose responses are read by a `_LimitedReader`."""

    def __init__(self, options: TransferOptions, cancel: threading.Event) -> None:
        self._options, self._cancel = options, cancel
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, **keywords)
        self._limit(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **keywords)
        if is_new:
            self._limit(manager)
        return manager

    def _limit(self, manager: Any) -> None:
        options, cancel = self._options, self._cancel

        def limited(pool: Any) -> Any:
            class HTTPResponse(pool.ConnectionCls.response_class):  # type: ignore[misc]
                def __init__(self, sock: Any, *arguments: Any, **keywords: Any) -> None:
                    super().__init__(sock, *arguments, **keywords)
                    raw: Any = self.fp.detach()  # type: ignore[has-type]
                    self.fp = io.BufferedReader(_LimitedReader(raw, sock, options, cancel))

            connection = type("Connection", (pool.ConnectionCls,), {"response_class": HTTPResponse})
            return type("Pool", (pool,), {"ConnectionCls": connection})

        pools = manager.pool_classes_by_scheme.items()
        manager.pool_classes_by_scheme = {scheme: limited(pool) for scheme, pool in pools}


class _LimitedReader(io.RawIOBase):
    """Reads a response from its socket until it is cancelled, silent for too long, or too slow.

    The timeout of a socket would start again with every byte, and no other thread can end a read that waits.
    """

    def __init__(self, raw: Any, sock: Any, options: TransferOptions, cancel: threading.Event) -> None:
        self._raw, self._socket, self._options, self._cancel = raw, sock, options, cancel
        self._has_begun, self._bytes, self._seconds = False, 0, 0.0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        begin, timeout = time.monotonic(), self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            while True:
                if self._cancel.is_set():
                    raise CancelledError
                count: int | None = None
                with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    count = self._raw.readinto(buffer)
                waited = time.monotonic() - begin
                if count is not None:
                    self._check_speed(count, waited)
                    return count
                if waited > self._options.timeout:
                    raise TransientError("the server does not answer in time")
                wait_for_read(self._socket, _LONGEST_POLL)
        finally:
            with suppress(OSError):
                self._socket.settimeout(timeout)

    def _check_speed(self, count: int, waited: float) -> None:
        """Measure the speed after the first byte, over one period after another, while waiting for the server."""
        if not self._has_begun:
            self._has_begun = True
            return
        self._bytes += count
        self._seconds += waited
        if self._seconds >= self._options.timeout:
            if self._bytes < self._options.least_speed * self._seconds:
                raise TransientError(f"only {self._bytes:,} bytes arrived in {self._seconds:.1f} s")
            self._bytes, self._seconds = 0, 0.0


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


def _number(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else None


def _validator(value: str | None) -> str | None:
    return value if value and value.isascii() and value.isprintable() and len(value) < 1000 else None


def _content_range(value: str) -> ContentRange | None:
    match = re.fullmatch(r"\s*bytes\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)\s*", value)
    if not match:
        return None
    total = None if match[3] == "*" else int(match[3])
    if int(match[1]) > int(match[2]) or (total is not None and int(match[2]) >= total):
        return None
    return ContentRange(int(match[1]), int(match[2]), total)
