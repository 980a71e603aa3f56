"""The format ``null``: takes every sample and keeps nothing, for measuring what reading costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from facedata.dataset import Format, Sample, Sink, Source

__all__ = ["FORMAT", "NullSink", "create_sink"]


@dataclass(frozen=True)
class NullSink(Sink):
    """Keeps nothing.

    Attributes
    ----------
    root : str
        The folder of the job's journal.
    """

    root: str

    def identity(self) -> Mapping[str, Any]:
        """The format alone."""
        return {"format": "null"}

    def fit(self, source: Source) -> tuple[NullSink, None]:
        """Takes anything."""
        return self, None

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[NullSink]:
        """The sink itself, for it has nothing to open."""
        yield self

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Take a sample and forget it."""

    def owns(self, name: str) -> bool:
        """It writes nothing, so nothing is its own."""
        return False

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Nothing to publish."""
        return {}


def create_sink(path: str, *, keep_undecodable: bool = True) -> NullSink:
    """A sink that keeps nothing, and takes everything; `path` is where the journal of the job goes."""
    return NullSink(path)


FORMAT = Format("null", create_sink=create_sink)
