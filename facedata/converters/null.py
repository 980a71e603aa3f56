"""The format ``null``: accepts every sample and keeps nothing, to measure the speed of reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from facedata.dataset import Format, Sample, Sink

__all__ = ["FORMAT", "NullSink", "create_sink"]


@dataclass(frozen=True)
class NullSink(Sink):
    """Keeps nothing; `root` is the folder of the job's journal."""

    root: str

    def identity(self) -> Mapping[str, Any]:
        """The format alone."""
        return {"format": "null"}

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[NullSink]:
        """The sink itself."""
        yield self

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Accept a sample."""


def create_sink(path: str, *, keep_undecodable: bool = True) -> NullSink:
    """A sink that keeps nothing, with the journal of the job in the folder `path`."""
    return NullSink(path)


FORMAT = Format("null", create_sink=create_sink)
