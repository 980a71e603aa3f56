from __future__ import annotations

from pathlib import Path

import pytest
from support import tree

from facedata.download.catalogue import CatalogueSet, KnownFile, load_catalogue
from facedata.download.layout import place, plan_moves
from facedata.errors import OutputExistsError

PART1 = load_catalogue().find("ms1m-part1")
GLINT = load_catalogue().find("glint360k")
CARS = load_catalogue().find("cars196")


def unpacked(tmp_path: Path, *names: str) -> Path:
    """A folder with these files; each holds its own name."""
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def placed(entry: CatalogueSet, folder: Path, root: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Where each file of the archive ended."""
    root.mkdir(exist_ok=True)
    place(plan_moves(entry, folder), root, overwrite=overwrite)
    return {content.decode(): path for path, content in tree(root).items()}


class TestLearnToCluster:
    @pytest.mark.parametrize("above", ["", "data/", "a/b/data/"])
    def test_known_files_are_found_wherever_the_archive_has_them(self, tmp_path: Path, above: str) -> None:
        names = [file.path for file in PART1.files]
        folder = unpacked(tmp_path, *(above + name for name in names))
        assert placed(PART1, folder, tmp_path / "root") == {above + name: name for name in names}

    def test_known_files_are_found_in_a_flat_archive(self, tmp_path: Path) -> None:
        folder = unpacked(tmp_path, "part1_test.bin", "part1_test.meta")
        assert placed(PART1, folder, tmp_path / "root") == {
            "part1_test.bin": "features/part1_test.bin",
            "part1_test.meta": "labels/part1_test.meta",
        }

    def test_two_files_of_one_name_are_told_apart_by_their_folders(self, tmp_path: Path) -> None:
        folder = unpacked(tmp_path, "x/part1_test/faiss_k_80.npz", "x/part0_train/faiss_k_80.npz")
        assert sorted(placed(PART1, folder, tmp_path / "root").values()) == [
            "knns/part0_train/faiss_k_80.npz",
            "knns/part1_test/faiss_k_80.npz",
        ]

    def test_unknown_files_are_placed_by_their_folder_or_their_suffix(self, tmp_path: Path) -> None:
        youtube = load_catalogue().find("youtube-face")
        folder = unpacked(
            tmp_path, "d/features/ytb_test.bin", "ytb_test.meta", "k/ytb_test/faiss_k_80.npz", "d/README.txt"
        )
        assert placed(youtube, folder, tmp_path / "root") == {
            "d/features/ytb_test.bin": "features/ytb_test.bin",
            "ytb_test.meta": "labels/ytb_test.meta",
            "k/ytb_test/faiss_k_80.npz": "knns/ytb_test/faiss_k_80.npz",
            "d/README.txt": "youtube-face/d/README.txt",
        }

    def test_two_files_for_one_place_are_both_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = unpacked(tmp_path, "a/part1_test.bin", "b/part1_test.bin")
        where = placed(PART1, folder, tmp_path / "root")
        assert sorted(where.values()) == ["features/part1_test.bin", "ms1m-part1/b/part1_test.bin"]

    def test_a_set_joins_another_in_the_same_folders(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        (root / "features").mkdir(parents=True)
        (root / "features/other.bin").write_text("other")
        where = placed(PART1, unpacked(tmp_path, "features/part1_test.bin"), root)
        assert where == {"other": "features/other.bin", "features/part1_test.bin": "features/part1_test.bin"}


class TestFolder:
    @pytest.mark.parametrize("above", ["", "glint360k/", "some/where/"])
    def test_the_folder_that_holds_the_records_becomes_the_sets_own(self, tmp_path: Path, above: str) -> None:
        names = ["train.rec", "train.idx", "property", "deep/lfw.bin"]
        folder = unpacked(tmp_path, *(above + name for name in names))
        assert placed(GLINT, folder, tmp_path / "root") == {above + name: f"glint360k/{name}" for name in names}

    def test_what_lies_outside_comes_along(self, tmp_path: Path) -> None:
        folder = unpacked(tmp_path, "x/glint360k/train.rec", "x/notes.txt", "licence.txt", "__MACOSX/._x", "._y")
        assert placed(GLINT, folder, tmp_path / "root") == {
            "x/glint360k/train.rec": "glint360k/train.rec",
            "x/notes.txt": "glint360k/x/notes.txt",
            "licence.txt": "glint360k/licence.txt",
        }

    def test_the_holder_of_a_folder(self, tmp_path: Path) -> None:
        assert placed(CARS, unpacked(tmp_path, "car_ims/1.jpg"), tmp_path / "root") == {
            "car_ims/1.jpg": "Cars196/car_ims/1.jpg"
        }

    def test_without_a_holder_a_single_folder_is_the_set_and_several_stay_apart(self, tmp_path: Path) -> None:
        entry = CatalogueSet("a", "A", layout="folder", folder="mine")
        assert placed(entry, unpacked(tmp_path, "x/1"), tmp_path / "one") == {"x/1": "mine/1"}
        (tmp_path / "unpacked").rename(tmp_path / "done")
        assert placed(entry, unpacked(tmp_path, "x/1", "y/1"), tmp_path / "two") == {
            "x/1": "mine/x/1",
            "y/1": "mine/y/1",
        }

    def test_records_that_are_not_there_are_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert placed(GLINT, unpacked(tmp_path, "a/b"), tmp_path / "root") == {"a/b": "glint360k/a/b"}
        assert "'train.rec' is not in the archive" in caplog.text


class TestPlacing:
    ENTRY = CatalogueSet("a", "A", layout="files", files=(KnownFile("x/1"),))

    def test_a_file_in_the_way_stops_it_before_anything_moves(self, tmp_path: Path) -> None:
        folder, root = unpacked(tmp_path, "x/1", "a"), tmp_path / "root"
        (root / "x").mkdir(parents=True)
        (root / "x/1").write_text("precious")
        with pytest.raises(OutputExistsError, match=r"x/1: already exists"):
            place(plan_moves(self.ENTRY, folder), root, overwrite=False)
        assert tree(root) == {"x/1": b"precious"}
        assert placed(self.ENTRY, folder, root, overwrite=True) == {"x/1": "x/1", "a": "a"}

    def test_what_an_interrupted_placing_left_is_placed(self, tmp_path: Path) -> None:
        folder, root = unpacked(tmp_path, "x/1", "x/2", "a"), tmp_path / "root"
        moves = plan_moves(self.ENTRY, folder)
        place(moves[:1], root, overwrite=False)
        assert placed(self.ENTRY, folder, root) == {"x/1": "x/1", "x/2": "x/2", "a": "a"}
