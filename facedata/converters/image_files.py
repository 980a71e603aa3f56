"""Reading many small image files: bounded, regular files only, neighbours through one descriptor of their folder."""

from __future__ import annotations

import os
import stat

import numpy as np

from facedata.dataset import Source
from facedata.images import LARGEST_IMAGE

__all__ = ["ImageFiles", "estimated_size"]

_SAMPLED_FILES = 64


# a pipe must not keep us waiting for somebody to write into it
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class ImageFiles:
    """Reads files below a root, a folder at a time.

    Parameters
    ----------
    root : str
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._folder: str | None = None
        self._descriptor = -1

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._folder = -1, None

    def read(self, folder: str, name: str) -> bytes | str:
        """The bytes of the file `name` in `folder` (relative to the root), or the reason why there are none."""
        try:
            if folder != self._folder:
                self._close()
                self._descriptor = os.open(os.path.join(self._root, folder), _FOLDER)
                self._folder = folder
            descriptor = os.open(name, _FILE, dir_fd=self._descriptor)
        except FileNotFoundError:
            return "no such file"
        except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
            return f"cannot be opened: {_reason(error)}"
        try:
            return _read_whole(descriptor)
        except OSError as error:
            return f"cannot be read: {_reason(error)}"
        finally:
            os.close(descriptor)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _read_whole(descriptor: int) -> bytes | str:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_size > LARGEST_IMAGE:
        return f"is {status.st_size} bytes long; an image is taken to be at most {LARGEST_IMAGE}"
    data = os.read(descriptor, status.st_size)
    while len(data) < status.st_size:  # a read may be cut short
        more = os.read(descriptor, status.st_size - len(data))
        if not more:
            break
        data += more
    return data or "is empty"


def estimated_size(source: Source) -> int:
    """About how many bytes all images of a source of files take: the mean of 64 of them, times their number."""
    if not len(source):
        return 0
    sampled = source.take(np.unique(np.linspace(0, len(source) - 1, _SAMPLED_FILES).astype(np.int64)))
    return int(sampled.sizes().sum(dtype=np.int64)) * len(source) // len(sampled)
