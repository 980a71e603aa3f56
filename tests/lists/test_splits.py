"""Class splits: made miniatures of the official files, read by a reader written as that of UDML-SS."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import Ran, jpeg, write_tree

from facedata.lists.splits import PRESETS

Facedata = Callable[..., Ran]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def udml(root: str, part: str) -> list[tuple[Path, int]]:
    """As UDML-SS reads a list: one space a line, no blank line, labels from 0."""
    rows = [line.split(" ") for line in Path(root, f"{part}.txt").read_text(encoding="utf-8").splitlines()]
    assert all(len(row) == 2 and row[0].startswith(f"{part}/") for row in rows)
    labels = [int(label) for _, label in rows]
    assert sorted(set(labels)) == list(range(max(labels) + 1))
    return [(Path(root, path), int(label)) for path, label in rows]


def cub(folder: str, classes: int = 200) -> None:
    paths = [
        f"{number:03d}.Bird_{number}/Bird_{n}.jpg" for number in range(1, classes + 1) for n in range(1 + number % 2)
    ]
    write_tree(Path(folder, "images"), {path: jpeg(path) for path in paths})
    lists = {
        "images.txt": "".join(f"{n} {path}\n" for n, path in enumerate(paths, 1)),
        "image_class_labels.txt": "".join(f"{n} {int(path[:3])}\n" for n, path in enumerate(paths, 1)),
    }
    write_tree(Path(folder), lists)


def test_cub_is_split_in_the_middle_and_its_counts_are_compared(inline_facedata: Facedata) -> None:
    cub("CUB_200_2011")
    ran = inline_facedata("split-classes", "CUB_200_2011", "--preset", "cub", "-o", "DATA", "--json")
    facts = json.loads(ran.stdout)
    assert (facts["train_classes"], facts["test_classes"]) == PRESETS["cub"].counts[1::2]
    assert "150 train images where the published set has 5,864" in ran.stderr
    train, test = udml("DATA/CUB_200_2011", "train"), udml("DATA/CUB_200_2011", "test")
    assert [path.parent.name for path, _ in (train[0], train[-1], test[0], test[-1])] == [
        "001.Bird_1", "100.Bird_100", "101.Bird_101", "200.Bird_200"
    ]  # fmt: skip
    assert test[0][1] == 0
    assert all(path.is_symlink() and path.is_file() for path, _ in train + test)
    assert "all done before" in inline_facedata("split-classes", "CUB_200_2011", "--preset", "cub", "-o", "DATA").stdout
    again = inline_facedata("split-classes", "CUB_200_2011", "--preset", "cub", "-o", "DATA", "--copy", "--overwrite")
    assert again.status == 0
    assert not any(path.is_symlink() for path, _ in udml("DATA/CUB_200_2011", "train"))


def test_the_cub_of_2010_and_a_devkit_without_images_are_named(inline_facedata: Facedata) -> None:
    write_tree(Path("CUB-200"), {"images/001.A/1.jpg": "x", "lists/train.txt": "x"})
    assert "CUB of 2010" in inline_facedata("split-classes", "CUB-200", "--preset", "cub", "-o", "DATA").stderr
    savemat = pytest.importorskip("scipy.io").savemat
    Path("devkit").mkdir()
    savemat("devkit/cars_annos.mat", cars())
    ran = inline_facedata("split-classes", "devkit", "--preset", "cars", "-o", "DATA")
    assert "devkit of Cars196 without its images" in ran.stderr
    assert ran.status == 1
    assert not Path("DATA").exists()


def cars(later: bool = False) -> dict[str, object]:
    names = np.array([f"Ram C/V Van {n}" for n in range(1, 197)], object)
    rows = [(f"car_ims/{n:06d}.jpg", n) for n in range(1, 197)]
    kinds = [("fname" if later else "relative_im_path", object), ("class", object)]
    return {"class_names": names, "annotations": np.array(rows, kinds)}


def test_cars_of_both_layouts_give_one_split(inline_facedata: Facedata) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    images = {f"{n:06d}.jpg": jpeg(n) for n in range(1, 197)}
    write_tree(Path("cars/car_ims"), images)
    savemat("cars/cars_annos.mat", cars())
    assert inline_facedata("split-classes", "cars", "--preset", "cars", "-o", "A").status == 0
    train = udml("A/Cars196", "train")
    assert (len(train), train[0][0].parent.name) == (98, "Ram_C-V_Van_1")
    every = cars()["annotations"]
    assert isinstance(every, np.ndarray)
    for folder, part in (("cars_train", every[::2]), ("cars_test", every[1::2])):
        rows = np.array(
            [(path.rpartition("/")[2], kind) for path, kind in part], [("fname", object), ("class", object)]
        )
        write_tree(Path("later", folder), {name: images[name] for name in rows["fname"]})
        Path("later/devkit").mkdir(exist_ok=True)
        name = "cars_test_annos_withlabels.mat" if folder == "cars_test" else "devkit/cars_train_annos.mat"
        savemat(f"later/{name}", {"annotations": rows})
    savemat("later/devkit/cars_meta.mat", {"class_names": cars()["class_names"]})
    assert inline_facedata("split-classes", "later", "--preset", "cars", "-o", "B").status == 0
    assert [path.read_bytes() for path, _ in udml("B/Cars196", "test")] == [
        path.read_bytes() for path, _ in udml("A/Cars196", "test")
    ]
    Path("later/cars_test_annos_withlabels.mat").unlink()
    ran = inline_facedata("split-classes", "later", "--preset", "cars", "-o", "C")
    assert "half of the images have no class" in ran.stderr


def test_products_keep_their_own_split(inline_facedata: Facedata) -> None:
    header, number = "image_id class_id super_class_id path\n", 0
    for part, classes in (("train", range(1, 11319, 500)), ("test", range(11319, 22635, 500))):
        lines = []
        for kind in classes:
            for n in range(2):
                number += 1
                path = f"bicycle_final/{kind}_{n}.JPG"
                write_tree(Path("SOP"), {path: jpeg(path)})
                lines.append(f"{number} {kind} 1 {path}\n")
        Path(f"SOP/Ebay_{part}.txt").write_text(header + "".join(lines))
    assert inline_facedata("split-classes", "SOP", "--preset", "products", "-o", "D").status == 0
    assert udml("D/Products", "test")[0][0].parent.name == "11319"
    assert len(udml("D/Products", "train")) == 46


def test_any_folder_is_split_by_its_first_or_by_random_classes(inline_facedata: Facedata) -> None:
    names = [f"class {n}" for n in range(10)]
    write_tree(Path("photos"), {f"{name}/{n} a.jpg": jpeg(f"{name}{n}") for name in names for n in range(2)})
    assert inline_facedata("split-classes", "photos", "-o", "one").status == 0
    assert [path.parent.name for path, _ in udml("one", "train")[::2]] == [f"class_{n}" for n in range(5)]
    for seed in (1, 2):
        words = ("split-classes", "photos", "--train-classes", "3", "--random", "--seed", seed)
        assert inline_facedata(*words, "-o", f"r{seed}").status == 0
    assert len({path.parent.name for path, _ in udml("r1", "train")}) == 3
    assert {path.parent.name for path, _ in udml("r1", "train")} != {
        path.parent.name for path, _ in udml("r2", "train")
    }
    for share, message in (("0.01", "0 would be for training"), ("10", "10 would be for training")):
        assert message in inline_facedata("split-classes", "photos", "--train-classes", share, "-o", "x").stderr
    Path("photos/class 1/1 a.jpg").unlink()
    os.symlink("nowhere", "photos/class 1/2.jpg")
    assert "lies in the input" in inline_facedata("split-classes", "photos", "-o", "photos/x").stderr


def test_a_missing_image_is_named_and_the_split_is_not_whole(inline_facedata: Facedata) -> None:
    cub("CUB_200_2011", 4)
    Path("CUB_200_2011/images/002.Bird_2/Bird_0.jpg").unlink()
    ran = inline_facedata("split-classes", "CUB_200_2011", "--preset", "cub", "-o", "DATA")
    assert ran.status == 1
    assert "002.Bird_2/Bird_0.jpg: no such file" in Path("DATA/CUB_200_2011/failures.jsonl").read_text()


@pytest.mark.parametrize("copy", [[], ["--copy"]], ids=["links", "copies"])
def test_a_resume_keeps_files_of_others_and_writes_what_was_lost(inline_facedata: Facedata, copy: list[str]) -> None:
    write_tree(Path("photos"), {f"{name}/{n}.jpg": jpeg(f"{name}{n}") for name in "abcd" for n in range(2)})
    words = ("split-classes", "photos", "-o", "out", *copy)
    assert inline_facedata(*words).status == 0
    undisturbed = {path: path.read_bytes() for path in Path("out").rglob("*.jpg")}
    for name in (".facedata-summary.json", "train.txt", "test.txt", "train/a/1.jpg"):  # as killed before its end
        Path("out", name).unlink()
    ran = inline_facedata(*words)
    assert (ran.status, "train/a/1.jpg: this job wrote it, but it is gone" in ran.stderr) == (1, True), ran.stderr
    Path("out/train/a/1.jpg").write_text("of the user")
    assert inline_facedata(*words).status == 1
    assert Path("out/train/a/1.jpg").read_text() == "of the user"
    Path("out/train/a/1.jpg").unlink()
    assert inline_facedata(*words).status in (0, 1)
    assert inline_facedata(*words).status == 0
    assert {path: path.read_bytes() for path in Path("out").rglob("*.jpg")} == undisturbed
    assert len(udml("out", "train")) == 4
