"""Executors that run shards, and the CPUs and memory that this process may use."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

__all__ = ["ExecutorFactory", "LocalExecutor", "available_cpus", "available_memory", "cgroup_cpus", "die_with_parent"]

_PR_SET_PDEATHSIG = 1
_TICK = 0.1
_SECONDS_TO_END = 2.0  # for workers that are idle, after one of them died

ExecutorFactory = Callable[[int], Executor]
"""Makes an executor with that many workers; called again after the workers of the last one died."""


class LocalExecutor(ProcessPoolExecutor):
    """Processes on this machine that die with their parent, however it dies.

    Parameters
    ----------
    workers : int
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=_context(), initializer=_start_worker)

    def kill(self) -> None:
        """Kill the workers at once, whatever they are doing.

        A worker that was sending a result leaves a part of it in the pipe. The executor's own thread would wait for
        the rest forever, because this process holds the pipe open for writing too: so close it.
        """
        for process in list((self._processes or {}).values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(AttributeError, OSError):
            self._result_queue._writer.close()  # type: ignore[attr-defined]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers. One that is killed just now may hold a lock that the others need to end: kill those too."""
        manager: threading.Thread | None = self._executor_manager_thread  # type: ignore[assignment]
        processes = list((self._processes or {}).values())
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        if wait and manager is not None:
            while manager.is_alive() and not any(process.exitcode for process in processes):
                manager.join(_TICK)
            manager.join(_SECONDS_TO_END)
            for process in processes if manager.is_alive() else ():
                process.kill()
            manager.join()

    def has_dead_worker(self) -> bool:
        """Whether a worker has ended. The executor does not notice while it waits for the rest of a result."""
        sentinels = [process.sentinel for process in list((self._processes or {}).values())]
        return bool(sentinels and wait(sentinels, timeout=0))


def _context() -> multiprocessing.context.BaseContext:
    """Fork if that is safe: a fork starts at once and shares the index. Otherwise start new processes."""
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, on Linux, even if a stuck sibling holds our pipe open."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def available_cpus() -> int:
    """The CPUs that this process may use: the least of its affinity, the cgroup's quota and SLURM's allocation."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, cgroup_cpus(), _slurm_cpus()]
    return max(min(limit for limit in limits if limit), 1)


def _slurm_cpus() -> int | None:
    value = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The CPU quota of this process's cgroup and those above it (version 2, and version 1 at its root), rounded up."""
    quotas = []
    for folder in _cgroup_folders(root, membership):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(-(-int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota_v1 = int((root / "cpu/cpu.cfs_quota_us").read_text())
        if quota_v1 > 0:
            quotas.append(-(-quota_v1 // int((root / "cpu/cpu.cfs_period_us").read_text())))
    return min(quotas, default=None)


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, or less if its cgroup has a limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder in _cgroup_folders(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")):
        with contextlib.suppress(OSError, ValueError):
            limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
            free = min(free, int(limit) - int(used))
    return max(free, 0)


def _cgroup_folders(root: Path, membership: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):
                folder = root / line.removeprefix("0::/")
                return [folder, *[up for up in folder.parents if up.is_relative_to(root)]]
    return [root]
