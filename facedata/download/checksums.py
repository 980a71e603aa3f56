"""Checksums of files, computed, and remembered so that an unchanged file need not be read again."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from facedata.errors import OptionError
from facedata.files import cache_folder, file_system, opened_regular

if TYPE_CHECKING:
    import sqlite3

__all__ = ["ALGORITHMS", "Digest", "Hashed", "VerifiedFiles", "hash_file", "new_hasher", "remember"]

ALGORITHMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
"""The algorithms that files are checked with, and the number of hexadecimal digits of each."""

_BLOCK = 1 << 20
_BLOCK_AHEAD = 4 << 20  # longer than two threads need to hand each other the interpreter's lock
_BLOCKS_AHEAD = 3
_SMALL = 1 << 17
_WORTH_A_THREAD = 16 << 20

_MOST_REMEMBERED = 1_000_000
_WRITE_EVERY = 2.0
_LOCK_SECONDS = 5.0
_YOUNG_NS = 2_000_000_000
_DIRTY_NS = 60_000_000_000  # Linux writes changed pages to the disk after 30 s
_NO_WRITEBACK = ("tmpfs", "ramfs")
_LARGEST_TIME_NS = 1 << 63  # an INTEGER of SQLite holds times from 1678 to 2262
_TABLE = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB, algorithm TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, "
    "inode TEXT, digest TEXT, PRIMARY KEY (path, algorithm)) WITHOUT ROWID"
)
_FIND = (
    "SELECT digest FROM files "
    "WHERE path = ? AND algorithm = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ?"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Digest:
    """The checksum of a file: an algorithm of `ALGORITHMS`, and its result as hexadecimal digits in lower case.

    Raises
    ------
    OptionError
        If the algorithm is not known, or the value does not have its number of digits.
    """

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise OptionError(f"'{self.algorithm}' is not one of the checksums {', '.join(ALGORITHMS)}")
        if not re.fullmatch(f"[0-9a-f]{{{ALGORITHMS[self.algorithm]}}}", self.value):
            raise OptionError(
                f"'{self.value}' is not a checksum of {self.algorithm}: "
                f"expected {ALGORITHMS[self.algorithm]} digits of 0-9 and a-f"
            )

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value}"


def new_hasher(algorithm: str) -> Any:
    """A `hashlib` object; it finds damage, not forgery, so that OpenSSL builds for FIPS allow MD5 too."""
    return hashlib.new(algorithm, usedforsecurity=False)


class Hashed(NamedTuple):
    """The checksum of a file, its state after the last byte was read, and when that was in nanoseconds since 1970.

    It is `unchanged` if neither size nor times of the file changed while it was read.
    """

    digest: Digest
    status: os.stat_result
    unchanged: bool
    ended_ns: int


def hash_file(
    path: str | os.PathLike[str],
    algorithm: str,
    *,
    advance: Callable[[int], None] | None = None,
    ahead: bool = False,
    settle: bool = False,
) -> Hashed:
    """Read a regular file once and compute its checksum by an algorithm of `ALGORITHMS`.

    Parameters
    ----------
    advance : callable, optional
        Called with the number of bytes of each block; an exception from it ends the reading.
    ahead : bool
        Read a large file in a second thread while this one hashes.
    settle : bool
        Force recent changes to the disk first. A program that has the file mapped changes its times only with the first
        write to a page that is not dirty: so they will show every change that is made from now on.

    Raises
    ------
    InputError
        If the file cannot be read or is not a regular file.
    """
    hasher = new_hasher(algorithm)
    with opened_regular(path) as descriptor:
        before = os.fstat(descriptor)
        if settle and time.time_ns() - before.st_ctime_ns < _DIRTY_NS:
            with suppress(OSError):
                os.fdatasync(descriptor)
            before = os.fstat(descriptor)
        if before.st_size < _SMALL and len(whole := os.read(descriptor, _SMALL)) == before.st_size:
            hasher.update(whole)  # a short way for millions of small files
            if advance is not None:
                advance(len(whole))
        else:
            os.lseek(descriptor, 0, os.SEEK_SET)
            blocks = _blocks_ahead if ahead and before.st_size >= _WORTH_A_THREAD else _blocks
            with closing(blocks(descriptor)) as stream:
                for block in stream:
                    hasher.update(block)
                    if advance is not None:
                        advance(len(block))
        after = os.fstat(descriptor)
    unchanged = _identity(before) == _identity(after)
    return Hashed(Digest(algorithm, hasher.hexdigest()), after, unchanged, time.time_ns())


def _blocks(descriptor: int) -> Generator[memoryview, None, None]:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while read := os.readv(descriptor, [buffer]):
        yield view[:read]


def _blocks_ahead(descriptor: int) -> Generator[memoryview, None, None]:
    """The blocks of a file, read by a second thread while the caller hashes the block before."""
    free: SimpleQueue[bytearray | None] = SimpleQueue()
    full: SimpleQueue[memoryview | OSError] = SimpleQueue()
    for _ in range(_BLOCKS_AHEAD):
        free.put(bytearray(_BLOCK_AHEAD))

    def read_ahead() -> None:
        try:
            while (buffer := free.get()) is not None:
                read = os.readv(descriptor, [buffer])
                full.put(memoryview(buffer)[:read])
                if not read:
                    break
        except OSError as error:
            full.put(error)

    reader = threading.Thread(target=read_ahead, daemon=True)
    reader.start()
    try:
        while block := full.get():
            if isinstance(block, OSError):
                raise block
            yield block
            free.put(block.obj)  # type: ignore[arg-type]
    finally:
        free.put(None)
        reader.join()


class VerifiedFiles:
    """The checksums that files below a root were found to have, in an SQLite database in the user's cache folder.

    It stores checksums, not verdicts, so that it serves any list, and at most a million files: beyond that, reading a
    file again is not slower than the lookup. If the cache folder cannot be written, nothing is remembered and nothing
    is reported; a corrupt database is removed with a warning. Nothing is remembered of files in memory (tmpfs), whose
    times do not show changes through a shared mapping. Threads may share an object.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        import sqlite3

        self._connection: sqlite3.Connection | None = None
        self._waiting: list[tuple[object, ...]] = []
        self._written, self._room = time.monotonic(), 0
        self._lock = threading.RLock()
        if file_system(root) in _NO_WRITEBACK:
            return
        name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=16).hexdigest()
        try:
            self._path = cache_folder("verified") / f"{name}-1.sqlite"
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, OptionError):  # also a user without a home folder, as in many containers
            return
        for _ in range(2):  # again if the database was corrupt, and has been removed
            try:
                if self._path.is_symlink():  # which SQLite would follow
                    break
                self._connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, check_same_thread=False)
                self._connection.execute(_TABLE)
                count = self._connection.execute("SELECT COUNT(*) FROM files").fetchone()[0]
                self._room = _MOST_REMEMBERED - int(count)
                break
            except sqlite3.Error as error:
                self._give_up(error)
                if isinstance(error, sqlite3.OperationalError):
                    break

    def __enter__(self) -> VerifiedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def find(self, path: str, status: os.stat_result, algorithm: str) -> Digest | None:
        """The checksum of the file at `path`, relative to the root, if the file has not changed since."""
        import sqlite3

        with self._lock:
            if self._connection is None:
                return None
            try:
                key = (os.fsencode(path), algorithm, *_identity(status))
                row = self._connection.execute(_FIND, key).fetchone()
                return Digest(algorithm, str(row[0])) if row else None
            except sqlite3.Error as error:
                self._give_up(error)
            except (OptionError, OverflowError):  # another program wrote the row; or a time that SQLite cannot hold
                pass
            return None

    def add(self, path: str, hashed: Hashed) -> None:
        """Remember the checksum of the file at `path`, relative to the root.

        Not if the file changed while it was read, nor if it changed so shortly before that a later change may give
        it the same time.
        """
        if hashed.unchanged and hashed.ended_ns - hashed.status.st_mtime_ns >= _YOUNG_NS:
            self.put(path, hashed.status, hashed.digest)

    def put(self, path: str, status: os.stat_result, digest: Digest) -> None:
        """Remember the checksum of a file that no program writes any more."""
        with self._lock:
            if self._connection is not None and self._room > 0 and abs(status.st_mtime_ns) < _LARGEST_TIME_NS:
                self._room -= 1
                self._waiting.append((os.fsencode(path), digest.algorithm, *_identity(status), digest.value))
                self.flush(every=_WRITE_EVERY)

    def flush(self, every: float = 0.0) -> None:
        """Write what is not on the disk yet, unless that was done in the last `every` seconds."""
        import sqlite3

        with self._lock:
            if not self._waiting or self._connection is None or time.monotonic() - self._written < every:
                return
            rows, self._waiting = self._waiting, []
            try:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                self._give_up(error)
            self._written = time.monotonic()

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without the database; remove it if it is corrupt."""
        import sqlite3

        connection, self._connection = self._connection, None
        with suppress(sqlite3.Error):
            if connection is not None:
                connection.close()
        if isinstance(error, sqlite3.OperationalError):  # read-only, full, locked for long
            _log.debug("%s: %s; going on without it", self._path, error)
            return
        _log.warning("%s: is corrupt (%s) and was removed; all files are read again", self._path, error)
        with suppress(OSError):
            self._path.unlink()


def remember(root: str | os.PathLike[str], path: str | os.PathLike[str], digest: Digest) -> None:
    """Remember the checksum of the file at `path`, relative to `root`, that was computed while it was written."""
    with suppress(OSError), VerifiedFiles(root) as files:
        files.put(os.fspath(path), os.stat(Path(root, path)), digest)


def _identity(status: os.stat_result) -> tuple[int, int, int, str]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, str(status.st_ino)
