"""Hashing a file while it is being fetched."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

from facedata.download.digest import Digest, new_hasher
from facedata.download.transfer.partial import PartFile
from facedata.download.transfer.retry import CancelledError

__all__ = ["FrontHasher"]

_BLOCK = 1 << 19
_MOST_WAITING = 8 << 20
_LONGEST_IDLE = 0.05
_TOO_FAR_BEHIND = 64 << 20
_LONGEST_BRAKE = 0.5


class FrontHasher:
    """A thread that hashes a growing file in order, close behind whoever writes it.

    What is written at the front it gets handed over, and holds the writer back a little where that is faster. What was
    there before, or was written by other connections, it reads again, which comes from memory most of the time; so the
    beginning of an old half is checked like the rest.

    Parameters
    ----------
    part : PartFile
        It must stay open until `close`; where it is begun anew, so is the hash.
    algorithm : str
    """

    def __init__(self, part: PartFile, algorithm: str) -> None:
        self._part, self._algorithm = part, algorithm
        self._hasher: Any = new_hasher(algorithm)
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes, self._claimed, self._generation = 0, 0, -1
        self._whole, self._stop = False, False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="facedata-hash")
        self._thread.start()
        part.listener = self._offer

    def finish(self, cancel: threading.Event) -> Digest:
        """The digest of the whole file; to be called when its last byte is written.

        Raises
        ------
        OSError
            Where it cannot be read.
        CancelledError
            Where `cancel` was set before the end.
        """
        with self._changed:
            self._whole = True
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if cancel.is_set():
                raise CancelledError
        if self._error is not None:
            raise self._error
        return Digest(self._algorithm, self._hasher.hexdigest())

    def close(self) -> None:
        """Stop hashing."""
        self._part.listener = None
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join()

    def _offer(self, position: int, data: bytes, generation: int) -> None:
        """These bytes have been written; take them if they are the next to be hashed."""
        with self._changed:
            if generation > self._generation:
                self._begin_anew(generation)
            self._brake(position + len(data))
            is_next = position == self._claimed and generation == self._generation
            if is_next and self._waiting_bytes < _MOST_WAITING:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                self._claimed += len(data)
                self._changed.notify_all()

    def _brake(self, end: int) -> None:
        """Let who writes the front wait a little, where hashing would else fall behind, and have to read again."""
        if _MOST_WAITING <= self._behind(end) <= _TOO_FAR_BEHIND and self._part.front >= end:
            self._changed.wait_for(lambda: self._stop or self._behind(end) < _MOST_WAITING, _LONGEST_BRAKE)

    def _behind(self, end: int) -> int:
        return end - (self._claimed - self._waiting_bytes)

    def _run(self) -> None:
        block = memoryview(bytearray(_BLOCK))
        try:
            while (piece := self._next_piece(block)) is not None:
                hasher, data = piece
                hasher.update(data)
        except OSError as error:
            self._error = error

    def _next_piece(self, block: memoryview) -> tuple[Any, bytes | memoryview] | None:
        """What is to be hashed next, and with what; None at the end."""
        while not self._stop:
            with self._changed:
                generation, front = self._part.generation_and_front()
                if generation > self._generation:
                    self._begin_anew(generation)
                if self._waiting:
                    return self._hasher, self._take_waiting()
                position, left = self._claimed, front - self._claimed
                if left < (1 if self._whole else 2 * _BLOCK):  # what was just written may still be handed over
                    if self._whole:
                        return None
                    self._changed.wait(_LONGEST_IDLE)
                    continue
                self._claimed, hasher = position + min(left, _BLOCK), self._hasher
                self._changed.notify_all()
            count = os.preadv(self._part.descriptor, [block[: min(left, _BLOCK)]], position)
            return hasher, block[:count]
        return None

    def _take_waiting(self) -> bytes:
        data = self._waiting.popleft()
        self._waiting_bytes -= len(data)
        self._changed.notify_all()
        return data

    def _begin_anew(self, generation: int) -> None:
        self._hasher = new_hasher(self._algorithm)
        self._waiting.clear()
        self._waiting_bytes, self._claimed, self._generation = 0, 0, generation
