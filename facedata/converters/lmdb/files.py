"""The files of a database that is being built, and how they become those that readers open."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from facedata.converters.lmdb.lmdb_errors import as_output_errors
from facedata.converters.lmdb.names import DATA
from facedata.converters.lmdb.pages import Meta, read_meta
from facedata.errors import FacedataError, OutputExistsError, output_error
from facedata.files import temporary_name

__all__ = ["BUILDING", "BuildFiles"]

BUILDING = ".facedata-building"
_LOOSE = 1.02  # pages in all, to those that are used
_KV, _PENDING = "kv.txt", "pending.json"


@dataclass(frozen=True)
class BuildFiles:
    """Where the parts lie until all of it is done, and where they belong then.

    Attributes
    ----------
    folder : str
        Of the parts.
    data_folder : str
        Of the database alone, which may have to be on another file system.
    target : str
        The data file that readers open.
    kv_target : str
        The key-label file.
    """

    folder: str
    data_folder: str
    target: str
    kv_target: str

    @property
    def data(self) -> str:
        """The data file, while it is built."""
        return os.path.join(self.data_folder, DATA)

    @property
    def kv(self) -> str:
        """The key-label file, while it is written."""
        return os.path.join(self.folder, _KV)

    def data_now(self) -> str:
        """The data file, wherever it is by now."""
        return self.data if os.path.exists(self.data) else self.target

    def kv_now(self) -> str:
        """The key-label file, wherever it is by now."""
        return self.kv if os.path.exists(self.kv) else self.kv_target

    def some_are_published(self) -> bool:
        """Whether publishing has begun, so that there is nothing more to write."""
        return not (os.path.exists(self.kv) and os.path.exists(self.data))

    def make_folders(self) -> None:
        """Make what is not there."""
        for folder in (self.folder, self.data_folder):
            os.makedirs(folder, exist_ok=True)

    def remove(self) -> None:
        """Remove all parts, and their folders."""
        for folder in {self.folder, self.data_folder}:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def write_pending(self, entry: Mapping[str, Any]) -> None:
        """Put down the line of the journal that a commit is about to be followed by."""
        path = os.path.join(self.folder, _PENDING)
        with open(f"{path}.new", "w") as file:
            json.dump(entry, file)
        os.replace(f"{path}.new", path)

    def read_pending(self) -> dict[str, Any] | None:
        """The line that was put down last, with ``shard`` and, in ``end``, ``transaction`` and ``kv``."""
        try:
            with open(os.path.join(self.folder, _PENDING)) as file:
                entry: dict[str, Any] = json.load(file)
            numbers = (entry["shard"], entry["end"]["transaction"], entry["end"]["kv"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return entry if all(isinstance(number, int) for number in numbers) else None

    def publish_kv(self) -> None:
        """Move the key-label file to where it belongs, if that was not done before."""
        if os.path.exists(self.kv):
            _move(self.kv, self.kv_target)

    def publish_data(self) -> None:
        """The same of the database, without its free pages where these are many."""
        if not os.path.exists(self.data):
            return
        meta = read_meta(self.data)
        if meta.last_page + 1 > _LOOSE * meta.used_pages:
            _replace(self.target, lambda temporary: _compact(self.data, temporary, meta))
        else:
            _move(self.data, self.target)


def _move(source: str, target: str) -> None:
    """Rename, or copy where the target is on another file system; the bytes are on the disk before the name is."""
    try:
        _force_to_disk(source)
        _rename(source, target)
    except FacedataError:
        raise
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise output_error(error, target) from error
        _replace(target, lambda temporary: shutil.copyfile(source, temporary))
        os.unlink(source)


def _rename(source: str, target: str) -> None:
    """Rename without replacing anything: what the job itself would replace was removed when it began."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        if not os.path.samefile(source, target):  # else a run was killed just behind the link
            raise OutputExistsError(
                f"{target}: appeared while this job was at work, and is left as it is; was another job given the same "
                "name? Move it away and run the same command again"
            ) from error
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise
        os.replace(source, target)  # a file system without hard links
        return
    os.unlink(source)


def _replace(target: str, write: Callable[[str], object]) -> None:
    """Have a file written under another name, which then becomes `target`."""
    temporary = temporary_name(target)
    try:
        write(temporary)
        _force_to_disk(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, FacedataError):
            raise output_error(error, target) from error
        raise


def _compact(source: str, target: str, meta: Meta) -> None:
    """Copy a database without its free pages."""
    import lmdb

    with (
        open(target, "wb") as file,
        as_output_errors(target, lambda: meta.used_pages * meta.page_size),
        lmdb.open(os.fsencode(source), subdir=False, readonly=True, lock=False, create=False) as environment,
    ):
        environment.copyfd(file.fileno(), compact=True)


def _force_to_disk(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
