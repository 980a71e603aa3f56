from __future__ import annotations

from pathlib import Path

import pytest
from support import tree, write_tree

from facedata.download.catalogue import CatalogueSet, KnownFile, load_catalogue
from facedata.download.layout import place, plan_moves
from facedata.errors import OutputExistsError

PART1, GLINT, CARS, YOUTUBE = map(load_catalogue().find, ("ms1m-part1", "glint360k", "cars196", "youtube-face"))
MINE = CatalogueSet("a", "A", layout="folder", folder="mine")
PLAIN = CatalogueSet("a", "A", layout="files", files=(KnownFile("x/1"),))
KNOWN = [file.path for file in PART1.files]
RECORDS = ["train.rec", "train.idx", "property", "deep/lfw.bin"]


def unpacked(tmp_path: Path, *names: str) -> Path:
    """A folder with these files; each holds its own name."""
    return write_tree(tmp_path / "unpacked", {name: name for name in names})


def placed(entry: CatalogueSet, folder: Path, root: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Where each file of the archive ended."""
    root.mkdir(exist_ok=True)
    place(plan_moves(entry, folder), root, overwrite=overwrite)
    return {content.decode(): path for path, content in tree(root).items()}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        *((PART1, {above + name: name for name in KNOWN}) for above in ("", "data/", "a/b/data/")),
        (PART1, {"part1_test.bin": "features/part1_test.bin", "part1_test.meta": "labels/part1_test.meta"}),
        (  # two files of one name are told apart by their folders
            PART1,
            {f"x/{part}/faiss_k_80.npz": f"knns/{part}/faiss_k_80.npz" for part in ("part1_test", "part0_train")},
        ),
        (
            YOUTUBE,
            {
                "d/features/ytb_test.bin": "features/ytb_test.bin",
                "ytb_test.meta": "labels/ytb_test.meta",
                "k/ytb_test/faiss_k_80.npz": "knns/ytb_test/faiss_k_80.npz",
                "d/README.txt": "youtube-face/d/README.txt",
            },
        ),
        (  # two files for the same place
            PART1,
            {"a/part1_test.bin": "features/part1_test.bin", "b/part1_test.bin": "ms1m-part1/b/part1_test.bin"},
        ),
        *((GLINT, {above + name: f"glint360k/{name}" for name in RECORDS}) for above in ("", "glint360k/", "a/b/")),
        (
            GLINT,
            {
                "x/glint360k/train.rec": "glint360k/train.rec",
                "x/notes.txt": "glint360k/x/notes.txt",
                "licence.txt": "glint360k/licence.txt",
            },
        ),
        (CARS, {"car_ims/1.jpg": "Cars196/car_ims/1.jpg"}),
        (MINE, {"x/1": "mine/1"}),
        (MINE, {"x/1": "mine/x/1", "y/1": "mine/y/1"}),
    ],
)
def test_files_go_where_the_layout_has_them(tmp_path: Path, entry: CatalogueSet, expected: dict[str, str]) -> None:
    folder = unpacked(tmp_path, *expected, "__MACOSX/._x", "._y")
    assert placed(entry, folder, tmp_path / "root") == expected


def test_a_set_joins_another_in_the_same_folders(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"features/other.bin": "other"})
    where = placed(PART1, unpacked(tmp_path, "features/part1_test.bin"), root)
    assert where == {"other": "features/other.bin", "features/part1_test.bin": "features/part1_test.bin"}


def test_records_that_are_missing_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert placed(GLINT, unpacked(tmp_path, "a/b"), tmp_path / "root") == {"a/b": "glint360k/a/b"}
    assert "'train.rec' is not in the archive" in caplog.text


def test_a_file_in_the_way_stops_it_before_anything_moves(tmp_path: Path) -> None:
    folder, root = unpacked(tmp_path, "x/1", "a"), write_tree(tmp_path / "root", {"x/1": "precious"})
    with pytest.raises(OutputExistsError, match=r"x/1: already exists"):
        place(plan_moves(PLAIN, folder), root, overwrite=False)
    assert tree(root) == {"x/1": b"precious"}
    place(plan_moves(PLAIN, folder)[:1], root, overwrite=True)  # then it is interrupted
    assert placed(PLAIN, folder, root, overwrite=True) == {"x/1": "x/1", "a": "a"}
