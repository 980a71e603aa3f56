"""What `--write-landmarks` writes is read back to the last bit."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of

from facedata.align.faces import Face
from facedata.align.landmark_files import landmark_header, landmark_line, open_landmarks
from facedata.align.landmark_files.keys import plain_key
from facedata.errors import FaceError

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.floats(allow_nan=True)
KEYS = st.text(min_size=1, max_size=20) | st.binary(min_size=1, max_size=20).map(
    lambda name: name.decode("utf-8", "surrogateescape")
)


@st.composite
def faces(draw: st.DrawFn, points: int) -> Face:
    count = 2 * points
    numbers = draw(st.lists(NUMBERS, min_size=count, max_size=count))
    box = draw(st.none() | st.lists(NUMBERS, min_size=4, max_size=4).map(lambda values: np.array(values, np.float64)))
    # a first number in pixels: a file of nothing but fractions is refused
    landmarks = np.array([117.5, *numbers[1:]], np.float64).reshape(-1, 2)
    return Face(landmarks, box, draw(st.none() | st.floats(0, 1)))


def same(one: Any, other: Any) -> bool:
    return one is other is None or (
        one is not None and other is not None and np.array_equal(one, other, equal_nan=True)
    )


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["points.jsonl", "points.CSV", "points"]), st.sampled_from([5, 25]))
def test_what_is_written_is_read(data: st.DataObject, name: str, points: int) -> None:
    written = data.draw(st.lists(st.tuples(KEYS, faces(points)), min_size=1, max_size=5))
    content, kept = landmark_header(name, points), []
    for key, face in written:
        try:
            content += landmark_line(name, key, face, points)
        except FaceError:
            assert name.endswith("CSV")
            assert "\n" in key or "\r" in key
        else:
            kept.append((key, face))
    keys = list(dict.fromkeys(key for key, _ in kept))
    if not kept:
        return
    with file_of(content, name) as path:
        found = list(open_landmarks(path).match(keys, len(keys)).read())
    for key, got in zip(keys, found, strict=True):
        expected = [face for other, face in kept if plain_key(other) == plain_key(key)]
        assert isinstance(got, list)
        for one, other in zip(got, expected, strict=True):
            assert same(one.landmarks, other.landmarks)
            assert same(one.box, other.box)
            assert one.score == other.score


def test_other_programs_read_it_too() -> None:
    face = Face(np.array([[1.5, 2], [3, 4], [5, 6], [7, 8], [9, 0.1]]), np.array([1.0, 2, 3, 4]), 0.75)
    value = json.loads(landmark_line("a.jsonl", 'k"\n,é', face))
    assert value == {"key": 'k"\n,é', "landmarks": face.landmarks.tolist(), "box": [1, 2, 3, 4], "score": 0.75}
    text = (landmark_header("a.csv") + landmark_line("a.csv", 'k",é', face)).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert list(row) == [
        "key",
        *(f"{a}{i}" for i in range(1, 6) for a in "xy"),
        "left",
        "top",
        "right",
        "bottom",
        "score",
    ]
    assert (row["key"], row["x1"], row["y5"], row["left"], row["score"]) == ('k",é', "1.5", "0.1", "1.0", "0.75")


def test_what_a_csv_cannot_hold_is_refused() -> None:
    face = Face(np.ones((5, 2)))
    for key in ("a\nb", "a\rb", ""):
        with pytest.raises(FaceError):
            landmark_line("points.csv", key, face)
    with pytest.raises(FaceError, match="found 106 points, the file has columns for 5"):
        landmark_line("points.csv", "a", Face(np.ones((106, 2))))
    with pytest.raises(FaceError, match="cannot hold the key, of 70000 characters"):
        landmark_line("points.jsonl", "a" * 70_000, face)


def test_floats_of_32_bits_survive(tmp_path: Path) -> None:
    landmarks = np.random.default_rng(0).uniform(0, 5000, (400, 5, 2)).astype(np.float32)
    for name in ("points.csv", "points.jsonl"):
        lines = [landmark_line(name, str(i), Face(one.astype(np.float64))) for i, one in enumerate(landmarks)]
        (tmp_path / name).write_bytes(landmark_header(name) + b"".join(lines))
        found = open_landmarks(tmp_path / name).match(map(str, range(400)), 400).read()
        got = [one[0].landmarks.astype(np.float32) for one in found if isinstance(one, list)]
        np.testing.assert_array_equal(got, landmarks)
