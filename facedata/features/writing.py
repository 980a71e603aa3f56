"""Files of features and labels that appear whole, and a pair of them that is never a wrong pair."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from facedata.errors import (
    DiskFullError,
    FacedataError,
    InputError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    output_error,
)
from facedata.features.feature_set import FeatureSet
from facedata.files import open_regular, write_fully

__all__ = [
    "NPY_HEADER",
    "SideFile",
    "check_labels_in_the_way",
    "check_replaceable",
    "check_room",
    "made_folders",
    "npy_header",
    "publish_set",
    "refuse_input",
    "same_bytes",
]

NPY_HEADER = 128
"""Bytes of the header that ``np.save`` writes for any matrix of float32."""

_PREFIX = ".facedata-packing-"
_COMPARED = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_log = logging.getLogger(__name__)


class SideFile:
    """A file that grows under a hidden name of its own beside its final place, locked while it does.

    The hidden name is the same in every run: what a run that was killed left is taken over, and does not pile up.

    Parameters
    ----------
    path : str
        Where it is to appear.

    Raises
    ------
    OutputLockedError
        Where another run is writing it.
    OutputError
        Where it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path, self.side = path, _side_name(path)
        self.size = 0
        self._descriptor = -1

    def __enter__(self) -> SideFile:
        try:
            self._descriptor = self._open()
        except OSError as error:
            if isinstance(error, FacedataError):
                raise
            raise output_error(error, self.path) from error
        return self

    def _open(self) -> int:
        while True:
            descriptor = os.open(
                self.side, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
            )
            try:
                self._lock(descriptor)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self.side)):
                        os.ftruncate(descriptor, 0)
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # it got its final name in between, or was removed

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise OutputLockedError(
                    f"{self.path}: another run is writing it; wait until it ends, or stop it, and run again"
                ) from error
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning("%s: this file system has no locks; do not write the same file twice at once", self.path)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`.

        Raises
        ------
        DiskFullError
        OutputError
        """
        try:
            write_fully(self._descriptor, data)
        except OSError as error:
            raise self._failed(error) from error
        self.size += len(data)

    def write_first(self, data: bytes) -> None:
        """Write over the first bytes of the file."""
        try:
            os.pwrite(self._descriptor, data, 0)
        except OSError as error:
            raise self._failed(error) from error

    def content(self) -> Iterator[bytes]:
        """What was written so far, through the descriptor that holds the lock: to close another would drop it."""
        return (os.pread(self._descriptor, _COMPARED, place) for place in range(0, self.size, _COMPARED))

    def sync(self) -> None:
        """Bring all bytes to the disk, and see that they are as many as were written.

        Raises
        ------
        OutputError
        """
        try:
            os.fsync(self._descriptor)
            size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise self._failed(error) from error
        if size != self.size:
            raise OutputError(f"{self.path}: {self.size:,} bytes were written, and {size:,} are there; nothing is kept")

    def publish(self) -> None:
        """Give it its final name, in the place of what is there."""
        try:
            os.replace(self.side, self.path)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        if error.errno in _FULL:
            return DiskFullError(
                f"{self.path}: {(error.strerror or 'disk full').lower()} after {self.size:,} bytes; nothing is kept: "
                "free some space and run the same command again, it starts again"
            )
        return output_error(error, self.path)

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # while it is locked: nobody else's; published, it has this name no more
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.side)):
                os.unlink(self.side)
        os.close(self._descriptor)


def _side_name(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f"{_PREFIX}{name}")


def npy_header(rows: int, dimensions: int) -> bytes:
    """The header that ``np.save`` writes for a matrix of float32 in C order, `NPY_HEADER` bytes."""
    head = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
    np.lib.format.write_array_header_1_0(head, described)
    data = head.getvalue()
    if len(data) != NPY_HEADER:
        raise OutputError(f"this release of NumPy writes headers of {len(data)} bytes, and not of {NPY_HEADER}")
    return data


def check_room(path: str, size: int) -> None:
    """Raise `DiskFullError` where the disk has no room for `size` more bytes in the folder of `path`."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    try:
        disk = os.statvfs(folder)
    except OSError:  # whoever writes says what is wrong
        return
    free = disk.f_bavail * disk.f_frsize
    with suppress(OSError):
        free += os.lstat(_side_name(path)).st_blocks * 512  # what a run that was killed left, and this one takes over
    if size > free:
        raise DiskFullError(
            f"{path}: needs {size:,} bytes, and {free:,} are free on this disk; nothing was written: free "
            f"{size - free:,} bytes or more, or choose another output"
        )


def check_replaceable(path: str, *, overwrite: bool) -> None:
    """Raise `OutputExistsError` where something is at `path` that may not be replaced."""
    if os.path.isdir(path):
        raise OutputExistsError(f"{path}: is a folder; a file is to be written there")
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(f"{path}: is there already; choose another name, or --overwrite to replace it")


def refuse_input(path: str, source: str) -> None:
    """Raise `OutputError` where `path`, which is to be written, is the file that is read."""
    same = False
    with suppress(OSError):
        same = os.path.samefile(path, source)
    if same:
        raise OutputError(f"{path}: is the input itself; choose another output")


@contextmanager
def made_folders(*paths: str) -> Iterator[None]:
    """Folders that are made if they are not there, and go again after an error if they are empty.

    Raises
    ------
    OutputError
    """
    made: list[str] = []
    try:
        for path in paths:
            missing = path
            while missing and not os.path.lexists(missing):
                made.append(missing)
                missing = os.path.dirname(missing)
            try:
                os.makedirs(path, exist_ok=True)
            except FileExistsError as error:
                raise OutputExistsError(f"{path}: is there already and is not a folder") from error
            except OSError as error:
                raise output_error(error, path) from error
        yield
    except BaseException:
        for path in sorted(made, key=len, reverse=True):
            with suppress(OSError):
                os.rmdir(path)
        raise


def same_bytes(path: str, parts: Iterable[bytes]) -> bool:
    """Whether a plain file holds these parts, one behind the other, and nothing else."""
    with suppress(OSError, InputError), open(open_regular(path), "rb") as file:
        return all(file.read(len(part)) == part for part in parts) and not file.read(1)
    return False


def check_labels_in_the_way(files: FeatureSet, lines: Iterable[bytes] | None, *, overwrite: bool) -> None:
    """Raise `OutputExistsError` where a ``.meta`` lies at the place of the labels that has not these lines.

    One that has was left by a run that was killed before its features appeared, or is where the labels came from. Where
    no labels are to be written (None), any that are there would be taken for theirs.
    """
    if not os.path.lexists(files.labels) or (overwrite and not os.path.isdir(files.labels)):
        return
    if lines is None:
        raise OutputExistsError(
            f"{files.labels}: is there already, and would be taken for the labels of these features; choose another "
            "name, or --overwrite to remove it"
        )
    if not same_bytes(files.labels, lines):
        check_replaceable(files.labels, overwrite=overwrite)


def publish_set(files: FeatureSet, features: SideFile, meta: SideFile | None, *, overwrite: bool) -> None:
    """Give matrix and labels their names, the matrix last, so that at no moment a reader finds a wrong pair.

    Killed in between, there are labels without a matrix, which no reader takes for a set; the same command completes
    it.

    Raises
    ------
    OutputExistsError
        Where somebody else made a file of that name in the meantime.
    OutputError
    """
    features.sync()
    if meta is not None:
        meta.sync()
    check_replaceable(files.features, overwrite=overwrite)
    check_labels_in_the_way(files, None if meta is None else meta.content(), overwrite=overwrite)
    if overwrite:
        _remove(files.features)
    if meta is not None:
        meta.publish()
    elif os.path.lexists(files.labels):
        _log.warning("%s: removed; these were the labels of the features before", files.labels)
        _remove(files.labels)
    features.publish()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise output_error(error, path) from error
