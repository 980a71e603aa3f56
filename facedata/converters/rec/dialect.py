"""The dialect of a record set, from its content, and whether its index and its records fit together."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.index import ADVICE, RecordIndex
from facedata.converters.rec.recordio import ImageRecord, RecordReader, unpack_image_record
from facedata.errors import FormatError

__all__ = ["INSIGHTFACE", "PLAIN", "check_offsets", "find_dialect", "float32_error"]

INSIGHTFACE, PLAIN = "insightface", "plain"
_LARGEST_KEY = 1 << 40
_LAST_KEYS = 16  # in a damaged set, not each of the last records need be readable
_MORE_ADVICE = f"{ADVICE}; if records are missing too, --salvage reads the others"

_log = logging.getLogger(__name__)


def check_offsets(reader: RecordReader, index: RecordIndex, place: str) -> None:
    """Check that every offset is inside the file, none occurs twice, and nothing follows the last record.

    Parameters
    ----------
    reader : RecordReader
    index : RecordIndex
        Of all records.
    place : str
        What messages name: the index file.

    Raises
    ------
    FormatError
        If the index does not belong to these records.
    """
    offsets, size = index.offsets, reader.size
    outside = np.flatnonzero(offsets >= size)
    if len(outside):
        key = index.keys[int(outside[0])]
        raise FormatError(
            f"{place}: {len(outside)} of {len(offsets)} entries point past the end of {reader.path} ({size} bytes), "
            f"the first with key {key}, offset {offsets[outside[0]]}: the record file is truncated, or the index "
            "belongs to another file. Fetch it again, or give --salvage to read the rest"
        )
    if bool((offsets[2:] > offsets[1:-1]).all()) and offsets[0] not in offsets[-1:]:
        ascending = offsets[1:]  # only key 0 may lie anywhere else, in nearly every set
        at = int(np.searchsorted(ascending, offsets[0]))
        twice = at < len(ascending) and ascending[at] == offsets[0]
    else:
        ordered = np.sort(offsets)
        twice = bool((ordered[1:] == ordered[:-1]).any())
    if twice:
        raise FormatError(f"{place}: two keys have the same offset, so an image is missing; {ADVICE}")
    last = int(offsets.argmax())
    offset = int(offsets[last])
    try:
        _, end = reader.read(offset)
    except FormatError as error:
        raise FormatError(
            f"{reader.path}: its last record (key {index.keys[last]}, byte {offset}) is incomplete: {error}. Is the "
            f"file or the index truncated? Fetch them again, or give --salvage to read what can be read; {ADVICE}"
        ) from error
    if end < size:
        raise FormatError(
            f"{place}: lists {len(index)} records, the last of which ends at byte {end}, but {reader.path} has "
            f"{size - end} bytes more: the index is truncated or belongs to another file; {ADVICE}"
        )


def find_dialect(
    reader: RecordReader, index: RecordIndex, place: str, *, salvage: bool
) -> tuple[str, RecordIndex, int | None]:
    """Find the dialect, the index of the images alone, and the number of classes if identity records give it.

    With `salvage` the file may be damaged. Raises `FormatError` if the meta record contradicts the index.
    """
    meta = _record(reader, index, 0)
    last = int(index.keys[-1])
    if meta is None:
        if not any(_is_identity(reader, index, int(key)) for key in index.keys[-_LAST_KEYS:]):
            return PLAIN, index, None
        _log.warning("%s: the meta record, key 0, is missing or corrupt; searching for identities", place)
        identities = _search_identities(reader, index)
    elif meta.image or meta.flag < 2:
        return PLAIN, index, None
    elif meta.labels[0] == last + 1 and not _is_identity(reader, index, last):
        identities = len(index)  # images alone, and a meta record that says so
    elif salvage:
        identities = _search_identities(reader, index)
    else:
        identities = _announced_identities(reader, index, place, *meta.labels[:2])
    first = int(index.keys[0] == 0)
    # in a damaged file, images may follow the place that bisection found
    late = [
        at
        for at in (range(identities, len(index)) if salvage else ())
        if not _is_identity(reader, index, int(index.keys[at]))
    ]
    if not late:
        return INSIGHTFACE, index[first:identities], (len(index) - identities) or None
    kept = np.concatenate([np.arange(first, identities), late])
    keys: NDArray[np.int64] = np.asarray(index.keys, np.int64)
    return INSIGHTFACE, RecordIndex(keys[kept], index.offsets[kept]), None


def _search_identities(reader: RecordReader, index: RecordIndex) -> int:
    """Bisect to the first identity record, if the meta record is unreliable: they have the last keys."""
    places = range(len(index))
    return bisect_left(places, True, key=lambda at: bool(_is_identity(reader, index, int(index.keys[at]))))


def _announced_identities(reader: RecordReader, index: RecordIndex, place: str, first: float, end: float) -> int:
    """The place of the first identity record, which the meta record gives in float32: above 2**24 it may be off."""
    if not (math.isfinite(first) and math.isfinite(end) and 1 <= first <= end <= _LARGEST_KEY):
        raise FormatError(
            f"{reader.path}: key 0 is a meta record that says identity records have the keys {first:g} to {end:g}, "
            "which is impossible; the file is corrupt or of an unknown dialect"
        )
    first, end, keys = int(first), int(end), index.keys
    if abs(len(keys) - end) > float32_error(end):
        raise FormatError(
            f"{place}: has {len(keys)} records, but its meta record counts {end} ({first - 1} images, "
            f"{end - first} people and itself): lines are missing or too many; {_MORE_ADVICE}"
        )
    if not isinstance(keys, range):
        missing = int(keys[int(np.flatnonzero(np.diff(keys) > 1)[0])]) + 1
        raise FormatError(f"{place}: key {missing} is missing, although the meta record counts it; {_MORE_ADVICE}")
    slack = float32_error(first)
    candidates = sorted(range(first - slack, first + slack + 1), key=lambda key: abs(key - first))
    for unknown in (set(), {None}):  # a corrupt record at the boundary decides nothing
        for key in candidates:
            before, after = _is_identity(reader, index, key - 1), _is_identity(reader, index, key)
            if before in {False, *unknown} and after in {True, *unknown}:
                return keys.index(key)
    raise FormatError(
        f"{reader.path}: its meta record says that identity records begin at key {first}, but the records around that "
        f"key do not: the index belongs to another file or is corrupt; {ADVICE}"
    )


def _is_identity(reader: RecordReader, index: RecordIndex, key: int) -> bool | None:
    """Whether `key` is an identity record; None if it is the meta record or cannot be read."""
    record = _record(reader, index, key) if key != 0 else None
    return None if record is None else record.flag >= 2 and not record.image


def _record(reader: RecordReader, index: RecordIndex, key: int) -> ImageRecord | None:
    at = index.position(key)
    try:
        return None if at is None else unpack_image_record(reader.read(int(index.offsets[at]))[0])
    except FormatError:
        return None


def float32_error(value: int) -> int:
    """By how much a count may be off after it was stored as float32."""
    return 0 if value < 1 << 24 else int(np.spacing(np.float32(value)) / 2) or 1
