"""Landmark files: reading those of several projects and our own, matching them to images, and writing them.

The modules, in the order to read them:

dialects
    How each project writes a face in a line of text. **To add a file format**, add one small parse function and one
    entry of `DIALECTS` there, an example to tests/align/landmark_files/test_dialects.py, and a row to the table in
    docs/how-to/align-faces.md.
tables
    The dialects that most projects write: a key and numbers in columns, with or without a header.
lines
    What the dialects share.
keys
    How keys of images are compared, and a table of them that takes 16 bytes an entry.
file
    Where the entries are: the lines of one text file, or the files of a folder.
matching
    Which entry belongs to which image, and the landmarks that each image gets.
"""

from __future__ import annotations

import os

from facedata.align.landmark_files.dialects import landmark_header, landmark_line
from facedata.align.landmark_files.file import open_folder, open_text_file
from facedata.align.landmark_files.matching import LandmarkFile, MatchedLandmarks, in_pixels
from facedata.identify import explained

__all__ = ["LandmarkFile", "MatchedLandmarks", "in_pixels", "landmark_header", "landmark_line", "open_landmarks"]


def open_landmarks(path: str | os.PathLike[str]) -> LandmarkFile:
    """Open a landmark file of any known dialect, or a folder of FaceX-Zoo landmark files, and read all keys.

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
    with explained(path, "landmarks", "landmarks"):
        return LandmarkFile(open_folder(path) if os.path.isdir(path) else open_text_file(path))
