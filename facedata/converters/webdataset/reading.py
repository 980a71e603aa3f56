"""Reading one sample of a tar, of which a walk has told where it lies."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.converters.webdataset.samples import (
    BAD_LABEL,
    LARGEST_JSON,
    LARGEST_LABEL,
    NO_LABEL,
    json_object,
    label_in_json,
    split_name,
)
from facedata.converters.webdataset.walk import TarReader
from facedata.dataset import Sample
from facedata.errors import FormatError, InputError, SampleError
from facedata.images import LARGEST_IMAGE
from facedata.tar_format import BLOCK, Heading, read_heading

__all__ = ["Row", "read_key", "read_sample"]

_SHOWN = 40
_POINTS, _COORDINATES = 5, 2
_LONGEST_KEY = 1 << 12
_LARGEST_COORDINATE = float(np.finfo(np.float32).max)


class Row(NamedTuple):
    """A row of a `SampleTable`; `tar` is the number of its tar, `offset` is where the image begins in it."""

    tar: int
    offset: int
    size: int
    label: int
    extra: int
    heading: int


def read_sample(reader: TarReader, row: Row) -> Sample | SampleError:
    """The sample, or what is wrong with it."""
    key = _place(row)
    try:
        key = _key_in_name(reader, row)
        reason = _reason_against(reader, row, key)
        if reason is not None:
            return SampleError(reader.path, key, reason, row.offset)
        image = reader.take(row.offset, row.size)
        if not row.extra:
            return Sample(key, row.label, image)
        described = _described(reader, row)
        return Sample(_key_in(described, key), row.label, image, _landmarks_in(described))
    except FormatError as error:
        reason = f"the tar is not what it was when it was opened: {error}"
    except InputError as error:
        reason = str(error)
    return SampleError(reader.path, key, reason, row.offset)


def read_key(reader: TarReader, row: Row) -> str:
    """The sample's key; where it cannot be read, the place of its image."""
    try:
        described = _described(reader, row) if row.extra and row.label >= 0 else {}
        return _key_in(described, _key_in_name(reader, row))
    except InputError:
        return _place(row)


def _place(row: Row) -> str:
    return f"at byte {row.offset}"


def _key_in_name(reader: TarReader, row: Row) -> str:
    """The path of the image without its extension, from the same headers as when the tar was opened."""
    start = row.offset - BLOCK * row.heading
    heading = read_heading(reader.take, start)
    parts = split_name(heading.name)
    if parts is None or heading.offset != row.offset or (heading.size != row.size and row.size <= LARGEST_IMAGE):
        raise FormatError(f"byte {start}: another member begins here")
    return os.fsdecode(parts[0])


def _reason_against(reader: TarReader, row: Row, key: str) -> str | None:
    if row.label < 0:
        return _reason_without_label(reader, row, key)
    if row.size == 0:
        return "the image is empty (0 bytes)"
    if row.size > LARGEST_IMAGE:
        return f"the image takes more than {LARGEST_IMAGE} bytes: this is no face"
    return None


def _reason_without_label(reader: TarReader, row: Row, key: str) -> str:
    if row.label == NO_LABEL:
        return f"no label: there is neither {key}.cls beside the image, nor a 'label' in {key}.json"
    heading = _other(reader, row)
    name = os.fsdecode(heading.name)
    if row.label != BAD_LABEL:
        return f"a second {name} in the same sample: which one is meant cannot be told"
    if name.lower().endswith(".json"):
        found = repr(label_in_json(_described(reader, row)))
    else:
        found = repr(os.fsdecode(reader.take(heading.offset, min(heading.size, _SHOWN))))
    return f"the label in {name} is {found[:_SHOWN]}, expected a whole number from 0 to {LARGEST_LABEL}"


def _other(reader: TarReader, row: Row) -> Heading:
    """The headers of the member that the row points to besides the image."""
    return read_heading(reader.take, row.offset + BLOCK * row.extra)


def _described(reader: TarReader, row: Row) -> dict[str, Any]:
    """What the sample's ``.json`` says."""
    heading = _other(reader, row)
    return json_object(reader.take(heading.offset, heading.size)) if heading.size <= LARGEST_JSON else {}


def _key_in(described: dict[str, Any], otherwise: str) -> str:
    key = described.get("key")
    return key if isinstance(key, str) and len(key) <= _LONGEST_KEY else otherwise


def _landmarks_in(described: dict[str, Any]) -> NDArray[np.float32] | None:
    """The landmarks, shape (5, 2), in pixels; None where there are not five pairs of finite numbers."""
    points = described.get("landmarks")
    if not isinstance(points, list) or len(points) != _POINTS or not all(map(_is_point, points)):
        return None
    return np.array(points, np.float32)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == _COORDINATES
        and all(type(number) in (int, float) and abs(number) <= _LARGEST_COORDINATE for number in value)
    )
