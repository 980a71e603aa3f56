"""The format ``rec``: MXNet record sets, in every dialect in use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from facedata.dataset import Format, Source
from facedata.errors import OptionError

if TYPE_CHECKING:
    from facedata.converters.rec.sink import RecSink

__all__ = ["FORMAT", "create_sink", "open_source", "recognises"]


def open_source(
    path: str,
    *,
    salvage: bool = False,
    rebuild_index: bool = False,
    backend: str = "native",
    cache_folder: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Open a record set, as `open_record_set`; with the backend ``"mxnet"``, MXNet itself reads the records."""
    from facedata.converters.rec.record_set import open_record_set

    if backend not in ("native", "mxnet"):
        raise OptionError(f"backend {backend}: expected 'native' or 'mxnet'")
    if backend == "mxnet":
        from facedata.converters.rec.source import MXNetRecSource, check_mxnet

        check_mxnet()
    cache = None if cache_folder is None else Path(cache_folder)
    source = open_record_set(path, salvage=salvage, rebuild_index=rebuild_index, cache_folder=cache, progress=progress)
    return source if backend == "native" else MXNetRecSource(source)


def recognises(path: str) -> bool:
    """Whether `path` is a record file, or a folder with one."""
    if os.path.isdir(path):
        return any(name.endswith(".rec") for name in os.listdir(path))
    return path.endswith(".rec") and os.path.isfile(path)


def create_sink(
    path: str,
    *,
    style: str = "insightface",
    list_file: bool = False,
    keep_undecodable: bool = False,
    label_array: bool = False,
) -> RecSink:
    """A sink that writes the folder `path`; see `RecSink`."""
    from facedata.converters.rec.sink import RecSink

    return RecSink(path, style, list_file, keep_undecodable, label_array)


FORMAT = Format("rec", open_source=open_source, create_sink=create_sink, recognises=recognises, extensions=(".rec",))
