"""The format ``folder``: a folder of images, one folder a class."""

from __future__ import annotations

from facedata.converters.folder.sink import GLINT360K, IMAGEFOLDER, LAYOUTS, SOURCE, FolderSink, create_sink
from facedata.converters.folder.source import FolderSource, open_source, recognises

__all__ = [
    "GLINT360K",
    "IMAGEFOLDER",
    "LAYOUTS",
    "SOURCE",
    "FolderSink",
    "FolderSource",
    "create_sink",
    "open_source",
    "recognises",
]
