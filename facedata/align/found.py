"""The landmarks of all faces of a job, written down by its workers, and joined when it is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from facedata.align.faces import Face
from facedata.align.landmark_files import landmark_header, landmark_line
from facedata.errors import output_error
from facedata.files import atomic_writer

__all__ = ["FRAGMENTS", "FoundLandmarks", "FoundWriter"]

FRAGMENTS = ".facedata-landmarks"
_BUFFER = 1 << 20


class FoundWriter:
    """Writes down the faces of a shard."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def write(self, key: str, faces: Sequence[Face]) -> None:
        """The faces in the image with this key."""
        for face in faces:
            self._file.write(landmark_line(self._name, key, face))


@dataclass(frozen=True)
class FoundLandmarks:
    """The file that gets the landmarks, and the folder in the output where they are gathered.

    Attributes
    ----------
    path : str
        CSV where it ends in ``.csv``, else JSON lines.
    root : str
        The output.
    """

    path: str
    root: str

    @property
    def _folder(self) -> str:
        return os.path.join(self.root, FRAGMENTS)

    def _fragment(self, shard: int) -> str:
        return os.path.join(self._folder, f"{shard:08d}")

    def prepare(self) -> None:
        """Make the folder."""
        os.makedirs(self._folder, exist_ok=True)

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[FoundWriter]:
        """A writer for one shard, in a worker; what an earlier, cut off try wrote is written over."""
        with open(self._fragment(shard), "wb", _BUFFER) as file:
            yield FoundWriter(file, self.path)

    def join(self, shards: int) -> None:
        """Put the file together, unless an earlier run has and was cut off behind it."""
        if not os.path.isdir(self._folder):
            return
        try:
            with atomic_writer(self.path) as file:
                file.write(landmark_header(self.path))
                for shard in range(shards):
                    with open(self._fragment(shard), "rb") as fragment:
                        shutil.copyfileobj(fragment, file, _BUFFER)
        except OSError as error:
            raise output_error(error, self.path) from error

    def clean_up(self) -> None:
        """Remove the folder."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder)
