"""A folder of FaceX-Zoo landmark files, one an image."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from facedata.align.faces import Face
from facedata.align.landmark_files import open_landmarks
from facedata.errors import EmptyDatasetError, FaceError, FormatError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "landmarks"
    for place, name in enumerate(["a/1.txt", "a/2.txt", "b c/1.txt"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(" ".join(str(place + number) for number in range(212)) + " ")
    return root


def first_numbers(found: list[list[Face] | FaceError]) -> list[list[float]]:
    return [[face.landmarks[0, 0] for face in faces] for faces in found if isinstance(faces, list)]


def test_files_belong_to_the_images_of_their_names(folder: Path) -> None:
    file = open_landmarks(folder)
    matched = file.match(["b c/1.jpg", "a/3.jpg", "a/1.jpg", "d/1.jpg"], 4)
    assert (len(file), matched.missing, list(file.unused(matched))) == (3, 2, ["a/2.txt"])
    assert first_numbers(list(matched.read())) == [[2.0], [], [0.0], []]
    part = pickle.loads(pickle.dumps(matched[1:3]))  # noqa: S301
    assert first_numbers(list(part.read())) == [[], [0.0]]
    assert first_numbers(list(matched.take(np.array([2, 2, 0])).read())) == [[0.0], [0.0], [2.0]]
    (face,) = next(iter(matched.read()))  # type: ignore[misc]
    np.testing.assert_array_equal(face.landmarks, 2 + np.arange(212).reshape(106, 2))


def test_a_part_for_a_worker_holds_its_own_names_alone(folder: Path) -> None:
    for number in range(2000):
        (folder / "a" / f"{number}.txt").write_text(" ".join("7" * 212))
    keys = [f"a/{number}.jpg" for number in range(2000)]
    matched = open_landmarks(folder).match(keys, len(keys))
    assert len(pickle.dumps(matched[:10])) < 3000


def test_below_another_folder_and_with_the_images_extension(folder: Path) -> None:
    file = open_landmarks(folder.parent)
    assert file.match(["a/1.png", "a/2.png"], 2).missing == 0
    (folder / "a" / "1.txt").rename(folder / "a" / "1.jpg.txt")
    (folder / "a" / "2.txt").rename(folder / "a" / "2.jpg.txt")
    assert open_landmarks(folder).match(["a/1.jpg", "a/2.jpg"], 2).missing == 0


def test_an_image_in_two_formats_is_not_guessed_about(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"'a/1.txt' belongs to several images"):
        open_landmarks(folder).match(["a/1.jpg", "a/1.png", "a/2.png"], 3)


def test_wrong_files_cost_their_own_images(folder: Path) -> None:
    (folder / "a" / "1.txt").write_text("1 2 3")
    (folder / "a" / "2.txt").write_bytes(b"\0" * 100_000)
    os.mkfifo(folder / "a" / "3.txt")
    os.symlink(folder / "a" / "nothing.txt", folder / "a" / "4.txt")
    os.symlink(folder, folder / "a" / "circle")
    keys = [f"a/{number}.jpg" for number in range(1, 5)]
    file = open_landmarks(folder)
    found = list(file.match(keys, len(keys)).read())
    texts = [str(error) for error in found]
    assert all(text.startswith(f"bad landmarks: {folder}/a/") for text in texts), texts
    for text, expected in zip(
        texts, ["found 3 numbers", "is longer than", "no regular file", "no such file"], strict=True
    ):
        assert expected in text
        assert text.count(str(folder)) == 1
    assert len(file) == 5


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyDatasetError, match=r"no file that ends in .txt"):
        open_landmarks(tmp_path / "empty")
    for path in folder.rglob("*.txt"):
        path.write_text(" ".join("7" * 210))
    with pytest.raises(FormatError, match=r"a/1.txt: found 105 points.*so the first 3"):
        open_landmarks(folder)


def test_identity_is_of_names_and_content(folder: Path, tmp_path: Path) -> None:
    before = open_landmarks(folder).identity()
    folder.rename(tmp_path / "moved")
    assert open_landmarks(tmp_path / "moved").identity() == before
    (tmp_path / "moved" / "a" / "1.txt").write_text(" ".join("7" * 212))
    assert open_landmarks(tmp_path / "moved").identity() != before


def test_a_byte_order_mark_is_no_number(folder: Path) -> None:
    path = folder / "a" / "1.txt"
    path.write_text("\ufeff" + path.read_text())
    assert first_numbers(list(open_landmarks(folder).match(["a/1.jpg"], 1).read())) == [[0.0]]
