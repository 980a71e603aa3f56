"""A look at the first entries of a landmark file: what is wrong with all of them is wrong with the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError
from facedata.errors import FormatError

__all__ = ["check_first_faces", "mostly_fractions"]

_LOWEST, _HIGHEST = -1.0, 2.0  # a face may reach over the edge of its image, but a face of three pixels is none


def check_first_faces(path: str, entries: Mapping[str, Callable[[], Face | None]], relative: bool) -> None:
    """Raise where the first entries show that no face of the file can be used.

    Parameters
    ----------
    path : str
        For messages.
    entries : mapping
        The place of each of the first entries, and what reads it.
    relative : bool
        Whether coordinates from 0 to 1 are right.

    Raises
    ------
    FormatError
        Where each of them is wrong, or most have fractions of an image's size in the place of pixels.
    """
    faces, errors = [], []
    for place, read in entries.items():
        try:
            faces.append(read())
        except LineError as error:
            errors.append(f"{place}: {error}")
    if errors and not faces:
        raise FormatError(f"{path}: {errors[0]}" + (f"; and so the first {len(errors)}" if errors[1:] else ""))
    if not relative and mostly_fractions(face.landmarks for face in faces if face is not None):
        raise FormatError(
            f"{path}: most coordinates are about 0 to 1, as fractions of the image's width and height are; expected "
            "pixels: multiply x by the width and y by the height of each image"
        )


def mostly_fractions(rows: Iterable[NDArray[np.float64]]) -> bool:
    """Whether more faces have coordinates that can be fractions of an image's size than have others.

    A detector that went astray leaves a wild number here and there; one of them must not turn the whole file into
    pixels. Faces of whole numbers alone, such as zeros where none was found, and of NaN say nothing.
    """
    balance = 0
    for numbers in rows:
        if not np.isfinite(numbers).all():
            continue
        if np.any((numbers < _LOWEST) | (numbers > _HIGHEST)):
            balance -= 1
        elif np.any(numbers % 1.0):
            balance += 1
    return balance > 0
