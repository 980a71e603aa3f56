"""Writing the members of one archive into its staging folder."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any

from facedata.download.archives.ahead import Aside
from facedata.download.archives.ground import Ground
from facedata.download.archives.kinds import as_it_is
from facedata.download.archives.members import Member, Walk
from facedata.download.archives.safety import check_room, safe_name
from facedata.download.archives.staging import Staging, Tally
from facedata.download.digest import new_hasher
from facedata.errors import FacedataError, InterruptedJobError, output_error
from facedata.files import write_fully
from facedata.jobs.signals import StopRequest

__all__ = ["Unpacking"]

_WARNED = 5
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK_EVERY = 0.25  # seconds between calls of the observer
_CHECKPOINT_EVERY = 1.0  # seconds; as much is written again after a kill
_LARGE = 16 << 20  # bytes of a member that gets a line in the journal at once
_SYNC_EVERY = 1 << 30  # bytes written, after which they are brought to the disk while others are written
_HASHED_AHEAD = 32
_SAMPLES = (
    16  # files between two lines of the journal that are noted, so that a later run can look whether they are there
)
_LATEST = (1 << 32) - 1.0  # seconds since 1970: the year 2106
_MOST_AT_ONCE = 512  # chunks to one call; the system takes 1024
_log = logging.getLogger(__name__)


class Unpacking:
    """One run through an archive.

    Parameters
    ----------
    staging : Staging
    tally : Tally
        What earlier runs have done; brought up to date.
    ground : Ground
    digests : callable, optional
        Given a member's name, the algorithm to hash it with, or None.
    observer : callable, optional
        Called with compressed bytes done and in all.
    stop : StopRequest, optional
    """

    def __init__(
        self,
        staging: Staging,
        tally: Tally,
        ground: Ground,
        *,
        size: int,
        digests: Callable[[str], str | None] | None = None,
        observer: Callable[[int, int], None] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self._staging, self._tally, self._ground = staging, tally, ground
        self._size, self._digests, self._observer, self._stop = size, digests, observer, stop
        self._tree = str(staging.tree)
        self._hashing, self._syncing = Aside(_HASHED_AHEAD), Aside(1)
        self._refused_list: IO[bytes] | None = None
        self._samples: list[tuple[str, int]] = []
        self._looked = self._noted = time.monotonic()
        self._unsynced = 0
        self._walk: Walk | None = None

    def look_up(self) -> None:
        """Called often: stops if asked to, and tells how far it is.

        Raises
        ------
        InterruptedJobError
        """
        if self._stop:
            raise InterruptedJobError(
                f"stopped after {self._tally.files} files; run the same command again to go on from there"
            )
        now = time.monotonic()
        if self._observer is not None and self._walk is not None and now - self._looked >= _LOOK_EVERY:
            self._looked = now
            self._observer(self._walk.position, self._size)

    def run(self, walk: Walk) -> None:
        """Unpack all that is left; what is finished is kept, however it ends."""
        self._walk = walk
        try:
            with open(self._staging.refused, "ab", buffering=0) as self._refused_list:
                self._run(walk)
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self._staging.folder) from error

    def _run(self, walk: Walk) -> None:
        try:
            for member in walk.members():
                self.look_up()
                self._take(member)
                self._tally.mark = member.mark
                if member.size >= _LARGE or time.monotonic() - self._noted >= _CHECKPOINT_EVERY:
                    self._checkpoint()
            self._checkpoint()
            self._syncing.finish()
        except FacedataError:
            with suppress(FacedataError, OSError):
                self._checkpoint()
            raise
        finally:
            self._hashing.close()
            self._syncing.close()

    def _checkpoint(self) -> None:
        self._hashing.finish()
        self._staging.checkpoint(self._tally, self._samples)
        self._samples, self._noted = [], time.monotonic()
        if self._unsynced >= _SYNC_EVERY and self._syncing.idle:
            self._unsynced = 0
            self._syncing.do(partial(self._staging.sync, self._tally.mark))

    def _take(self, member: Member) -> None:
        name, reason = safe_name(member.name)
        folder = member.kind == "folder"
        reason = reason or member.reason or ("" if name or folder else "an empty name")
        if not reason and name:
            reason = self._ground.refusal(name, folder=folder)
        if reason:
            self._refuse(member.name, reason)
        elif name:
            self._place(name, member)

    def _place(self, name: str, member: Member) -> None:
        """Write a member; what lies in the way in the archive itself is a reason to refuse it."""
        path = f"{self._tree}/{name}"
        try:
            if member.kind == "folder":
                os.makedirs(path, exist_ok=True)
                self._tally.folders += 1
            else:
                self._write(path, name, member)
                self._tally.files += 1
                self._tally.bytes += member.size
                if len(self._samples) < _SAMPLES:
                    self._samples.append((name, member.size))
        except (FileExistsError, NotADirectoryError):
            self._refuse(member.name, "a file lies in the archive where its folder should be")
        except IsADirectoryError:
            self._refuse(member.name, "a folder of that name lies in the archive too")
        except OSError as error:
            if isinstance(error, FacedataError):
                raise
            raise output_error(error, path) from error
        else:
            self._tally.add_top(name)

    def _write(self, path: str, name: str, member: Member) -> None:
        assert self._walk is not None
        descriptor = _create(path, 0o777 if member.executable else 0o666)
        try:
            if member.size >= 1 << 20:
                check_room(self._staging.folder, member.size, as_it_is(name))
            algorithm = self._digests(name) if self._digests else None
            hasher = new_hasher(algorithm) if algorithm else None
            for chunks in self._walk.blocks():
                self.look_up()
                _write_chunks(descriptor, chunks)
                if hasher is not None:
                    self._hashing.do(partial(_hash, hasher, chunks))
            if algorithm:
                self._hashing.do(partial(self._note_digest, name, algorithm, hasher))
            else:
                self._tally.digests.pop(name, None)
            modified = min(max(member.modified, 0.0), _LATEST)
            os.utime(descriptor, (modified, modified))
        finally:
            os.close(descriptor)
        self._unsynced += member.size

    def _note_digest(self, name: str, algorithm: str, hasher: Any) -> None:
        self._tally.digests[name] = (algorithm, hasher.hexdigest())

    def _refuse(self, name: str, reason: str) -> None:
        if self._tally.refused < _WARNED:
            _log.warning("%s is not unpacked: %s", as_it_is(name), reason)
        line = json.dumps({"name": name, "reason": reason}).encode() + b"\n"
        if self._refused_list is not None:
            write_fully(self._refused_list.fileno(), line)
        self._tally.listed += len(line)
        self._tally.refused += 1


def _create(path: str, mode: int) -> int:
    try:
        return os.open(path, _FLAGS, mode)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, _FLAGS, mode)


def _write_chunks(descriptor: int, chunks: Sequence[bytes]) -> None:
    """Write all of the chunks, with few calls."""
    while chunks:
        some, chunks = chunks[:_MOST_AT_ONCE], chunks[_MOST_AT_ONCE:]
        written = os.writev(descriptor, some)
        for chunk in some:
            if written < len(chunk):  # a disk that fills up takes a part without an error
                rest = memoryview(chunk)[max(written, 0) :]
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            written -= len(chunk)


def _hash(hasher: Any, chunks: Sequence[bytes]) -> None:
    for chunk in chunks:
        hasher.update(chunk)
