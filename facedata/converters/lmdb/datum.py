"""The value of a record: a protobuf `Datum` in one of two layouts that contradict each other, or the image itself.

========  =========================================================================================================
caffe     1 channels, 2 height, 3 width, 4 data, 5 label, 7 encoded, 12 landmarks: what the loaders of FFC and LFS read
minimal   1 data and nothing else: what the README of LFS shows
raw       the bytes of the image, no protobuf
========  =========================================================================================================

A reader of one of the first two finds no image in the other, without an error. The content tells them apart: field 1
is a number in the first and bytes in the second.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Sample
from facedata.errors import FormatError
from facedata.images import image_extension, image_size

__all__ = ["CAFFE", "LAYOUTS", "MINIMAL", "RAW", "Datum", "datum_parts", "parse_datum"]

CAFFE, MINIMAL, RAW = "caffe", "minimal", "raw"
LAYOUTS = (CAFFE, MINIMAL, RAW)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHANNELS, _HEIGHT, _WIDTH = 1 << 3, 2 << 3, 3 << 3  # tags: the number of the field, and how it is written
_DATA, _LABEL, _ENCODED = 4 << 3 | _BYTES, 5 << 3, 7 << 3
_LANDMARK, _PACKED_LANDMARKS = 12 << 3 | _FIXED32, 12 << 3 | _BYTES
_MINIMAL_DATA = 1 << 3 | _BYTES
_LARGEST_TAG = (1 << 32) - 1
_MOST_FIELDS = 1 << 16
_NUMBER = rb"[\x80-\xff]{0,3}[\x00-\x7f]"
_BEGIN = re.compile(rb"\x08.\x10%b\x18%b\x22(%b)" % (_NUMBER, _NUMBER, _NUMBER), re.DOTALL)
_END = re.compile(rb"\x28(%b)\x38\x01" % _NUMBER)
_SIGNATURE = 32
_SMALL = 1 << 16


class Datum(NamedTuple):
    """What a value holds.

    The layout `caffe` alone has a label, which need not be written if it is 0, and landmarks: shape (5, 2), in pixels,
    x then y; None also if a value has another number of them.
    """

    layout: str
    image: bytes
    label: int | None
    landmarks: NDArray[np.float32] | None


def datum_parts(sample: Sample, layout: str = CAFFE) -> tuple[bytes, ...]:
    """Encode a sample as a value, as protobuf does: the image, and what comes before and after it.

    The label is from 0 to `facedata.columns.LARGEST_LABEL`. If the header of the image does not give height, width and
    channels, these are left out.
    """
    image = sample.image
    if layout == RAW:
        return (image,)
    if layout == MINIMAL:
        return _length_prefix(_MINIMAL_DATA, len(image)), image
    end = _label_and_encoded(sample.label)
    if sample.landmarks is not None:  # a field for each number, as protobuf 2 writes a repeated field
        data = np.ascontiguousarray(sample.landmarks, "<f4").tobytes()
        end += b"".join(_varint(_LANDMARK) + data[place : place + 4] for place in range(0, len(data), 4))
    return _encode_size(image_size(image)), _length_prefix(_DATA, len(image)), image, end


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@lru_cache(1 << 16)
def _length_prefix(tag: int, length: int) -> bytes:
    return _varint(tag) + _varint(length)


@lru_cache(1 << 10)
def _encode_size(size: tuple[int, int, int] | None) -> bytes:
    if size is None:
        return b""
    height, width, channels = size
    return b"".join(map(_varint, (_CHANNELS, channels, _HEIGHT, height, _WIDTH, width)))


@lru_cache(1 << 10)
def _label_and_encoded(label: int) -> bytes:
    return b"".join(map(_varint, (_LABEL, label, _ENCODED, 1)))


def parse_datum(value: bytes | memoryview) -> Datum:
    """Decode a value of any layout.

    Raises
    ------
    FormatError
        If it is of no known layout, or holds decoded pixels or no image.
    """
    if len(value) <= _SMALL:
        value = bytes(value)  # twice as fast to index as a memoryview
    usual = _BEGIN.match(value)  # the fields that nearly all writers write, in their order; twice as fast as any fields
    if usual is not None:
        end = usual.end() + _read_varint(usual[1], 0)[0]
        label_field = _END.fullmatch(value, end)
        if label_field is not None and end > usual.end():
            return Datum(CAFFE, bytes(value[usual.end() : end]), _read_varint(label_field[1], 0)[0], None)
    if image_extension(bytes(value[:_SIGNATURE])) is not None:
        return Datum(RAW, bytes(value), None, None)
    fields = _scan(value)
    for layout, tag in ((CAFFE, _DATA), (MINIMAL, _MINIMAL_DATA)):
        if tag in fields.spans:
            begin, end = fields.spans[tag]
            image = bytes(value[begin:end])
            if not image:
                raise FormatError("the Datum holds an empty image")
            if layout == MINIMAL:
                return Datum(MINIMAL, image, None, None)
            # an image may lack the flag 'encoded', but then it must look like one
            numbers = fields.numbers
            pixels = numbers.get(_CHANNELS, 0) * numbers.get(_HEIGHT, 0) * numbers.get(_WIDTH, 0)
            if not numbers.get(_ENCODED) and (pixels == len(image) or image_extension(image) is None):
                raise FormatError("the Datum holds decoded pixels ('encoded' is not set); expected an encoded image")
            label = numbers.get(_LABEL, 0) & 0xFFFFFFFF
            label -= (1 << 32) * (label >> 31)  # an int32 is written as 64 bits
            points = b"".join(fields.landmarks)
            landmarks = np.frombuffer(points, "<f4").astype(np.float32).reshape(5, 2) if len(points) == 40 else None
            return Datum(CAFFE, image, label, landmarks)
    if not fields.numbers.keys().isdisjoint((_CHANNELS, _HEIGHT, _WIDTH, _LABEL, _ENCODED)):
        raise FormatError("a Datum without an image: its field 4 is missing")
    raise _unknown(value)


def _unknown(value: bytes | memoryview) -> FormatError:
    begins = f"it begins with {bytes(value[:8]).hex(' ')}" if len(value) else "it is empty"
    return FormatError(f"the value is neither a Datum of a known layout nor an image: {begins}")


class _Fields(NamedTuple):
    """The fields of a message by their tags; of a repeated tag the last, as in protobuf."""

    numbers: dict[int, int]
    spans: dict[int, tuple[int, int]]
    """Where the bytes of each field begin and end."""
    landmarks: list[bytes]


def _scan(value: bytes | memoryview) -> _Fields:
    fields = _Fields({}, {}, [])
    place, size = 0, len(value)
    try:
        for _ in range(_MOST_FIELDS):
            if place == size:
                return fields
            tag = value[place]
            place += 1
            if tag > 0x7F:
                tag, place = _read_varint(value, place - 1)
            number, place = _skip(value, place, tag)
            if place > size or not 8 <= tag <= _LARGEST_TAG:
                break
            if tag & 7 == _VARINT:
                fields.numbers[tag] = number
            elif tag in (_LANDMARK, _PACKED_LANDMARKS):
                fields.landmarks.append(bytes(value[number:place]))
            else:
                fields.spans[tag] = (number, place)
    except (IndexError, ValueError):  # the value ends inside a field, or a number in it does not end
        pass
    raise _unknown(value)


def _skip(value: bytes | memoryview, place: int, tag: int) -> tuple[int, int]:
    """Where the content of a field begins, or the number itself if it is one; and where the next field begins."""
    kind = tag & 7
    if kind == _FIXED32:
        return place, place + 4
    if kind == _FIXED64:
        return place, place + 8
    if kind not in (_VARINT, _BYTES):
        raise ValueError(tag)
    number = value[place]
    place += 1
    if number > 0x7F:
        number, place = _read_varint(value, place - 1)
    return (number, place) if kind == _VARINT else (place, place + number)


def _read_varint(value: bytes | memoryview, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = value[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError(place)
