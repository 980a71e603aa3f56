"""Walk the files below a folder, find a file by its name, and read many files at once."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

from facedata.errors import InterruptedJobError
from facedata.files import kind_name
from facedata.jobs.signals import StopRequest

__all__ = [
    "HashedNames",
    "LeftOut",
    "Meter",
    "NameIndex",
    "Task",
    "check_stop",
    "name_hash",
    "run_in_order",
    "shared_end",
    "walk",
    "walk_files",
]

_HIDDEN, _PARTIAL = ".facedata", ".part"
_FEW = 1 << 17
_MOST_OF_A_NAME = 1000
_LARGE = 1 << 20
_BATCH_TASKS, _BATCH_BYTES = 64, 8 << 20
_TICK = 0.1

T = TypeVar("T")


def check_stop(stop: StopRequest | None) -> None:
    """Raise `InterruptedJobError` if a stop was requested."""
    if stop:
        raise InterruptedJobError(f"stopped by {stop.signal_name}; run the same command again to resume")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that a walk leaves out; `is_lost` if it cannot be read, not if it is not a file at all."""

    path: str
    reason: str
    is_lost: bool = True


def walk_files(root: str, below: str = "") -> Iterator[str]:
    """The paths of `walk` alone."""
    return (entry for entry in walk(root, below) if isinstance(entry, str))


def walk(root: str, below: str = "") -> Iterator[str | LeftOut]:
    """The regular files below a folder, and links to such, in the order of the bytes of their paths.

    Paths are relative to `root`, `below` is a folder in it. Facedata's own hidden files (``.facedata*``) and unfinished
    downloads (``*.part``) are skipped, and links to folders are not followed.
    """
    below = below.rstrip("/")
    waiting: list[str | LeftOut] = [f"{below}/" if below else ""]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str) and (entry.endswith("/") or not entry):
            waiting.extend(reversed(_list_folder(root, entry)))
        else:
            yield entry


def _list_folder(root: str, folder: str) -> list[str | LeftOut]:
    """The paths in a folder; those of folders end in a slash, because that is how the bytes of paths compare."""
    place, paths = os.path.join(root, folder), []
    left_out: list[str | LeftOut] = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(_HIDDEN) or entry.name.endswith(_PARTIAL):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    paths.append(f"{folder}{entry.name}/")
                    continue
                try:
                    if entry.is_file():
                        paths.append(f"{folder}{entry.name}")
                        continue
                    mode = entry.stat().st_mode
                except OSError:  # also a link in a circle
                    left_out.append(LeftOut(entry.path, "it is a link that leads to no file"))
                    continue
                kind = "a link to a folder" if stat.S_ISDIR(mode) else kind_name(mode)
                left_out.append(LeftOut(entry.path, f"it is {kind}", is_lost=False))
    except OSError as error:
        left_out.append(LeftOut(place, error.strerror or str(error)))
    paths.sort(key=os.fsencode)
    return [*left_out, *paths]


