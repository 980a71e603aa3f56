from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from job_tasks import SUMMARY, PlainOutput, hold_shards

from facedata.errors import (
    FormatError,
    InputUnfinishedError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    OutputMismatchError,
)
from facedata.jobs.engine import LocalExecutor
from facedata.jobs.journal import Journal, ShardLock, refuse_unfinished
from facedata.jobs.output import check_still_ours, claim_output, refuse_overlap
from facedata.jobs.plan import Plan

PLAN = Plan("test", {}, {"limit": None}, 100, 10, {"command_line": "facedata test"})
OTHER = Plan("test", {}, {"limit": 3}, 3, 1, {"command_line": "facedata test --limit 3"})


def claim(folder: Path, plan: Plan = PLAN, *, overwrite: bool = False) -> None:
    claim_output(plan, PlainOutput(str(folder)), overwrite=overwrite)


def test_another_jobs_folder_is_refused_with_the_difference_and_its_own_command(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(OutputMismatchError, match=r"limit was none, is now 3.*resumes with: facedata test"):
        claim(tmp_path, OTHER)
    claim(tmp_path, OTHER, overwrite=True)
    with pytest.raises(OutputMismatchError, match="another job took this output"):
        check_still_ours(PLAN, PlainOutput(str(tmp_path)))
    check_still_ours(OTHER, PlainOutput(str(tmp_path)))


def test_overwrite_deletes_what_the_job_wrote_and_nothing_else(tmp_path: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    claim(out)
    for folder in (out / "done-1", precious):
        folder.mkdir()
        (folder / "image").touch()
    for name in ("done-2", "failures.jsonl", "README"):
        (out / name).touch()
    (out / "done-3").symlink_to(precious)
    claim(out, OTHER, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [".facedata-lock", ".facedata-plan.json", "README"]
    assert (precious / "image").exists()


def test_a_clearing_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / ".facedata-plan.json").unlink()
    (tmp_path / ".facedata-clearing").touch()
    (tmp_path / "done-1").touch()
    claim(tmp_path, OTHER)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".facedata-lock", ".facedata-plan.json"]


class CutOff(PlainOutput):
    """An output whose deletion is cut off at its first file."""

    def owns(self, name: str) -> bool:
        raise KeyboardInterrupt


def test_an_output_whose_deletion_was_cut_off_does_not_read_as_finished(tmp_path: Path) -> None:
    claim(tmp_path)
    Journal(tmp_path).write_summary(SUMMARY)
    refuse_unfinished(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        claim_output(OTHER, CutOff(str(tmp_path)), overwrite=True)
    with pytest.raises(InputUnfinishedError, match="finish it with: facedata test"):
        refuse_unfinished(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="is not a folder"):
            claim(tmp_path / "file", overwrite=overwrite)
    with pytest.raises(OutputError):
        claim(tmp_path / "file" / "inside")


def test_two_runs_never_write_the_same_shards_nor_overwrite_each_other(tmp_path: Path) -> None:
    claim(tmp_path)
    lock = tmp_path / ".facedata-lock"
    with LocalExecutor(1) as other:
        with ShardLock(lock) as held:
            held.take(range(4, 8))
            for first, end in ((0, 4), (8, 9), (5, 5)):
                assert other.submit(hold_shards, lock, first, end).result() == "taken"
            assert "another run is writing here" in other.submit(hold_shards, lock, 7, 9).result()
        assert other.submit(hold_shards, lock, 7, 9).result() == "taken"
        with pytest.raises(OutputLockedError):
            claim(tmp_path, OTHER, overwrite=True)
        other.kill()
    claim(tmp_path, OTHER, overwrite=True)


def test_a_job_begun_by_another_version_is_refused_and_can_be_started_again(tmp_path: Path) -> None:
    claim(tmp_path)
    path = tmp_path / ".facedata-plan.json"
    plan = json.loads(path.read_text())
    del plan["version"], plan["crc"]  # plans had none before
    path.write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=r"another version of facedata \(plan version 1.*--overwrite"):
        claim(tmp_path)
    with pytest.raises(FormatError, match="another version of facedata"):
        refuse_unfinished(tmp_path)
    claim(tmp_path, overwrite=True)


def test_an_input_under_another_name_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    stat = os.stat
    # a file system that ignores case
    monkeypatch.setattr(os, "stat", lambda path, **how: stat(str(path).replace("SET", "set"), **how))
    with pytest.raises(OutputError, match="the output lies in the input"):
        refuse_overlap([str(tmp_path / "set")], tmp_path / "SET" / "out")
    with pytest.raises(OutputError, match="lies in the output"):
        refuse_overlap([str(tmp_path / "set" / "train.rec")], tmp_path / "SET" / "..")
    with pytest.raises(OutputError, match="would be written over, or into, the input"):
        refuse_overlap([str(tmp_path / "set")], tmp_path / "out", [str(tmp_path / "SET" / "list")])
