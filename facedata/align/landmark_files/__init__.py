"""Landmark files: reading those of several projects and our own, matching them to images, and writing them.

`open_landmarks` returns a `LandmarkFile`; its `match` returns `MatchedLandmarks`, which are sliced like their dataset
and read in the workers.

The modules, in the order to read them:

dialects
    How each project writes a face in a line of text. **To add a file format**, add one small parse function and one
    line of the list `DIALECTS` there; files are recognised, listed, matched and read without any other change, and
    the messages name the new format. Add an example of a file to tests/align/landmark_files/test_dialects.py, and a
    row to the table in docs/how-to/align-faces.md.
keys
    How keys of images are compared, and a table of them that takes 16 bytes an entry.
file
    Where the entries are: the lines of one text file, or the files of a folder.
matching
    Which entry belongs to which image, and the landmarks that each image gets.
writing
    Landmarks as CSV or JSON lines, for ``align --write-landmarks``.
"""

from __future__ import annotations

import os

from facedata.align.landmark_files.file import open_folder, open_text_file
from facedata.align.landmark_files.matching import LandmarkFile, MatchedLandmarks, in_pixels
from facedata.align.landmark_files.writing import landmark_header, landmark_line

__all__ = ["LandmarkFile", "MatchedLandmarks", "in_pixels", "landmark_header", "landmark_line", "open_landmarks"]


def open_landmarks(path: str | os.PathLike[str]) -> LandmarkFile:
    """Open a landmark file of any known dialect, or a folder of FaceX-Zoo landmark files, and read all keys.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    InputError
        If it cannot be read.
    FormatError
        If it is of no known dialect, a line does not name an image, or none of the first 100 can be used.
    EmptyDatasetError
        If it has no landmarks.
    """
    path = os.fspath(path)
    return LandmarkFile(open_folder(path) if os.path.isdir(path) else open_text_file(path))
