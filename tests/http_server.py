"""A real HTTP server on loopback that misbehaves on request, and counts what it serves.

    with Server() as server:
        served = server.add("/a.bin", data, status=[500, 200], cut_at=[1000, None])
        ... fetch server.url("/a.bin") ...
        assert served.requests == 3

Options that are lists have one item for each request of that path, in order; the last one holds for all that follow.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_PIECE = 1 << 16


@dataclass(frozen=True)
class Asked:
    """A request that was received."""

    path: str
    headers: Message
    method: str


@dataclass
class Served:
    """What a path serves, how it misbehaves, and which requests it received."""

    data: bytes  # the tests may replace it between requests
    status: int | Sequence[int] = 200  # if it is another one: that error, with a short body
    cut_at: int | Sequence[int | None] | None = None  # break the connection after so many bytes of the body
    etag: str | None = '"first"'
    last_modified: str | None = "Wed, 01 May 2024 10:00:00 GMT"
    ranges: bool = True  # whether ``Range`` is supported
    length: int | str | None = "right"  # ``Content-Length``; None: the connection is closed at the end
    chunked: bool = False
    rate: int | None = None  # bytes per second
    location: str | None = None  # redirect to this URL, with status 302
    headers: dict[str, str] = field(default_factory=dict)  # further ones, or replacements of the usual ones
    silent: bool = False  # accept the request and never answer
    on_request: Callable[[Asked], object] | None = None  # called before it is answered

    asked: list[Asked] = field(default_factory=list)
    bytes_served: int = 0
    at_once: int = 0

    @property
    def requests(self) -> int:
        return len(self.asked)

    def wait_for(self, count: int) -> None:
        """Wait until so many bytes are served."""
        deadline = time.monotonic() + 20
        while self.bytes_served < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def current(self, option: Any) -> Any:
        """The item of a list of options that applies to the last request."""
        return option[min(self.requests, len(option)) - 1] if isinstance(option, list) else option


class Server(ThreadingHTTPServer):
    """The server; a context manager. If it is a proxy, it answers itself in the place of any host."""

    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 64

    def __init__(self, tls: ssl.SSLContext | None = None, *, is_proxy: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls, self.scheme = tls, "https" if tls and not is_proxy else "http"
        self.served: dict[str, Served] = {}
        self.closing, self.lock = threading.Event(), threading.Lock()
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the tests are about clients that close their connections."""

    def add(self, path: str, data: bytes = b"", **options: Any) -> Served:
        """Serve `data` at `path`, as the options of `Served` say."""
        self.served[path] = Served(data, **options)
        return self.served[path]

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"

    def wait_until_idle(self) -> None:
        """Wait until no request is being answered and the counts are final."""
        deadline = time.monotonic() + 10
        while any(served.at_once for served in self.served.values()) and time.monotonic() < deadline:
            time.sleep(0.005)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        self.server.connections.append(self.request)
        if self.server.scheme == "https":
            self._secure()
        super().setup()

    def _secure(self) -> None:
        assert self.server.tls is not None
        self.request.settimeout(10)
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.server.connections.append(self.request)
        self.request.settimeout(None)

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.request.close()

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self._head(200, {})
        self._secure()
        super().setup()
        self.close_connection = False

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        all_served = self.server.served
        served = all_served.get(self.path) or all_served.get(self.path.partition("?")[0])
        if served is None:
            self._error(404)
            return
        asked = Asked(self.path, self.headers, self.command)
        with self.server.lock:
            served.asked.append(asked)
            status, cut_at = served.current(served.status), served.current(served.cut_at)
            served.at_once += 1
        try:
            if served.on_request:
                served.on_request(asked)
            self._answer(served, status, cut_at)
        except OSError:
            self.close_connection = True
        finally:
            with self.server.lock:
                served.at_once -= 1

    do_POST = do_GET  # noqa: N815, the name that http.server looks for

    def _answer(self, served: Served, status: int, cut_at: int | None) -> None:
        if served.silent:
            self.server.closing.wait(60)
            self.close_connection = True
        elif served.location is not None:
            self._head(302, {"Location": served.location, "Content-Length": "0", **served.headers})
        elif status != 200:
            self._error(status, served.headers)
        else:
            self._give(served, cut_at)

    def _error(self, status: int, headers: dict[str, str] = {}) -> None:  # noqa: B006
        body = f"<html><title>{status}</title></html>".encode()
        self._head(status, {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def _give(self, served: Served, cut_at: int | None) -> None:
        data, wanted = served.data, self._wanted(served)
        validators = (("ETag", served.etag), ("Last-Modified", served.last_modified))
        headers = {name: text for name, text in validators if text}
        status, first, end = 200, 0, len(data)
        if wanted is not None:
            first, end = wanted
            if first >= len(data):
                self._head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                return
            status, end = 206, min(end, len(data))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        if served.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif served.length is None:
            headers["Connection"] = "close"
            self.close_connection = True
        else:
            headers["Content-Length"] = str(end - first if served.length == "right" else served.length)
            self.close_connection |= served.length != "right"
        self._head(status, {"Content-Type": "application/octet-stream", **headers, **served.headers})
        self._send(served, memoryview(data)[first:end], cut_at)

    def _wanted(self, served: Served) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        condition = self.headers.get("if-range")
        if not match or not served.ranges or (condition and condition not in (served.etag, served.last_modified)):
            return None
        return int(match[1]), int(match[2]) + 1 if match[2] else len(served.data)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, served: Served, body: memoryview, cut_at: int | None) -> None:
        end = len(body) if cut_at is None else min(cut_at, len(body))
        piece = _PIECE if served.rate is None else max(min(_PIECE, served.rate // 20), 1)
        for first in range(0, end, piece):
            data = body[first : min(first + piece, end)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), bytes(data)) if served.chunked else data)
            with self.server.lock:
                served.bytes_served += len(data)
            if served.rate is not None and self.server.closing.wait(piece / served.rate):
                break
        if cut_at is not None:
            self.wfile.flush()
            time.sleep(0.005)  # let the client receive what was sent
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        elif served.chunked:
            self.wfile.write(b"0\r\n\r\n")
