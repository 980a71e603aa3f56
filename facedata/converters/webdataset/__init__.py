"""The format ``webdataset``: tars of samples, each a run of members such as ``000000012.jpg`` and ``000000012.cls``."""

from __future__ import annotations

from facedata.converters.webdataset.sink import WebDatasetSink, create_sink
from facedata.converters.webdataset.source import WebDatasetSource, open_source, recognises

__all__ = ["WebDatasetSink", "WebDatasetSource", "create_sink", "open_source", "recognises"]
