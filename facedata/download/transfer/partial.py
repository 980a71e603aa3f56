"""The ``.part`` file: one run at a time writes it, it survives kill -9, and it gets its name only when it is right."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from facedata.download.transfer.locking import is_same, open_locked, sync_folder
from facedata.download.transfer.ranges import Ranges
from facedata.download.transfer.retry import CancelledError
from facedata.download.transfer.state import State, boot_id, read_state, write_state
from facedata.errors import OutputError, OutputExistsError, output_error

__all__ = ["PartFile"]

_SYNC_EVERY = 16 << 20
_MOST_ASIDE = 2


class PartFile:
    """The half of a file that is being fetched, locked against other runs.

    Parameters
    ----------
    target : Path
        The final name.
    overwrite : bool
        Whether a file of that name may be replaced.

    Raises
    ------
    OutputExistsError
        Where the file is there and may not be replaced.
    OutputLockedError
        Where another run is fetching it.
    OutputError
        Where it cannot be written.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target, self.path = target, target.with_name(f"{target.name}.part")
        self._overwrite = overwrite
        self._record = self.path.with_name(f"{self.path.name}.json")
        self._lock, self._closed = threading.Condition(), False
        self._record_lock = threading.Lock()
        self._writers, self.generation = 0, 0
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = open_locked(self.path)
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(error, self.path) from error
        if not overwrite and os.path.lexists(target):
            self._remove_if_empty()
            os.close(self.descriptor)
            raise OutputExistsError(f"{target}: is there already; give --overwrite to fetch it again")
        self.state = read_state(self._record, os.fstat(self.descriptor).st_size) or State()
        self._ranges = Ranges(self.state.written)
        self._unsynced = 0
        self._sync_error: OSError | None = None
        self.received = 0
        self.listener: Callable[[int, bytes, int], None] | None = None

    # what is there

    @property
    def done(self) -> int:
        """Bytes that are there."""
        with self._lock:
            return self._ranges.count

    @property
    def front(self) -> int:
        """Bytes that are there from the beginning without a gap."""
        with self._lock:
            return self._ranges.front

    def generation_and_front(self) -> tuple[int, int]:
        """How often it was begun anew, and `front`, of the same moment."""
        with self._lock:
            return self.generation, self._ranges.front

    def missing(self, total: int) -> list[tuple[int, int]]:
        """The ranges that are still to be fetched."""
        with self._lock:
            return self._ranges.missing(total)

    # writing

    def restart(self, state: State | None = None) -> None:
        """Throw the half away, and begin with what `state` says of the file."""
        try:
            with self._lock:
                self._check_open()
                self._wait_for_writers()
                self.generation += 1
                os.ftruncate(self.descriptor, 0)
                self._ranges, self._unsynced, self._sync_error = Ranges(), 0, None
                self.state = replace(state or State(), written=[], synced=[], boot=boot_id())
        except OSError as error:
            raise output_error(error, self.path) from error
        self._save_or_raise()

    def learn_total(self, total: int) -> None:
        """Note how long the file has turned out to be."""
        with self._lock:
            self.state = replace(self.state, total=total)

    def adopt(self, link: str, etag: str | None, last_modified: str | None) -> None:
        """Go on with the half from another link."""
        with self._lock:
            self.state = replace(self.state, link=link, etag=etag, last_modified=last_modified)
        with suppress(OSError):
            self._save()

    def unorder(self) -> None:
        """From now on it is not written from front to back.

        Raises
        ------
        OutputError
            Where that cannot be recorded: after a death its size would be taken for what is there, gaps and all.
        """
        with self._lock:
            self.state = replace(self.state, ordered=False)
        self._save_or_raise()

    def write(self, position: int, data: bytes, generation: int) -> None:
        """Write `data` where it belongs. Safe for threads.

        Raises
        ------
        CancelledError
            Where the file was let go, or begun anew since it had that `generation`.
        """
        with self._lock:
            if self._closed or generation != self.generation:
                raise CancelledError
            self._writers += 1
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self.descriptor, memoryview(data)[written:], position + written)
        except OSError as error:
            raise output_error(error, self.path) from error
        finally:
            with self._lock:
                self._writers -= 1
                self._ranges.add(position, position + written)
                self._unsynced += written
                self.received += written
                if not self._writers:
                    self._lock.notify_all()
        if self.listener is not None:
            self.listener(position, data, generation)

    # keeping

    def save(self, *, durably: bool = False) -> None:
        """Record what was written, so that it survives the process; a full disk is not worth an error here.

        Parameters
        ----------
        durably : bool
            Force what was written and the record to the disk, so that they survive a power cut.
        """
        if durably:
            self.sync(at_least=1)
        with suppress(OSError):
            if durably or not self.state.ordered:  # else the size of the file says it
                self._save(sync=durably)

    def sync(self, *, at_least: int = _SYNC_EVERY) -> None:
        """Force what was written to the disk, where that many bytes are not there yet."""
        with self._lock:
            if self._closed or self._unsynced < at_least:
                return
            ranges, self._unsynced, generation = self._ranges.pairs(), 0, self.generation
        failed: OSError | None = None
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            failed = error  # the system tells it once only: `publish` would not hear of it
        with self._lock:
            if self.generation == generation:
                self._sync_error = failed or self._sync_error
                self.state = self.state if failed else replace(self.state, synced=ranges)

    def _save(self, *, sync: bool = False) -> None:
        with self._record_lock:
            with self._lock:
                if self._closed:
                    return
                self.state = replace(self.state, written=self._ranges.pairs())
            write_state(self._record, self.state, sync=sync)

    def _save_or_raise(self) -> None:
        try:
            self._save()
        except OSError as error:
            raise output_error(error, self._record) from error

    # the end

    def publish(self, modified: float | None) -> None:
        """Give the file its name, once its bytes are on the disk.

        Raises
        ------
        CancelledError
            Where the file was let go: nobody would be told of it.
        OutputError
            Where it is not whole, or cannot be written.
        """
        try:
            self._check_whole()
            os.fsync(self.descriptor)
            if self._sync_error is not None:
                raise self._sync_error
            if modified is not None:
                with suppress(OSError):  # a date that the disk does not take
                    os.utime(self.descriptor, (modified, modified))
            if not self._overwrite and os.path.lexists(self.target):
                raise OutputExistsError(f"{self.target}: has appeared meanwhile; what was fetched is in {self.path}")
            with self._record_lock, self._lock:
                self._check_open()
                self._closed = True
                os.replace(self.path, self.target)
                self._record.unlink(missing_ok=True)
            sync_folder(self.target.parent)
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(error, self.target) from error

    def set_aside(self, name: str) -> Path:
        """Keep the file under another name, not more than two of them, and begin anew with an empty one."""
        aside = self.target.with_name(name)
        try:
            self._remove_older(aside)
            with self._lock:
                self._check_open()
                self._wait_for_writers()
                os.replace(self.path, aside)
                descriptor = open_locked(self.path)  # before the old one is closed: it may fail
                os.close(self.descriptor)
                self.descriptor = descriptor
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(error, self.path) from error
        self.restart()
        return aside

    def _remove_older(self, aside: Path) -> None:
        before = [path for path in self.target.parent.glob(f"{_literal(self.target.name)}.wrong-*") if path != aside]
        for path in sorted(before, key=lambda path: path.lstat().st_mtime, reverse=True)[_MOST_ASIDE - 1 :]:
            path.unlink(missing_ok=True)

    def take_over(self, path: Path, link: str) -> None:
        """Let a whole file at `path`, fetched in another way, be the half."""
        try:
            with self._lock:
                self._check_open()
                descriptor = open_locked(path)
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self.descriptor).st_mode))  # made as everybody's files are
                os.replace(path, self.path)
                os.close(self.descriptor)
                self.descriptor, size = descriptor, os.fstat(descriptor).st_size
                self.generation += 1
                self._ranges = Ranges([(0, size)])
                self.state = State(link=link, total=size, boot=boot_id())
            self._save()
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(error, self.path) from error

    def abandon(self) -> None:
        """Take no more writes, and record what was written: the run ends, whatever its threads still do."""
        self.save()
        with self._lock:
            self._closed = True

    def close(self) -> None:
        """Let it go; what was written stays, and a half of nothing is removed."""
        self.abandon()
        with self._lock:
            self._wait_for_writers()
            self._remove_if_empty()
            os.close(self.descriptor)

    def _wait_for_writers(self) -> None:
        self._lock.wait_for(lambda: not self._writers)

    def _remove_if_empty(self) -> None:
        status = os.fstat(self.descriptor)
        if status.st_size == 0 and is_same(self.path, status):
            with suppress(OSError):  # not worth hiding the error that may have led here
                self.path.unlink(missing_ok=True)
                self._record.unlink(missing_ok=True)

    def _check_whole(self) -> None:
        """All of it was written, and nobody else has made it longer or shorter."""
        with self._lock:
            total = self._ranges.count if self.state.total is None else self.state.total
            there = total - sum(end - first for first, end in self._ranges.missing(total))
        size = os.fstat(self.descriptor).st_size
        if min(there, size) < total:
            raise OutputError(
                f"{self.path}: only {min(there, size):,} of its {total:,} bytes are there; if nothing else writes it, "
                "run the same command again"
            )
        if size > total:
            os.ftruncate(self.descriptor, total)

    def _check_open(self) -> None:
        if self._closed:
            raise CancelledError


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
