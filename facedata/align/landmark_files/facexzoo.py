"""The landmark files of FaceX-Zoo (https://github.com/JDAI-CV/FaceX-Zoo): 106 points an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError, landmarks_in, numbers_in, shown

__all__ = ["ImageInfo", "PlainNumbers"]


@dataclass(frozen=True)
class ImageInfo:
    """Lines of ``path box landmarks``, one blank between: 4 numbers, and 212, with commas; x1, y1, x2, y2, ...

    Examples are FaceX-Zoo's ``lfw_face_info.txt`` and ``facescrub_face_info.txt``. The path may hold blanks.
    """

    name: str = "FaceX-Zoo image info file"
    header: int = 0
    keyed: bool = True
    numbered: bool = False
    relative: bool = False

    @classmethod
    def recognise(cls, lines: Sequence[bytes]) -> ImageInfo | None:
        """The dialect, where a line of it comes first."""
        parts = lines[0].rstrip().rsplit(b" ", 2)
        return cls() if len(parts) == 3 and parts[1].count(b",") == 3 and b"," in parts[2] else None

    def key(self, line: bytes) -> bytes:
        """The path."""
        return self._parts(line)[0]

    def face(self, line: bytes) -> Face:
        """Box and landmarks."""
        _, box, landmarks = self._parts(line)
        corners = numbers_in(box.split(b","))
        return Face(landmarks_in(landmarks.split(b",")), np.array(corners, np.float64))

    def _parts(self, line: bytes) -> list[bytes]:
        parts = line.rstrip().rsplit(b" ", 2)
        if len(parts) != 3 or not parts[0] or parts[1].count(b",") != 3:
            raise LineError(f"expected 'path left,top,right,bottom x1,y1,x2,y2,...', found {shown(line)}")
        return parts


@dataclass(frozen=True)
class PlainNumbers:
    """Nothing but x1 y1 x2 y2 ..., blanks between; FaceX-Zoo writes one such file for each image.

    In a file of many lines the first belongs to the first image of the source, and so on.
    """

    name: str = "FaceX-Zoo landmark file"
    header: int = 0
    keyed: bool = False
    numbered: bool = True
    relative: bool = False

    @classmethod
    def recognise(cls, lines: Sequence[bytes]) -> PlainNumbers | None:
        """The dialect, where the first line has nothing but numbers."""
        try:
            return cls() if len(numbers_in(lines[0].split())) > 1 else None
        except LineError:
            return None

    def key(self, line: bytes) -> bytes:
        """Nothing: it is the line's number that counts."""
        if not line or line.isspace():
            raise LineError("is blank; expected the landmarks of an image")
        return b""

    def face(self, line: bytes) -> Face:
        """The landmarks."""
        return Face(landmarks_in(line.split()))
