"""What lies in the output already, where members are to go; and putting them there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from facedata.errors import OutputExistsError, output_error

__all__ = ["Ground", "publish"]

_REMEMBERED = 4096
_AT_ONCE = 10_000
_THERE = "there"


class Ground:
    """Answers for each member whether its place in the output is free.

    Parameters
    ----------
    output : Path
    parts : iterable of Path
        The archive itself, which is not written over in any case.
    overwrite : bool
    """

    def __init__(self, output: Path, parts: Iterable[Path], *, overwrite: bool) -> None:
        self._output, self._overwrite = str(output), overwrite
        self._parts = {(status.st_dev, status.st_ino) for status in map(os.stat, parts)}
        self._folders: dict[str, str] = {}

    def refusal(self, name: str, *, folder: bool) -> str:
        """Why a member may not go there; empty where it may.

        Raises
        ------
        OutputExistsError
            Where something is there already that may not be replaced.
        """
        parent = name.rpartition("/")[0]
        state = self._folders.get(parent)
        if state is None:
            state = self._remember(parent)
        if state != _THERE:
            return state
        try:
            found = os.lstat(f"{self._output}/{name}")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise output_error(error, f"{self._output}/{name}") from error
        return self._there(name, found, folder)

    def _there(self, name: str, found: os.stat_result, folder: bool) -> str:
        if stat.S_ISDIR(found.st_mode):
            if folder:
                return ""
            raise OutputExistsError(f"{self._output}/{name}: is a folder, and the archive has a file of that name")
        if folder:
            if stat.S_ISLNK(found.st_mode):
                return "a name that leads through a symbolic link in the output"
            raise OutputExistsError(f"{self._output}/{name}: is a file, and the archive has a folder of that name")
        if (found.st_dev, found.st_ino) in self._parts:
            return "the name of the archive that is being unpacked"
        if not self._overwrite:
            raise OutputExistsError(
                f"{self._output}/{name}: is there already; choose another output, move it away, or give --overwrite to "
                "replace the files that the archive has too"
            )
        return ""

    def _remember(self, parent: str) -> str:
        if len(self._folders) >= _REMEMBERED:
            self._folders.clear()
        state = self._folders[parent] = self._state(parent)
        return state

    def _state(self, parent: str) -> str:
        """Empty where the folder is not there, so nothing in it is; a reason where it leads elsewhere."""
        path = self._output
        for component in parent.split("/") if parent else []:
            path = f"{path}/{component}"
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                return ""
            except OSError as error:
                raise output_error(error, path) from error
            if stat.S_ISLNK(mode):
                return "a name that leads through a symbolic link in the output"
            if not stat.S_ISDIR(mode):
                raise OutputExistsError(f"{path}: is a file, and the archive has a folder of that name")
        return _THERE


def publish(tree: Path, output: Path, *, overwrite: bool, look_up: Callable[[], None]) -> None:
    """Move all that is in `tree` to `output`: whole folders where nothing is there, file by file elsewhere.

    Called again after it was cut off, it goes on. Nothing is copied.

    Raises
    ------
    OutputExistsError
        Where something appeared in the output since the members were unpacked.
    """
    folders, merged = [""], []
    while folders:
        folder = folders.pop()
        merged.append(folder)
        for name, is_folder in _listed(tree / folder):
            look_up()
            path = os.path.join(folder, name)
            if not _moved(str(tree / path), str(output / path), is_folder, overwrite):
                folders.append(path)
    for folder in reversed(merged[1:]):
        os.rmdir(tree / folder)


def _listed(folder: Path) -> Iterator[tuple[str, bool]]:
    """What is in a folder that is being emptied, in batches, since there may be millions; each name once."""
    kept: set[str] = set()
    while True:
        with os.scandir(folder) as entries:
            new = ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in kept)
            batch = list(islice(new, _AT_ONCE))
        if not batch:
            return
        yield from batch
        kept.update(name for name, is_folder in batch if is_folder)


def _moved(source: str, target: str, is_folder: bool, overwrite: bool) -> bool:
    """Move one thing; False where it is a folder that is there too."""
    try:
        found = os.lstat(target).st_mode
    except FileNotFoundError:
        os.rename(source, target)
        return True
    if is_folder and stat.S_ISDIR(found):
        return False
    if is_folder or stat.S_ISDIR(found) or not overwrite:
        way_out = "" if is_folder or stat.S_ISDIR(found) else ", or --overwrite to replace it"
        raise OutputExistsError(
            f"{target}: was put there while the archive was being unpacked, which is complete but for this; move it "
            f"away and run the same command again{way_out}"
        )
    os.replace(source, target)
    return True
