"""Making a list of checksums of all files below a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from facedata.download.checksums import hash_file
from facedata.download.finding import walk_files
from facedata.download.manifest import Listed
from facedata.download.readers import Meter, Task, read_in_order
from facedata.errors import EmptyDatasetError, InputError, InterruptedJobError, input_error
from facedata.jobs.signals import StopRequest

__all__ = ["LeftOut", "list_checksums"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that could not be listed.

    Attributes
    ----------
    path : str
    reason : str
    wanted : bool
        Whether it should be in the list: False for what is no file.
    """

    path: str
    reason: str
    wanted: bool = True


def list_checksums(
    path: str | os.PathLike[str],
    algorithm: str = "md5",
    *,
    workers: int | None = None,
    leave_out: tuple[int, int] | None = None,
    observer: Callable[[int, int], None] | None = None,
    stop: StopRequest | None = None,
) -> Iterator[Listed | LeftOut]:
    """The checksums of all plain files below a folder, in the order of the bytes of their paths.

    Parameters
    ----------
    path : path
        A folder; or a file, which is then the only one.
    algorithm : str
        A key of `ALGORITHMS`.
    workers : int, optional
        Files read at a time; by default the CPUs that this process may use.
    leave_out : pair of int, optional
        Device and inode of a file to pass over: the one that the list is being written to.
    observer : callable, optional
        Called with the bytes read and those to be read in all (0: not known yet), a few times a second.
    stop : StopRequest, optional

    Yields
    ------
    Listed or LeftOut
        Names are relative to the folder.

    Raises
    ------
    InputError
        Where it cannot be read.
    EmptyDatasetError
        Where there is no file.
    InterruptedJobError
        Where `stop` asked for it.
    """
    source = _Folder(os.fspath(path), algorithm, leave_out)
    answers = read_in_order(source.tasks(), workers=workers, stop=stop, tick=observer)
    count = 0
    try:
        with closing(answers):
            for answer in answers:
                count += 1
                yield answer
    except InterruptedJobError as error:
        raise InterruptedJobError(f"{error}; the list is not complete: run the same command again") from error
    if not count:
        raise EmptyDatasetError(f"{os.fspath(path)}: has no files in it")


class _Folder:
    def __init__(self, path: str, algorithm: str, leave_out: tuple[int, int] | None) -> None:
        self._algorithm, self._leave_out = algorithm, leave_out
        self._complaints: list[LeftOut] = []
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except OSError as error:
            raise input_error(error, path) from error
        self._root = path if is_folder else os.path.dirname(path)
        self._names = self._walk() if is_folder else iter([os.path.basename(path)])

    def _walk(self) -> Iterator[str]:
        return walk_files(self._root, complain=self._complain)

    def _complain(self, path: str, reason: str, is_other: bool) -> None:
        self._complaints.append(LeftOut(path, reason, wanted=not is_other))

    def tasks(self) -> Iterator[Task[Listed | LeftOut]]:
        for name in self._names:
            yield from self._told()
            path = os.path.join(self._root, name)
            try:
                status = os.stat(path)
            except OSError as error:
                yield _told(LeftOut(path, error.strerror or str(error)))
                continue
            if (status.st_dev, status.st_ino) != self._leave_out:
                yield Task(partial(self._hash, name), status.st_size)
        yield from self._told()

    def _told(self) -> Iterator[Task[Listed | LeftOut]]:
        while self._complaints:
            yield _told(self._complaints.pop(0))

    def _hash(self, name: str, meter: Meter) -> Listed | LeftOut:
        path = os.path.join(self._root, name)
        try:
            hashed = hash_file(path, self._algorithm, advance=meter.advance, ahead=meter.spare)
        except InputError as error:
            return LeftOut(path, str(error).removeprefix(f"{path}: "))
        return Listed(name, hashed.digest) if hashed.steady else LeftOut(path, "it changed while it was read")


def _told(complaint: LeftOut) -> Task[Listed | LeftOut]:
    return Task(lambda _: complaint, at_once=True)
