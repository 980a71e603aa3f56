"""The layouts of a value: what protobuf itself writes and reads, and what is no value at all."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmdb_support import HEADER, datum_class, encode_datum

from facedata.converters.lmdb.datum import CAFFE, LAYOUTS, MINIMAL, RAW, parse_datum
from facedata.dataset import Sample
from facedata.errors import FormatError

LABELS = st.integers(0, 2**31 - 1)
IMAGES = st.binary(max_size=300).map(HEADER.__add__) | st.builds(lambda: HEADER + bytes(20_000))
POINTS = st.none() | st.lists(st.floats(width=32), min_size=10, max_size=10).map(
    lambda numbers: np.array(numbers, np.float32).reshape(5, 2)
)
SAMPLES = st.builds(Sample, st.just("key"), LABELS, IMAGES, POINTS)


@settings(max_examples=40)
@given(SAMPLES, st.sampled_from(LAYOUTS))
def test_a_sample_comes_back_from_any_layout(sample: Sample, layout: str) -> None:
    value = encode_datum(sample, layout)
    for data in (value, memoryview(value)):
        datum = parse_datum(data)
        assert (datum.layout, datum.image) == (layout, sample.image)
        assert datum.label == (sample.label if layout == CAFFE else None)
        if layout == CAFFE and sample.landmarks is not None:
            assert datum.landmarks is not None
            assert datum.landmarks.dtype == np.float32
            assert datum.landmarks.tobytes() == sample.landmarks.tobytes()
        else:
            assert datum.landmarks is None


@settings(max_examples=30)
@given(SAMPLES)
def test_the_bytes_are_those_of_protobuf(sample: Sample) -> None:
    fields: dict[str, Any] = {"channels": 3, "height": 2, "width": 3, "data": sample.image, "label": sample.label}
    landmarks = [] if sample.landmarks is None else sample.landmarks.ravel().tolist()
    message = datum_class()(**fields, encoded=True, landmarks=landmarks)
    assert encode_datum(sample) == message.SerializeToString()
    assert encode_datum(sample, MINIMAL) == datum_class(minimal=True)(data=sample.image).SerializeToString()


def test_what_a_message_lacks() -> None:
    message = datum_class()()
    message.ParseFromString(encode_datum(Sample("key", 4, b"II*\0tiff")))
    assert (message.data, message.label, message.encoded) == (b"II*\0tiff", 4, True)
    assert not any(message.HasField(name) for name in ("height", "width", "channels"))  # the header has no size
    # the trap: to the loaders of FFC a minimal value is an empty image, without an error
    message.ParseFromString(encode_datum(Sample("key", 4, HEADER), MINIMAL))
    assert message.data == b""


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


@settings(max_examples=40)
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
    message = datum_class()(data=HEADER, label=1, encoded=True).SerializeToString()
    assert parse_datum(message + b"\x28\x07").label == 7  # the last one counts
    # the newer syntax of protobuf does not write zeros
    assert parse_datum(datum_class()(data=HEADER, encoded=True).SerializeToString()).label == 0
    # not said to be encoded, but it begins like an image
    assert parse_datum(datum_class()(data=HEADER, label=1).SerializeToString()).image == HEADER
    landmarks = parse_datum(message + b"\x62\x28" + struct.pack("<10f", *range(10))).landmarks
    assert landmarks is not None
    assert landmarks.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


PIXELS = {"channels": 3, "height": 2, "width": 2, "data": bytes(12), "label": 1}
UNUSABLE = {
    "pixels": (PIXELS, "decoded pixels"),
    "pixels like a JPEG": ({"channels": 3, "height": 1, "width": 1, "data": b"\xff\xd8\xff"}, "decoded pixels"),
    "no image": ({"channels": 3, "height": 112, "width": 112, "label": 4}, "field 4 is missing"),
    "an empty image": ({"data": b"", "label": 1}, "empty image"),
}


@pytest.mark.parametrize(("fields", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_message_without_an_encoded_image_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_datum(datum_class()(**fields).SerializeToString())
    with pytest.raises(FormatError, match="empty image"):
        parse_datum(datum_class(minimal=True)(data=b"").SerializeToString())


HOSTILE = {
    "nothing": b"",
    "text": b"hello world, this is no value",
    "a length behind the end": b"\x22\xff\xff\xff\xff\x0f" + HEADER,
    "a number that does not end": b"\x28" + b"\xff" * 30,
    "a cut number": b"\x28\x80",
    "field 0": b"\x02\x01x",
    "a group": b"\x0b\x0c",
    "a tag of more than 32 bits": b"\xfa\xff\xff\xff\x1f\x01x",
    "a cut float": b"\x65\0\0",
    "fields without end": b"\x30\x01" * 100_000,
    "zeros": bytes(48),
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_value_is_of_no_known_layout(value: bytes) -> None:
    with pytest.raises(FormatError, match=r"neither a Datum of a known layout nor an image: it (begins|is empty)"):
        parse_datum(value)


@settings(max_examples=50)
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda a, b: a + b, FIELDS.map(lambda f: datum_class()(**f).SerializeToString()), st.binary(max_size=9)
    ),
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
