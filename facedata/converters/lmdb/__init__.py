"""The format ``lmdb``: a database of `Datum` values and a key-label file, as the loaders of FFC and LFS open them."""

from __future__ import annotations

import os

from facedata.converters.lmdb.database import begins_like_lmdb
from facedata.converters.lmdb.sink import LmdbSink, create_sink
from facedata.converters.lmdb.source import DATA, LmdbSource, input_paths, open_source
from facedata.dataset import Format

__all__ = [
    "FORMAT",
    "LmdbSink",
    "LmdbSource",
    "create_sink",
    "open_source",
    "recognises",
]


def recognises(path: str) -> bool:
    """Whether `path` is a database file, or a folder with one."""
    return begins_like_lmdb(os.path.join(path, DATA) if os.path.isdir(path) else path)


FORMAT = Format(
    "lmdb",
    open_source=open_source,
    create_sink=create_sink,
    recognises=recognises,
    input_paths=input_paths,
    extensions=(".lmdb",),
)
