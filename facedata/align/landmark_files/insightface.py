"""InsightFace's ``.lst`` with landmarks, as its ``face_preprocess.parse_lst_line`` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError, landmarks_of, numbers_in, shown

__all__ = ["InsightFaceList"]

_PLAIN, _WITH_BOX, _WITH_LANDMARKS = 3, 7, 17


@dataclass(frozen=True)
class InsightFaceList:
    """Lines of ``aligned path label``, perhaps box, perhaps landmarks, one tab between all.

    Of the ten numbers of the landmarks the first five are x, the others y. The flag and the label say nothing here:
    landmarks are used wherever a line has them.
    """

    name: str = "InsightFace .lst"
    header: int = 0
    keyed: bool = True
    numbered: bool = False
    relative: bool = False

    @classmethod
    def recognise(cls, lines: Sequence[bytes]) -> InsightFaceList | None:
        """The dialect, where a line of it comes first."""
        fields = lines[0].split(b"\t")
        try:
            return cls() if fields[0] in (b"0", b"1") and numbers_in(fields[2:3]) else None
        except LineError:  # im2rec's list: index, label, path
            return None

    def key(self, line: bytes) -> bytes | None:
        """The path."""
        fields = line.split(b"\t", 3)
        if len(fields) < _PLAIN or fields[0] not in (b"0", b"1") or not fields[1]:
            raise LineError(f"expected 'aligned path label' and perhaps box and landmarks, with tabs: {shown(line)}")
        none = len(fields) == _PLAIN or fields[3].rstrip().count(b"\t") < _WITH_BOX - _PLAIN
        return None if none else fields[1]

    def face(self, line: bytes) -> Face | None:
        """Box and landmarks."""
        fields = line.rstrip().split(b"\t")
        if len(fields) in (_PLAIN, _WITH_BOX):
            return None
        if len(fields) != _WITH_LANDMARKS:
            raise LineError(f"expected {_PLAIN}, {_WITH_BOX} or {_WITH_LANDMARKS} fields, found {len(fields)}")
        numbers = numbers_in(fields[_PLAIN:])
        points = landmarks_of(numbers[4:]).reshape(2, 5).T.copy()
        return Face(points, np.array(numbers[:4], np.float64))
