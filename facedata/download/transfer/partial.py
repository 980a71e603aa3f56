"""The partial file: locked, hashed while it grows, resumable after ``kill -9``, renamed once it is right.

Bytes that were written survive the end of the process, but not a power cut. So ``NAME.part.json`` records how many
bytes were forced to the disk, and the boot of the machine during which the file's size shows what was written.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from facedata.download.checksums import Digest, new_hasher
from facedata.download.transfer.options import CancelledError
from facedata.errors import FacedataError, OutputError, OutputExistsError
from facedata.files import (
    atomic_writer,
    boot_id,
    open_locked,
    output_errors,
    read_exactly,
    read_small,
    sync_folder,
    write_fully,
)

__all__ = ["PartialFile", "State"]

_VERSION = 2
_LARGEST_RECORD = 1 << 16
_LARGEST_FILE = 1 << 60
_SYNC_EVERY = 64 << 20
_MOST_SET_ASIDE = 2
_HASH_BLOCK = 1 << 19
_MOST_IN_MEMORY, _FAR_BEHIND = 8 << 20, 64 << 20
_LONGEST_WAIT = 0.5


@dataclass(frozen=True)
class State:
    """What ``NAME.part.json`` records of a partial file.

    `link` is the address that gave it, `total` the size of the complete file, if it is known. Any of the `validators`
    proves that other bytes belong to the same version. It is `resumable` if the server gives ranges of it. `encoding`
    is the ``Content-Encoding`` that the server wrongly calls the file. `synced` bytes were forced to the disk; during
    the same `boot` of the machine, the size of the partial file counts.
    """

    link: str = ""
    etag: str | None = None
    last_modified: str | None = None
    validators: Sequence[str] = ()
    total: int | None = None
    resumable: bool = False
    encoding: str = ""
    synced: int = 0
    boot: str = ""


class PartialFile:
    """A file that is being downloaded. One thread writes it; `checkpoint` may be called by another.

    `target` is its final name. `done` counts the bytes that are written, `received` those that this object wrote.

    Raises
    ------
    OutputExistsError
        If the file exists and may not be replaced.
    OutputLockedError
        If another run is downloading it.
    OutputError
        If it cannot be written.
    """

    def __init__(self, target: Path, *, algorithm: str, cancel: threading.Event, overwrite: bool = False) -> None:
        self.target, self.path = target, target.with_name(f"{target.name}.part")
        self._record = target.with_name(f"{target.name}.part.json")
        self._algorithm, self._cancel, self._overwrite = algorithm, cancel, overwrite
        self._lock, self._is_open, self._restarts = threading.Lock(), True, 0
        self._sync_error: OSError | None = None
        with output_errors(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = open_locked(self.path)
        if not overwrite and os.path.lexists(target):
            self._remove_if_empty()
            os.close(self._descriptor)
            raise OutputExistsError(f"{target}: already exists; use --overwrite to download it again")
        size, boot = os.fstat(self._descriptor).st_size, boot_id()
        state = _read_state(self._record) or State()
        survived = size if boot and state.boot == boot else state.synced
        self.done = min(survived, size, size if state.total is None else state.total)
        self.state = replace(state, synced=min(state.synced, self.done), boot=boot)
        self.received = 0
        if size > self.done:
            os.ftruncate(self._descriptor, self.done)
        self._hasher = _Hasher(self._descriptor, algorithm, self.done)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are written; False if the size of the file is not known."""
        return self.done == self.state.total

    def restart(self, state: State = State()) -> None:
        """Discard what is written, and begin the file that `state` describes."""
        self._hasher.stop()
        with output_errors(self.path), self._lock:
            os.ftruncate(self._descriptor, 0)
            self.done, self._sync_error = 0, None
            self._restarts += 1
        self._hasher = _Hasher(self._descriptor, self._algorithm, 0)
        with self._lock:
            self.state = replace(state, synced=0, boot=boot_id())
            # after a power cut, an old record must not come back beside the bytes of another file
            self._save(sync=os.path.lexists(self._record))

    def update(self, **changes: Any) -> None:
        """Change and record the state."""
        with self._lock:
            self.state = replace(self.state, **changes)
            self._save(sync=False)

    def write(self, data: bytes) -> None:
        """Append `data`, which is hashed by a thread."""
        with output_errors(self.path):
            write_fully(self._descriptor, data, self.done)
        self.done += len(data)
        self.received += len(data)
        self._hasher.add(data)

    def checkpoint(self) -> None:
        """Force the bytes to the disk and record that, if there are enough new ones; errors are kept for `publish`."""
        with self._lock:
            if not self._is_open or self._sync_error or self.done - self.state.synced < _SYNC_EVERY:
                return
            done, restarts, descriptor = self.done, self._restarts, os.dup(self._descriptor)
        failed = None
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            failed = error  # the system reports it only once: `publish` would not see it
        finally:
            os.close(descriptor)
        with self._lock:
            if self._is_open and restarts == self._restarts:
                self._sync_error = failed
                if not failed:
                    self.state = replace(self.state, synced=done)
                    with suppress(FacedataError):
                        self._save(sync=True)

    def _save(self, *, sync: bool) -> None:
        with output_errors(self._record), atomic_writer(self._record, sync=sync) as file:
            file.write(json.dumps({"version": _VERSION, **asdict(self.state)}).encode())

    def digest(self) -> Digest:
        """The digest of the file, once all of it is hashed."""
        with output_errors(self.path):
            return Digest(self._algorithm, self._hasher.finish(self._cancel))

    def publish(self, modified: float | None) -> None:
        """Give the file its final name, once its bytes are on the disk.

        Raises an `OutputError` if it is not complete, or cannot be written.
        """
        with output_errors(self.target):
            there = min(os.fstat(self._descriptor).st_size, self.done)
            total = self.done if self.state.total is None else self.state.total
            if there < total:
                raise OutputError(
                    f"{self.path}: only {there:,} of its {total:,} bytes are there; if no other program writes it, run "
                    "the same command again"
                )
            os.ftruncate(self._descriptor, total)
            os.fsync(self._descriptor)
            if self._sync_error is not None:
                raise self._sync_error
            if modified is not None:
                with suppress(OSError, OverflowError):  # a date that the file system cannot store
                    os.utime(self._descriptor, (modified, modified))
            if self._cancel.is_set():
                raise CancelledError
            if not self._overwrite and os.path.lexists(self.target):
                raise OutputExistsError(
                    f"{self.target}: was created by another program meanwhile; the download is kept in {self.path}"
                )
            with self._lock:
                os.replace(self.path, self.target)
                self._is_open = False
                self._record.unlink(missing_ok=True)
            sync_folder(self.target.parent)

    def set_aside(self, name: str) -> Path:
        """Keep the file under another name, and begin again with an empty one; at most two such files are kept."""
        aside = self.target.with_name(name)
        with output_errors(self.path):
            prefix = f"{self.target.name}.wrong-"
            others = [each for each in aside.parent.iterdir() if each.name.startswith(prefix) and each != aside]
            for path in sorted(others, key=lambda each: each.lstat().st_mtime, reverse=True)[_MOST_SET_ASIDE - 1 :]:
                path.unlink(missing_ok=True)
            self._hasher.stop()
            with self._lock:
                os.replace(self.path, aside)
                descriptor = open_locked(self.path)
                os.close(self._descriptor)
                self._descriptor = descriptor
        self.restart()
        return aside

    def close(self) -> None:
        """Release the file. What is written is kept; an empty partial file is removed."""
        self._hasher.stop()
        with self._lock:
            if self._is_open:
                self._remove_if_empty()
            self._is_open = False
            os.close(self._descriptor)

    def _remove_if_empty(self) -> None:
        if os.fstat(self._descriptor).st_size == 0:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
                self._record.unlink(missing_ok=True)


