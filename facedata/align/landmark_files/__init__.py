"""Landmark files: reading those of several projects and our own, matching them to images, and writing them.

`open_landmarks` gives a `LandmarkFile`; its `match` a `MatchedLandmarks`, which is cut with its source and read in the
workers.
"""

from __future__ import annotations

import os

from facedata.align.landmark_files.folder import open_landmark_folder
from facedata.align.landmark_files.landmark_file import LandmarkFile, UnusedEntries
from facedata.align.landmark_files.matched import MatchedLandmarks, in_pixels
from facedata.align.landmark_files.text_file import open_text_file
from facedata.align.landmark_files.writing import landmark_header, landmark_line

__all__ = [
    "LandmarkFile",
    "MatchedLandmarks",
    "UnusedEntries",
    "in_pixels",
    "landmark_header",
    "landmark_line",
    "open_landmarks",
]


def open_landmarks(path: str | os.PathLike[str]) -> LandmarkFile:
    """Open a file of landmarks, of whatever dialect, or a folder of FaceX-Zoo landmark files; reads all keys.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    InputError
        Where it cannot be read.
    FormatError
        Where it is of no known dialect, a line names no image, or none of the first 100 can be used.
    EmptyDatasetError
        Where there are no landmarks in it.
    """
    path = os.fspath(path)
    return LandmarkFile(open_landmark_folder(path) if os.path.isdir(path) else open_text_file(path))
