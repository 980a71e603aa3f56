"""Labels that the user gives for the samples of a source, in the place of those that it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from facedata.columns import UNLABELLED
from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import SampleError

__all__ = ["ConstantLabelSource"]

_BLOCK = 1 << 16


class ConstantLabelSource(WrappedSource):
    """A source whose samples all have the same label."""

    def __init__(self, source: Source, label: int) -> None:
        super().__init__(source)
        self._label = label
        self._labelled = label != UNLABELLED

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return self._labelled

    def __getitem__(self, part: slice) -> ConstantLabelSource:
        return ConstantLabelSource(self._source[part], self._label)

    def take(self, positions: NDArray[np.int64]) -> ConstantLabelSource:
        return ConstantLabelSource(self._source.take(positions), self._label)

    def read(self) -> Iterator[Sample | SampleError]:
        for item in self._source.read():
            yield item if isinstance(item, SampleError) else item._replace(label=self._label)

    def labels(self) -> Iterator[NDArray[np.int64]]:
        for begin in range(0, len(self), _BLOCK):
            yield np.full(min(_BLOCK, len(self) - begin), self._label, np.int64)

    def class_names(self) -> Mapping[int, str] | None:
        return None

    def declared_classes(self) -> int | None:
        return self._label + 1
