"""The format ``parquet``: Parquet files with an image column, as the Hugging Face libraries read and write them."""

from __future__ import annotations

from facedata.converters.parquet.row_groups import recognises
from facedata.converters.parquet.sink import ParquetSink, create_sink
from facedata.converters.parquet.source import ParquetSource, open_source
from facedata.dataset import Format

__all__ = [
    "FORMAT",
    "ParquetSink",
    "ParquetSource",
    "create_sink",
    "open_source",
    "recognises",
]


FORMAT = Format(
    "parquet", open_source=open_source, create_sink=create_sink, recognises=recognises, extensions=(".parquet",)
)
