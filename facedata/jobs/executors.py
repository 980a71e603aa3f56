"""Executors: where shards are worked on. `concurrent.futures.Executor` is the only seam for engines."""

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

__all__ = ["ExecutorFactory", "LocalExecutor", "available_cpus"]

_PR_SET_PDEATHSIG = 1

ExecutorFactory = Callable[[int], Executor]
"""Makes an executor with so many workers; called again when the workers of the last one have died."""


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

        One that was just sending a result leaves a part of it in the pipe. The executor's own thread would wait for
        the rest for ever, because this process holds the pipe open for writing too: so it is closed.
        """
        for process in list((self._processes or {}).values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(AttributeError, OSError):
            self._result_queue._writer.close()  # type: ignore[attr-defined]

    def has_dead_worker(self) -> bool:
        """Whether a worker has ended. The executor itself does not notice while it waits for the rest of a result."""
        sentinels = [process.sentinel for process in list((self._processes or {}).values())]
        return bool(sentinels and wait(sentinels, timeout=0))


def _context() -> multiprocessing.context.BaseContext:
    """Fork where that is safe: it starts at once and shares the index. Otherwise a fresh process each."""
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _ask_kernel_to_kill_us()
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _ask_kernel_to_kill_us() -> None:
    """When the parent dies, on Linux: at once, even while a stopped or stuck sibling holds our pipe open."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def available_cpus() -> int:
    """The CPUs that this process may use: its affinity, the cgroup's quota, SLURM's allocation, the least of them."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, _cgroup_cpus(), _slurm_cpus()]
    return max(min(limit for limit in limits if limit), 1)


def _slurm_cpus() -> int | None:
    value = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def _cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The quota of the process's cgroup and those above it (version 2, and version 1 at its root), rounded up."""
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


def _cgroup_folders(root: Path, membership: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):
                folder = root / line.removeprefix("0::/")
                return [folder, *[up for up in folder.parents if up.is_relative_to(root)]]
    return [root]
