"""CVLFace's ``ldmk_5points.csv`` (https://github.com/mk-minchul/CVLface), which lies beside a record set.

Its ``predict_landmark.py`` and ``prepare_record_saver`` write ``idx,ldmk_0,...,ldmk_9``: the position of an image in
the record set, counted from 0 (not the record's key: these begin at 1 in InsightFace's sets), then x and y of five
points as fractions of the image's width and height. Its reader also takes 15 columns, with a third number that it
leaves out behind each x and y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError, landmarks_of, numbers_in, shown
from facedata.align.landmark_files.sampling import mostly_fractions

__all__ = ["CvlfaceTable"]

_SAMPLED = 100
_DIGITS = 15
_THREES = 15


@dataclass(frozen=True)
class CvlfaceTable:
    """A first column of positions (or of paths, as others write it), and one for each coordinate.

    Attributes
    ----------
    columns : int
        Of coordinates.
    numbered : bool
    relative : bool
    """

    columns: int
    numbered: bool
    relative: bool
    name: str = "CVLFace ldmk_5points.csv"
    header: int = 1
    keyed: bool = True

    @classmethod
    def recognise(cls, lines: Sequence[bytes]) -> CvlfaceTable | None:
        """The dialect, where its header comes first; what the first column is, and the unit, is told from the lines."""
        names = [name.strip() for name in lines[0].split(b",")]
        expected = [b"ldmk_%d" % number for number in range(len(names) - 1)]
        if len(names) < 3 or names[1:] != expected:
            return None
        columns = len(expected)
        if columns != _THREES:
            landmarks_of([0.0] * columns)
        rows = [line.rstrip().split(b",") for line in lines[1 : 1 + _SAMPLED]]
        numbered = bool(rows) and rows[0][0].strip().isdigit()
        return cls(columns, numbered, mostly_fractions(_numbers_of(rows)))

    def key(self, line: bytes) -> bytes:
        """The position, in digits; or the path."""
        key, comma, _ = line.partition(b",")
        if not comma or not key:
            raise LineError(f"expected the image and {self.columns} numbers, with commas, found {shown(line)}")
        if not self.numbered:
            return key
        if not key.isdigit() or len(key) > _DIGITS:
            raise LineError(f"expected the position of an image, counted from 0, found {shown(key)}")
        return b"%d" % int(key)

    def face(self, line: bytes) -> Face:
        """The landmarks."""
        numbers = numbers_in(line.rstrip().split(b",")[1:])
        if len(numbers) != self.columns:
            raise LineError(f"expected {self.columns} numbers, found {len(numbers)}")
        if self.columns == _THREES:
            numbers = [number for place, number in enumerate(numbers) if place % 3 != 2]
        return Face(landmarks_of(numbers))


def _numbers_of(rows: Sequence[Sequence[bytes]]) -> Iterator[NDArray[np.float64]]:
    """Those of each row; one that is wrong says nothing: it fails by name when it is read."""
    for row in rows:
        try:
            yield np.array(numbers_in(row[1:]), np.float64)
        except LineError:
            continue
