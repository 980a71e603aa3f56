"""`ExpectedSource`: what a sink is told of the aligned faces before there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import SampleError

__all__ = ["ExpectedSource"]

_LANDMARKS = np.zeros((5, 2), np.float32)


class ExpectedSource(WrappedSource):
    """A source as it will look when its faces are aligned: their keys, about their sizes, whether with landmarks.

    Sinks look at the source before there is a plan. To align then would load a detector in the parent, before it
    forks; so they see the images as they are, under the keys that the faces will have.

    Parameters
    ----------
    source : Source
    rename : callable
        From the key of an image to that of the face in it.
    size : int
        Bytes of an aligned face, about.
    with_landmarks : bool
        Whether the faces will have landmarks.
    """

    def __init__(self, source: Source, rename: Callable[[str], str], size: int, *, with_landmarks: bool) -> None:
        self._source, self._rename, self._size, self._with_landmarks = source, rename, size, with_landmarks

    def _over(self, source: Source) -> ExpectedSource:
        return ExpectedSource(source, self._rename, self._size, with_landmarks=self._with_landmarks)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, part: slice) -> ExpectedSource:
        return self._over(self._source[part])

    def take(self, positions: NDArray[np.int64]) -> ExpectedSource:
        """Those at `positions`."""
        return self._over(self._source.take(positions))

    def read(self) -> Iterator[Sample | SampleError]:
        """The images as they are, under other keys."""
        landmarks = _LANDMARKS if self._with_landmarks else None
        for item in self._source.read():
            if isinstance(item, Sample):
                yield item._replace(key=self._rename(item.key), landmarks=landmarks)
            else:
                yield item

    def keys(self) -> Iterator[str]:
        """The keys that the faces will have."""
        return map(self._rename, self._source.keys())

    def size(self) -> int:
        """About how many bytes the faces will take."""
        return self._size * len(self)

    def sizes(self) -> NDArray[np.int32]:
        """The same for each."""
        return np.full(len(self), self._size, np.int32)
