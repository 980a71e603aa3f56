"""Unpacking an archive: the work of ``facedata extract``."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from facedata.download.archives.parts import Archive
from facedata.download.archives.reading import CHUNK, MAX_RATIO, Event, JoinedParts, Member, quoted, read_tar
from facedata.download.archives.staging import (
    OWN_PREFIX,
    Extraction,
    MemberNames,
    OutputConflicts,
    Progress,
    Staging,
    publish,
    safe_name,
)
from facedata.download.archives.zip import ZipReader
from facedata.download.checksums import new_hasher
from facedata.errors import (
    ArchiveError,
    FacedataError,
    InterruptedJobError,
    OutputExistsError,
    UnsafeArchiveError,
    output_error,
)
from facedata.files import check_room, open_locked, open_own, output_errors, write_fully
from facedata.jobs.signals import StopRequest
from facedata.names import name_folding

__all__ = ["Extraction", "extract_archive", "extracted_before"]

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCHES_AHEAD = 16  # of 1 MiB or a little more
_CHECK_EVERY = 0.2  # seconds
_MEMBER_COST = 512  # bytes of memory that a member takes
_CHUNKS_TO_HASH = 32
_WRITE_PROGRESS_EVERY = 1.0  # seconds; so much is unpacked again after a kill
_SYNC_EVERY = 1 << 30  # bytes written, after which they are forced to the disk while others are written
_LARGE = 16 << 20  # bytes of a member after which the progress is written at once
_CHECK_ROOM_FROM = 1 << 20
_MOST_WARNINGS = 5
_LATEST = (1 << 32) - 1.0  # seconds since 1970: the year 2106
_KEPT = "what is finished is kept, and it continues from there"
_log = logging.getLogger(__name__)


def extracted_before(
    archive: Archive, output: str | os.PathLike[str], *, encoding: str | None = None
) -> Extraction | None:
    """Return what an earlier run unpacked from the same archive into the same output, if it still exists."""
    return Staging(archive, Path(output), encoding).read_record()


def extract_archive(
    archive: Archive,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_ratio: float = MAX_RATIO,
    encoding: str | None = None,
    digests: Callable[[str], str | None] | None = None,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> Extraction:
    """Unpack an archive into a folder.

    Members are written to a hidden folder in the output and get their names when the whole archive has been verified.
    Called again after an interruption it continues; called again after it finished it does nothing.

    Parameters
    ----------
    archive : Archive
        From `group_archives`.
    overwrite : bool
        Replace files of the same names, and unpack again what was unpacked before.
    max_ratio : float
        How many times larger than the archive its content may be.
    encoding : str, optional
        Of the names in a zip that do not say theirs, as Python calls it: ``"gbk"``. By default UTF-8, or else a guess.
    digests : callable, optional
        Given a member's name (a relative path), the algorithm to hash it with while it is written, or None.
    observer : callable, optional
        Called with the compressed bytes that are done and the compressed bytes in all.

    Raises
    ------
    ArchiveError
        If the archive is cut short or damaged; nothing of it is kept.
    UnsafeArchiveError
        If it unpacks to far too much; nothing of it is kept.
    OutputExistsError
        If a file in the output would be replaced; what was unpacked is kept for the next run.
    DiskFullError
        If the disk is full; what is finished is kept.
    OutputLockedError
        If another run unpacks into the same output.
    InterruptedJobError
        If `stop` was requested; what is finished is kept.
    """
    folder = Path(output)
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputExistsError(f"{folder}: already exists and is not a folder; choose another output")
    staging = Staging(archive, folder, encoding)
    before = None if overwrite else staging.read_record()
    if before is not None and not staging.folder.exists():
        return before
    lock = folder / f"{OWN_PREFIX}-lock"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(lock)
    try:
        before = None if overwrite else staging.read_record()
        if before is not None:
            staging.close()  # a run that was killed at its very end left it
            return before
        return _Run(archive, folder, staging, overwrite, max_ratio, encoding, digests, observer, stop).run()
    finally:
        os.close(descriptor)


@dataclass
class _Run:
    """One call of `extract_archive`."""

    archive: Archive
    output: Path
    staging: Staging
    overwrite: bool
    max_ratio: float
    encoding: str | None
    digests: Callable[[str], str | None] | None
    observer: Callable[[int, int], None] | None
    stop: StopRequest | None

    def __post_init__(self) -> None:
        self._size = self.archive.size
        self._progress = Progress()
        self._folding = name_folding(self.output)
        self._conflicts = OutputConflicts(self.output, self.archive.parts, self._folding, overwrite=self.overwrite)
        self._refused_list, self._written_at, self._unsynced = -1, monotonic(), 0
        self._threads = ThreadPoolExecutor(1, "hash"), ThreadPoolExecutor(1, "sync")
        self._hashing: deque[Future[None]] = deque()
        self._syncing: Future[None] | None = None

    def run(self) -> Extraction:
        try:
            self._progress = self.staging.open()
            if not self._progress.complete:
                self._unpack()
            if self.overwrite:  # what is replaced in part must not count as unpacked
                self.staging.forget_record()
            self.staging.begin_publishing()
            publish(self.staging.tree, self.output, overwrite=self.overwrite, check_stop=self._check_stop)
            extraction = self.staging.finish(self._progress)
        except FacedataError as error:
            damaged = isinstance(error, ArchiveError | UnsafeArchiveError)
            if damaged or (self._progress.mark == 0 and not self._progress.complete):
                self.staging.remove()
            raise
        except OSError as error:
            raise output_error(error, self.output) from error
        if self.observer is not None:
            self.observer(self._size, self._size)
        return extraction

    def _check_stop(self) -> None:
        if self.stop:
            done = "while moving files into place" if self._progress.complete else f"after {self._progress.files} files"
            raise InterruptedJobError(f"interrupted {done}; run the same command again to resume")

    def _unpack(self) -> None:
        mark, parts = self._progress.mark, JoinedParts(self.archive.parts)
        if mark:
            _log.info("%s: continuing after %d files", self.archive.name, self._progress.files)
        self._refused_list = open_own(self.staging.refused, os.O_WRONLY | os.O_APPEND)
        self._names = MemberNames(self.staging.names, self._progress.names, self._folding)
        try:
            if self.archive.kind == "zip":
                reader = ZipReader(self.archive, parts, self.encoding)
                size = reader.check(mark, self.max_ratio, self._check_stop)
                check_room(self.output, size, self.archive.name, _KEPT)
                read = reader.read(mark)
            else:
                read = read_tar(self.archive, parts, mark, self.max_ratio)
            with closing(self._events(read, parts)) as events:
                event = next(events, None)
                while event is not None:
                    event = self._take(event, events) if isinstance(event, Member) else next(events, None)
            self._write_progress()
            if self._syncing is not None:
                self._syncing.result()
        except FacedataError as error:
            if not isinstance(error, ArchiveError | UnsafeArchiveError):
                with suppress(FacedataError):
                    self._write_progress()
            raise
        finally:
            for thread in self._threads:
                thread.shutdown(cancel_futures=True)
            os.close(self._refused_list)
            self._names.close()
            parts.close()
        self._progress.complete = True
        self.staging.sync(self._progress)

    def _events(self, events: Iterator[Event], parts: JoinedParts) -> Generator[Event]:
        """Read in a background thread, in batches, and report how far it is."""

        def batches() -> Generator[tuple[list[Event], int]]:
            batch: list[Event] = []
            held = 0
            try:
                for event in events:
                    batch.append(event)
                    held += len(event) if isinstance(event, bytes) else _MEMBER_COST
                    if held >= CHUNK or event == b"":
                        yield batch, parts.position
                        batch, held = [], 0
            except FacedataError:
                yield batch, parts.position  # what comes before the error
                raise
            yield batch, parts.position

        batch_iterator = batches()
        with ThreadPoolExecutor(1, "read-ahead") as thread:
            ahead = deque(thread.submit(next, batch_iterator, None) for _ in range(_BATCHES_AHEAD))
            try:
                while True:
                    while not wait([ahead[0]], _CHECK_EVERY).done:
                        self._check_stop()
                    self._check_stop()
                    read = ahead.popleft().result()
                    if read is None:
                        return
                    ahead.append(thread.submit(next, batch_iterator, None))
                    if self.observer is not None:
                        self.observer(read[1], self._size)
                    yield from read[0]
            finally:
                thread.shutdown(cancel_futures=True)
                batch_iterator.close()

    def _take(self, member: Member, events: Iterator[Event]) -> Event | None:
        """Unpack or refuse a member; returns the event after its data."""
        self._check_stop()
        name, refusal = safe_name(member.name)
        refusal = refusal or member.refusal or ("" if name or member.is_folder else "an empty name")
        if not refusal and name:
            refusal = self._conflicts.refusal(name, is_folder=member.is_folder)
        event: Event | None = None
        if (
            not refusal
            and (refusal := self._names.refusal(name, is_folder=member.is_folder))
            and not any(self._folding)
        ):
            event, is_same = self._compare(f"{self.staging.tree}/{name}", events)
            refusal, name = ("", "") if is_same else (refusal, name)
        if not refusal and name:
            path = f"{self.staging.tree}/{name}"
            try:
                if member.is_folder:
                    os.makedirs(path, exist_ok=True)
                else:
                    event = self._write(path, name, member, events)
                    self._names.take(name)
                self._progress.add(name, None if member.is_folder else member.size)
            except (FileExistsError, NotADirectoryError):
                refusal = "the archive has a file where its folder should be"
            except IsADirectoryError:
                refusal = "the archive has a folder of that name too"
            except OSError as error:
                raise error if isinstance(error, FacedataError) else output_error(error, path) from error
        if refusal:
            if self._progress.refused < _MOST_WARNINGS:
                _log.warning("%s is not unpacked: %s", quoted(member.name), refusal)
            line = json.dumps({"name": member.name, "reason": refusal}).encode() + b"\n"
            write_fully(self._refused_list, line)
            self._progress.refused_bytes += len(line)
            self._progress.refused += 1
        if event is None:
            event = next(events, None)
            while isinstance(event, bytes):  # the data of a member that is not unpacked
                event = next(events, None)
        self._progress.mark, self._progress.names = member.mark, self._names.count
        if member.size >= _LARGE or monotonic() - self._written_at >= _WRITE_PROGRESS_EVERY:
            self._write_progress()
        return event

    def _compare(self, path: str, events: Iterator[Event]) -> tuple[Event | None, bool]:
        """The event after the data of a member, and whether the data is that of the member of this name before."""
        with open(path, "rb") as file:
            event, is_same = next(events, None), True
            while isinstance(event, bytes):
                is_same = is_same and file.read(len(event)) == event
                event = next(events, None)
            return event, is_same and not file.read(1)

    def _write(self, path: str, name: str, member: Member, events: Iterator[Event]) -> Event | None:
        """Write a file; returns the event after its data."""
        mode = 0o777 if member.executable else 0o666
        try:
            descriptor = os.open(path, _FLAGS, mode)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, _FLAGS, mode)
        except FileExistsError:  # of a run that was killed, or of an earlier member
            os.unlink(path)
            descriptor = os.open(path, _FLAGS, mode)
        try:
            if member.size >= _CHECK_ROOM_FROM:
                check_room(self.output, member.size, quoted(name), _KEPT)
            algorithm = self.digests(name) if self.digests else None
            hasher: Any = new_hasher(algorithm) if algorithm else None
            event = next(events, None)
            while isinstance(event, bytes):
                write_fully(descriptor, event)
                if hasher is not None:
                    self._hash(hasher.update, event)
                event = next(events, None)
            if algorithm:
                self._hash(lambda: self._progress.digests.__setitem__(name, (algorithm, hasher.hexdigest())))
            else:
                self._progress.digests.pop(name, None)
            modified = min(max(member.modified, 0.0), _LATEST)
            os.utime(descriptor, (modified, modified))
        finally:
            os.close(descriptor)
        self._unsynced += member.size
        return event

    def _hash(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in the hashing thread, which may be a few calls behind."""
        if len(self._hashing) >= _CHUNKS_TO_HASH:
            self._hashing.popleft().result()
        self._hashing.append(self._threads[0].submit(function, *arguments))

    def _write_progress(self) -> None:
        while self._hashing:
            self._hashing.popleft().result()
        self._names.save()
        self.staging.write(self._progress)
        self._written_at = monotonic()
        if self._unsynced >= _SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            if self._syncing is not None:
                self._syncing.result()
            self._unsynced = 0
            self._syncing = self._threads[1].submit(self.staging.sync, deepcopy(self._progress))
