"""Writing landmarks: JSON lines, or facedata's CSV, which `open_landmarks` reads back to the last bit."""

from __future__ import annotations

import json

import numpy as np

from facedata.align.faces import Face
from facedata.align.landmark_files.dialects import BOX, LONGEST_LINE, SCORE, coordinate_names
from facedata.align.landmark_files.keys import bytes_of_key
from facedata.errors import FaceError

__all__ = ["landmark_header", "landmark_line"]


def landmark_header(name: str, points: int = 5) -> bytes:
    """What comes before the first line of a landmark file: the names of the columns, or nothing.

    Parameters
    ----------
    name : str
        Of the file, which is a CSV if the name ends in ``.csv``, and JSON lines otherwise.
    points : int
        Landmarks of each face.
    """
    if not _is_csv(name):
        return b""
    return ",".join(["key", *coordinate_names(points), *BOX, SCORE]).encode() + b"\n"


def landmark_line(name: str, key: str, face: Face, points: int = 5) -> bytes:
    """The line of a face in a landmark file.

    Coordinates have as many digits as distinguish the double from every other: what is read is what was written.

    Parameters
    ----------
    name : str
        Of the file, as in `landmark_header`.
    key : str
        Of the image.
    face : Face
    points : int
        As in the header.

    Raises
    ------
    FaceError
        "bad landmarks", if the format cannot hold the key, or so many landmarks.
    """
    line = _csv_line(key, face, points) if _is_csv(name) else _json_line(key, face)
    if not key or len(line) > LONGEST_LINE:
        raise FaceError("bad landmarks", f"a landmark file cannot hold this key, which has {len(key)} characters")
    return line


def _is_csv(name: str) -> bool:
    return name.lower().endswith(".csv")


def _json_line(key: str, face: Face) -> bytes:
    value = {"key": key, "landmarks": np.asarray(face.landmarks, np.float64).tolist()}
    if face.box is not None:
        value["box"] = np.asarray(face.box, np.float64).tolist()
    if face.score is not None:
        value["score"] = float(face.score)
    return json.dumps(value).encode() + b"\n"


def _csv_line(key: str, face: Face, points: int) -> bytes:
    if len(face.landmarks) != points:
        found = f"found {len(face.landmarks)} points, but the file has columns for {points}; write JSON lines instead"
        raise FaceError("bad landmarks", found)
    encoded = bytes_of_key(key)
    if b"\n" in encoded or b"\r" in encoded:
        raise FaceError("bad landmarks", "a CSV cannot hold a line break in a key; write JSON lines instead")
    if b'"' in encoded or b"," in encoded:
        encoded = b'"' + encoded.replace(b'"', b'""') + b'"'
    fields: list[str] = []
    for values, count in ((face.landmarks, 2 * points), (face.box, 4), (face.score, 1)):
        numbers = [""] * count if values is None else map(repr, np.asarray(values, np.float64).ravel().tolist())
        fields.extend(numbers)
    return encoded + b"," + ",".join(fields).encode() + b"\n"
