"""Reading many small image files below a folder: regular files only, of bounded size, one folder at a time."""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Sample, Source
from facedata.errors import InputError, SampleError, input_error, is_transient
from facedata.files import check_time, combined_identity, file_identity, read_exactly, retried
from facedata.images import LARGEST_IMAGE

__all__ = ["LIST_ENDINGS", "ImageFileSource"]

LIST_ENDINGS = (".txt", ".lst", ".list", ".csv", ".tsv", ".jsonl")
"""Extensions of files that may name images."""

_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe must not keep the reader waiting
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAMPLED_SIZES = 64
_SAMPLED_CONTENTS = 16


class ImageFileSource(Source):
    """Images in files below a folder; the key of each is its path there."""

    keys_are_paths = True
    root: str

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, str, int]]:
        """For each image its folder, relative to the root, its file name and its label."""

    def read(self) -> Iterator[Sample | SampleError]:
        """Every image in order, or the error in its place."""
        current, descriptor = None, -1  # neighbours are opened through the descriptor of their folder
        try:
            for folder, name, label in self.entries():
                key = f"{folder}/{name}" if folder else name
                try:
                    if folder != current:
                        if descriptor >= 0:
                            os.close(descriptor)
                        current, descriptor = None, -1
                        descriptor = retried(os.open, os.path.join(self.root, folder), _FOLDER)
                        current = folder
                    image = _read_image(name, descriptor)
                except (OSError, ValueError) as error:  # ValueError: a zero byte in a name, or not an image file
                    yield SampleError(self.root, key, _reason(error), None, is_transient(error))
                else:
                    yield Sample(key, label, image)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    @abstractmethod
    def entry(self, position: int) -> tuple[str, int]:
        """The key and the label of one image."""

    def fetch(self, position: int) -> Sample | SampleError:
        """The image at `position`, or the error in its place."""
        key, label = self.entry(position)
        try:
            path = key if key.startswith("/") else f"{self.root}/{key}"  # faster than os.path.join
            return Sample(key, label, _read_image(path))
        except (OSError, ValueError) as error:
            return SampleError(self.root, key, _reason(error), None, is_transient(error))

    def keys(self) -> Iterator[str]:
        """The path of each image, relative to the root."""
        return (f"{folder}/{name}" if folder else name for folder, name, _ in self.entries())

    def locate(self, position: int) -> tuple[str, int | None]:
        """The image file."""
        return os.path.join(self.root, next(self[position : position + 1].keys())), None

    def sizes(self) -> NDArray[np.int32]:
        """The size of every file, 0 for a missing one; asks the file system for each."""
        return np.fromiter(map(self._size, self.keys()), np.int32, len(self))

    def _size(self, key: str) -> int:
        try:
            return min(retried(os.stat, os.path.join(self.root, key)).st_size, LARGEST_IMAGE)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and is_transient(error):  # else the job would be cut in another way
                raise input_error(error, os.path.join(self.root, key)) from error
            return 0

    def size(self) -> int:
        """The mean size of 64 images, times the number of images."""
        sampled = self.sampled(_SAMPLED_SIZES)
        return int(sampled.sizes().sum(dtype=np.int64)) * len(self) // max(len(sampled), 1)

    def content(self) -> str:
        """A digest of the content of 16 images from all over the source, so that changed files are noticed."""

        def identity(key: str) -> object:
            try:
                return file_identity(os.path.join(self.root, key))
            except InputError as error:
                if is_transient(error):
                    raise
                return None  # it fails by name when it is read

        return combined_identity((key, identity(key)) for key in self.sampled(_SAMPLED_CONTENTS).keys())  # noqa: SIM118

    def sampled(self, count: int) -> Source:
        """At most `count` images from all over the source, including the first and the last."""
        places = np.linspace(0, len(self) - 1, count) if len(self) else np.empty(0)
        return self.take(np.unique(places.astype(np.int64)))


def _reason(error: Exception) -> str:
    """Why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"cannot be read: {error.strerror if isinstance(error, OSError) and error.strerror else error}"


def _read_image(name: str, folder: int | None = None) -> bytes:
    """Read a file, perhaps in an open folder. Raises OSError, or ValueError if it cannot be an image file."""
    descriptor = retried(os.open, name, _FILE, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        check_time(status, name)
        size = status.st_size
        if size > LARGEST_IMAGE:
            raise ValueError(f"it has {size:,} bytes; an image may have at most {LARGEST_IMAGE:,}")
        data = read_exactly(descriptor, size, 0)
        if not data:
            raise ValueError("it is empty")
        return data
    finally:
        os.close(descriptor)
