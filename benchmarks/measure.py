"""Shared by the benchmarks: run commands in turn, take time and memory, print a table with the spread."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import psutil


@dataclass
class Measured:
    """The runs of one command."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class MemoryWatch:
    """The largest proportional set size of a process and all its children, sampled 20 times a second.

    Pages that forked workers share count once, which is what the machine has to give.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._process, self._stop = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        total = 0
        try:
            processes = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in processes:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return total


def run(command: Sequence[str], *, memory: bool = True) -> tuple[float, int, str]:
    """Wall time, peak memory of the tree, stdout; watching the memory costs a short command some per cent."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with MemoryWatch(process.pid) if memory else nullcontext() as watch:
        output, _ = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    return seconds, watch.peak if watch else 0, output


def in_turn(
    commands: dict[str, Sequence[str]],
    repeats: int,
    before: Callable[[str], None] | None = None,
    *,
    memory: bool = True,
) -> dict[str, Measured]:
    """Run the commands in turn, `repeats` times, so that a slow spell of the machine meets all of them."""
    measured = {name: Measured() for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            if before:
                before(name)
            seconds, peak, _ = run(command, memory=memory)
            measured[name].seconds.append(seconds)
            measured[name].peak_bytes.append(peak)
    return measured


def report(measured: dict[str, Measured], ours: str, *, memory: bool = False) -> None:
    """Print each command's time, and the ratio of the others' to ours, paired run by run."""
    for name, one in measured.items():
        spread = f"{one.median:8.2f} s  ({min(one.seconds):.2f} to {max(one.seconds):.2f})"
        peak = f"  peak {max(one.peak_bytes) / 1e6:6.0f} MB" if memory else ""
        print(f"{name:28s} {spread}{peak}")
    for name, one in measured.items():
        if name != ours:
            ratios = [theirs / mine for theirs, mine in zip(one.seconds, measured[ours].seconds, strict=True)]
            print(f"{name} / {ours}: {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
