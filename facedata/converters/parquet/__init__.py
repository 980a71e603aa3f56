"""The format ``parquet``: Parquet files with an image column, as the Hugging Face libraries read and write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from facedata.dataset import Format
from facedata.errors import OptionError

if TYPE_CHECKING:
    from facedata.converters.parquet.sink import ParquetSink
    from facedata.converters.parquet.source import ParquetSource

__all__ = ["FORMAT", "create_sink", "open_source", "recognises"]


def open_source(
    path: str, *, image_column: str | None = None, label_column: str | None = None, labels: str | None = None
) -> ParquetSource:
    """Open the rows of Parquet files; see `facedata.converters.parquet.source.open_source`."""
    from facedata.converters.parquet import source

    return source.open_source(path, image_column=image_column, label_column=label_column, labels=labels)


def recognises(path: str) -> bool:
    """Whether `path` is a Parquet file, or a folder of Parquet files."""
    from facedata.converters.parquet import library

    return library.recognises(path)


def create_sink(
    path: str,
    *,
    shard_size: int | None = None,
    shard_samples: int | None = None,
    landmark_column: bool | None = None,
    keep_undecodable: bool = False,
) -> ParquetSink:
    """A sink that writes Parquet files into the folder `path`; see `ParquetSink`.

    A file has at most 500,000,000 bytes of images if neither size nor samples are given; whichever is reached first
    counts if both are.

    Raises
    ------
    OptionError
        If `shard_size` or `shard_samples` is less than 1.
    """
    from facedata.converters.parquet.sink import ParquetSink

    for option, value in (("--shard-size", shard_size), ("--shard-samples", shard_samples)):
        if value is not None and value < 1:
            raise OptionError(f"{option} {value}: must be at least 1")
    return ParquetSink(path, shard_size, shard_samples, keep_undecodable, landmark_column)


FORMAT = Format(
    "parquet", open_source=open_source, create_sink=create_sink, recognises=recognises, extensions=(".parquet",)
)