class _Hasher:
    """A thread that hashes a growing file in order.

    Blocks that are added while it has caught up are hashed from memory; then, if they come faster than it hashes, the
    writer waits a little. What was there before, and what is added while it is far behind, it reads from the file: so
    an old partial file, which is hashed from its beginning, holds up no download.
    """

    def __init__(self, descriptor: int, algorithm: str, size: int) -> None:
        self._descriptor, self._algorithm = descriptor, algorithm
        self._size, self._done = size, 0
        self._recent: deque[tuple[int, bytes]] = deque()  # the last blocks of the file, each with its offset
        self._changed = threading.Condition()
        self._is_finished, self._is_stopped = False, False
        self._result: str | Exception = ""
        self._thread = threading.Thread(target=self._run, daemon=True, name="facedata-hash")
        self._thread.start()

    def add(self, data: bytes) -> None:
        """Hash `data`, which has been written to the end of the file."""
        with self._changed:
            if self._size - self._done < _FAR_BEHIND:
                self._changed.wait_for(lambda: self._is_near() or not self._thread.is_alive(), _LONGEST_WAIT)
            if self._is_near():
                self._recent.append((self._size, data))
            self._size += len(data)
            self._changed.notify_all()

    def _is_near(self) -> bool:
        return self._size - self._done < _MOST_IN_MEMORY

    def finish(self, cancel: threading.Event) -> str:
        """The digest of the whole file in hexadecimal."""
        with self._changed:
            self._is_finished = True
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if cancel.is_set():
                raise CancelledError
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        hasher = new_hasher(self._algorithm)
        try:
            while block := self._next_block():
                hasher.update(block)
                with self._changed:
                    self._done += len(block)
                    self._changed.notify_all()
            self._result = hasher.hexdigest()
        except Exception as error:  # it is raised by `finish`
            self._result = error

    def _next_block(self) -> bytes:
        """Wait for bytes to hash; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._done < self._size or self._is_finished or self._is_stopped)
            if self._is_stopped:
                return b""
            end = self._recent[0][0] if self._recent else self._size
            if end == self._done and self._recent:
                return self._recent.popleft()[1]
            length = min(end - self._done, _HASH_BLOCK)
        return read_exactly(self._descriptor, length, self._done)


def _read_state(path: Path) -> State | None:
    """The state in a record; None if there is none that this version can use."""
    try:
        value = json.loads(read_small(path, _LARGEST_RECORD))
        if value.pop("version") != _VERSION:
            return None
        state = State(**value)
        texts = (state.link, state.etag or "", state.last_modified or "", *state.validators, state.encoding, state.boot)
        numbers = (0 if state.total is None else state.total, state.synced)
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            return None
        return state if all(isinstance(n, int) and 0 <= n < _LARGEST_FILE for n in numbers) else None
    except (FacedataError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
