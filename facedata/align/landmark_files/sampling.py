"""A look at the first entries of a landmark file: what is wrong with all of them is wrong with the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from facedata.align.faces import Face
from facedata.align.landmark_files.parsing import LineError
from facedata.errors import FormatError

__all__ = ["check_first_faces"]


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
        Where each of them is wrong, or has fractions of an image's size in the place of pixels.
    """
    faces, errors = [], []
    for place, read in entries.items():
        try:
            faces.append(read())
        except LineError as error:
            errors.append(f"{place}: {error}")
    if errors and not faces:
        raise FormatError(f"{path}: {errors[0]}" + (f"; and so the first {len(errors)}" if errors[1:] else ""))
    if not relative and _are_fractions([face for face in faces if face is not None]):
        raise FormatError(
            f"{path}: all coordinates are from 0 to 1, as fractions of the image's width and height are; expected "
            "pixels: multiply x by the width and y by the height of each image"
        )


def _are_fractions(faces: Sequence[Face]) -> bool:
    if not faces:
        return False
    numbers = np.concatenate([face.landmarks.ravel() for face in faces])
    return bool(np.all((numbers >= 0.0) & (numbers <= 1.0)) and np.any(numbers % 1.0))
