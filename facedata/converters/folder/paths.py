"""The paths of images that keep the paths of the source: from the key of a sample to a folder and a file name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Source
from facedata.errors import OptionError, RefusedSampleError
from facedata.images import IMAGE_EXTENSIONS, stem_of_key
from facedata.text import listed

__all__ = ["check_paths", "folders_of", "path_of_key"]

_LONGEST_NAME = 255  # bytes, on all usual file systems
_BYTES_PER_LETTER = 4  # at most
_WRITTEN_EXTENSIONS = IMAGE_EXTENSIONS | {"tif", "gif", "bin"}


def path_of_key(key: str, extension: str) -> tuple[str, str]:
    """The folder below the root and the file name of the image with this key.

    Parameters
    ----------
    key : str
        A relative path. A name that has neither `extension` nor that of another image gets it.
    extension : str
        The file extension that fits the image.

    Raises
    ------
    RefusedSampleError
        If the key is not a path below a folder of the root.
    """
    names = key.split("/")
    if len(names) < 2:
        raise RefusedSampleError(f"its key '{key}' names no folder; --layout source needs keys as person/image.jpg")
    for name in names:
        if name.startswith(".") or not name or "\0" in name:  # a hidden name might be that of the journal
            raise RefusedSampleError(f"its key '{key}' is not a path below the output: it has the part '{name}'")
    if stem_of_key(names[-1]) == names[-1] and not names[-1].endswith(f".{extension}"):
        names[-1] += f".{extension}"
    if len(key) * _BYTES_PER_LETTER >= _LONGEST_NAME:
        try:
            longest = max(len(os.fsencode(name)) for name in names)
        except UnicodeEncodeError:
            raise RefusedSampleError("its key cannot be a file name: the file system cannot encode it") from None
        if longest > _LONGEST_NAME:
            raise RefusedSampleError(f"its key has a part of {longest} bytes; a file name may have {_LONGEST_NAME}")
    return "/".join(names[:-1]), names[-1]


def folders_of(source: Source) -> frozenset[str]:
    """The entries of the root that hold the images of `source`."""
    return frozenset(key.partition("/")[0] for key in source.keys())  # noqa: SIM118, not a mapping


def check_paths(source: Source, root: str) -> None:
    """Refuse a source whose keys are not paths, or in which two images would get the same path.

    Raises
    ------
    OptionError
    """
    first = next(iter(source.keys()), None)
    if first is not None and "/" not in first:
        raise OptionError(
            f"{root}: --layout source keeps the paths of a source whose keys are paths (a folder, a list), but the "
            f"keys of this source are like '{first}'. --layout glint360k names the images by label and number"
        )
    if same := _colliding_keys(source):
        raise OptionError(
            f"{root}: several images would be written as {listed(same, quote='')}: they differ only in their file "
            "extension, or occur twice in the source. --layout glint360k names the images by label and number"
        )


def _colliding_keys(source: Source) -> list[str]:
    """Keys that occur twice, and those that a key without a file extension may equal, because it gets one."""
    hashes = np.sort(_hashes(source.keys()))
    suspects = set(hashes[:-1][hashes[1:] == hashes[:-1]].tolist())
    without = _hashes(key for key in source.keys() if stem_of_key(key) == key)  # noqa: SIM118
    if len(without):
        stems = _hashes(_stem(key) for key in source.keys() if _stem(key) != key)  # noqa: SIM118
        suspects |= set(np.intersect1d(without, stems).tolist())
    if not suspects:
        return []
    counts = Counter(key for key in source.keys() if hash(key) in suspects)  # noqa: SIM118
    same = (k for k in source.keys() if counts[k] > 1 or (_stem(k) != k and _stem(k) in counts))  # noqa: SIM118
    return list(dict.fromkeys(same))


def _stem(key: str) -> str:
    """The key without any file extension that a sink may give an image."""
    return stem_of_key(key, _WRITTEN_EXTENSIONS)


def _hashes(keys: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), np.int64)
