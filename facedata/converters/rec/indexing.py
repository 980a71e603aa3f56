"""Writing the missing index of a record file: the work behind ``facedata index-rec``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from facedata.converters.rec.index import spoilt_mark, write_index
from facedata.converters.rec.record_set import find_record_files
from facedata.converters.rec.walk import walk_records
from facedata.errors import EmptyDatasetError, OutputExistsError

__all__ = ["IndexSummary", "index_records"]


@dataclass(frozen=True)
class IndexSummary:
    """What an index was written from.

    Attributes
    ----------
    index : str
        The index file.
    records : int
        Its lines.
    damaged : int
        Damaged places that were passed over.
    replaced : bool
        Whether there was an index before.
    """

    index: str
    records: int
    damaged: int
    replaced: bool


def index_records(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    salvage: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Write the index beside a record file, in the order of the file.

    Parameters
    ----------
    path : str or path
        A set folder or a ``.rec`` file.
    overwrite : bool
        Replace an index that is there.
    salvage : bool
        Pass over damage; each damaged place gets a line too, so that reading it fails by name.
    dry_run : bool
        Only look: walk through the file, write nothing.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    OutputExistsError
        Where there is an index and `overwrite` is not given.
    FormatError
        Where the record file is damaged and `salvage` is not given.
    """
    files = find_record_files(path)
    target = files.index or files.records.removesuffix(".rec") + ".idx"
    if files.index is not None and not overwrite:
        raise OutputExistsError(f"{target}: is there already; give --overwrite to replace it")
    walked = walk_records(files.records, salvage=salvage, progress=progress)
    index = walked.index(files.records)
    if len(index) == 0:
        raise EmptyDatasetError(f"{files.records}: is empty (0 records)")
    if not dry_run:
        offsets = np.where(index.offsets < 0, spoilt_mark(index.offsets), index.offsets)
        in_file_order = offsets.argsort(kind="stable")
        first, keys = index.keys[0], index.keys
        ordered = (in_file_order + first) if isinstance(keys, range) else keys[in_file_order]
        write_index(target, ordered, offsets[in_file_order])
    return IndexSummary(target, len(index), walked.damaged, files.index is not None)
