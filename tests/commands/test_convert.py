"""What a user of ``facedata convert``, ``build-lmdb``, ``pack-rec`` and ``unpack-rec`` sees."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import FACEDATA, Ran, RecordSetMaker, Running, big_set, tree

import facedata as facedata_package
from facedata.dataset import open_dataset
from facedata.jobs.engine import LocalExecutor
from facedata.jobs.journal import Journal

MakeSet = Callable[..., RecordSetMaker]
Facedata = Callable[..., Ran]

TARGETS = {
    "build-lmdb": ("a.lmdb", "build-lmdb {big} --keep-undecodable --output {out}/a.lmdb"),
    "single-file": ("a.lmdb.facedata", "build-lmdb {big} --keep-undecodable --single-file --output {out}/a.lmdb"),
    "pack-rec": ("packed", "pack-rec {big} --list --output {out}/packed"),
    "webdataset": ("tars", "convert {big} webdataset:{out}/tars/a-%04d.tar --shard-size 1MB"),
    "parquet": ("parquet", "convert {big} parquet:{out}/parquet --shard-size 1MB"),
    "unpack-rec": ("images", "unpack-rec --include {big} --limit 8200 --output {out}/images --list {out}/list.txt"),
}
"""The folder with the journal, and the command."""


class Big:
    """A large record set, and what an undisturbed run of each command makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = big_set(RecordSetMaker(folder / "big"))
        self._trees: dict[str, dict[str, bytes]] = {}

    def command(self, target: str, out: Path | str, *more: str) -> list[str]:
        return [*TARGETS[target][1].format(big=self.records, out=out).split(), *more]

    def undisturbed(self, target: str) -> dict[str, bytes]:
        if target not in self._trees:
            out = self.folder / f"undisturbed-{len(self._trees)}"
            out.mkdir()
            subprocess.run([*FACEDATA, *self.command(target, out)], check=True, capture_output=True, timeout=120)
            self._trees[target] = tree(out)
        return self._trees[target]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Big:
    return Big(tmp_path_factory.mktemp("big"))


def begun_and_done(folder: Path, runs: int, shards: int) -> bool:
    journal = Journal(folder)
    plan = journal.read_plan()
    return plan is not None and len(journal.runs()) > runs and sum(journal.load(plan).done) >= shards


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("build-lmdb", signal.SIGKILL),
        ("parquet", signal.SIGKILL),
        ("unpack-rec", signal.SIGKILL),
        ("single-file", signal.SIGTERM),
        ("pack-rec", signal.SIGINT),
        ("webdataset", signal.SIGKILL),
    ],
)
def test_a_run_that_is_stopped_resumes_and_ends_in_the_same_bytes(
    big: Big, facedata: Facedata, tmp_path: Path, target: str, number: int
) -> None:
    where, listed, stopped = tmp_path / TARGETS[target][0], tmp_path / "list.txt", 0
    whole = big.undisturbed(target)
    kill = os.killpg if number == signal.SIGINT else os.kill  # Ctrl-C reaches the whole group
    for shards in (0, 2):
        running = Running(tmp_path, *big.command(target, tmp_path, "--workers", "2"))
        running.wait_for(partial(begun_and_done, where, len(Journal(where).runs()) if where.exists() else 0, shards))
        with suppress(ProcessLookupError):  # it may just have finished
            kill(running.process.pid, number)
        errors = running.end()
        if running.process.returncode != 0:
            stopped += 1
            assert not listed.exists() or listed.read_bytes() == whole["list.txt"]  # killed while it published
            assert facedata("status", where).status in (75, 0)
            if number != signal.SIGKILL:
                assert running.process.returncode == 75
                assert "run the same command again" in errors
    assert facedata(*big.command(target, tmp_path)).status == 0
    assert stopped > 0
    assert tree(tmp_path) == whole
    hidden = {path.name for path in tmp_path.rglob(".facedata-*")}
    assert hidden == {f".facedata-{name}" for name in ("plan.json", "journal.jsonl", "lock", "summary.json")}


