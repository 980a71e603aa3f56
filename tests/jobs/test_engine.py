from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_tasks import Count, FullDisk, KillSelf, Note, PlainOutput, result

from facedata.errors import DiskFullError, InterruptedJobError, OptionError
from facedata.jobs.engine import LocalExecutor, Progress
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import Journal
from facedata.jobs.machine import available_cpus, cgroup_cpus
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


@pytest.mark.parametrize(("order", "count"), [((3, 1, 2), 3), (range(1, 21), 20)], ids=["fewer", "more than shards"])
def test_parts_do_their_own_shards_and_the_last_one_finishes_the_job(
    tmp_path: Path, order: Sequence[int], count: int
) -> None:
    summaries = [run(tmp_path, part=Part(number, count)) for number in order]
    assert [summary.finished for summary in summaries[:2]] == [False, False]
    assert summaries[-1].finished
    assert done(tmp_path) == list(range(SHARDS))
    with pytest.raises(OptionError, match="other elements"):
        run(tmp_path, part=Part(1, 2), overwrite=True)


def test_workers_that_are_killed_at_work_or_while_they_send_their_result_cost_nothing(tmp_path: Path) -> None:
    tasks = {shard: KillSelf(str(tmp_path), shard, sending=shard != 3) for shard in (0, 3, 5)}
    summary = run(tmp_path, lambda shard: tasks.get(shard) or Note(str(tmp_path), shard))
    assert (summary.finished, summary.good) == (True, True)
    assert done(tmp_path) == list(range(SHARDS))


def test_an_error_while_a_worker_sends_its_result_ends_the_run(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(DiskFullError):
        run(tmp_path, lambda shard: FullDisk(0.15) if shard == 0 else KillSelf(str(tmp_path), shard, sending=True))
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_kills_its_worker_twice_is_reported_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    summary = run(tmp_path, lambda shard: KillSelf(str(tmp_path), shard, 99 * (shard in (0, 3))), workers=workers)
    assert (summary.finished, summary.good, summary.failed_shards) == (False, False, 2)
    assert done(tmp_path) == [1, 2, 4, 5, 6, 7]
    assert "killed twice" in (tmp_path / "failures.jsonl").read_text()
    assert set(job_status(tmp_path).failed) == {0, 3}
    again = run(tmp_path)  # the same command tries them again; now there is memory
    assert (again.finished, again.good) == (True, True)
    assert not (tmp_path / "failures.jsonl").exists()


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


def signal_when_begun(folder: Path, *numbers: int) -> None:
    """Send these signals to this process, half a second apart, once a shard is at work."""

    def send() -> None:
        while not list(folder.glob("begun-*")):
            time.sleep(0.01)
        for place, number in enumerate(numbers):
            time.sleep(0.5 * (place > 0))
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_shards_at_work_and_leaves_the_rest(tmp_path: Path, number: int) -> None:
    signal_when_begun(tmp_path, number)
    with pytest.raises(InterruptedJobError, match="run the same command again"):
        run(tmp_path, lambda shard: Note(str(tmp_path), shard, 0.5))
    finished = done(tmp_path)
    assert 0 < len(finished) < SHARDS
    assert [shard for shard, one in enumerate(Journal(tmp_path).load(PLAN).done) if one] == finished
    assert run(tmp_path).finished


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [(60, False), (1.6, False), (3.6, True)],
    ids=["would take too long", "has done little", "ends soon"],
)
def test_a_shard_that_reports_its_progress_is_finished_after_a_signal_if_that_is_worth_it(
    tmp_path: Path, seconds: float, ends: bool
) -> None:
    plan = Plan("test", {}, {}, 4, 1, {"command_line": "facedata test"})
    output = PlainOutput(str(tmp_path))
    seen: list[Progress] = []

    def observe(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == (3 if ends else 0) and (tmp_path / "begun-0").exists():
            (tmp_path / "begun-0").unlink()
            signal.raise_signal(signal.SIGINT)

    def make_task(shard: int) -> Count:
        return Count(str(tmp_path), shard, seconds)

    begin = time.monotonic()
    if ends:  # and then nothing was interrupted
        assert run_job(plan, make_task, output, JobOptions(observer=observe)).finished
        assert {progress.done for progress in seen} == {0, 1, 2, 3, 4}
        return
    with pytest.raises(InterruptedJobError, match="0 of 1 shards are done"):
        run_job(plan, make_task, output, JobOptions(observer=observe))
    assert time.monotonic() - begin < 1.5


def test_a_second_signal_drops_what_is_at_work(tmp_path: Path) -> None:
    signal_when_begun(tmp_path, signal.SIGINT, signal.SIGINT)
    begin = time.monotonic()
    with pytest.raises(InterruptedJobError):
        run(tmp_path, lambda shard: Note(str(tmp_path), shard, 60))
    assert time.monotonic() - begin < 8
    assert done(tmp_path) == []


def test_only_a_bounded_number_of_shards_is_in_flight_in_any_executor(tmp_path: Path) -> None:
    futures: list[Future[Any]] = []
    waiting: list[int] = []

    class CountingExecutor(ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            futures.append(super().submit(function, *arguments, **options))
            waiting.append(sum(not future.done() for future in futures))
            return futures[-1]

    plan = Plan("test", {}, {}, 200, 200)
    options = JobOptions(workers=3, executor_factory=CountingExecutor)
    assert run_job(plan, lambda shard: result, PlainOutput(str(tmp_path)), options).finished
    assert len(futures) == 200
    assert max(waiting) <= 4


def test_an_executor_whose_workers_cannot_start_is_given_up(tmp_path: Path) -> None:
    class Broken(LocalExecutor):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            raise BrokenProcessPool("no")

    with pytest.raises(RuntimeError, match="died"):
        run(tmp_path, executor_factory=Broken)


# The local executor


def test_the_cpus_that_the_cgroup_slurm_and_the_affinity_allow_are_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, membership = tmp_path / "cgroup" / "job" / "step", tmp_path / "membership"
    group.mkdir(parents=True)
    membership.write_text("0::/job/step\n")
    quotas = {"max 100000": None, "200000 100000": 2, "150000 100000": 2, "50000 100000": 1, "garbage": None}
    for content, expected in quotas.items():
        (group.parent / "cpu.max").write_text(f"{content}\n")
        assert cgroup_cpus(tmp_path / "cgroup", membership) == expected
    assert cgroup_cpus(tmp_path / "none", tmp_path / "none") is None
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    without = available_cpus()
    for value, number in {"1": 1, "0": without, "x": without, "100000": without}.items():
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", value)
        assert available_cpus() == number
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert available_cpus() == 1


def test_workers_die_with_a_parent_that_is_killed() -> None:
    program = """
import time
from facedata.jobs.engine import LocalExecutor
executor = LocalExecutor(2)
for _ in range(2):
    executor.submit(time.sleep, 60)
print("up", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert workers
        parent.kill()
        parent.wait()
        assert not psutil.wait_procs(workers, timeout=10)[1]


def test_a_worker_that_is_killed_while_the_executor_ends_does_not_hang_it() -> None:
    program = """
import os, random, signal, threading, time
from facedata.jobs.engine import LocalExecutor
for seed in range(8):  # about one in seven of them hung
    executor = LocalExecutor(3)
    for future in [executor.submit(time.sleep, 0.002) for _ in range(6)]:
        future.result()
    victim = random.Random(seed).choice(list(executor._processes))
    def kill():
        time.sleep(seed / 10_000)
        os.kill(victim, signal.SIGKILL)
    thread = threading.Thread(target=kill)
    thread.start()
    executor.shutdown()
    thread.join()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
