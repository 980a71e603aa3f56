"""Outputs that one process writes, shard after shard, from blocks that workers make ready."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from job_tasks import Encode, LineFile, LineWriter, result

from facedata.errors import OutputMismatchError
from facedata.jobs.engine import ProgressMeter, Recorder
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import JobState, Journal, JournalWriter
from facedata.jobs.plan import Part, Plan

SHARDS = 12
PLAN = Plan("test", {}, {}, SHARDS, SHARDS, {"command_line": "facedata test"})
LINES = "".join(f"{shard}\n" for shard in range(SHARDS))


def run(folder: Path, make_task: Any = None, die_at: tuple[int, str] | None = None, **options: Any) -> JobSummary:
    options.setdefault("workers", 3)
    make_task = make_task or (lambda shard: Encode(str(folder), shard))
    return run_job(PLAN, make_task, LineFile(str(folder), die_at), JobOptions(**options))


@pytest.mark.parametrize("workers", [1, 4])
def test_shards_are_written_in_their_order_however_long_each_takes(tmp_path: Path, workers: int) -> None:
    assert run(tmp_path, workers=workers).finished
    assert (tmp_path / "lines").read_text() == LINES
    assert not (tmp_path / "last").exists()
    assert run(tmp_path).nothing_to_do


def test_a_shard_that_kills_its_worker_twice_stops_the_job_and_the_next_run_goes_on(tmp_path: Path) -> None:
    kills = {0: 1, 5: 99}  # a worker that is killed once costs nothing
    summary = run(tmp_path, lambda shard: Encode(str(tmp_path), shard, kills.get(shard, 0)))
    assert (summary.finished, summary.failed_shards, summary.shards_done) == (False, 1, 5)
    assert "killed twice" in (tmp_path / "failures.jsonl").read_text()
    again = run(tmp_path)
    assert (again.finished, again.good) == (True, True)
    assert (tmp_path / "lines").read_text() == LINES
    assert not (tmp_path / "failures.jsonl").exists()


@pytest.mark.parametrize("phase", ["written", "committed"])
@pytest.mark.parametrize("shard", [0, 5, SHARDS - 1])
def test_a_run_killed_in_the_middle_of_a_shard_goes_on_exactly_there(tmp_path: Path, shard: int, phase: str) -> None:
    program = f"from test_ordered import Path, run; run(Path({str(tmp_path)!r}), die_at={(shard, phase)})"
    folders = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": folders}, check=False)
    assert killed.returncode == -signal.SIGKILL
    journal = Journal(tmp_path)
    assert sum(journal.load(PLAN).done) == shard  # the line of the shard itself was never written
    summary = run(tmp_path)
    assert (summary.finished, summary.samples) == (True, SHARDS)
    assert (tmp_path / "lines").read_text() == LINES


def test_an_output_that_does_not_agree_with_its_journal_is_refused(tmp_path: Path) -> None:
    run(tmp_path, lambda shard: Encode(str(tmp_path), shard, 99 if shard == 5 else 0))
    (tmp_path / ".facedata-journal.jsonl").unlink()
    entry = {"shard": 0, "samples": 1, "bytes": 1, "digest": "0", "labels": None, "failures": [], "seconds": 0}
    (tmp_path / "last").write_text(json.dumps({**entry, "end": {"bytes": 2}}))
    assert run(tmp_path).finished  # the entry of the first shard is all that there is, and it is enough
    (tmp_path / "other").mkdir()

    class Wrong(LineFile):
        def open_writer(self, ends: Any) -> LineWriter:
            writer = super().open_writer(ends)
            writer.done += 1
            return writer

    with pytest.raises(OutputMismatchError, match=r"do not agree \(0 and 1 shards\)"):
        run_job(PLAN, lambda shard: Encode(str(tmp_path), shard), Wrong(str(tmp_path / "other")))


def test_few_blocks_wait_for_their_turn(tmp_path: Path) -> None:
    output = LineFile(str(tmp_path))
    with JournalWriter(Journal(tmp_path), PLAN, Part()) as journal, output.open_writer({}) as writer:
        recorder = Recorder(JobState(bytearray(SHARDS)), journal, ProgressMeter(0, 0, None), writer, 1)
        assert [recorder.has_room(shard) for shard in range(5)] == [True, True, True, False, False]
        recorder.add(1, result())
        assert not recorder.has_room(3)
        many = Recorder(JobState(bytearray(SHARDS)), journal, ProgressMeter(0, 0, None), writer, 500)
        assert (many.has_room(15), many.has_room(16)) == (True, False)
