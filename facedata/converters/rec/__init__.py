"""The format ``rec``: MXNet record sets, in every dialect met in the wild."""

from __future__ import annotations

import os

from facedata.converters.rec.record_set import INSIGHTFACE, OpenOptions, RecordSet, open_record_set
from facedata.converters.rec.recordio import ImageRecord, RecordReader, encode_record
from facedata.converters.rec.sink import RecSink
from facedata.converters.rec.source import RecSource
from facedata.dataset import Format

__all__ = [
    "FORMAT",
    "ImageRecord",
    "OpenOptions",
    "RecSink",
    "RecSource",
    "RecordReader",
    "RecordSet",
    "create_sink",
    "encode_record",
    "open_record_set",
    "open_source",
    "recognises",
]


def open_source(path: str, *, salvage: bool = False, rebuild_index: bool = False) -> RecSource:
    """The images of the record set at `path`; see `OpenOptions`."""
    return open_record_set(path, OpenOptions(salvage, rebuild_index)).source


def recognises(path: str) -> bool:
    """Whether `path` is a record file, or a folder with one."""
    if os.path.isdir(path):
        return any(name.endswith(".rec") for name in os.listdir(path))
    return path.endswith(".rec") and os.path.isfile(path)


def create_sink(
    path: str, *, style: str = INSIGHTFACE, list_file: bool = False, keep_undecodable: bool = False
) -> RecSink:
    """A sink that writes the folder `path`; see `RecSink`."""
    return RecSink(path, style, list_file, keep_undecodable)


FORMAT = Format(
    "rec",
    open_source=open_source,
    create_sink=create_sink,
    recognises=recognises,
    extensions=(".rec",),
)
