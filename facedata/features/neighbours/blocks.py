"""What is found, kept in a file for each shard until all of it is there."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from facedata.errors import OutputError, output_error
from facedata.features.neighbours.found import Neighbours, what_is_wrong_with
from facedata.files import temporary_name
from facedata.jobs.plan import Plan

__all__ = ["BLOCKS", "BlockFiles"]

BLOCKS = ".facedata-blocks"


@dataclass(frozen=True)
class BlockFiles:
    """The files of the shards: ids, int32, then distances, float32.

    Attributes
    ----------
    folder : str
    k : int
    """

    folder: str
    k: int

    def prepare(self) -> None:
        """Make the folder."""
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise output_error(error, self.folder) from error

    def write(self, shard: int, block: Neighbours) -> tuple[int, int]:
        """Write what was found for a shard; its size in bytes, and its CRC-32."""
        path = self._path(shard)
        temporary = temporary_name(path)
        parts = [np.ascontiguousarray(part).data.cast("B") for part in block]
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise output_error(error, path) from error
        return sum(part.nbytes for part in parts), zlib.crc32(parts[1], zlib.crc32(parts[0]))

    def read_all(self, plan: Plan) -> Iterator[Neighbours]:
        """The neighbours of all rows, shard by shard, checked.

        Raises
        ------
        OutputError
            Where a file is not what was written.
        """
        for shard in range(plan.shards):
            first, end = plan.bounds(shard)
            yield self._read(shard, first, end, plan.samples)

    def _read(self, shard: int, first: int, end: int, rows: int) -> Neighbours:
        path, shape = self._path(shard), (end - first, self.k)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}") from error
        values = shape[0] * shape[1]
        if len(data) != 8 * values:
            raise OutputError(f"{path}: expected {8 * values:,} bytes, found {len(data):,}; {_AGAIN}")
        ids = np.frombuffer(data, np.int32, values).reshape(shape)
        block = Neighbours(ids, np.frombuffer(data, np.float32, values, 4 * values).reshape(shape))
        wrong = what_is_wrong_with(block, first, rows)
        if wrong is not None:
            raise OutputError(f"{path}: is damaged: {wrong}; {_AGAIN}")
        return block

    def remove(self) -> None:
        """Remove the folder and all in it."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder)

    def _path(self, shard: int) -> str:
        return os.path.join(self.folder, f"{shard:06d}")


_AGAIN = "nothing was published; did the machine crash, or did somebody change it? --overwrite starts afresh"
