"""The members of an archive: what is read of them, and which of them may be unpacked."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from facedata.errors import OutputExistsError, UnsafeArchiveError, output_error

__all__ = [
    "MAX_RATIO",
    "OWN_PREFIX",
    "RATIO_FROM",
    "Event",
    "Member",
    "OutputConflicts",
    "check_ratio",
    "quoted",
    "safe_name",
]

MAX_RATIO = 200.0
"""How many times larger than its archive the content may be.

Images and features come to at most 2, lists of text to 10 or 20, NumPy arrays of few values to 100. Deflate cannot do
more than 1032, which an archive of zeros comes near to.
"""

RATIO_FROM = 1 << 30
"""Unpacked bytes from which on the ratio counts: fewer fill no disk, and the beginning of an archive may be zeros."""

OWN_PREFIX = ".facedata-extract"
"""The prefix of this package's own files in the output; members at the top level may not have it."""

_PLAIN_NAME = re.compile(r"[^/\0.][^/\0]{0,59}(?:/[^/\0.][^/\0]{0,59}){0,15}")
_LONGEST_COMPONENT = 255
_MOST_COMPONENTS = 200  # each folder takes a call to make and one to delete
_LONGEST_NAME = 3000  # a path may have 4096 bytes, and the output's own path takes some
_CACHED_FOLDERS = 4096
_SYMBOLIC_LINK = "its path leads through a symbolic link in the output"


class Member(NamedTuple):
    """A member of an archive.

    Attributes
    ----------
    name : str
        As the archive has it.
    is_folder : bool
    refusal : str
        Why it is not unpacked, whatever its name is; empty if it can be.
    size : int
        Bytes of its data.
    executable : bool
    modified : float
        Seconds since 1970.
    mark : int
        Where a later run continues if this member is finished.
    """

    name: str
    is_folder: bool
    refusal: str
    size: int
    executable: bool
    modified: float
    mark: int


Event = Member | bytes
"""What reading an archive yields: a member, then its data in chunks. Data before the first member is skipped."""


def check_ratio(archive: str, unpacked: int, packed: int, max_ratio: float) -> None:
    """Check that an archive does not grow too much.

    Raises
    ------
    UnsafeArchiveError
        If `unpacked` bytes are too many for `packed` bytes.
    """
    if unpacked > RATIO_FROM and unpacked > max_ratio * packed:
        raise UnsafeArchiveError(
            f"{archive}: {packed} bytes unpack to {unpacked} bytes or more, {unpacked / max(packed, 1):.0f} times as "
            f"much, but at most {max_ratio:g} times is allowed: it looks like an archive made to fill the disk. What "
            "was unpacked is deleted. If you trust it, give a larger --max-ratio (deflate itself ends at 1032)"
        )


def quoted(name: str) -> str:
    """Quote a name from an archive for a message, without characters that a terminal would obey."""
    return repr(name) if name.isprintable() else ascii(name)


def safe_name(name: str) -> tuple[str, str]:
    """Return the relative path that a member's name stands for, and why it may not be used.

    Returns
    -------
    path : str
        Without ``.``, empty components and a slash at the end; empty for the output folder itself.
    refusal : str
        Empty if the name is safe.
    """
    if _PLAIN_NAME.fullmatch(name) and name.isascii():
        return name, ""
    if name.startswith("/"):
        return "", "an absolute name"
    if not name:
        return "", "an empty name"
    if "\0" in name:
        return "", "a name with a zero byte"
    components = [component for component in name.split("/") if component not in ("", ".")]
    lengths = [len(os.fsencode(component)) for component in components]
    refusal = ""
    if ".." in components:
        refusal = "a name that leads out of the folder ('..')"
    elif components and components[0].startswith(OWN_PREFIX):
        refusal = f"a name that is reserved by facedata ({OWN_PREFIX}...)"
    elif max(lengths, default=0) > _LONGEST_COMPONENT or sum(lengths) + len(lengths) > _LONGEST_NAME:
        refusal = "a name that is too long for a file system"
    elif len(components) > _MOST_COMPONENTS:
        refusal = f"a name in more than {_MOST_COMPONENTS - 1} nested folders"
    return "/".join(components), refusal


class OutputConflicts:
    """Finds out whether a member's path in the output is free.

    Parameters
    ----------
    output : Path
    parts : iterable of Path
        The archive itself, which is never overwritten.
    overwrite : bool
    """

    def __init__(self, output: Path, parts: Iterable[Path], *, overwrite: bool) -> None:
        self._output, self._overwrite = str(output), overwrite
        self._parts = [os.stat(part) for part in parts]
        self._folders: dict[str, tuple[bool, str]] = {}

    def refusal(self, name: str, *, is_folder: bool) -> str:
        """Return why a member may not be written at `name`; empty if it may.

        Raises
        ------
        OutputExistsError
            If something exists there that may not be replaced.
        """
        parent = name.rpartition("/")[0]
        if parent not in self._folders:
            if len(self._folders) >= _CACHED_FOLDERS:
                self._folders.clear()
            self._folders[parent] = self._examine_folder(parent)
        exists, refusal = self._folders[parent]
        path = f"{self._output}/{name}"
        found = _lstat(path) if exists else None
        if found is None or refusal:
            return refusal
        if stat.S_ISDIR(found.st_mode):
            if is_folder:
                return ""
            raise OutputExistsError(f"{path}: is a folder, but the archive has a file of that name")
        if is_folder:
            if stat.S_ISLNK(found.st_mode):
                return _SYMBOLIC_LINK
            raise OutputExistsError(f"{path}: is a file, but the archive has a folder of that name")
        if any(os.path.samestat(found, part) for part in self._parts):
            return "the name of the archive that is being unpacked"
        if not self._overwrite:
            raise OutputExistsError(
                f"{path}: already exists; choose another output, move it away, or give --overwrite to replace the "
                "files that the archive has too"
            )
        return ""

    def _examine_folder(self, folder: str) -> tuple[bool, str]:
        """Whether a folder exists in the output, and why nothing may be written in it."""
        path = self._output
        for component in folder.split("/") if folder else []:
            path = f"{path}/{component}"
            found = _lstat(path)
            if found is None:
                return False, ""
            if stat.S_ISLNK(found.st_mode):
                return False, _SYMBOLIC_LINK
            if not stat.S_ISDIR(found.st_mode):
                raise OutputExistsError(f"{path}: is a file, but the archive has a folder of that name")
        return True, ""


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise output_error(error, path) from error