class HashedNames:
    """A set of names that keeps a hash of 8 bytes for each, so that memory hardly grows with their number.

    It begins with `hashes`, as of `name_hash`.
    """

    def __init__(self, hashes: Iterable[int] = ()) -> None:
        self._sorted, self._recent = array("q"), set[int]()
        for value in hashes:
            self._add(value)

    def add(self, name: str) -> None:
        """Add a name."""
        self._add(name_hash(name))

    def _add(self, value: int) -> None:
        self._recent.add(value)
        if len(self._recent) >= max(_FEW, len(self._sorted) // 8):  # a number in a set takes many bytes
            import numpy as np

            self._sorted.extend(self._recent)
            self._recent.clear()
            np.frombuffer(self._sorted, np.int64).sort(kind="stable")  # in place

    def __contains__(self, name: str) -> bool:
        value = name_hash(name)
        place = bisect_left(self._sorted, value)
        return value in self._recent or (place < len(self._sorted) and self._sorted[place] == value)


def name_hash(name: str) -> int:
    """A hash of a name that is the same in every process."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class NameIndex:
    """Finds missing files by their names among the `paths` below a root.

    Only files with one of the `names` are indexed, so that memory grows with the number of missing files only.
    """

    def __init__(self, paths: Iterable[str], names: Collection[str]) -> None:
        self._folders: dict[str, list[str]] = {}  # those with a file of this name, or with "parent/name"
        last = ""
        for path in paths:
            folder, _, name = path.rpartition("/")
            if folder != last:  # else keep one object for all files of a folder
                last = folder
            if name in names:
                for key in (name, f"{last.rpartition('/')[2]}/{name}"):
                    self._folders.setdefault(key, []).append(last)

    def find(self, path: str) -> list[str]:
        """The files with this name whose paths share the longest end with `path`.

        None if more than a thousand files have this name and none is in a folder with the right name.
        """
        names = path.split("/")
        folders = self._folders.get("/".join(names[-2:])) if len(names) > 1 else None
        if folders is None:
            folders = self._folders.get(names[-1], [])
            if len(folders) > _MOST_OF_A_NAME:
                return []
        found = [f"{folder}/{names[-1]}" if folder else names[-1] for folder in folders]
        longest = max((shared_end(each, path) for each in found), default=0)
        return sorted(each for each in found if shared_end(each, path) == longest)


def shared_end(first: str, second: str) -> int:
    """How many names, counted from the end, two paths share."""
    pairs = zip(reversed(first.split("/")), reversed(second.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class CancelledError(Exception):
    """The result of a task is not needed any more."""


class Meter:
    """Counts the bytes that threads have read (`done`), and makes them end (`cancelled`)."""

    def __init__(self) -> None:
        self.done = 0
        self.cancelled = False
        self.workers = 1
        self._unfinished = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Count `count` bytes as read; raises `CancelledError` if the work is to end."""
        if self.cancelled:
            raise CancelledError
        with self._lock:
            self.done += count

    def add_work(self, count: int) -> None:
        """Count `count` more batches as waiting or in progress."""
        with self._lock:
            self._unfinished += count

    @property
    def spare(self) -> bool:
        """True if there are idle workers."""
        return self._unfinished < self.workers


class Task(NamedTuple, Generic[T]):
    """Work for a thread, and how many bytes it reads, as far as known."""

    work: Callable[[], T]
    size: int = 0


def run_in_order(
    tasks: Iterable[Task[T]],
    meter: Meter,
    *,
    workers: int | None = None,
    stop: StopRequest | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Generator[T, None, None]:
    """Run tasks in threads, `workers` at a time, and yield the results in order, each as early as that allows.

    Threads suffice, because reading and hashing release the interpreter's lock. Tasks are taken as needed, so that
    memory does not grow with their number, and report to `meter` the bytes they read. `tick` is called some times a
    second in the caller's thread with the bytes read and the total, 0 as long as unknown.

    Raises
    ------
    InterruptedJobError
        If `stop` is set.
    """
    if workers is None:
        from facedata.jobs.machine import available_cpus

        workers = available_cpus()
    meter.workers = workers
    batches, exhausted = _batches(tasks), False
    window: deque[Future[list[T]]] = deque()
    total, ticked = 0, time.monotonic()
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while not exhausted and len(window) < 2 * workers + 16:
                batch = next(batches, None)
                if batch is None:
                    exhausted = True
                    break
                total += sum(task.size for task in batch)
                meter.add_work(1)
                window.append(pool.submit(_run_batch, batch, meter))
            if not window:
                return
            if window[0].done():
                yield from window.popleft().result()
            else:
                wait([window[0]], _TICK)
            if tick is not None and time.monotonic() - ticked >= _TICK:
                ticked = time.monotonic()
                tick(meter.done, total if exhausted else 0)
            if stop:
                raise InterruptedJobError(f"stopped by {stop.signal_name}")
    finally:
        meter.cancelled = True
        pool.shutdown(cancel_futures=True)


def _batches(tasks: Iterable[Task[T]]) -> Iterator[list[Task[T]]]:
    """Small tasks in groups, to save the cost of handing over each; a large one is alone.

    The results of a group arrive together, so a large task must not hold back those before it.
    """
    batch: list[Task[T]] = []
    size = 0
    for task in tasks:
        if batch and (task.size >= _LARGE or size >= _BATCH_BYTES or len(batch) >= _BATCH_TASKS):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += task.size
        if task.size >= _LARGE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _run_batch(batch: list[Task[T]], meter: Meter) -> list[T]:
    try:
        return [task.work() for task in batch]
    finally:
        meter.add_work(-1)
