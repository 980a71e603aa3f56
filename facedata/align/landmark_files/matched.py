"""`MatchedLandmarks`: the landmarks of the images of a source, read when they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError
from facedata.errors import FaceError

__all__ = ["EntryReader", "MatchedLandmarks", "ReadEntry", "in_pixels"]

ReadEntry = Callable[[int, int], Face | None]
"""Reads the entry at a reference, if the checksum of its key is that one; None where it has no landmarks.

Raises `LineError` where it is wrong.
"""


class EntryReader(Protocol):
    """Reads entries by their references; picklable."""

    @property
    def relative(self) -> bool:
        """Whether coordinates are fractions of the image's width and height."""
        ...

    def part(self, references: NDArray[np.int64]) -> tuple[EntryReader, NDArray[np.int64]]:
        """What reads these entries (-1: none) and need not read others, and what it calls them."""
        ...

    def open(self) -> AbstractContextManager[ReadEntry]:
        """Open the files."""
        ...


@dataclass(frozen=True)
class MatchedLandmarks:
    """The landmarks of the images of a source, in the source's order; 12 bytes an image, and 16 for each further face.

    Attributes
    ----------
    reader : EntryReader
    first : ndarray of shape (N,), int64
        The reference of each image's first entry; -1 where it has none.
    checks : ndarray of shape (N,), uint32
        The checksum of its key: two keys may have one hash.
    again, further : ndarray of shape (M,), int64
        Images with several entries, ascending, and the references of the second, the third, ...
    """

    reader: EntryReader
    first: NDArray[np.int64]
    checks: NDArray[np.uint32]
    again: NDArray[np.int64]
    further: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, part: slice) -> MatchedLandmarks:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"landmarks are sliced in steps of 1, not {step}")
        stop = max(start, stop)
        low, high = np.searchsorted(self.again, [start, stop]).tolist()
        return self._only(
            self.first[start:stop], self.checks[start:stop], self.again[low:high] - start, self.further[low:high]
        )

    def take(self, positions: NDArray[np.int64]) -> MatchedLandmarks:
        """The landmarks of the images at `positions`, in that order."""
        low = np.searchsorted(self.again, positions)
        counts = np.searchsorted(self.again, positions, side="right") - low
        before = np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(low, counts) + np.arange(len(before)) - before
        again = np.repeat(np.arange(len(positions)), counts)
        return self._only(self.first[positions], self.checks[positions], again, self.further[places])

    def _only(
        self,
        first: NDArray[np.int64],
        checks: NDArray[np.uint32],
        again: NDArray[np.int64],
        further: NDArray[np.int64],
    ) -> MatchedLandmarks:
        reader, references = self.reader.part(np.concatenate([first, further]))
        cut = len(first)
        return replace(
            self, reader=reader, first=references[:cut], checks=checks, again=again, further=references[cut:]
        )

    @property
    def missing(self) -> int:
        """How many of the images have no entry."""
        return int(np.count_nonzero(self.first < 0))

    @property
    def relative(self) -> bool:
        """Whether coordinates are fractions of the image's width and height; see `in_pixels`."""
        return self.reader.relative

    def read(self) -> Iterator[list[Face] | FaceError]:
        """For each image its faces, in the order of the file; an empty list where it has none.

        An image one of whose entries is wrong has the error in the place of its faces.

        Raises
        ------
        InputError
            Where the file cannot be read any more.
        FormatError
            Where it was changed.
        """
        with self.reader.open() as read_entry:
            further = zip(self.again.tolist(), self.further.tolist(), strict=True)
            image, reference = next(further, (-1, -1))
            for position, (first, check) in enumerate(zip(self.first.tolist(), self.checks.tolist(), strict=True)):
                references = [first] if first >= 0 else []
                while image == position:
                    references.append(reference)
                    image, reference = next(further, (-1, -1))
                yield _read_faces(read_entry, references, check)


def _read_faces(read_entry: ReadEntry, references: list[int], check: int) -> list[Face] | FaceError:
    try:
        faces = [read_entry(reference, check) for reference in references]
    except LineError as error:
        return FaceError("bad landmarks", str(error))
    return [face for face in faces if face is not None]


def in_pixels(face: Face, width: int, height: int) -> Face:
    """A face whose coordinates are fractions of its image's width and height, in pixels.

    A fraction f is the pixel coordinate f * width, as CVLFace draws and aligns with it.
    """
    size = np.array([width, height], np.float64)
    box = None if face.box is None else face.box * np.tile(size, 2)
    return face._replace(landmarks=face.landmarks * size, box=box)
