"""The format ``lmdb``: a database of `Datum` values and a key-label file, as the loaders of FFC and LFS open them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from facedata.dataset import Format

if TYPE_CHECKING:
    from facedata.converters.lmdb.sink import LmdbSink
    from facedata.converters.lmdb.source import LmdbSource

__all__ = ["CLASSES_SUFFIX", "DATA", "FORMAT", "KV_SUFFIX", "create_sink", "open_source", "recognises", "stem_of"]

DATA = "data.mdb"
KV_SUFFIX = "_kv.txt"
CLASSES_SUFFIX = "_classes.txt"
_EXTENSIONS = (".lmdb", ".mdb")


def stem_of(path: str) -> str:
    """The path without the extension of a database: the names of the files beside it begin with it."""
    path = os.path.abspath(path)
    if os.path.basename(path) == DATA:
        path = os.path.dirname(path)
    root, extension = os.path.splitext(path)
    return root if extension in _EXTENSIONS else path


def open_source(path: str) -> LmdbSource:
    """Open a database; see `facedata.converters.lmdb.source.open_source`."""
    from facedata.converters.lmdb import source

    return source.open_source(path)


def recognises(path: str) -> bool:
    """Whether `path` is a database file, or a folder with one."""
    from facedata.converters.lmdb.database import begins_like_lmdb

    return begins_like_lmdb(os.path.join(path, DATA) if os.path.isdir(path) else path)


def create_sink(
    path: str,
    *,
    datum: str = "caffe",
    keys: str = "generated",
    name: str | None = None,
    kv: str | None = None,
    single_file: bool = False,
    build_dir: str | None = None,
    keep_undecodable: bool = False,
) -> LmdbSink:
    """A sink that writes the database `path`; see `LmdbSink`.

    By default the key-label file lies beside it, ``msceleb_kv.txt`` beside ``msceleb.lmdb``, and generated keys begin
    with the same name.
    """
    from facedata.converters.lmdb.sink import LmdbSink

    path = path.rstrip("/") or path
    stem = stem_of(path)
    kv = stem + KV_SUFFIX if kv is None else kv
    name = os.path.basename(stem) if name is None else name
    return LmdbSink(path, kv, name, datum, keys, single_file, build_dir, keep_undecodable)


def input_paths(path: str) -> dict[str, bool]:
    """The paths that ``PATH`` or ``PATH@KEY_LABEL_FILE`` may stand for."""
    before, at, after = path.rpartition("@")
    return {path: True} if not at or os.path.lexists(path) else {before: True, after: True}


FORMAT = Format("lmdb", open_source, create_sink, recognises, input_paths=input_paths, extensions=(".lmdb",))
