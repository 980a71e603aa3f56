"""Which entry belongs to which image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facedata.align.landmark_files import LandmarkFile, MatchedLandmarks, open_landmarks
from facedata.errors import FormatError


def write(path: Path, keys: Sequence[str]) -> LandmarkFile:
    """An entry for each key, the first x of which is the number of its line."""
    rows = [f"{key},{line},2,3,4,5,6,7,8,9,10" for line, key in enumerate(keys)]
    header = "key," + ",".join(f"x{i},y{i}" for i in range(1, 6))
    path.write_text("\n".join([header, *rows]) + "\n", errors="surrogateescape")
    return open_landmarks(path)


def lines(matched: MatchedLandmarks) -> list[list[int]]:
    """The lines that each image got."""
    found = list(matched.read())
    return [[int(face.landmarks[0, 0]) for face in faces] for faces in found if isinstance(faces, list)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "points.csv"


@pytest.mark.parametrize(
    ("in_file", "of_images"),
    [
        (["a/1.jpg", "b/2.jpg"], ["a/1.jpg", "b/2.jpg"]),
        (["./a/1.jpg", "././b//2.jpg"], ["a/1.jpg", "b/2.jpg"]),
        (["a\\1.jpg", "b\\2.jpg"], ["a/1.jpg", "b/2.jpg"]),
        (["/data/lfw/a/1.jpg", "/data/lfw/b/2.jpg"], ["a/1.jpg", "b/2.jpg"]),
        (["a/1.jpg", "b/2.jpg"], ["raw/lfw/a/1.jpg", "raw/lfw/b/2.jpg"]),
        (["a/1.JPG", "b/2.jpeg"], ["a/1.png", "b/2.png"]),
        (["x/a/1.jpg", "x/b/2.jpg"], ["a/1", "b/2"]),
        (["a/1.jpg", "b/2.jpg"], ["x/a/1.webp", "x/b/2.webp"]),
        (["a/1.jpg", "A/1.jpg"], ["a/1.jpg", "A/1.jpg"]),
        (["id.0/v1.5", "id.0/v1.6"], ["id.0/v1.5", "id.0/v1.6"]),
        (["Bücher/ä.jpg", "Bücher/\udce4.jpg"], ["Bücher/ä.jpg", "Bücher/\udce4.jpg"]),
    ],
)
def test_keys_fit_but_for_folders_and_extensions(path: Path, in_file: list[str], of_images: list[str]) -> None:
    file = write(path, in_file)
    matched = file.match([of_images[1], "none", of_images[0]], 3)
    assert lines(matched) == [[1], [], [0]]
    assert (matched.missing, list(file.unused(matched))) == (1, [])


def test_dropped_folders_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(path, ["/data/lfw/a/1.jpg"]).match(["a/1.jpg"], 1)
    assert "points.csv: matched without the first 2 folders of its paths" in caplog.text
    caplog.clear()
    write(path, ["a/1.jpg"]).match(["lfw/a/1.png"], 1)
    assert "matched without the first folder of the images' paths and the file extensions" in caplog.text


def test_several_lines_with_a_key_are_several_faces(path: Path) -> None:
    file = write(path, ["b", "a", "b", "c", "b"])
    matched = file.match(["a", "b", "x", "c", "b"], 5)  # a source may have a key twice
    everything = [[1], [0, 2, 4], [], [3], [0, 2, 4]]
    assert lines(matched) == everything
    for start in range(6):
        for stop in range(6):
            assert lines(matched[start:stop]) == everything[start:stop]
            assert lines(matched[start:][: stop - start]) == everything[start:][: stop - start]
    assert matched[1:4].missing == 1
    assert lines(matched.take(np.array([4, 0, 1, 1]))) == [[0, 2, 4], [1], [0, 2, 4], [0, 2, 4]]


AMBIGUOUS = "ambiguous: its keys match those of the images without"
BACKSLASHES = r"after replacing backslashes with slashes.* matches several images"


@pytest.mark.parametrize(
    ("in_file", "of_images", "message"),
    [
        (["train/a/1.jpg", "train/a/2.jpg", "test/a/1.jpg"], ["a/1.jpg", "a/2.jpg"], "'train/a/1.jpg' and"),
        (["1.jpg", "2.jpg"], ["a/1.jpg", "b/1.jpg", "b/2.jpg"], "'1.jpg' matches several images"),
        (["1.jpg", "2.jpg"], ["1.png", "1.webp", "2.png"], "'1.jpg' matches several images"),
        (["c/a\\1.jpg", "c/a/1.jpg", "c/2.jpg"], ["c/a\\1.jpg", "c/a/1.jpg", "c/2.jpg"], BACKSLASHES),
        (["x/y/1.jpg", "x/y/2.jpg"], ["1.jpg", "2.jpg", "y/1.jpg", "y/2.jpg"], AMBIGUOUS),
        (["x/a/1.jpg"], ["b/1.jpg", "b/2.jpg"], "points.csv: .*first image is 'b/1.jpg', the first entry 'x/a/1.jpg'"),
        (["Jos\u00e9/1.jpg"], ["Jose\u0301/1.jpg"], "their accents are encoded differently"),
        (["Jos\u00e9/1.jpg"], ["Ann/1.jpg"], "the file extension$"),
    ],
)
def test_ambiguous_and_unknown_keys_are_refused(
    path: Path, in_file: list[str], of_images: list[str], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write(path, in_file).match(of_images, len(of_images))


def test_a_few_that_fit_as_they_are_do_not_hide_that_the_others_have_folders(path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(1000)]
    file = write(path, ["0.jpg", *(f"lfw/{key}" for key in keys[1:])])
    matched = file.match(keys, 1000)
    assert matched.missing == 1  # 0.jpg has no folder to leave out


def test_a_file_is_matched_to_one_source_after_another(path: Path) -> None:
    file = write(path, ["x/a.jpg", "x/b.jpg"])
    for key, line in (("b.png", 1), ("x\\a.jpg", 0), ("x/a.jpg", 0)):
        assert lines(file.match([key], 1)) == [[line]]
    none = file.match([], 0)
    assert (len(none), list(none.read()), list(file.unused(none))) == (0, [], ["x/a.jpg", "x/b.jpg"])


def test_images_far_apart_in_a_long_file(path: Path) -> None:
    keys = [f"person_{number // 20}/{number:06d}.jpg" for number in range(17_000)]
    order = np.random.default_rng(0).permutation(len(keys))
    matched = write(path, keys).match((keys[place] for place in order), len(keys))
    assert lines(matched[:3000]) == [[place] for place in order[:3000].tolist()]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sampled_from(["a/1", "a/2", "b/1", "c", "d"]), min_size=1),
    st.lists(st.sampled_from(["a/1", "a/2", "b/1", "c", "x"])),
)
def test_every_image_gets_the_lines_with_its_key(
    tmp_path_factory: pytest.TempPathFactory, file: list[str], images: list[str]
) -> None:
    opened = write(tmp_path_factory.mktemp("any") / "points.csv", file)
    if images and not set(file) & set(images):
        with pytest.raises(FormatError):
            opened.match(images, len(images))
        return
    matched = opened.match(iter(images), len(images))
    expected = [[line for line, key in enumerate(file) if key == image] for image in images]
    assert lines(matched) == expected
    assert matched.missing == expected.count([])
    assert list(opened.unused(matched)) == [key for key in file if key not in images]
