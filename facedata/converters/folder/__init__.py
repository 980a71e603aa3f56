"""The format ``folder``: a folder of images, with or without a folder for each class, or one image file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facedata.dataset import Format
from facedata.errors import OptionError

if TYPE_CHECKING:
    from facedata.converters.folder.sink import FolderSink
    from facedata.converters.folder.source import FolderSource

__all__ = [
    "FORMAT",
    "GLINT360K",
    "IMAGEFOLDER",
    "LAYOUTS",
    "NO_CLASS",
    "SOURCE",
    "create_sink",
    "open_source",
    "recognises",
]

GLINT360K, IMAGEFOLDER, SOURCE = "glint360k", "imagefolder", "source"
LAYOUTS = (GLINT360K, IMAGEFOLDER, SOURCE)
NO_CLASS = "unlabelled"
"""The folder of the images without a label, if others have one."""


def open_source(path: str, *, labels: str | None = None) -> FolderSource:
    """Scan the folder at `path`; see `facedata.converters.folder.source.open_source`."""
    from facedata.converters.folder import source

    return source.open_source(path, labels=labels)


def recognises(path: str) -> bool:
    """Whether `path` is a folder with a folder that holds an image."""
    from facedata.converters.folder import source

    return source.recognises(path)


def accepts(path: str) -> bool:
    """Whether `path` is an image, or a folder of images without class folders."""
    from facedata.converters.folder import source

    return source.accepts(path)


def create_sink(path: str, *, layout: str | None = None, keep_undecodable: bool = False) -> FolderSink:
    """A sink that writes the folder `path`.

    Raises
    ------
    OptionError
        If there is no such layout.
    """
    from facedata.converters.folder.sink import FolderSink

    if layout not in (None, *LAYOUTS):
        raise OptionError(f"--layout {layout}: the layouts are {', '.join(LAYOUTS)}")
    return FolderSink(path, layout, None, keep_undecodable)


FORMAT = Format("folder", open_source=open_source, create_sink=create_sink, recognises=recognises, accepts=accepts)
