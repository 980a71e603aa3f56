"""What an archive may not do: leave its folder, or fill the disk out of nearly nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

from facedata.errors import DiskFullError, UnsafeArchiveError, output_error

__all__ = ["MAX_RATIO", "RatioLimit", "check_room", "safe_name"]

MAX_RATIO = 200.0
"""How many times larger than its archive the content may get.

Images and features come to at most 2, lists of text to 10 or 20, NumPy arrays of few values to 100. Deflate cannot do
more than 1032, which an archive of zeros comes near to.
"""

RATIO_FROM = 1 << 30
"""Bytes unpacked from which on the ratio counts: less fills no disk, and the beginning of an archive may be zeros."""

OWN_PREFIX = ".facedata-extract"
"""What the names of this package's own files in the output begin with; no member at the top may."""

_PLAIN = re.compile(r"[^/\0.][^/\0]{0,59}(?:/[^/\0.][^/\0]{0,59}){0,15}")
_LONGEST_COMPONENT = 255
_DEEPEST = 200  # folders; making and deleting them takes a call of a function for each
_LONGEST_NAME = 3000  # of the 4096 that a path may have, the output's own path takes some


class RatioLimit:
    """Stops what grows too much.

    Parameters
    ----------
    name : str
        Of the archive.
    ratio : float
    """

    def __init__(self, name: str, ratio: float) -> None:
        self._name, self._ratio, self._before = name, ratio, 0

    def check(self, unpacked: int, packed: int) -> None:
        """Raise `UnsafeArchiveError` where `unpacked` bytes are too many for `packed` bytes."""
        unpacked += self._before
        if unpacked > RATIO_FROM and unpacked > self._ratio * packed:
            raise UnsafeArchiveError(
                f"{self._name}: {packed} bytes unpack to {unpacked} bytes or more, {unpacked / max(packed, 1):.0f} "
                f"times as much, and at most {self._ratio:g} times is allowed: it looks like an archive made to fill "
                "the disk. What was unpacked is deleted. If you trust it, give a larger --max-ratio (deflate itself "
                "ends at 1032)"
            )

    def forget(self, unpacked: int) -> None:
        """Count these bytes as before those that come now."""
        self._before += unpacked


def check_room(folder: Path, size: int, what: str) -> None:
    """Raise `DiskFullError` where the disk of `folder` has no room for `size` bytes."""
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise output_error(error, folder) from error
    free = disk.f_bavail * disk.f_frsize
    if size > free:
        shown = folder.parent if folder.name.startswith(OWN_PREFIX) else folder  # not the hidden one in it
        raise DiskFullError(
            f"{shown}: {what} needs {size:,} bytes, and {free:,} bytes are free on this disk; what is finished is "
            f"kept: free {size - free:,} bytes or more and run the same command again, it goes on from there"
        )


def safe_name(name: str) -> tuple[str, str]:
    """The relative path that a member's name stands for, and why it may not be used.

    Returns
    -------
    path : str
        Without ``.``, empty components and a slash at the end; empty for the output folder itself.
    reason : str
        Empty where the name is fine.
    """
    if _PLAIN.fullmatch(name) and name.isascii():
        return name, ""
    if name.startswith("/"):
        return "", "an absolute name"
    if not name:
        return "", "an empty name"
    if "\0" in name:
        return "", "a name with a zero byte"
    components = [component for component in name.split("/") if component not in ("", ".")]
    return "/".join(components), _reason(components)


def _reason(components: list[str]) -> str:
    if ".." in components:
        return "a name that leads out of the folder ('..')"
    if components and components[0].startswith(OWN_PREFIX):
        return f"a name that facedata keeps for itself ({OWN_PREFIX}...)"
    lengths = [len(os.fsencode(component)) for component in components]
    if max(lengths, default=0) > _LONGEST_COMPONENT or sum(lengths) + len(lengths) > _LONGEST_NAME:
        return "a name that is too long for a file system"
    if len(components) > _DEEPEST:
        return f"a name that lies in more than {_DEEPEST - 1} folders"
    return ""
