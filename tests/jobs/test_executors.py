from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from facedata.jobs import engine
from facedata.jobs.engine import available_cpus


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("garbage", None)],
)
def test_the_quota_of_the_cgroup_is_respected(tmp_path: Path, content: str, expected: int | None) -> None:
    group = tmp_path / "cgroup" / "job" / "step"
    group.mkdir(parents=True)
    (group.parent / "cpu.max").write_text(content)
    (tmp_path / "membership").write_text("0::/job/step\n")
    assert engine.cgroup_cpus(tmp_path / "cgroup", tmp_path / "membership") == expected


def test_a_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert engine.cgroup_cpus(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("0", None), ("x", None), ("100000", None)])
def test_the_cpus_of_a_slurm_task_are_respected(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None
) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    without = available_cpus()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", value)
    assert available_cpus() == (expected or without)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_the_affinity_is_respected() -> None:
    program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from facedata.jobs.engine import available_cpus
print(available_cpus())
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"


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
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        gone, alive = psutil.wait_procs(workers, timeout=10)
        time.sleep(0.1)
        assert not alive
        assert gone


def test_a_worker_that_is_killed_while_the_executor_ends_does_not_hang_it() -> None:
    program = """
import os, random, signal, threading, time
from facedata.jobs.engine import LocalExecutor
for seed in range(12):  # about one in seven of them hung
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
