"""The format ``null``: takes every sample and keeps nothing, for measuring what reading costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from facedata.dataset import Sample, Source

__all__ = ["NullSink", "create_sink"]


@dataclass(frozen=True)
class NullSink:
    """Keeps nothing.

    Attributes
    ----------
    root : str
        The folder of the job's journal.
    """

    root: str

    many_writers = True

    def identity(self) -> Mapping[str, Any]:
        """The format alone."""
        return {"format": "null"}

    def fit(self, source: Source) -> tuple[NullSink, None]:
        """Takes anything."""
        return self, None

    def files(self, shards: int) -> Iterable[str]:
        """It writes none."""
        return ()

    def prepare(self) -> None:
        """Nothing to prepare."""

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[NullSink]:
        """The sink itself, for it has nothing to open."""
        yield self

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Take a sample and forget it."""

    def owns(self, name: str) -> bool:
        """It writes nothing, so nothing is its own."""
        return False

    def named_files(self) -> list[str]:
        """It writes no file either."""
        return []

    def finish(self, shards: int) -> Mapping[str, Any]:
        """Nothing to publish."""
        return {}

    def clean_up(self) -> None:
        """Nothing to remove."""


def create_sink(path: str, *, keep_undecodable: bool = True) -> NullSink:
    """A sink that keeps nothing, and takes everything; `path` is where the journal of the job goes."""
    return NullSink(path)
