"""``facedata align`` as it is typed: what it prints, what it leaves behind, and that it goes on after anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from align_support import Photo, draw_photos, write_csv, write_photos
from support import FACEDATA, Ran, tree

Facedata = Callable[..., Ran]


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    """A folder ``raw`` of photos, and ``points.csv``."""
    photos = draw_photos()
    write_photos(tmp_path / "raw", photos)
    write_csv(tmp_path / "points.csv", photos)
    return photos


def test_a_folder_of_photos_becomes_a_folder_of_faces(
    inline_facedata: Facedata, photos: list[Photo], tmp_path: Path
) -> None:
    ran = inline_facedata("align", "raw/", "--landmarks", "points.csv", "--output", "out/", "--preview", "sheet.jpg")
    assert (ran.status, ran.stderr) == (0, "")
    first, second, third = ran.stdout.splitlines()
    assert first.startswith("out/: 12 images of 3 identities, ")
    assert second == "  raw/: folder, 12 images, labels 0 to 2"
    assert third == "  preview: sheet.jpg"
    assert {name for name in tree(tmp_path / "out") if "/" in name} == {photo.key for photo in photos}
    (tmp_path / "out" / ".facedata-summary.json").unlink()  # as after a kill
    ran = inline_facedata("build-lmdb", "out", "--output", "a.lmdb")
    assert ran.status == 1
    assert "facedata align raw/ --landmarks points.csv --output out" in ran.stderr


def test_what_fails_is_counted_by_its_cause_and_the_status_is_1(
    inline_facedata: Facedata, photos: list[Photo], tmp_path: Path
) -> None:
    other = replace(photos[0], key="nobody/1.jpg")
    bad = [replace(photo, landmarks=photo.landmarks * 0 + 5) for photo in photos[:2]]
    write_csv(tmp_path / "points.csv", [other, *bad, *photos[2:9]])
    command = ["align", "raw", "--landmarks", "points.csv", "--output", "out", "--write-landmarks", "found.csv"]
    ran = inline_facedata(*command)
    assert ran.status == 1
    assert ran.stdout.splitlines()[2:] == [
        "  5 images failed: out/failures.jsonl",
        "    3 no landmarks",
        "    2 degenerate landmarks",
        "  1 entry of points.csv without an image: out/unused-landmarks.txt",
        "  landmarks: found.csv",
    ]
    assert "points.csv: has no landmarks for 3 of 12 images" in ran.stderr
    again = inline_facedata(*command)
    assert (again.status, again.stdout.splitlines()[2:]) == (1, ran.stdout.splitlines()[2:])


def test_a_dry_run_writes_nothing_and_json_is_one_object(
    inline_facedata: Facedata, photos: list[Photo], tmp_path: Path
) -> None:
    command = ["align", "raw", "--landmarks", "points.csv", "--output", "out", "--min-size", "110"]
    ran = inline_facedata(*command, "--dry-run")
    assert (ran.status, ran.stdout.startswith("would write 12 images in 1 shard into out")) == (0, True)
    assert not (tmp_path / "out").exists()
    ran = inline_facedata(*command, "--json")
    value = json.loads(ran.stdout)
    assert (ran.status, value["finished"], value["unused_landmarks"]) == (1, True, 0)
    assert value["images"] + value["causes"]["too small"] == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "100"], "112"),
        (["--model", "m.onnx"], "--model: needs a --detector"),
        (["--landmarks", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--preview", "sheet.gif"], "sheet.gif: expected a name that ends in one of .png, .jpg, .jpeg"),
        (["--faces", "best"], "'best' is not one of"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(
    inline_facedata: Facedata, photos: list[Photo], tmp_path: Path, options: list[str], said: str
) -> None:
    given = [] if "--landmarks" in options else ["--landmarks", "points.csv"]
    ran = inline_facedata("align", "raw", *given, "--output", "out", *options)
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
        running = subprocess.Popen(
            [*FACEDATA, *command, "killed.csv", "--output", "killed"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.5 + 0.25 * number)
        if running.poll() is not None:
            break
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert facedata(*command, "killed.csv", "--output", "killed").status == 0
    whole, killed = (tree(tmp_path / name) for name in ("whole", "killed"))
    assert {name: whole[name] for name in whole if "/" in name} == {
        name: killed[name] for name in killed if "/" in name
    }
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()


def test_a_full_disk_is_named_and_after_it_the_job_goes_on(
    facedata: Facedata, small_disk: Path, tmp_path: Path
) -> None:
    photos = [replace(photo, key=f"p{n % 7}/{n}.jpg") for n, photo in enumerate(draw_photos(2, 3) * 20)]
    write_photos(tmp_path / "raw", photos)
    write_csv(tmp_path / "points.csv", photos)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(7 << 20))
    command = ["align", "raw", "--landmarks", "points.csv", "--output", small_disk / "out", "--format", "png"]
    ran = facedata(*command)
    assert ran.status == 1
    assert "no space left on device" in ran.stderr
    assert "run the same command again" in ran.stderr
    filler.unlink()
    command[-1] = "jpg"
    assert facedata(*command, "--overwrite").status == 0


def test_a_file_that_appears_at_a_final_name_while_the_job_is_interrupted_is_not_replaced(
    inline_facedata: Facedata, photos: list[Photo], tmp_path: Path
) -> None:
    command = ["align", "raw", "--landmarks", "points.csv", "--output", "out", "--write-landmarks", "found.csv"]
    assert inline_facedata(*command, "--shard", "1/2").status == 0
    for name in (".facedata-summary.json", "found.csv"):  # as after a kill in the middle
        (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "found.csv").write_text("mine\n")
    ran = inline_facedata(*command)
    assert ran.status == 1
    assert "found.csv: appeared after this job began" in ran.stderr
    assert (tmp_path / "found.csv").read_text() == "mine\n"
    (tmp_path / "found.csv").unlink()
    assert inline_facedata(*command).status == 0
