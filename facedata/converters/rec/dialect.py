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

__all__ = ["INSIGHTFACE", "PLAIN", "SetChecker", "float32_error"]

INSIGHTFACE, PLAIN = "insightface", "plain"
_LARGEST_KEY = 1 << 40
_LAST_KEYS = 16  # in a damaged set, not each of the last records need be readable

_log = logging.getLogger(__name__)


class SetChecker:
    """Checks an index against its records and finds their dialect.

    Parameters
    ----------
    reader : RecordReader
        Of the record file.
    index : RecordIndex
    index_path : str, optional
        The file that the index was read from; None if it was rebuilt.
    salvage : bool
        Whether the file may be damaged.
    """

    def __init__(self, reader: RecordReader, index: RecordIndex, index_path: str | None, *, salvage: bool) -> None:
        self._reader, self._index, self._index_path, self._salvage = reader, index, index_path, salvage
        self._where = index_path or reader.path
        self._advice = f"{ADVICE}; if records are missing too, --salvage reads the others"

    def check_offsets(self) -> None:
        """Check that every offset is inside the file, none occurs twice, and nothing follows the last record.

        Raises
        ------
        FormatError
        """
        offsets, size = self._index.offsets, self._reader.size
        outside = np.flatnonzero(offsets >= size)
        if len(outside):
            key = self._index.keys[int(outside[0])]
            raise FormatError(
                f"{self._where}: {len(outside)} of {len(offsets)} entries point past the end of {self._reader.path} "
                f"({size} bytes), the first with key {key}, offset {offsets[outside[0]]}: the record file is "
                "truncated, or the index belongs to another file. Fetch it again, or give --salvage to read the rest"
            )
        if bool((offsets[2:] > offsets[1:-1]).all()) and offsets[0] not in offsets[-1:]:
            ascending = offsets[1:]  # only key 0 may lie anywhere else, in nearly every set
            place = int(np.searchsorted(ascending, offsets[0]))
            twice = place < len(ascending) and ascending[place] == offsets[0]
        else:
            ordered = np.sort(offsets)
            twice = bool((ordered[1:] == ordered[:-1]).any())
        if twice:
            raise FormatError(f"{self._where}: two keys have the same offset, so an image is missing; {ADVICE}")
        last = int(offsets.argmax())
        key, offset = self._index.keys[last], int(self._index.offsets[last])
        try:
            _, end = self._reader.read(offset)
        except FormatError as error:
            raise FormatError(
                f"{self._reader.path}: its last record (key {key}, byte {offset}) is incomplete: {error}. Is the file "
                f"or the index truncated? Fetch them again, or give --salvage to read what can be read; {ADVICE}"
            ) from error
        if end < self._reader.size:
            raise FormatError(
                f"{self._where}: lists {len(self._index)} records, the last of which ends at byte {end}, but "
                f"{self._reader.path} has {self._reader.size - end} bytes more: the index is truncated or belongs to "
                f"another file; {ADVICE}"
            )

    def dialect(self) -> tuple[str, RecordIndex, int | None]:
        """The dialect, the index of the images alone, and the number of classes if identity records give it."""
        meta = self._record(0)
        if meta is not None and (meta.image or meta.flag < 2):
            return PLAIN, self._index, None
        place = self._identities_begin(meta)
        if place is None:
            return PLAIN, self._index, None
        first = int(self._index.keys[0] == 0)
        # in a damaged file, images may follow the place that bisection found
        places = range(place, len(self._index)) if self._salvage else ()
        late = [late for late in places if not self._is_identity(int(self._index.keys[late]))]
        if not late:
            return INSIGHTFACE, self._index[first:place], (len(self._index) - place) or None
        kept = np.concatenate([np.arange(first, place), late])
        keys: NDArray[np.int64] = np.asarray(self._index.keys, np.int64)
        return INSIGHTFACE, RecordIndex(keys[kept], self._index.offsets[kept]), None

    def _identities_begin(self, meta: ImageRecord | None) -> int | None:
        """The place of the first identity record in the index; its length where a meta record stands alone."""
        last = int(self._index.keys[-1])
        if meta is None:
            if not any(self._is_identity(int(key)) for key in self._index.keys[-_LAST_KEYS:]):
                return None
            _log.warning("%s: the meta record, key 0, is missing or corrupt; searching for identities", self._where)
            return self._search_identities()
        if meta.labels[0] == last + 1 and not self._is_identity(last):  # images alone, and a meta record that says so
            return len(self._index)
        if self._salvage:
            return self._search_identities()
        first, end = meta.labels[:2]
        if not (math.isfinite(first) and math.isfinite(end) and 1 <= first <= end <= _LARGEST_KEY):
            raise FormatError(
                f"{self._reader.path}: key 0 is a meta record that says identity records have the keys {first:g} to "
                f"{end:g}, which is impossible; the file is corrupt or of an unknown dialect"
            )
        self._check_counts(int(first), int(end))
        return self._index.keys.index(self._confirmed_identity(int(first)))  # type: ignore[union-attr]

    def _search_identities(self) -> int:
        """Bisect to the first identity record, if the meta record is unreliable: they have the last keys."""
        keys = self._index.keys
        return bisect_left(range(len(keys)), True, key=lambda place: bool(self._is_identity(int(keys[place]))))

    def _check_counts(self, first: int, end: int) -> None:
        keys = self._index.keys
        if abs(len(keys) - end) > float32_error(end):
            raise FormatError(
                f"{self._where}: has {len(keys)} records, but its meta record counts {end} ({first - 1} images, "
                f"{end - first} people and itself): lines are missing or too many; {self._advice}"
            )
        if not isinstance(keys, range):
            missing = int(keys[int(np.flatnonzero(np.diff(keys) > 1)[0])]) + 1
            raise FormatError(
                f"{self._where}: key {missing} is missing, although the meta record counts it; {self._advice}"
            )

    def _confirmed_identity(self, announced: int) -> int:
        """The key of the first identity record, which the meta record gives in float32: above 2**24 it may be off."""
        slack = float32_error(announced)
        candidates = sorted(range(announced - slack, announced + slack + 1), key=lambda key: abs(key - announced))
        for unknown in (set(), {None}):  # a corrupt record at the boundary decides nothing
            for key in candidates:
                before, after = self._is_identity(key - 1), self._is_identity(key)
                if before in {False, *unknown} and after in {True, *unknown}:
                    return key
        raise FormatError(
            f"{self._reader.path}: its meta record says that identity records begin at key {announced}, but the "
            f"records around that key do not: the index belongs to another file or is corrupt; {ADVICE}"
        )

    def _is_identity(self, key: int) -> bool | None:
        """Whether `key` is an identity record; None if it is the meta record or cannot be read."""
        record = self._record(key) if key != 0 else None
        return None if record is None else record.flag >= 2 and not record.image

    def _record(self, key: int) -> ImageRecord | None:
        place = self._index.position(key)
        if place is None:
            return None
        try:
            return unpack_image_record(self._reader.read(int(self._index.offsets[place]))[0])
        except FormatError:
            return None


def float32_error(value: int) -> int:
    """By how much a count may be off after it was stored as float32."""
    return 0 if value < 1 << 24 else int(np.spacing(np.float32(value)) / 2) or 1
