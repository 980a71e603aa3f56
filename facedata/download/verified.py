"""What has been verified before: so that a file that has not changed since need not be read again.

One SQLite database for each root, in the user's cache folder. It keeps the checksum that was found, not a verdict, so
that it serves any list, and it holds at most a million files: behind that, reading again is no worse than looking up.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from facedata.download.digest import Digest
from facedata.errors import OptionError

__all__ = ["VerifiedFiles", "remember"]

_log = logging.getLogger(__name__)

_MOST = 1_000_000
_WRITE_EVERY = 2.0
_LOCK_SECONDS = 5.0
_YOUNG_NS = 2_000_000_000
_MOST_NS = 1 << 63  # what an INTEGER of SQLite holds: from 1678 to 2262
_TABLE = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB, algorithm TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, "
    "inode TEXT, digest TEXT, PRIMARY KEY (path, algorithm)) WITHOUT ROWID"
)
_FIND = (
    "SELECT digest FROM files "
    "WHERE path = ? AND algorithm = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND inode = ?"
)


class VerifiedFiles:
    """The checksums that files below a root were once found to have.

    Where the cache folder cannot be written, nothing is remembered, and nothing is said; a database that is broken is
    thrown away with a warning. For one thread.

    Parameters
    ----------
    root : path
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._path = _database(root)
        self._connection: sqlite3.Connection | None = None
        self._waiting: list[tuple[object, ...]] = []
        self._written, self._room = time.monotonic(), 0
        self._open()

    def __enter__(self) -> VerifiedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._close()

    def find(self, path: str, status: os.stat_result, algorithm: str) -> Digest | None:
        """The digest of the file at `path`, relative to the root, if it is still the one that was read."""
        if self._connection is None:
            return None
        key = (os.fsencode(path), algorithm, *_identity(status))
        try:
            row = self._connection.execute(_FIND, key).fetchone()
            return Digest(algorithm, str(row[0])) if row else None
        except sqlite3.Error as error:
            self._give_up(error)
        except (OptionError, OverflowError):  # no digest: somebody else wrote it; or a time that SQLite cannot hold
            pass
        return None

    def add(self, path: str, status: os.stat_result, digest: Digest, ended_ns: int) -> None:
        """Remember what was found, unless the file changed so shortly before that it might again within the same tick.

        Parameters
        ----------
        path : str
            Relative to the root.
        status : os.stat_result
            Of the file, when the last byte had been read.
        digest : Digest
        ended_ns : int
            When that was, in nanoseconds since 1970.
        """
        if ended_ns - status.st_mtime_ns >= _YOUNG_NS:
            self.put(path, status, digest)

    def put(self, path: str, status: os.stat_result, digest: Digest) -> None:
        """Remember without a question."""
        if self._connection is not None and self._room > 0 and abs(status.st_mtime_ns) < _MOST_NS:
            self._room -= 1
            self._waiting.append((os.fsencode(path), digest.algorithm, *_identity(status), digest.value))
            self.flush(every=_WRITE_EVERY)

    def flush(self, every: float = 0.0) -> None:
        """Write what is not on the disk yet, unless that was done in the last `every` seconds."""
        if not self._waiting or self._connection is None or time.monotonic() - self._written < every:
            return
        rows, self._waiting = self._waiting, []
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)
        self._written = time.monotonic()

    def _open(self) -> None:
        if not self._path.is_absolute():  # a user without a home folder, as in many containers
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not self._connect():
            self._connect()

    def _connect(self) -> bool:
        """Open it; False where it was broken and is no more there."""
        try:
            self._connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS)
            self._connection.execute(_TABLE)
            self._room = _MOST - int(self._connection.execute("SELECT COUNT(*) FROM files").fetchone()[0])
        except sqlite3.Error as error:
            return self._give_up(error)
        return True

    def _give_up(self, error: sqlite3.Error) -> bool:
        """Go on without; True where that is for a reason that does not lie in the database itself."""
        self._close()
        if isinstance(error, sqlite3.OperationalError):  # read-only, full, locked for long
            _log.debug("%s: %s; going on without it", self._path, error)
            return True
        _log.warning("%s: is broken (%s) and was removed; all files are read again", self._path, error)
        with suppress(OSError):
            self._path.unlink()
        return False

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def remember(root: str | os.PathLike[str], path: str, digest: Digest) -> None:
    """Remember the digest of a file that was hashed while it was written, and that nobody writes any more.

    Parameters
    ----------
    root : path
    path : str
        Relative to `root`.
    digest : Digest
    """
    with suppress(OSError), VerifiedFiles(root) as files:
        files.put(path, os.stat(os.path.join(root, path)), digest)


def _identity(status: os.stat_result) -> tuple[int, int, int, str]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, str(status.st_ino)


def _database(root: str | os.PathLike[str]) -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=16).hexdigest()
    return folder / "facedata" / "verified" / f"{name}-1.sqlite"
