from __future__ import annotations

import errno
import os
import signal
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from job_tasks import DieSending, FullDisk, KillSelf, Note, PlainOutput, result

from facedata.errors import DiskFullError, InterruptedJobError, OptionError, OutputError
from facedata.jobs.engine import LocalExecutor, Progress
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import Journal
from facedata.jobs.plan import Part, Plan
from facedata.jobs.status import job_status

SHARDS = 8
PLAN = Plan("test", {}, {}, SHARDS, SHARDS, {"command_line": "facedata test"})


def run(folder: Path, make_task: Any = None, **options: Any) -> JobSummary:
    options.setdefault("workers", 2)
    make_task = make_task or (lambda shard: Note(str(folder), shard))
    return run_job(PLAN, make_task, PlainOutput(str(folder)), JobOptions(**options))


def done(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("done-")) for path in folder.glob("done-*"))


def test_a_job_does_every_shard_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    summary = run(tmp_path)
    assert (summary.finished, summary.good, summary.samples, summary.shards_done) == (True, True, SHARDS, SHARDS)
    assert done(tmp_path) == list(range(SHARDS))
    for path in tmp_path.glob("done-*"):
        path.unlink()
    again = run(tmp_path)
    assert again.nothing_to_do
    assert done(tmp_path) == []


def test_parts_do_their_own_shards_and_the_last_one_finishes_the_job(tmp_path: Path) -> None:
    summaries = [run(tmp_path, part=Part(number, 3)) for number in (3, 1, 2)]
    assert [summary.finished for summary in summaries] == [False, False, True]
    assert done(tmp_path) == list(range(SHARDS))


def test_more_parts_than_shards_leave_some_with_nothing_to_do(tmp_path: Path) -> None:
    summaries = [run(tmp_path, part=Part(number, 20)) for number in range(1, 21)]
    assert summaries[-1].finished
    assert done(tmp_path) == list(range(SHARDS))


def test_overwriting_in_a_job_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="other elements"):
        run(tmp_path, part=Part(1, 2), overwrite=True)


def test_a_worker_that_is_killed_once_costs_nothing(tmp_path: Path) -> None:
    summary = run(tmp_path, lambda shard: KillSelf(str(tmp_path), shard, 1 if shard == 3 else 0))
    assert summary.finished
    assert summary.good
    assert done(tmp_path) == list(range(SHARDS))


def test_a_worker_that_is_killed_while_it_sends_its_result_is_noticed(tmp_path: Path) -> None:
    summary = run(tmp_path, lambda shard: DieSending(str(tmp_path), shard, 1 if shard in (0, 3) else 0))
    assert summary.finished
    assert done(tmp_path) == list(range(SHARDS))


def test_an_error_while_a_worker_sends_its_result_ends_the_run(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DiskFullError):
        run(tmp_path, lambda shard: FullDisk(0.15) if shard == 0 else DieSending(str(tmp_path), shard, 1))
    assert time.monotonic() - begin < 20


def test_a_shard_that_kills_its_worker_twice_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    summary = run(tmp_path, lambda shard: KillSelf(str(tmp_path), shard, 99 if shard in (0, 3) else 0))
    assert (summary.finished, summary.good, summary.failed_shards) == (False, False, 2)
    assert done(tmp_path) == [1, 2, 4, 5, 6, 7]
    assert "killed twice" in (tmp_path / "failures.jsonl").read_text()
    assert set(job_status(tmp_path).failed) == {0, 3}
    again = run(tmp_path)  # the same command tries them again; now there is memory
    assert again.finished
    assert again.good
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_single_worker_that_dies_does_not_hang_the_job(tmp_path: Path) -> None:
    summary = run(tmp_path, lambda shard: KillSelf(str(tmp_path), shard, 99 if shard == 0 else 0), workers=1)
    assert summary.failed_shards == 1
    assert done(tmp_path) == list(range(1, SHARDS))


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="run the same command again") as caught:
        run(tmp_path, lambda shard: FullDisk() if shard == 5 else Note(str(tmp_path), shard), workers=1)
    assert caught.value.__cause__.errno == errno.ENOSPC  # type: ignore[union-attr]
    before = sum(Journal(tmp_path).load(PLAN).done)
    assert 0 < before < SHARDS
    seen: list[Progress] = []
    assert run(tmp_path, observer=seen.append).finished
    assert seen[-1].before == before
    assert seen[-1].done == seen[-1].total == SHARDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_shards_at_work_and_leaves_the_rest(tmp_path: Path, number: int) -> None:
    def stop_when_begun() -> None:
        while not list(tmp_path.glob("begun-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_begun).start()
    with pytest.raises(InterruptedJobError, match="run the same command again"):
        run(tmp_path, lambda shard: Note(str(tmp_path), shard, 0.5))
    finished = done(tmp_path)
    assert 0 < len(finished) < SHARDS
    assert [shard for shard, one in enumerate(Journal(tmp_path).load(PLAN).done) if one] == finished
    assert run(tmp_path).finished


def test_a_second_signal_drops_what_is_at_work(tmp_path: Path) -> None:
    def stop_twice() -> None:
        while not list(tmp_path.glob("begun-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_twice).start()
    begin = time.monotonic()
    with pytest.raises(InterruptedJobError):
        run(tmp_path, lambda shard: Note(str(tmp_path), shard, 60))
    assert time.monotonic() - begin < 8
    assert done(tmp_path) == []


class CountingExecutor(ThreadPoolExecutor):
    """Any executor will do; this one notes how many shards were handed to it and not yet done."""

    most = 0

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.open = 0
        self.guard = threading.Lock()

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        with self.guard:
            self.open += 1
            CountingExecutor.most = max(CountingExecutor.most, self.open)
        future = super().submit(function, *arguments, **options)
        future.add_done_callback(self.note)
        return future

    def note(self, future: Future[Any]) -> None:
        with self.guard:
            self.open -= 1


def test_only_a_bounded_number_of_shards_is_in_flight_in_any_executor(tmp_path: Path) -> None:
    def factory(workers: int) -> Executor:
        return CountingExecutor(workers)

    plan = Plan("test", {}, {}, 200, 200)
    options = JobOptions(workers=3, executor_factory=factory)
    assert run_job(plan, lambda shard: result, PlainOutput(str(tmp_path)), options).finished
    assert CountingExecutor.most <= 4


def test_an_executor_whose_workers_cannot_start_is_given_up(tmp_path: Path) -> None:
    class Broken(LocalExecutor):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            from concurrent.futures.process import BrokenProcessPool

            raise BrokenProcessPool("no")

    with pytest.raises(RuntimeError, match="died"):
        run(tmp_path, executor_factory=Broken)


def test_an_output_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        run(tmp_path / "file" / "out")