@pytest.mark.parametrize("target", ["build-lmdb", "unpack-rec"])
def test_of_two_runs_into_one_output_one_says_so(big: Big, facedata: Facedata, tmp_path: Path, target: str) -> None:
    first = Running(tmp_path, *big.command(target, ".", "--workers", "1"))
    first.wait_for(lambda: (tmp_path / TARGETS[target][0] / ".facedata-journal.jsonl").exists())
    os.killpg(first.process.pid, signal.SIGSTOP)
    second = facedata(*big.command(target, "."))
    os.killpg(first.process.pid, signal.SIGCONT)
    first.end()
    assert first.process.returncode == 0
    assert second.status == 1
    assert "another run is writing here" in second.stderr


@pytest.mark.parametrize("target", ["single-file", "pack-rec", "webdataset", "unpack-rec"])
def test_after_a_full_disk_the_next_run_resumes(big: Big, facedata: Facedata, small_disk: Path, target: str) -> None:
    ran = facedata(*big.command(target, small_disk))
    assert ran.status == 1, ran.stderr
    assert "no space left on device" in ran.stderr
    assert "run the same command again" in ran.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert facedata(*big.command(target, small_disk)).status == 0
    assert tree(small_disk) == big.undisturbed(target)


def test_the_way_from_the_command_to_the_workers_is_short(
    record_set: MakeSet, inline_facedata: Facedata, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_set("a").plain([0])
    package, calls, submit = str(Path(facedata_package.__file__).parent), [], LocalExecutor.submit

    def recorded(self: LocalExecutor, *arguments: Any, **keywords: Any) -> Any:
        names = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(package)]
        calls.append(names[names.index("command") + 1 :])
        return submit(self, *arguments, **keywords)

    monkeypatch.setattr(LocalExecutor, "submit", recorded)
    assert inline_facedata("convert", "a", "null:out").status == 0
    assert len(calls[0]) + 1 <= 6, calls[0]  # and the call of submit itself


