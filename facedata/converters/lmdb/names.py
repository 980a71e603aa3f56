"""How a database and the files that belong to it are called."""

from __future__ import annotations

import os
import stat

__all__ = ["DATA", "KV_SUFFIX", "data_file", "kv_beside", "stem_of"]

DATA = "data.mdb"
KV_SUFFIX = "_kv.txt"
_EXTENSIONS = (".lmdb", ".mdb")


def data_file(path: str) -> str:
    """The file with the data of the database at `path`, which is a folder or that file itself."""
    return os.path.join(path, DATA) if os.path.isdir(path) else path


def stem_of(path: str) -> str:
    """The path without the extension of a database: what the names of the files beside it begin with."""
    path = os.path.abspath(path)
    if os.path.basename(path) == DATA:
        path = os.path.dirname(path)
    root, extension = os.path.splitext(path)
    return root if extension in _EXTENSIONS else path


def kv_beside(path: str) -> str | None:
    """The key-label file that lies beside the database at `path`, where there is one."""
    kv = stem_of(path) + KV_SUFFIX
    try:
        return kv if stat.S_ISREG(os.stat(kv).st_mode) else None
    except OSError:
        return None
