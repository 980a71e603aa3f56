from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import FACEDATA, Ran, RecordSetMaker, jpeg, tree

MakeSet = Callable[..., RecordSetMaker]
Facedata = Callable[..., Ran]
UNPACK = ("unpack-rec", "--include", "in", "--output", "out")


@pytest.fixture
def unpack(inline_facedata: Facedata) -> Facedata:
    """Unpack the set ``in`` into ``out``, with more options."""
    return partial(inline_facedata, *UNPACK)


def test_the_files_are_those_of_the_original(record_set: MakeSet, unpack: Facedata, tmp_path: Path) -> None:
    record_set("in").insightface([2, 1, 3], index=False)
    ran = unpack()
    assert ran.status == 0
    assert tree(tmp_path / "out") == {
        f"id_{label}/{label}_{count}.jpg": jpeg(f"label {label} key {count + 1}")
        for count, label in enumerate([0, 0, 1, 2, 2, 2])
    }
    assert "6 images of 3 identities" in ran.stdout
    assert "labels 0 to 2" in ran.stdout


def test_other_options_are_refused_and_overwrite_starts_afresh(record_set: MakeSet, unpack: Facedata) -> None:
    record_set("in").insightface([2, 1])
    unpack()
    ran = unpack("--layout", "imagefolder")
    assert ran.status == 1
    assert "differs: layout was glint360k, is now imagefolder. Choose another output" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert unpack("--layout", "imagefolder", "--overwrite").status == 0
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == ["00000000", "00000001"]


def test_a_job_array_writes_what_one_run_writes_and_status_says_what_is_missing(
    record_set: MakeSet, inline_facedata: Facedata, monkeypatch: pytest.MonkeyPatch
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
    shutil.copy("in/train.rec", "out dir")
    refused = inline_facedata("unpack-rec", "--include", "out dir", "--output", "again")
    assert refused.status == 1
    assert "job that has not finished; finish it with: facedata unpack-rec --include in" in refused.stderr
    Path("out dir/train.rec").unlink()
    parts = [inline_facedata(*command, "--json", "--shard", f"{number}/3") for number in (1, 2)]
    assert [part.status for part in parts] == [0, 0]
    assert json.loads(parts[1].stdout)["finished"]
    assert inline_facedata("status", "out dir").status == 0
    inline_facedata("unpack-rec", "--include", "in", "--output", "one", "--list", "one.txt")
    assert tree(Path("out dir")) == tree(Path("one"))
    assert Path("list.txt").read_bytes() == Path("one.txt").read_bytes()


def test_records_that_cannot_be_read_fail_alone_by_name(
    record_set: MakeSet, inline_facedata: Facedata, unpack: Facedata
) -> None:
    maker = record_set("in")
    labels = [*(key // 2 for key in range(8)), -1.0, float("nan"), 0.5, 1, 1, 1]
    images = [*map(jpeg, range(11)), b"<html>not an image</html>", b"", jpeg(13)]
    offsets = [maker.add(key, *record) for key, record in enumerate(zip(labels, images, strict=True))]
    maker.data[offsets[3]] ^= 1
    maker.write()
    ran = unpack()
    assert ran.status == 1
    failed = "facedata: error: 6 of 14 images failed: 4 cannot be read, 1 not an image, 1 the record holds no image; "
    assert f"{failed}see out/failures.jsonl" in ran.stderr
    failures = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [failure["key"] for failure in failures] == ["3", "8", "9", "10", "11", "12"]
    assert failures[0]["set"].endswith("train.rec")
    assert failures[0]["offset"] == offsets[3]
    reasons = [failure["reason"] for failure in failures]
    for reason, words in zip(reasons, ["magic", "-1", "nan", "0.5", "not an image", "no image"], strict=True):
        assert words in reason
    assert len(tree(Path("out"))) == 8 + 1
    assert unpack().status == 1
    assert inline_facedata("status", "out").status == 1


def test_a_path_with_a_comma_and_repeated_includes(record_set: MakeSet, inline_facedata: Facedata) -> None:
    record_set("a,b").plain([0])
    record_set("c").plain([0])
    sets = ("--include", "a,b", "--include", "c/train.rec")
    summary = json.loads(inline_facedata("unpack-rec", *sets, "--output", "out", "--labels", "keep", "--json").stdout)
    assert (summary["images"], summary["identities"]) == (2, 1)


def test_a_read_only_disk_is_said(record_set: MakeSet, facedata: Facedata, small_disk: Path) -> None:
    record_set("in").plain([0])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ran = facedata(*UNPACK[:-1], small_disk / "out")
    assert ran.status == 1
    assert "read-only file system" in ran.stderr


def test_a_reader_that_goes_away_is_no_traceback(record_set: MakeSet, tmp_path: Path) -> None:
    record_set("in").plain([0])
    script = f"{' '.join(map(repr, [*FACEDATA, *UNPACK]))} | true"
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


@pytest.mark.parametrize(
    "name",
    ["in/train.idx", "in/list.txt", "there.txt", "nowhere/list.txt", "folder", "out/failures.jsonl", "out/ID_1/list"],
)
def test_a_list_replaces_nothing(record_set: MakeSet, unpack: Facedata, tmp_path: Path, name: str) -> None:
    record_set("in").plain([0, 1])
    (tmp_path / "there.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    ran = unpack("--list", name)
    assert ran.status in (1, 2)
    assert name in ran.stderr
    assert tree(tmp_path) == before


def test_overwrite_replaces_the_old_list(record_set: MakeSet, unpack: Facedata, tmp_path: Path) -> None:
    record_set("in").plain([0, 1])
    unpack("--list", "out/list.txt")
    assert (tmp_path / "out" / "list.txt").read_text() == "id_0/0_0.jpg 0\nid_1/1_1.jpg 1\n"
    assert unpack("--limit", 1, "--overwrite").status == 0
    assert set(tree(tmp_path / "out")) == {"id_0/0_0.jpg"}


def test_salvage_takes_records_that_the_index_does_not_list(record_set: MakeSet, unpack: Facedata) -> None:
    maker = record_set("in")
    maker.plain(range(10))
    del maker.keys[6:], maker.offsets[6:]
    maker.write()
    assert "has 208 bytes more" in unpack().stderr
    assert unpack("--salvage").status == 0
    assert len(tree(Path("out"))) == 10


def test_a_backend_that_is_not_installed_says_what_installs_it(record_set: MakeSet, unpack: Facedata) -> None:
    record_set("in").plain([0])
    ran = unpack("--backend", "mxnet")
    if ran.status == 0:
        pytest.skip("MXNet is installed here")
    assert "pip install -e '.[mxnet]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["train.rec", "train.idx"])
def test_a_pipe_in_the_place_of_a_file_is_refused(record_set: MakeSet, unpack: Facedata, name: str) -> None:
    path = record_set("in").plain([0]) / name
    path.unlink()
    os.mkfifo(path)
    ran = unpack()
    assert ran.status == 1
    assert f"in/{name}: is a named pipe, not a file" in ran.stderr
