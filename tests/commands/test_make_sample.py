from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from support import Ran, tree

Facedata = Callable[..., Ran]
SMALL = ("--identities", 3, "--images", 2, "--size", 64)


def test_a_sample_can_be_unpacked_and_its_landmarks_belong_to_its_images(facedata: Facedata, tmp_path: Path) -> None:
    ran = facedata("make-sample", "sample", *SMALL, "--preview", "sample.png")
    assert ran.status == 0
    assert "6 images of 3 identities" in ran.stdout
    assert facedata("unpack-rec", "--include", "sample", "--output", "out").status == 0
    lines = [json.loads(line) for line in (tmp_path / "sample" / "landmarks.jsonl").read_text().splitlines()]
    assert [(line["key"], line["label"]) for line in lines] == [(str(n + 1), n // 2) for n in range(6)]
    for count, line in enumerate(lines):
        image = cv2.imread(str(tmp_path / "out" / f"id_{line['label']}" / f"{line['label']}_{count}.jpg"))
        assert image is not None
        assert image.shape == (64, 64, 3)
        assert np.shape(line["landmarks5"]) == (5, 2)
        assert np.shape(line["landmarks68"]) == (68, 2)
        assert np.all((np.array(line["landmarks5"]) > 0) & (np.array(line["landmarks5"]) < 64))
    assert cv2.imread(str(tmp_path / "sample.png")) is not None


def test_the_seed_decides_every_byte(facedata: Facedata, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        facedata("make-sample", name, *SMALL, "--seed", seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_nothing_is_overwritten_unasked(facedata: Facedata, tmp_path: Path) -> None:
    facedata("make-sample", "a", *SMALL)
    before = tree(tmp_path / "a")
    ran = facedata("make-sample", "a", *SMALL, "--seed", 5)
    assert ran.status == 1
    assert "is there already" in ran.stderr
    assert tree(tmp_path / "a") == before
    assert facedata("make-sample", "a", *SMALL, "--seed", 5, "--overwrite").status == 0
    assert tree(tmp_path / "a") != before


def test_a_dry_run_writes_nothing(facedata: Facedata, tmp_path: Path) -> None:
    ran = facedata("make-sample", "a", *SMALL, "--dry-run")
    assert ran.status == 0
    assert "would draw 6 images" in ran.stdout
    assert not (tmp_path / "a").exists()


def test_bad_sizes_are_wrong_usage(facedata: Facedata) -> None:
    assert facedata("make-sample", "a", "--size", 8).status == 2
    assert facedata("make-sample", "a", "--identities", 0).status == 2
