"""Pixels as the network takes them, and labels and keys on their way to the set."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from features.extraction.conftest import cv2
from hypothesis import given, settings
from hypothesis import strategies as st

from facedata.errors import FormatError, OptionError, RefusedSampleError
from facedata.features.extraction import Preprocessing
from facedata.features.extraction.fragments import encoded_key, read_fragments, write_fragment
from facedata.features.extraction.preprocessing import Layout

NUMBERS = st.floats(-300, 300, width=32).filter(lambda number: abs(number) > 0.01)
THREE = st.tuples(NUMBERS) | st.tuples(NUMBERS, NUMBERS, NUMBERS)


@given(THREE, THREE, st.sampled_from(["rgb", "bgr"]), st.sampled_from(["nchw", "nhwc"]), st.integers(0, 99))
def test_pixels_are_what_the_formula_says(
    mean: tuple[float, ...], scale: tuple[float, ...], color: str, layout: Layout, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    into = np.empty((3, 5, 4) if layout == "nchw" else (5, 4, 3), np.float32)
    Preprocessing(mean, scale, color).fill(image, layout, into)
    channels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if color == "rgb" else image
    expected = (channels.astype(np.float32) - np.array(mean, np.float32)) / np.array(scale, np.float32)
    np.testing.assert_array_equal(into, expected.transpose(2, 0, 1) if layout == "nchw" else expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mean": (1.0, 2.0)}, "--mean 1,2: expected a number, or three"),
        ({"mean": (float("nan"),)}, "--mean nan"),
        ({"scale": (1.0, 0.0, 1.0)}, "cannot be 0"),
        ({"color": "grb"}, "--color grb: there are rgb, bgr"),
    ],
)
def test_numbers_that_make_no_sense(fields: dict[str, tuple[float, ...]], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Preprocessing(**fields)  # type: ignore[arg-type]


def test_enlarging_is_bilinear_and_shrinking_takes_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    scaling = Preprocessing(resize=True)
    np.testing.assert_array_equal(scaling.decode(data, 10, 5), cv2.resize(image, (5, 10), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(scaling.decode(data, 10, 30), cv2.resize(image, (30, 10)))
    with pytest.raises(RefusedSampleError, match="expected 5 x 10 pixels, found 10 x 20"):
        Preprocessing().decode(data, 10, 5)


ROWS = st.lists(st.tuples(st.integers(-1, 1 << 40), st.text(max_size=12), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_what_is_left_keeps_label_and_key_of_each_row(shards: list[list[tuple[int, str, bool]]]) -> None:
    with TemporaryDirectory() as folder:
        for number, rows in enumerate(shards):
            failed = [place for place, (_, _, fails) in enumerate(rows) if fails]
            write_fragment(folder, number, [row[0] for row in rows], [encoded_key(row[1]) for row in rows], failed)
        for fragment, rows in zip(read_fragments(folder, len(shards)), shards, strict=True):
            labels, keys = fragment.without_failed()
            left = [(label, key) for label, key, fails in rows if not fails]
            assert [int(line) for line in labels.split()] == [label for label, _ in left]
            assert keys.split(b"\n")[:-1] == [encoded_key(key) for _, key in left]
            kept = [place for first, end in fragment.kept() for place in range(first, end)]
            assert kept == [place for place, row in enumerate(rows) if not row[2]]
            assert len(fragment.labels.splitlines()) == fragment.keys.count(b"\n") == fragment.rows == len(rows)


def test_a_key_is_always_one_line_of_bytes() -> None:
    assert encoded_key("a/b c.jpg") == b"a/b c.jpg"
    assert encoded_key(os.fsdecode(b"\xff.jpg")) == b"\xff.jpg"
    assert encoded_key("a\r\nb\u2028") == b"a\\r\\nb\\u2028"
    assert encoded_key("\ud800") == b"\\ud800"


@pytest.mark.parametrize("data", [b"", b"{}\n", b"[]\n1\n", b'{"rows": 1, "failed": [], "labels": 2, "keys": 2}\n1\n'])
def test_a_damaged_fragment_is_noticed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.rows").write_bytes(data)
    with pytest.raises(FormatError, match=r"0\.rows: is damaged; --overwrite"):
        list(read_fragments(str(tmp_path), 1))
