"""Unpacking archives: the work behind ``facedata extract``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from facedata.download.archives.members import Walk
from facedata.download.archives.parts import Archive
from facedata.download.archives.record import (
    Extraction,
    archive_identity,
    read_record,
    refused_path,
    write_record,
)
from facedata.download.archives.safety import MAX_RATIO, OWN_PREFIX, check_room
from facedata.download.archives.staging import Staging, Tally
from facedata.errors import (
    ArchiveError,
    FacedataError,
    InterruptedJobError,
    OutputExistsError,
    UnsafeArchiveError,
    input_error,
    output_error,
)
from facedata.jobs.journal import ShardLock
from facedata.jobs.signals import StopRequest

__all__ = ["extract_archive", "extracted_before"]

_FIRST_REFUSED = 100  # told of by name outside of their list
_log = logging.getLogger(__name__)


def extracted_before(archive: Archive, output: str | os.PathLike[str]) -> Extraction | None:
    """What an earlier run made of the same archive in the same output, if all of it that is looked at is there."""
    return read_record(Path(output), archive_identity(archive)[0])


def extract_archive(
    archive: Archive,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    max_ratio: float = MAX_RATIO,
    digests: Callable[[str], str | None] | None = None,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> Extraction:
    """Unpack an archive into a folder.

    Members are written to a hidden folder in the output and get their names when all of the archive has been proven.
    Called again after it was cut off it goes on; called again after it was done it does nothing.

    Parameters
    ----------
    archive : Archive
        From `group_archives`.
    output : path
        A folder; made if it is not there.
    overwrite : bool
        Replace files of the same names, and unpack again what has been unpacked before.
    max_ratio : float
        How many times larger than the archive its content may be.
    digests : callable, optional
        Given a member's name (a relative path), the algorithm to hash it with while it is written, or None.
    observer : callable, optional
        Called with compressed bytes done and in all, a few times a second.
    stop : StopRequest, optional

    Returns
    -------
    Extraction

    Raises
    ------
    ArchiveError
        Where the archive is cut short or damaged; nothing of it is kept.
    UnsafeArchiveError
        Where it unpacks to far too much; nothing of it is kept.
    OutputExistsError
        Where a file is in the way; what has been unpacked is kept for the next run.
    DiskFullError
        What is finished is kept.
    OutputLockedError
        Where another run unpacks into the same output.
    InterruptedJobError
    """
    folder = Path(output)
    _make_output(folder)
    identity, parts = archive_identity(archive)
    job = _Job(archive, folder, identity, parts, overwrite, max_ratio, digests, observer, stop)
    before = None if overwrite else read_record(folder, identity)
    if before is not None and not job.staging().folder.exists():
        return before
    with _locked(folder):
        before = None if overwrite else read_record(folder, identity)
        if before is None:
            return job.run()
        job.staging().remove()  # a run that was killed at its very end left it
        return before


@dataclass(frozen=True)
class _Job:
    archive: Archive
    output: Path
    identity: str
    parts: list[dict[str, Any]]
    overwrite: bool
    max_ratio: float
    digests: Callable[[str], str | None] | None
    observer: Callable[[int, int], None] | None
    stop: StopRequest | None

    def staging(self) -> Staging:
        return Staging(self.output, self.identity, [_very_file(part) for part in self.archive.parts])

    def run(self) -> Extraction:
        """Unpack and publish; what is not worth keeping is deleted."""
        staging, tally = self.staging(), Tally()
        try:
            tally = staging.open()
            self._unpack(staging, tally)
            return self._publish(staging, tally)
        except FacedataError as error:
            damaged = isinstance(error, ArchiveError | UnsafeArchiveError)
            if damaged or (tally.mark == 0 and not tally.proven):
                staging.remove()
            raise
        finally:
            staging.close()

    def _unpack(self, staging: Staging, tally: Tally) -> None:
        from facedata.download.archives.ahead import quick_turns
        from facedata.download.archives.ground import Ground
        from facedata.download.archives.unpacking import Unpacking

        if tally.proven:
            return
        if tally.mark:
            _log.info("%s: going on after %d files (%d bytes)", self.archive.name, tally.files, tally.bytes)
        run = Unpacking(
            staging,
            tally,
            Ground(self.output, self.archive.parts, overwrite=self.overwrite),
            size=self.archive.size,
            digests=self.digests,
            observer=self.observer,
            stop=self.stop,
        )
        walk = self._walk(staging, tally.mark, run.look_up)
        try:
            with quick_turns():
                run.run(walk)
        finally:
            walk.close()
        staging.sync(tally.mark, proven=True)

    def _walk(self, staging: Staging, mark: int, look_up: Callable[[], None]) -> Walk:
        if self.archive.kind != "zip":
            from facedata.download.archives.tarring import TarWalk

            return TarWalk(self.archive, mark, self.max_ratio, look_up)
        from facedata.download.archives.zipping import ZipWalk

        walk = ZipWalk(self.archive, mark, self.max_ratio, look_up)
        try:
            check_room(staging.folder, walk.size, self.archive.name)
        except FacedataError:
            walk.close()
            raise
        return walk

    def _publish(self, staging: Staging, tally: Tally) -> Extraction:
        from facedata.download.archives.ground import publish

        def look_up() -> None:
            if self.stop:
                raise InterruptedJobError("stopped while files got their names; run the same command again to go on")

        refused: list[tuple[str, str]] = []
        try:
            publish(staging.tree, self.output, overwrite=self.overwrite, look_up=look_up)
            if tally.refused:
                target = refused_path(self.output, self.identity)
                if staging.refused.exists():
                    os.replace(staging.refused, target)
                refused = _first_refused(target)
            extraction = write_record(self.archive, self.output, self.identity, self.parts, tally, tuple(refused))
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.output) from error
        staging.remove()
        if self.observer is not None:
            self.observer(self.archive.size, self.archive.size)
        return extraction


def _first_refused(path: Path) -> list[tuple[str, str]]:
    with open(path, "rb") as file:
        lines = [json.loads(line) for line in islice(file, _FIRST_REFUSED)]
    return [(line["name"], line["reason"]) for line in lines]


def _very_file(part: Path) -> list[Any]:
    """What changes when a file is replaced by another of the same size and almost the same content."""
    try:
        status = os.stat(part)
    except OSError as error:
        raise input_error(error, part) from error
    return [str(part.absolute()), status.st_size, status.st_mtime_ns, status.st_ino]


def _make_output(output: Path) -> None:
    if os.path.lexists(output) and not output.is_dir():
        raise OutputExistsError(f"{output}: is there already and is not a folder; choose another output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, output) from error


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    path = output / f"{OWN_PREFIX}-lock"
    try:
        lock = ShardLock(path)
    except OSError as error:
        raise output_error(error, path) from error
    with lock:
        lock.take(range(1))
        yield