def test_the_summary_of_many_sets_of_failures_and_of_a_useless_option(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    record_set("a").insightface([2, 1])
    ran = inline_facedata("convert", *["a"] * 12, "null:")
    assert (ran.stdout.count("  a: "), ran.stdout.endswith("  and 3 more; --json lists all\n")) == (9, True)
    inline_facedata("convert", "a", "folder:out")
    (tmp_path / "out/id_0/0_0.jpg").write_bytes(b"")
    failed = json.loads(inline_facedata("convert", "out", "null:", "--json").stdout)
    assert (failed["error"], failed["exit"]) == ("1 of 3 images failed: 1 cannot be read", 1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(b"\xff\xd8\xff photo")
    said = inline_facedata("convert", "photos", "folder:copies", "--relabel").stderr
    assert "--relabel changes nothing: no sample has a label" in said


def test_the_summary_in_words_and_as_json(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path) -> None:
    record_set("a").insightface([2, 1])
    record_set("b").plain([0, 3])
    ran = inline_facedata("convert", "a", "rec:b", "folder:out", "--json")
    assert ran.stdout.count("\n") == 1
    summary = json.loads(ran.stdout)
    assert (summary["images"], summary["identities"], summary["finished"], summary["failures"]) == (5, 4, True, 0)
    sets = [(one["set"], one["format"], one["first_label"]) for one in summary["sets"]]
    assert sets == [("a", "rec", 0), ("b", "rec", 2)]
    assert summary["labels"] == 6
    ran = inline_facedata("convert", "a", "rec:b", "folder:out")
    assert "all done before" in ran.stdout
    assert "  2 of 6 labels have no image; --relabel closes the gaps\n" in ran.stdout
    ran = inline_facedata("convert", "out", "webdataset:tars/%03d.tar")
    assert ran.stdout.startswith("tars: 5 images in 1 tar, ")
    assert "  out: folder, 5 images, labels 0 to 5\n" in ran.stdout
    assert sorted(os.listdir(tmp_path / "tars"))[-2:] == ["000.tar", "classes.txt"]
    ran = inline_facedata("build-lmdb", "out", "--output", "x.lmdb", "--single-file", "--keep-undecodable")
    assert ran.stdout.startswith("x.lmdb: 5 images of 4 classes, ")
    assert "keys and labels: " in ran.stdout
    assert ran.stderr.count("warning") == 1, "gaps in the labels are a warning"
    assert inline_facedata("status", "x.lmdb").stdout.startswith("x.lmdb: finished")


def test_a_dry_run_writes_nothing(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path) -> None:
    record_set("a").plain([0, 1], index=False)
    for line in (
        "build-lmdb a --output x.lmdb",
        "pack-rec a --output p",
        "convert a folder:o",
        "unpack-rec --include a --output o",
    ):
        ran = inline_facedata(*line.split(), "--dry-run")
        assert ran.status == 0
        assert ran.stdout.startswith("would write 2 images in 1 shard into ")
        assert json.loads(inline_facedata(*line.split(), "--dry-run", "--json").stdout)["images"] == 2
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "train.rec"}


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("convert a out", 2, "name the format to write: FORMAT:out, one of rec, folder, list, lmdb"),
        ("convert a folder:out --kv x", 2, "--kv does not apply to the format 'folder'; it has --layout"),
        ("convert a webdataset:out/x.tar", 2, "say where their number goes"),
        ("convert a webdataset:out --shard-size 12XB", 2, "'12XB' is not a size, as 1GB, 500MB or 64MiB"),
        ("convert a list:train.txt", 2, "name the folder of the images"),
        ("convert a rec:", 2, "names no path"),
        ("convert rec: null:out", 2, "names no path"),
        ("convert '' null:out", 2, "names no path"),
        ("pack-rec a --output p --shuffle", 2, "choose --style plain, or leave out --shuffle"),
        ("pack-rec a --output p --style plain --shard 1/2", 2, "No such option '--shard'"),
        ("convert a rec:p --shard 1/2", 2, "cannot be divided with --shard"),
        ("convert nowhere folder:out", 1, "nowhere: no such file or folder"),
        ("convert rec:nowhere folder:out", 1, "nowhere: no such file or folder"),
        ("convert empty folder:out", 1, "to see what is wrong, name its format: FORMAT:empty, one of rec, folder,"),
        ("convert precious folder:out", 1, "is not a dataset that facedata knows: it is a text file that begins 'prec"),
        ("convert a folder:a/out", 1, "the output lies in the input a"),
        ("build-lmdb a --output mine.lmdb", 1, "is not empty (it holds 'precious'), and no facedata job wrote it"),
        ("build-lmdb a --output x.lmdb --kv precious", 1, "precious: already exists; choose another name"),
        ("build-lmdb a --output x.lmdb --keys path", 2, "--keys"),
        ("convert a null:out --min-images 5", 1, "no class has 5 images: the largest has 1; lower --min-images"),
        ("unpack-rec --include empty --output o", 1, "empty: no .rec file in this folder"),
        ("unpack-rec --include zero --output o", 1, "is empty (0 bytes)"),
        ("unpack-rec --include , --output o", 2, "no record set was given"),
        ("unpack-rec --include a --output o --shard 0/4", 2, "counted from 1/4 to 4/4"),
        ("unpack-rec --include a --output o --shard 5/4", 2, "counted from 1/4 to 4/4"),
        ("unpack-rec --include a --output o --shard x", 2, "is not i/n"),
        ("unpack-rec --include a --output o --overwrite --shard 1/2", 2, "other elements"),
        ("unpack-rec --include a --output photos --overwrite", 1, "facedata writes, and this folder holds 'a.jpg'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path, line: str, status: int, said: str
) -> None:
    record_set("a").plain([0, 1])
    (tmp_path / "empty").mkdir()
    for path in ("mine.lmdb/precious", "precious", "photos/a.jpg", "zero/train.rec"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("" if path.startswith("zero") else "precious")
    before = tree(tmp_path)
    ran = inline_facedata(*shlex.split(line))
    assert (ran.status, ran.stdout, len(ran.stderr.splitlines())) == (status, "", 1)
    assert said in ran.stderr
    assert tree(tmp_path) == before


def test_overwrite_replaces_the_whole_output_and_nothing_else(record_set: MakeSet, inline_facedata: Facedata) -> None:
    record_set("a").plain([0, 1])
    record_set("b").plain([0, 0, 0])
    Path("other_kv.txt").write_text("mine")
    for line in ("build-lmdb {} --keep-undecodable --output x.lmdb", "pack-rec {} --output p"):
        assert inline_facedata(*line.format("a").split()).status == 0
        refused = inline_facedata(*line.format("b").split())
        assert refused.status == 1
        assert "belongs to a job that differs" in refused.stderr
        assert inline_facedata(*line.format("b").split(), "--overwrite").status == 0
    assert len(open_dataset("lmdb:x.lmdb")) == len(open_dataset("p")) == 3
    assert Path("other_kv.txt").read_text() == "mine"
