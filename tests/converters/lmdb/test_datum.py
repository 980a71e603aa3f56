"""The layouts of a value: what protobuf itself writes and reads, and what is not a value."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmdb_support import HEADER, as_protobuf, datum_class, encode_datum
from numpy.typing import NDArray

from facedata.converters.lmdb.datum import CAFFE, LAYOUTS, MINIMAL, RAW, parse_datum
from facedata.dataset import Sample
from facedata.errors import FormatError

LABELS = st.integers(0, 2**31 - 1)
IMAGES = st.binary(max_size=300).map(HEADER.__add__) | st.builds(lambda: HEADER + bytes(20_000))
POINTS = st.none() | st.lists(st.floats(width=32), min_size=10, max_size=10).map(
    lambda numbers: np.array(numbers, np.float32).reshape(5, 2)
)


def exactly(points: NDArray[np.float32] | None) -> tuple[np.dtype[np.float32], bytes] | None:
    return None if points is None else (points.dtype, points.tobytes())


@given(st.builds(Sample, st.just("key"), LABELS, IMAGES, POINTS))
def test_a_sample_is_encoded_as_by_protobuf_and_comes_back(sample: Sample) -> None:
    fields: dict[str, Any] = {"channels": 3, "height": 2, "width": 3, "data": sample.image, "label": sample.label}
    landmarks = [] if sample.landmarks is None else sample.landmarks.ravel().tolist()
    assert encode_datum(sample) == as_protobuf(**fields, encoded=True, landmarks=landmarks)
    assert encode_datum(sample, MINIMAL) == as_protobuf(minimal=True, data=sample.image)
    for layout in LAYOUTS:
        value = encode_datum(sample, layout)
        for data in (value, memoryview(value)):
            datum = parse_datum(data)
            assert (datum.layout, datum.image) == (layout, sample.image)
            assert datum.label == (sample.label if layout == CAFFE else None)
            assert exactly(datum.landmarks) == exactly(sample.landmarks if layout == CAFFE else None)


def test_what_a_message_lacks() -> None:
    message = datum_class().FromString(encode_datum(Sample("key", 4, b"II*\0tiff")))
    assert (message.data, message.label, message.encoded) == (b"II*\0tiff", 4, True)
    assert not any(message.HasField(name) for name in ("height", "width", "channels"))  # the header has no size
    # the trap: to the loaders of FFC a minimal value is an empty image, without an error
    assert datum_class().FromString(encode_datum(Sample("key", 4, HEADER), MINIMAL)).data == b""


FIELDS = st.fixed_dictionaries(
    {"data": IMAGES, "encoded": st.just(True)},
    optional={
        "channels": st.integers(-(2**31), 2**31 - 1),
        "label": st.integers(-(2**31), 2**31 - 1),
        "float_data": st.lists(st.floats(width=32), max_size=5),
        "left": st.floats(width=32),
        "landmarks": st.lists(st.floats(width=32), max_size=12),
    },
)
UNKNOWN = st.sampled_from(
    [b"", b"\x68\x05", b"\x6d1234", b"\x69" + bytes(8), b"\x6a\x03abc", b"\xfa\xff\xff\xff\x0f\x01x"]
)


@given(FIELDS, UNKNOWN)
def test_whatever_else_protobuf_writes_is_read_or_skipped(fields: dict[str, Any], unknown: bytes) -> None:
    message = datum_class()(**fields)
    datum = parse_datum(message.SerializeToString() + unknown)
    assert (datum.layout, datum.image, datum.label) == (CAFFE, message.data, message.label)
    landmarks = fields.get("landmarks", [])
    assert (datum.landmarks is not None) == (len(landmarks) == 10)
    if datum.landmarks is not None:
        assert datum.landmarks.ravel().tolist() == pytest.approx(landmarks, nan_ok=True)


def test_labels_and_the_flag_may_be_repeated_or_missing_and_landmarks_packed() -> None:
    message = as_protobuf(data=HEADER, label=1, encoded=True)
    assert parse_datum(message + b"\x28\x07").label == 7  # the last one counts
    # the newer syntax of protobuf does not write zeros
    assert parse_datum(as_protobuf(data=HEADER, encoded=True)).label == 0
    # not said to be encoded, but it begins like an image
    assert parse_datum(as_protobuf(data=HEADER, label=1)).image == HEADER
    landmarks = parse_datum(message + b"\x62\x28" + struct.pack("<10f", *range(10))).landmarks
    assert landmarks is not None
    assert landmarks.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


UNKNOWN_LAYOUT = r"neither a Datum of a known layout nor an image: it (begins|is empty)"


HOSTILE = {
    "pixels": (as_protobuf(channels=3, height=2, width=2, data=bytes(12), label=1), "decoded pixels"),
    "pixels like a JPEG": (as_protobuf(channels=3, height=1, width=1, data=b"\xff\xd8\xff"), "decoded pixels"),
    "no image": (as_protobuf(channels=3, height=112, width=112, label=4), "field 4 is missing"),
    "an empty image": (as_protobuf(data=b"", label=1), "empty image"),
    "an empty image of the minimal layout": (as_protobuf(minimal=True, data=b""), "empty image"),
    "nothing": (b"", UNKNOWN_LAYOUT),
    "text": (b"hello world, this is no value", UNKNOWN_LAYOUT),
    "a length past the end": (b"\x22\xff\xff\xff\xff\x0f" + HEADER, UNKNOWN_LAYOUT),
    "a number that does not end": (b"\x28" + b"\xff" * 30, UNKNOWN_LAYOUT),
    "a cut number": (b"\x28\x80", UNKNOWN_LAYOUT),
    "field 0": (b"\x02\x01x", UNKNOWN_LAYOUT),
    "a group": (b"\x0b\x0c", UNKNOWN_LAYOUT),
    "a tag of more than 32 bits": (b"\xfa\xff\xff\xff\x1f\x01x", UNKNOWN_LAYOUT),
    "a cut float": (b"\x65\0\0", UNKNOWN_LAYOUT),
    "fields without end": (b"\x30\x01" * 100_000, UNKNOWN_LAYOUT),
    "zeros": (bytes(48), UNKNOWN_LAYOUT),
}


@pytest.mark.parametrize(("value", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_value_without_an_encoded_image_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_datum(value)


@given(
    st.binary(max_size=60)
    | st.builds(lambda fields, more: as_protobuf(**fields) + more, FIELDS, st.binary(max_size=9)),
    st.data(),
)
def test_any_bytes_are_a_value_or_a_format_error(value: bytes, data: st.DataObject) -> None:
    value = value[: data.draw(st.integers(0, len(value)))]
    try:
        datum = parse_datum(value)
    except FormatError:
        return
    assert datum.layout in LAYOUTS
    assert datum.image in value
    assert datum.layout != RAW or datum.image == value
