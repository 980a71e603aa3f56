"""What a job of nearest neighbours writes: blocks at first, the file when all are there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from facedata.dataset import Output
from facedata.errors import FacedataError, OutputError, output_error
from facedata.features.neighbours.blocks import BLOCKS, BlockFiles
from facedata.features.neighbours.formats import NeighbourFormat
from facedata.files import atomic_writer, remove_stale_temporaries
from facedata.jobs.journal import BESIDE
from facedata.jobs.plan import Plan

__all__ = ["NeighbourOutput"]

_RECALL = "recall.json"
_log = logging.getLogger(__name__)


class NeighbourOutput(Output):
    """An `Output` of `facedata.jobs`: the file, and beside it, in ``FILE.facedata``, the journal and the blocks.

    Parameters
    ----------
    path : str
    file_format : NeighbourFormat
    k : int
        Neighbours of each row, as the file has them.
    prepare_search : callable
        Called before the first search of a run.
    """

    def __init__(self, path: str, file_format: NeighbourFormat, k: int, prepare_search: Callable[[], None]) -> None:
        self.path, self._format, self._k, self._prepare_search = path, file_format, k, prepare_search
        self.blocks = BlockFiles(os.path.join(self.root, BLOCKS), k)
        self.plan: Plan | None = None

    @property
    def root(self) -> str:
        """The folder beside the file."""
        return self.path + BESIDE

    def owns(self, name: str) -> bool:
        """Whether it is the folder of the blocks."""
        return name == BLOCKS

    def named_files(self) -> list[str]:
        """The file, or the files, that readers open."""
        return self._format.files(self.path)

    def prepare(self) -> None:
        """Make room for the blocks, and the search ready."""
        self.blocks.prepare()
        self._prepare_search()

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Check all blocks and write the file from them."""
        plan = self.plan
        if plan is None:
            raise OutputError(f"{self.path}: has no plan")
        try:
            self._format.write(self.path, lambda: self.blocks.read_all(plan), plan.samples, self._k)
            files = [os.path.abspath(name) for name in self.named_files()]
            size = sum(map(os.path.getsize, files))
        except FacedataError:
            raise
        except OSError as error:
            raise output_error(error, self.path) from error
        return {"files": files, "file_bytes": size, "recall": self.read_recall()}

    def write_recall(self, recall: float) -> None:
        """Remember the recall until the summary is written."""
        with atomic_writer(os.path.join(self.blocks.folder, _RECALL)) as file:
            file.write(json.dumps(recall).encode())

    def read_recall(self) -> float | None:
        """The recall that was measured; None where there is none."""
        try:
            with open(os.path.join(self.blocks.folder, _RECALL), "rb") as file:
                return float(json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def clean_up(self) -> None:
        """Remove the blocks, and what killed runs left."""
        self.blocks.remove()
        with suppress(OSError):
            remove_stale_temporaries(os.path.dirname(os.path.abspath(self.path)))
