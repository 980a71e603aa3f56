"""``facedata extract-features`` as it is typed: what it prints and leaves behind, that it goes on after anything."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from features.extraction.conftest import Work, tried_here, work, write_images
from support import Ran, Running

__all__ = ["tried_here", "work"]  # fixtures

Facedata = Callable[..., Ran]
COMMAND = ["extract-features", "images", "--model", "net.onnx", "--name", "a", "--output"]


def test_a_folder_becomes_a_set(inline_facedata: Facedata, work: Work) -> None:
    work.root /= "data"
    ran = inline_facedata(*COMMAND, "data/")
    assert (ran.status, "warning" in ran.stderr) == (0, False)
    assert ran.stdout.startswith("data/features/a.bin: 30 rows of 8 float32, 960 bytes, 5 classes; ")
    np.testing.assert_array_equal(work.read().rows, work.expected())
    again = inline_facedata(*COMMAND, "data/", "--json")
    value = json.loads(again.stdout)
    assert (again.status, value["nothing_to_do"], value["images"]) == (0, True, 30)
    assert (value["rows"], value["dimensions"], value["classes"]) == (30, 8, 5)
    status = inline_facedata("status", "data/features/a.bin")
    assert (status.status, status.stdout.splitlines()[0]) == (0, "data/features/a.bin: finished: 1 of 1 shard done")


@pytest.mark.usefixtures("tried_here")
def test_options_reach_the_network(inline_facedata: Facedata, work: Work) -> None:
    options = ["--mean", "1,2,3", "--scale", "64", "--color", "bgr", "--batch-size", "7", "--flip", "--normalize"]
    ran = inline_facedata(*COMMAND, ".", *options, "--unlabeled", "--limit", "20", "--quiet")
    assert (ran.status, ran.stderr) == (0, "")
    found, mean = work.read(), np.array([1, 2, 3], np.float32)
    both = np.zeros((20, 8), np.float32)
    for step in (1, -1):
        work.images.pixels[:] = [image[:, ::step] for image in work.images.pixels[:20]]
        both += work.expected(7, prepare=lambda image: (image.astype(np.float32) - mean) / np.float32(64))
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(found.rows, unit, rtol=1e-6, atol=1e-7)
    assert found.labels == [-1] * 20
    plan = json.loads((work.root / "features/a.bin.facedata/.facedata-plan.json").read_text())
    assert plan["options"]["preprocessing"]["color"] == "bgr"
    assert {"sha256", "ONNX Runtime"} < plan["options"]["model"].keys()


@pytest.mark.usefixtures("tried_here")
def test_photos_without_labels_become_a_folder_for_each_cluster(inline_facedata: Facedata, work: Work) -> None:
    photos = work.root / "photos"
    photos.mkdir()
    for number, key in enumerate(work.images.keys):
        (work.images.folder / key).rename(photos / f"{number}.png")
    ran = inline_facedata("extract-features", "photos", *COMMAND[2:], "data")
    assert (ran.status, (work.root / "data/labels/a.meta").read_text()) == (0, "-1\n" * 30)
    assert "photos: 30 images, no class folders: unlabelled" in ran.stderr
    (work.root / "clusters.meta").write_text("".join(f"{number % 3 - 1}\n" for number in range(30)))
    ran = inline_facedata("convert", "photos", "folder:clusters", "--labels-from", "clusters.meta")
    assert (ran.status, len(list((work.root / "clusters" / "id_1").iterdir()))) == (0, 10)
    assert sorted(path.name for path in (work.root / "clusters").glob("[!.]*")) == ["id_0", "id_1", "unlabelled"]
    ran = inline_facedata("extract-features", "photos", *COMMAND[2:], "more", "--labels-from", "clusters.meta")
    assert (work.root / "more/labels/a.meta").read_text() == (work.root / "clusters.meta").read_text()


@pytest.mark.usefixtures("tried_here")
def test_failures_are_counted_and_the_status_is_1(inline_facedata: Facedata, work: Work) -> None:
    (work.images.folder / work.images.keys[2]).write_bytes(b"no image")
    ran = inline_facedata(*COMMAND, "data")
    assert (ran.status, ran.stdout) == (1, "")
    assert "data/features/a.bin: is not published, because 1 of 30 images failed: see data/features/a.bin" in ran.stderr
    ran = inline_facedata(*COMMAND, "data", "--on-error", "skip")
    (first,) = ran.stdout.splitlines()
    assert ran.status == 1
    assert first.startswith("data/features/a.bin: 29 rows of 8 float32, 928 bytes, 5 classes; ")
    failed = (
        "facedata: error: 1 of 30 images failed, their rows left out: 1 undecodable; see data/features/a.bin.facedata/"
    )
    assert failed in ran.stderr
    ran = inline_facedata(*COMMAND, "data", "--max-failures", "1")
    assert (ran.status, "nothing is published; give --on-error skip or nan" in ran.stderr) == (2, True)


@pytest.mark.usefixtures("tried_here")
def test_a_dry_run_writes_nothing(inline_facedata: Facedata, work: Work) -> None:
    ran = inline_facedata(*COMMAND, "data", "--dry-run")
    assert ran.status == 0
    assert ran.stdout == "would write 30 rows of 8 float32 in 1 shard into data/features/a.bin\n"
    assert not (work.root / "data").exists()
    (work.root / "data/features").mkdir(parents=True)
    (work.root / "data/features/a.bin").write_text("mine")
    ran = inline_facedata(*COMMAND, "data", "--dry-run", "--json")
    assert (ran.status, json.loads(ran.stdout)["exit"], "a.bin: already exists" in ran.stderr) == (1, 1, True)


def test_mistakes_are_reported_before_anything_is_written(inline_facedata: Facedata, work: Work) -> None:
    for options, said, status in (
        (["--input-size", "112x"], "'112x' is not a size, as 112 or 112x96", 2),
        (["--mean", "red"], "'red' is not a number", 2),
        (["--model", "nowhere.onnx"], "nowhere.onnx: no such file", 1),
        (["--salvage"], "--salvage does not apply to the format 'folder'", 2),
    ):
        ran = inline_facedata(*COMMAND, "data", *options)
        assert (ran.status, said in ran.stderr) == (status, True)
        assert not (work.root / "data").exists()


def test_killed_it_ends_in_the_same_bytes(inline_facedata: Facedata, work: Work) -> None:
    write_images(work.images.folder, 80)
    (work.images.folder / "person_0/7.png").write_bytes(b"no image")
    options = ["--batch-size", "1", "--on-error", "skip"]
    assert inline_facedata(*COMMAND, ".", *options, "--name", "whole").status == 1
    journal = work.root / "features/a.bin.facedata/.facedata-journal.jsonl"
    running = Running(work.root, *COMMAND, ".", *options, "--workers", "2")
    running.wait_for(lambda: journal.exists() and b'"shard":' in journal.read_bytes())
    os.killpg(running.process.pid, signal.SIGKILL)
    running.end()
    assert "features/a.bin: not finished" in inline_facedata("status", "features/a.bin").stdout
    assert inline_facedata(*COMMAND, ".", *options).status == 1
    assert work.bytes_of() == work.bytes_of("whole")
    assert not list(work.root.rglob(".facedata-building"))


@pytest.mark.usefixtures("tried_here")
def test_after_a_full_disk_the_job_resumes(inline_facedata: Facedata, work: Work, small_disk: Path) -> None:
    filler, work.root = small_disk / "filler", small_disk
    filler.write_bytes(bytes((8 << 20) - 4096 * 20))
    ran = inline_facedata(*COMMAND, small_disk, "--batch-size", "1")
    assert (ran.status, "no space left on device; what is finished is kept" in ran.stderr) == (1, True)
    assert not (small_disk / "features" / "a.bin").exists()
    filler.unlink()
    assert inline_facedata(*COMMAND, small_disk, "--batch-size", "1").status == 0
    np.testing.assert_array_equal(work.read().rows, work.expected(1))
