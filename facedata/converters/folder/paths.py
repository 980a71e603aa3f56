"""Paths in an output that keep those of the source: from the key of a sample to a folder and a file name."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Source
from facedata.errors import OptionError, RefusedSampleError
from facedata.images import IMAGE_EXTENSIONS

__all__ = ["check_paths", "folders_of", "path_of_key", "stem_of_key"]

_LONGEST_NAME = 255  # bytes, on all usual file systems
_LONGEST_LETTER = 4
_SHOWN = 3
_EXTENSIONS = IMAGE_EXTENSIONS | {"tif", "gif", "bin"}  # that an image may get


def stem_of_key(key: str) -> str:
    """The key without the file extension of an image."""
    stem, dot, extension = key.rpartition(".")
    return stem if dot and stem and extension.lower() in IMAGE_EXTENSIONS else key


def path_of_key(key: str, extension: str) -> tuple[str, str]:
    """The folder below the root, and the file name, of the image with this key.

    Parameters
    ----------
    key : str
        A relative path; a name that has neither `extension` nor that of another image gets it.
    extension : str
        That fits the image.

    Raises
    ------
    RefusedSampleError
        Where the key is no path below a folder of the root.
    """
    names = key.split("/")
    if len(names) < 2:
        raise RefusedSampleError(f"its key '{key}' names no folder; --layout source needs keys as person/image.jpg")
    for name in names:
        if name.startswith(".") or not name or "\0" in name:  # a hidden name might be that of the journal
            raise RefusedSampleError(f"its key '{key}' is no path below the output: it has the part '{name}'")
    if stem_of_key(names[-1]) == names[-1] and not names[-1].endswith(f".{extension}"):
        names[-1] += f".{extension}"
    if len(key) * _LONGEST_LETTER < _LONGEST_NAME:
        return "/".join(names[:-1]), names[-1]
    try:
        longest = max(len(os.fsencode(name)) for name in names)
    except UnicodeEncodeError:
        raise RefusedSampleError("its key cannot be a file name: it is no text that the file system takes") from None
    if longest > _LONGEST_NAME:
        raise RefusedSampleError(f"its key has a part of {longest} bytes; a file name may have {_LONGEST_NAME}")
    return "/".join(names[:-1]), names[-1]


def folders_of(source: Source) -> frozenset[str]:
    """The entries of the root that the images of `source` lie in."""
    return frozenset(key.partition("/")[0] for key in source.keys())  # noqa: SIM118, no mapping


def check_paths(source: Source, root: str) -> None:
    """Refuse a source whose keys are no paths, or in which two images would get the same path; goes over the keys.

    Raises
    ------
    OptionError
    """
    first = next(iter(source.keys()), None)
    if first is not None and "/" not in first:
        raise OptionError(
            f"{root}: --layout source keeps the paths of a source whose keys are paths (a folder, a list); this "
            f"source's are as '{first}'. --layout glint360k names the images by label and number"
        )
    if twice := _equal_keys(source) or _equal_when_extended(source):
        more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise OptionError(
            f"{root}: several images would be written as {', '.join(twice[:_SHOWN])}{more}: they differ in their file "
            "extension alone, or stand twice in the source. --layout glint360k names the images by label and number"
        )


def _equal_keys(source: Source) -> list[str]:
    """The keys that stand twice."""
    hashes = _hashes(source.keys())
    hashes.sort()
    doubled = set(hashes[:-1][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    twice = []
    for key in source.keys() if doubled else ():
        if hash(key) in doubled:
            if key in seen:
                twice.append(key)
            seen.add(key)
    return twice


def _equal_when_extended(source: Source) -> list[str]:
    """The keys with a file extension that one without may come to equal, for it gets one."""
    without = _hashes(key for key in source.keys() if stem_of_key(key) == key)  # noqa: SIM118, no mapping
    if not len(without):
        return []
    stems = _hashes(_bare(key) for key in source.keys() if _bare(key) != key)  # noqa: SIM118
    doubled = set(np.intersect1d(without, stems).tolist())
    if not doubled:
        return []
    keys = {key for key in source.keys() if hash(key) in doubled}  # noqa: SIM118
    return [key for key in source.keys() if _bare(key) != key and _bare(key) in keys]  # noqa: SIM118


def _bare(key: str) -> str:
    stem, _, extension = key.rpartition(".")
    return stem if stem and extension.lower() in _EXTENSIONS else key


def _hashes(keys: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), np.int64)
