"""Knowing every open connection, so that a hanging one can be broken off from another thread."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from requests.adapters import HTTPAdapter

__all__ = ["Sockets", "WatchedAdapter"]


class Sockets:
    """The connections of all threads.

    Attributes
    ----------
    cancel : threading.Event
        Set when everything is to stop.
    """

    def __init__(self) -> None:
        self.cancel = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[int, WeakSet[socket.socket]] = {}
        self._deadlines: dict[int, float] = {}
        self._overdue: set[int] = set()

    def add(self, connection: socket.socket) -> None:
        """Note a connection of this thread."""
        with self._lock:
            self._open.setdefault(threading.get_ident(), WeakSet()).add(connection)
        if self.cancel.is_set():
            _break_off(connection)

    def expect_within(self, seconds: float) -> None:
        """Break this thread's connections off in so many seconds, unless `answered` is called before."""
        with self._lock:
            self._overdue.discard(threading.get_ident())
            self._deadlines[threading.get_ident()] = time.monotonic() + seconds

    def answered(self) -> bool:
        """Whether what was expected came in time."""
        with self._lock:
            self._deadlines.pop(threading.get_ident(), None)
            return threading.get_ident() not in self._overdue

    def break_overdue(self) -> None:
        """Break off what should have answered by now; to be called now and then."""
        with self._lock:
            now = time.monotonic()
            for thread in [thread for thread, deadline in self._deadlines.items() if deadline < now]:
                del self._deadlines[thread]
                self._overdue.add(thread)
                self._break(thread)

    def break_thread(self, thread: int | None) -> None:
        """Break off whatever this thread has open."""
        with self._lock:
            self._break(thread)

    def forget(self) -> None:
        """Let go of the connections of this thread: they are closed."""
        with self._lock:
            self._open.pop(threading.get_ident(), None)
            self._deadlines.pop(threading.get_ident(), None)

    def break_all(self) -> None:
        """Cancel: whoever reads from any of them gets an error at once."""
        self.cancel.set()
        with self._lock:
            for thread in self._open:
                self._break(thread)

    def _break(self, thread: int | None) -> None:
        for connection in [] if thread is None else self._open.get(thread, ()):
            _break_off(connection)


class WatchedAdapter(HTTPAdapter):
    """Makes connections that are known to `sockets`, through proxies too."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **options)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pools of connections through a proxy."""
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        if is_new:
            self._watch(manager)
        return manager

    def _watch(self, manager: Any) -> None:
        sockets = self._sockets
        pools = manager.pool_classes_by_scheme.items()
        manager.pool_classes_by_scheme = {scheme: _watched_pool(pool, sockets) for scheme, pool in pools}


def _watched_pool(pool: Any, sockets: Sockets) -> Any:
    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def _break_off(connection: socket.socket) -> None:
    plain = getattr(connection, "socket", connection)  # TLS within the TLS of a proxy is no socket itself
    with suppress(OSError):
        # not the method of a TLS socket: it forgets the TLS first, and who reads gets encrypted bytes for data
        socket.socket.shutdown(plain, socket.SHUT_RDWR)
