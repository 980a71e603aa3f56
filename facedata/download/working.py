"""The hidden folder that a download works in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facedata.download.catalogue import CatalogueSet
from facedata.download.provenance import read_provenance
from facedata.download.recording import record_restart
from facedata.errors import FacedataError, output_error
from facedata.jobs.journal import ShardLock

__all__ = ["disk_bytes", "work_folder", "working"]


def work_folder(entry: CatalogueSet, root: Path) -> Path:
    """Where it lies; it is there until the set is finished."""
    return root / f".facedata-download-{entry.name}"


def disk_bytes(path: Path) -> int:
    """How much of the disk a file, or all files of a folder, take; 0 where it is not there."""
    try:
        if not path.is_dir():
            return path.lstat().st_blocks * 512
        with os.scandir(path) as entries:
            return sum(disk_bytes(Path(entry)) for entry in entries)
    except OSError:
        return 0


@contextmanager
def working(entry: CatalogueSet, root: Path, *, restart: bool) -> Iterator[tuple[Path, bool]]:
    """The set's hidden folder, locked; and whether what is there is replaced, by this call or one it goes on with."""
    work = work_folder(entry, root)
    again = work / "overwrite"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with ShardLock(work / "lock") as lock:
            lock.take(range(1))
            ended = "finished" in read_provenance(root, entry.name)  # killed before it could remove this folder
            if ended or (restart and not again.exists()):
                again.unlink(missing_ok=True)
                (work / "placing.json").unlink(missing_ok=True)
                shutil.rmtree(work / "unpacked", ignore_errors=True)
            if restart and not again.exists():
                record_restart(entry, root)
                again.touch()
            yield work, again.exists()
    except FacedataError:
        raise
    except OSError as error:
        raise output_error(error, work) from error
