"""The format ``webdataset``: tars of samples, each a run of members such as ``000000012.jpg`` and ``000000012.cls``."""

from __future__ import annotations

from facedata.converters.webdataset.sink import WebDatasetSink, create_sink
from facedata.converters.webdataset.source import WebDatasetSource, open_source, recognises
from facedata.dataset import Format

__all__ = ["FORMAT", "WebDatasetSink", "WebDatasetSource", "create_sink", "open_source", "recognises"]

FORMAT = Format(
    "webdataset", open_source=open_source, create_sink=create_sink, recognises=recognises, extensions=(".tar",)
)
