"""``facedata align`` as it is typed: what it prints, what it leaves behind, and that it goes on after anything."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from align_support import draw_photos, write_csv, write_photos
from support import Ran, Running, tree

Facedata = Callable[..., Ran]
PHOTOS = draw_photos()


@pytest.fixture
def align(inline_facedata: Facedata, tmp_path: Path) -> Facedata:
    """Align the photos of the folder ``raw`` with the landmarks in ``points.csv``; options that come later count."""
    write_photos(tmp_path / "raw", PHOTOS)
    write_csv(tmp_path / "points.csv", PHOTOS)
    return lambda *options: inline_facedata("align", "raw/", "--landmarks", "points.csv", "--output", "out/", *options)


def test_a_folder_of_photos_becomes_one_of_faces(align: Facedata, inline_facedata: Facedata, tmp_path: Path) -> None:
    ran = align("--preview", "sheet.jpg")
    assert (ran.status, "warning" in ran.stderr) == (0, False)
    first, second, third = ran.stdout.splitlines()
    assert first.startswith("out/: 12 images of 3 identities, ")
    assert second == "  raw/: folder, 12 images, labels 0 to 2"
    assert third == "  preview: sheet.jpg"
    assert {name for name in tree(tmp_path / "out") if "/" in name} == {photo.key for photo in PHOTOS}
    (tmp_path / "out" / ".facedata-summary.json").unlink()  # as after a kill
    ran = inline_facedata("build-lmdb", "out", "--output", "a.lmdb")
    assert ran.status == 1
    assert "facedata align raw/ --landmarks points.csv --output out" in ran.stderr


def test_what_fails_is_counted_by_its_cause_and_the_status_is_1(align: Facedata, tmp_path: Path) -> None:
    bad = [replace(photo, landmarks=photo.landmarks * 0 + 5) for photo in PHOTOS[:2]]
    write_csv(tmp_path / "points.csv", [replace(PHOTOS[0], key="nobody/1.jpg"), *bad, *PHOTOS[2:9]])
    ran = align("--write-landmarks", "found.csv")
    assert ran.status == 1
    assert ran.stdout.splitlines()[2:] == [
        "  1 entry of points.csv without an image: out/unused-landmarks.txt",
        "  landmarks: found.csv",
    ]
    assert "points.csv: has no landmarks for 3 of 12 images" in ran.stderr
    failed = "5 of 12 images failed: 3 no landmarks, 2 degenerate landmarks; see out/failures.jsonl\n"
    assert ran.stderr.endswith(f"facedata: error: {failed}")
    again = align("--write-landmarks", "found.csv")
    assert (again.status, again.stdout.splitlines()[2:]) == (1, ran.stdout.splitlines()[2:])
    again = align("--write-landmarks", "found.csv", "--max-failures", "42%")
    assert (again.status, f"facedata: warning: {failed}" in again.stderr) == (0, True)


def test_a_dry_run_writes_nothing_and_json_is_one_object(align: Facedata, tmp_path: Path) -> None:
    ran = align("--min-size", "110", "--dry-run")
    assert (ran.status, ran.stdout.startswith("would write 12 images in 1 shard into out")) == (0, True)
    assert not (tmp_path / "out").exists()
    ran = align("--min-size", "110", "--json")
    value = json.loads(ran.stdout)
    assert (ran.status, value["finished"], value["unused_landmarks"], value["failures"]) == (0, True, 0, 0)
    assert value["images"] + value["skipped_causes"]["too small"] == 12
    skipped = f"  {value['skipped']} images skipped: {value['skipped']} too small; see out/skipped.jsonl\n"
    assert skipped in align("--min-size", "110").stdout
    (tmp_path / "out/.facedata-summary.json").unlink()
    (tmp_path / "out/skipped.jsonl").unlink()
    assert skipped in align("--min-size", "110").stdout
    assert (tmp_path / "out/skipped.jsonl").exists()
    assert "warning: the output is empty: no image has" in align("--min-size", "999", "--overwrite").stderr
    assert align("--overwrite").status == 0
    assert not (tmp_path / "out/skipped.jsonl").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--size", "100", "112"),
        ("--model", "m.onnx", "--model: needs a --detector"),
        ("--landmarks", "nowhere.txt", "nowhere.txt: no such file"),
        ("--preview", "sheet.gif", "sheet.gif: expected a name that ends in one of .png, .jpg, .jpeg"),
        ("--faces", "best", "'best' is not one of"),
        ("--max-failures", "101%", "'101%' is not a number of images or a share of them"),
    ],
)
def test_wrong_options_are_named_first(align: Facedata, tmp_path: Path, option: str, value: str, said: str) -> None:
    ran = align(option, value)
    assert ran.status in (1, 2)
    assert said in ran.stderr
    assert not (tmp_path / "out").exists()


def test_killed_again_and_again_it_ends_in_the_same_bytes(facedata: Facedata, tmp_path: Path) -> None:
    photos = [replace(photo, key=f"p{n % 7}/{n}.jpg") for n, photo in enumerate(draw_photos(2, 3) * 120)]
    write_photos(tmp_path / "raw", photos)
    write_csv(tmp_path / "points.csv", photos)
    command = ["align", "raw", "--landmarks", "points.csv", "--workers", "2", "--write-landmarks"]
    assert facedata(*command, "whole.csv", "--output", "whole").status == 0
    for number in range(8):
        running = Running(tmp_path, *command, "killed.csv", "--output", "killed")
        time.sleep(0.5 + 0.25 * number)
        os.killpg(running.process.pid, signal.SIGKILL)
        running.end()
        if running.process.returncode == 0:
            break
    assert facedata(*command, "killed.csv", "--output", "killed").status == 0
    assert tree(tmp_path / "whole") == tree(tmp_path / "killed")
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()


def test_a_full_disk_is_named_and_after_it_the_same_command_goes_on(align: Facedata, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes((8 << 20) - (256 << 10)))
    options = ["--output", small_disk / "out", "--format", "png", "--size", "224"]
    ran = align(*options)
    assert ran.status == 1
    assert "no space left on device" in ran.stderr
    assert "run the same command again" in ran.stderr
    (small_disk / "filler").unlink()
    assert align(*options).status == 0


def test_a_file_that_appears_at_a_final_name_after_a_kill_is_not_replaced(align: Facedata, tmp_path: Path) -> None:
    found = tmp_path / "found.csv"
    assert align("--write-landmarks", "found.csv", "--shard", "1/2").status == 0
    (tmp_path / "out" / ".facedata-summary.json").unlink(missing_ok=True)  # as after a kill in the middle
    found.write_text("mine\n")
    ran = align("--write-landmarks", "found.csv")
    assert ran.status == 1
    assert "found.csv: appeared after this job began" in ran.stderr
    assert found.read_text() == "mine\n"
    found.unlink()
    assert align("--write-landmarks", "found.csv").status == 0
