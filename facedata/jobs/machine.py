"""How many CPUs and how much memory this process may use, a limit on that memory, and what the processor can do."""

from __future__ import annotations

import os
import platform
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

__all__ = ["available_cpus", "available_memory", "cgroup_cpus", "cpu_features", "limited_memory"]

_X86 = ("avx", "avx2", "fma", "avx512f", "avx512dq", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
_ARM = ("asimddp", "asimdhp", "i8mm", "bf16", "sve", "sme")

_lock = threading.Lock()
_limits: list[int] = []  # of the calls in progress, after that of the process itself


def available_cpus() -> int:
    """The CPUs that this process may use: the least of its affinity, the cgroup's quota and SLURM's allocation."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, cgroup_cpus(), _slurm_cpus()]
    return max(min(limit for limit in limits if limit), 1)


def cpu_features() -> dict[str, str]:
    """The processor, as JSON values: its kind, and those features by which numerical libraries choose their code.

    ONNX Runtime and faiss give other last digits with other code, and do not say which code they chose.
    """
    found: set[str] = set()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        found.update(*(line.split() for line in islice(file, 64) if line.startswith(("flags", "Features"))))
    return {"kind": platform.machine(), **{name: "yes" for name in _X86 + _ARM if name in found}}


def _slurm_cpus() -> int | None:
    value = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The CPU quota of this process's cgroup and those above it (version 2, and version 1 at its root), rounded up."""
    quotas = []
    for folder in _cgroup_folders(root, membership):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(-(-int(quota) // int(period)))
    with suppress(OSError, ValueError):
        quota_v1 = int((root / "cpu/cpu.cfs_quota_us").read_text())
        if quota_v1 > 0:
            quotas.append(-(-quota_v1 // int((root / "cpu/cpu.cfs_period_us").read_text())))
    return min(quotas, default=None)


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, or less if its cgroup has a limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder in _cgroup_folders(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")):
        with suppress(OSError, ValueError):
            limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
            free = min(free, int(limit) - int(used))
    return max(free, 0)


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Refuse this process more memory than it has and `more` bytes, if the system has a limit on addresses (Linux).

    For libraries that take as much memory as a file says: they then fail with an error. It holds for the whole process;
    of several threads that ask for a limit at once, the highest holds.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    with _lock:
        if not _limits:
            _limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
        _limits.append(limit)
        _set_limit()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(limit)
            _set_limit()
            if len(_limits) == 1:
                _limits.clear()


def _set_limit() -> None:
    own, *limits = _limits
    highest = max(limits, default=own)
    with suppress(OSError, ValueError):
        soft = highest if own == resource.RLIM_INFINITY else min(own, highest)
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _cgroup_folders(root: Path, membership: Path) -> list[Path]:
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):
                folder = root / line.removeprefix("0::/")
                return [folder, *[up for up in folder.parents if up.is_relative_to(root)]]
    return [root]
