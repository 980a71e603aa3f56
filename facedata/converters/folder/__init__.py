"""The format ``folder``: a folder of images, one folder for each class."""

from __future__ import annotations

from facedata.converters.folder.sink import GLINT360K, IMAGEFOLDER, LAYOUTS, SOURCE, FolderSink, create_sink
from facedata.converters.folder.source import FolderSource, open_source, recognises
from facedata.dataset import Format

__all__ = [
    "FORMAT",
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

FORMAT = Format("folder", open_source=open_source, create_sink=create_sink, recognises=recognises)
