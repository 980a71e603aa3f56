"""A format made of two short classes: a file for each sample, named by its number and label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Format, Sample, Sink, Source
from facedata.errors import SampleError


@dataclass(frozen=True)
class TinySource(Source):
    root: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: NDArray[np.int64]) -> TinySource:
        return replace(self, names=tuple(self.names[position] for position in positions))

    def read(self) -> Iterator[Sample | SampleError]:
        for name in self.names:
            yield Sample(name, int(name.split("-")[1].split(".")[0]), Path(self.root, name).read_bytes())

    def identity(self) -> Mapping[str, Any]:
        return {"names": list(self.names)}

    def places(self) -> Mapping[str, bool]:
        return {self.root: True}


@dataclass(frozen=True)
class TinySink(Sink):
    root: str

    def identity(self) -> Mapping[str, Any]:
        return {"format": "tiny"}

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[TinySink]:
        yield self

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        Path(self.root, f"{index:04d}-{sample.label}.tiny").write_bytes(sample.image)


def open_source(path: str) -> TinySource:
    return TinySource(path, tuple(sorted(entry.name for entry in Path(path).glob("*.tiny"))))


def recognises(path: str) -> bool:
    return any(Path(path).glob("*.tiny"))


FORMAT = Format("tiny", open_source=open_source, create_sink=TinySink, recognises=recognises)
