"""What a user of ``facedata unpack-rec`` sees, in a shell of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import FACEDATA, Ran, RecordSetMaker, jpeg, tree

MakeSet = Callable[[str], RecordSetMaker]
Facedata = Callable[..., Ran]


def test_the_files_are_those_of_the_original(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path) -> None:
    record_set("glint").insightface([2, 1, 3])
    ran = inline_facedata("unpack-rec", "--include", "glint", "--output", "out/")
    assert ran.status == 0
    assert tree(tmp_path / "out") == {
        f"id_{label}/{label}_{count}.jpg": jpeg(f"label {label} key {count + 1}")
        for count, label in enumerate([0, 0, 1, 2, 2, 2])
    }
    assert "6 images of 3 identities" in ran.stdout
    assert "labels 0 to 2" in ran.stdout


def test_quiet_leaves_stderr_empty(record_set: MakeSet, inline_facedata: Facedata) -> None:
    record_set("a").plain([0, 1])
    (record_set("a").folder / "train.idx").unlink()
    ran = inline_facedata("unpack-rec", "--include", "a", "--output", "out", "--quiet")
    assert (ran.status, ran.stderr) == (0, "")


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    record_set("a").insightface([2, 1])
    (tmp_path / "a" / "train.idx").unlink()
    ran = inline_facedata("unpack-rec", "--include", "a", "--output", "out", "--dry-run")
    assert ran.status == 0
    assert "would write 3 images" in ran.stdout
    assert {path.name for path in tmp_path.rglob("*")} - {"property"} == {"a", "train.rec"}


def test_other_options_into_the_same_output_are_refused_and_overwrite_starts_afresh(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    record_set("a").insightface([2, 1])
    inline_facedata("unpack-rec", "--include", "a", "--output", "out")
    ran = inline_facedata("unpack-rec", "--include", "a", "--output", "out", "--layout", "imagefolder")
    assert ran.status == 1
    assert "layout was glint360k, is now imagefolder" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    ran = inline_facedata("unpack-rec", "--include", "a", "--output", "out", "--layout", "imagefolder", "--overwrite")
    assert ran.status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["00000000", "00000001"]


def test_a_job_array_writes_what_one_run_writes_and_status_says_what_is_missing(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facedata.jobs.plan._SAMPLES_PER_SHARD", 15)
    record_set("in").plain([label // 5 for label in range(30)])
    command = ("unpack-rec", "--include", "in", "--output", "out dir", "--list", "list.txt", "--workers", "1")
    inline_facedata(*command, "--shard=3/3")
    ran = inline_facedata("status", "out dir")
    assert ran.status == 75
    for line in (
        "1 of 2 shards done",
        "1 shard missing: 0",
        "elements of the job array to run again: --shard 2/3",
        "resume with: facedata unpack-rec --include in --output 'out dir' --list list.txt --workers 1\n",
    ):
        assert line in ran.stdout
    assert json.loads(inline_facedata("status", "out dir", "--json").stdout)["missing"] == [[0, 0]]
    shutil.copy(tmp_path / "in" / "train.rec", tmp_path / "out dir")
    refused = inline_facedata("unpack-rec", "--include", "out dir", "--output", "again")
    assert refused.status == 1
    assert "job that has not finished; finish it with: facedata unpack-rec --include in" in refused.stderr
    (tmp_path / "out dir" / "train.rec").unlink()
    parts = [inline_facedata(*command, "--json", "--shard", f"{number}/3") for number in (1, 2)]
    assert [part.status for part in parts] == [0, 0]
    assert json.loads(parts[1].stdout)["finished"]
    assert inline_facedata("status", "out dir").status == 0
    inline_facedata("unpack-rec", "--include", "in", "--output", "one", "--list", "one.txt")
    assert tree(tmp_path / "out dir") == tree(tmp_path / "one")
    assert (tmp_path / "list.txt").read_bytes() == (tmp_path / "one.txt").read_bytes()


def test_records_that_cannot_be_read_fail_alone_by_name(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    maker = record_set("a")
    offsets = [maker.add(key, key // 2, jpeg(key)) for key in range(8)]
    maker.add(8, -1.0, jpeg(8))
    maker.add(9, float("nan"), jpeg(9))
    maker.add(10, 0.5, jpeg(10))
    maker.add(11, 1, b"<html>not an image</html>")
    maker.add(12, 1, b"")
    maker.add(13, 1, jpeg(13))
    maker.data[offsets[3]] ^= 1
    maker.write()
    ran = inline_facedata("unpack-rec", "--include", "a", "--output", "out")
    assert ran.status == 1
    assert "6 images failed" in ran.stdout
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [failure["key"] for failure in failures] == ["3", "8", "9", "10", "11", "12"]
    assert failures[0]["set"].endswith("train.rec")
    assert failures[0]["offset"] == offsets[3]
    reasons = [failure["reason"] for failure in failures]
    for reason, words in zip(reasons, ["magic", "-1", "nan", "0.5", "not an image", "no image"], strict=True):
        assert words in reason
    assert len(tree(tmp_path / "out")) == 8 + 1
    assert inline_facedata("unpack-rec", "--include", "a", "--output", "out").status == 1
    assert inline_facedata("status", "out").status == 1


def test_a_path_with_a_comma_and_repeated_includes(record_set: MakeSet, inline_facedata: Facedata) -> None:
    record_set("a,b").plain([0])
    record_set("c").plain([0])
    ran = inline_facedata(
        "unpack-rec", "--include", "a,b", "--include", "c/train.rec", "--output", "out", "--labels", "keep", "--json"
    )
    assert json.loads(ran.stdout)["images"] == 2
    assert json.loads(ran.stdout)["identities"] == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--include", "nowhere", "--output", "o"), 1, "nowhere: no such file or folder"),
        (("--include", "empty", "--output", "o"), 1, "empty: no .rec file in this folder"),
        (("--include", "a", "--output", "a/out"), 1, "the output lies in the input"),
        (("--include", "a", "--output", "o", "--shard", "0/4"), 2, "counted from 1/4 to 4/4"),
        (("--include", "a", "--output", "o", "--shard", "5/4"), 2, "counted from 1/4 to 4/4"),
        (("--include", "a", "--output", "o", "--shard", "x"), 2, "is not i/n"),
        (("--include", "a", "--output", "o", "--workers", "0"), 2, "--workers"),
        (("--include", ",", "--output", "o"), 2, "names no record set"),
        (("--include", "a", "--output", "o", "--overwrite", "--shard", "1/2"), 2, "other elements"),
        (("--include", "a", "--output", "full"), 1, "is not empty"),
        (("--include", "a", "--output", "full", "--overwrite"), 1, "deletes only what facedata writes"),
        (("--include", "zero", "--output", "o"), 1, "is empty (0 bytes)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    record_set("a").plain([0, 1])
    for name in ("empty", "full", "zero"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "zero" / "train.rec").touch()
    ran = inline_facedata("unpack-rec", *arguments)
    assert ran.status == status
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_read_only_disk_is_said(record_set: MakeSet, facedata: Facedata, small_disk: Path) -> None:
    record_set("a").plain([0])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ran = facedata("unpack-rec", "--include", "a", "--output", small_disk / "out")
    assert ran.status == 1
    assert "read-only file system" in ran.stderr


def test_a_reader_that_goes_away_is_no_traceback(record_set: MakeSet, tmp_path: Path) -> None:
    record_set("a").plain([0])
    script = f"{' '.join(map(repr, FACEDATA))} unpack-rec --include a --output out | true"
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


@pytest.mark.parametrize("name", ["in/train.idx", "in/list.txt", "there.txt", "nowhere/list.txt", "folder"])
def test_a_list_replaces_nothing(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path, name: str) -> None:
    record_set("in").plain([0, 1])
    (tmp_path / "there.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    ran = inline_facedata("unpack-rec", "--include", "in", "--output", "out", "--list", name)
    assert ran.status in (1, 2)
    assert name in ran.stderr
    assert tree(tmp_path) == before


def test_overwrite_replaces_the_old_list(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path) -> None:
    record_set("in").plain([0, 1])
    inline_facedata("unpack-rec", "--include", "in", "--output", "out", "--list", "out/list.txt")
    assert (tmp_path / "out" / "list.txt").read_text() == "id_0/0_0.jpg 0\nid_1/1_1.jpg 1\n"
    assert inline_facedata("unpack-rec", "--include", "in", "--output", "out", "--limit", 1, "--overwrite").status == 0
    assert set(tree(tmp_path / "out")) == {"id_0/0_0.jpg"}


def test_salvage_takes_records_that_the_index_does_not_list(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    maker = record_set("in")
    maker.plain(range(10))
    del maker.keys[6:], maker.offsets[6:]
    maker.write()
    assert "has 208 bytes more" in inline_facedata("unpack-rec", "--include", "in", "--output", "out").stderr
    assert inline_facedata("unpack-rec", "--include", "in", "--output", "out", "--salvage").status == 0
    assert len(tree(tmp_path / "out")) == 10


def test_a_backend_that_is_not_installed_says_what_installs_it(record_set: MakeSet, inline_facedata: Facedata) -> None:
    record_set("in").plain([0])
    ran = inline_facedata("unpack-rec", "--include", "in", "--output", "out", "--backend", "mxnet")
    if ran.status == 0:
        pytest.skip("MXNet is installed here")
    assert "pip install 'facedata[mxnet]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["train.rec", "train.idx"])
def test_a_pipe_in_the_place_of_a_file_is_refused_not_waited_for(
    record_set: MakeSet, inline_facedata: Facedata, name: str
) -> None:
    folder = record_set("in").plain([0])
    (folder / name).unlink()
    os.mkfifo(folder / name)
    ran = inline_facedata("unpack-rec", "--include", "in", "--output", "out")
    assert ran.status == 1
    assert f"in/{name}: is a named pipe, not a file" in ran.stderr
