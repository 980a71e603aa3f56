"""``facedata extract-features`` as it is typed: what it prints and leaves behind, that it goes on after anything."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from features.extraction.conftest import (
    Floats,
    Images,
    embedding_net,
    plain_loop,
    read_set,
    set_bytes,
    tried_here,
    write_images,
)
from support import Ran, Running

__all__ = ["tried_here"]  # a fixture

Facedata = Callable[..., Ran]
COMMAND = ["extract-features", "images", "--model", "net.onnx", "--name", "a"]
NET, DATA = Path("net.onnx"), Path("data")


@pytest.fixture
def images(inline_facedata: Facedata) -> Images:
    """A folder of images, and ``net.onnx``."""
    embedding_net(NET)
    return write_images(Path("images"), 30)


@pytest.fixture
def extract(inline_facedata: Facedata, images: Images, request: pytest.FixtureRequest) -> Facedata:
    request.getfixturevalue("tried_here")
    return lambda *more: inline_facedata(*COMMAND, "--output", "data", *more)


def test_a_folder_becomes_a_set(inline_facedata: Facedata, images: Images) -> None:
    ran = inline_facedata(*COMMAND, "--output", "data/")
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.stdout.startswith("data/features/a.bin: 30 rows of 8 float32, 960 bytes, 5 classes; ")
    np.testing.assert_array_equal(read_set(DATA).rows, plain_loop(NET, images.pixels, 32))
    again = inline_facedata(*COMMAND, "--output", "data/", "--json")
    value = json.loads(again.stdout)
    assert (again.status, value["nothing_to_do"], value["images"]) == (0, True, 30)
    assert (value["rows"], value["dimensions"], value["classes"]) == (30, 8, 5)
    status = inline_facedata("status", "data/features/a.bin")
    assert (status.status, status.stdout.splitlines()[0]) == (0, "data/features/a.bin: finished: 1 of 1 shard done")


def test_options_reach_the_network(extract: Facedata, images: Images) -> None:
    options = ["--mean", "1,2,3", "--scale", "64", "--color", "bgr", "--batch-size", "7", "--flip", "--normalize"]
    ran = extract(*options, "--unlabeled", "--limit", "20", "--quiet")
    assert (ran.status, ran.stderr) == (0, "")
    mean = np.array([1, 2, 3], np.float32)

    def rows(step: int) -> Floats:
        pixels = [image[:, ::step] for image in images.pixels[:20]]
        return plain_loop(NET, pixels, 7, prepare=lambda image: (image.astype(np.float32) - mean) / np.float32(64))

    both = rows(1) + rows(-1)
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(read_set(DATA).rows, unit, rtol=1e-6, atol=1e-7)
    assert read_set(DATA).labels == [-1] * 20
    plan = json.loads((DATA / "features/a.bin.facedata/.facedata-plan.json").read_text())
    assert plan["options"]["preprocessing"]["color"] == "bgr"
    assert {"sha256", "ONNX Runtime"} < plan["options"]["model"].keys()


def test_failures_are_counted_and_the_status_is_1(extract: Facedata, images: Images) -> None:
    (images.folder / images.keys[2]).write_bytes(b"no image")
    ran = extract()
    assert (ran.status, ran.stdout) == (1, "")
    said = "data/features/a.bin: is not published, because 1 of 30 images failed: see data/features/a.bin.facedata/"
    assert said in ran.stderr
    ran = extract("--on-error", "skip")
    assert ran.status == 1
    first, second = ran.stdout.splitlines()
    assert first.startswith("data/features/a.bin: 29 rows of 8 float32, 928 bytes, 5 classes; ")
    assert second == "  1 image failed, rows left out: data/features/a.bin.facedata/failures.jsonl"
    assert read_set(DATA).keys == images.keys[:2] + images.keys[3:]


def test_a_dry_run_writes_nothing(extract: Facedata) -> None:
    ran = extract("--dry-run")
    assert (ran.status, ran.stdout) == (0, "would write 30 rows of 8 float32 in 1 shard into data/features/a.bin\n")
    assert not DATA.exists()
    (DATA / "features").mkdir(parents=True)
    (DATA / "features/a.bin").write_text("mine")
    ran = extract("--dry-run", "--json")
    assert (ran.status, ran.stdout) == (1, "")
    assert "a.bin: already exists" in ran.stderr


@pytest.mark.parametrize(
    ("options", "said", "status"),
    [
        (["--input-size", "112x"], "'112x' is not a size, as 112 or 112x96", 2),
        (["--mean", "red"], "'red' is not a number", 2),
        (["--model", "nowhere.onnx"], "nowhere.onnx: no such file", 1),
        (["--salvage"], "--salvage does not apply to the format 'folder'", 2),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    extract: Facedata, options: list[str], said: str, status: int
) -> None:
    ran = extract(*options)
    assert ran.status == status
    assert said in ran.stderr
    assert not DATA.exists()


def test_killed_it_ends_in_the_same_bytes(inline_facedata: Facedata) -> None:
    embedding_net(NET)
    images = write_images(Path("images"), 80)
    (images.folder / images.keys[7]).write_bytes(b"no image")
    command = [*COMMAND, "--batch-size", "1", "--on-error", "skip"]
    assert inline_facedata(*command, "--output", "whole").status == 1
    journal = Path("killed/features/a.bin.facedata/.facedata-journal.jsonl")
    running = Running(Path(), *command, "--workers", "2", "--output", "killed")
    running.wait_for(lambda: journal.exists() and b'"shard":' in journal.read_bytes())
    os.killpg(running.process.pid, signal.SIGKILL)
    running.end()
    assert "killed/features/a.bin: not finished" in inline_facedata("status", "killed/features/a.bin").stdout
    assert inline_facedata(*command, "--output", "killed").status == 1
    assert set_bytes(Path("killed")) == set_bytes(Path("whole"))
    assert not list(Path("killed").rglob(".facedata-building"))


def test_after_a_full_disk_the_job_resumes(extract: Facedata, images: Images, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes((8 << 20) - 4096 * 20))
    more = ["--output", small_disk, "--batch-size", "1"]
    ran = extract(*more)
    assert ran.status == 1
    assert "no space left on device; what is finished is kept" in ran.stderr
    assert not (small_disk / "features/a.bin").exists()
    filler.unlink()
    assert extract(*more).status == 0
    np.testing.assert_array_equal(read_set(small_disk).rows, plain_loop(NET, images.pixels, 1))
