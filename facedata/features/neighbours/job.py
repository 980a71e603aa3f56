"""Finding the nearest neighbours of all rows, as a job: shards are searched in threads and kept until all are there."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from facedata.errors import OptionError, output_error
from facedata.features.feature_set import OpenedSet
from facedata.features.neighbours.approximate import CUDA, EXACT, IndexSearch, Method, prepare_index
from facedata.features.neighbours.base import Base
from facedata.features.neighbours.cut import cut_search
from facedata.features.neighbours.exact import ExactSearch, Search, need_faiss
from facedata.features.neighbours.formats import FORMATS, NeighbourFormat
from facedata.features.neighbours.found import with_itself_first
from facedata.features.neighbours.memory import Room, available_memory, exact_room, index_room
from facedata.features.neighbours.output import NeighbourOutput
from facedata.features.neighbours.recall import measured_recall
from facedata.jobs.executors import available_cpus
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import ShardResult
from facedata.jobs.output import check_output, refuse_overlap
from facedata.jobs.plan import Plan

__all__ = ["NeighbourJob", "NeighbourOptions", "SearchThreads", "build_neighbours", "plan_neighbours"]

_COMMAND = "build-knn"
_MOST_ROWS = (1 << 31) - 1
_LOW_RECALL = 0.95
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NeighbourOptions:
    """What is searched for, how, and what is written.

    Attributes
    ----------
    k : int
        Neighbours of each row, itself among them; the format ``gcn`` holds k beside it.
    method : Method
    format : str
        One of `FORMATS`.
    output : str, optional
        The file; by default in ``knns/NAME`` of the set, named as learn-to-cluster names it.
    memory : int, optional
        Bytes that may be taken; by default half of what is available. Decides nothing of the result.
    threads : int, optional
        Cores to use; by default those that this process may use. Decides nothing of the result either.
    command_line : str
        The command that goes on with the job.
    """

    k: int = 80
    method: Method = field(default_factory=Method)
    format: str = "ltc"
    output: str | None = None
    memory: int | None = None
    threads: int | None = None
    command_line: str = ""


class SearchThreads(ThreadPoolExecutor):
    """Threads that search with one core each, and can be stopped.

    Parameters
    ----------
    threads : int
    stopped : Event
        Set to stop them.
    """

    def __init__(self, threads: int, stopped: threading.Event) -> None:
        super().__init__(threads, "search", initializer=_use_one_core)
        self._stopped = stopped

    def kill(self) -> None:
        """Have them end with what they are at, within a second or so."""
        self._stopped.set()


def _use_one_core() -> None:
    import faiss

    faiss.omp_set_num_threads(1)  # of this thread alone


class NeighbourJob:
    """A search that has been planned; see `plan_neighbours`.

    Attributes
    ----------
    plan : Plan
    output : NeighbourOutput
    room : Room
        The memory that it will take, and the threads that fit into it.
    parameters : mapping
        What an approximate method searches with.
    """

    def __init__(self, opened: OpenedSet, options: NeighbourOptions) -> None:
        matrix, self._method = opened.matrix, options.method
        file_format = FORMATS[options.format]
        self._k = options.k + file_format.more
        self._cut = cut_search(matrix.rows, matrix.dimensions, self._k)
        self.parameters = self._method.parameters(matrix.rows, self._k)
        self.room = self._find_room(opened, options)
        self._base = Base(matrix, self._cut.chunk, resident=self.room.resident)
        self._stopped = threading.Event()
        self._search: Search | None = None
        self.output = NeighbourOutput(_path(opened, options, file_format), file_format, self._k, self._prepare)
        self.plan = self.output.plan = self._plan(opened, options)

    def _find_room(self, opened: OpenedSet, options: NeighbourOptions) -> Room:
        limit = options.memory or available_memory() // 2
        threads = 1 if self._method.device == CUDA else options.threads or available_cpus()
        threads = min(threads, self._cut.shards)
        if self._method.name == EXACT and self._method.device != CUDA:
            return exact_room(opened.matrix, self._k, self._cut, threads, limit)
        on_host = 0
        if self._method.device != CUDA:
            on_host = self._method.index_bytes(opened.matrix.rows, opened.matrix.dimensions, self.parameters)
        return index_room(opened.matrix, self._k, self._cut, threads, limit, on_host)

    def _plan(self, opened: OpenedSet, options: NeighbourOptions) -> Plan:
        deciding = {
            "format": options.format,
            "k": options.k,
            "method": self._method.name,
            "device": self._method.device,
            **self.parameters,
            "rows at once": self._cut.at_once,
            "rows in a chunk": self._cut.chunk,
            "faiss": need_faiss("build-knn"),
        }
        facts = {
            "set": opened.files.name,
            "features": os.path.abspath(opened.matrix.path),
            **deciding,
            "named_files": [os.path.abspath(name) for name in self.output.named_files()],
            "command_line": options.command_line,
        }
        return Plan(_COMMAND, opened.matrix.identity(), deciding, opened.matrix.rows, self._cut.shards, facts)

    def check(self, *, overwrite: bool) -> None:
        """Raise where the output may not be written, as `check_output` does."""
        refuse_overlap({self._base.matrix.path: True}, self.output.root, self.output.named_files())
        if os.path.isdir(os.path.dirname(self.output.path) or "."):
            check_output(self.plan, self.output, overwrite=overwrite)

    def run(self, job: JobOptions) -> JobSummary:
        """Search what is not yet found, and write the file."""
        self.check(overwrite=job.overwrite)
        if job.overwrite or not os.path.isdir(self.output.root):
            self._base.check()
        chosen = replace(
            job,
            workers=self.room.threads,
            executor_factory=lambda threads: SearchThreads(threads, self._stopped),
        )
        return run_job(self.plan, self._task, self.output, chosen)

    def _prepare(self) -> None:
        """Read the rows, or build the index and measure what it finds; called before the first search of a run."""
        if self.room.fewer:
            _log.info("--memory: there is room for no more threads than %d", self.room.threads)
        if self._method.name == EXACT and self._method.device != CUDA:
            self._base.load()
            self._search = ExactSearch(self._base, self._k, self._cut, self._stopped)
            return
        begin = time.monotonic()
        index = prepare_index(self._base, self._method, self.parameters)
        _log.info("built the index in %.1f s", time.monotonic() - begin)
        search = IndexSearch(self._base, index, self._method, self.parameters, self._k, self._cut, self._stopped)
        self._search = search
        if self._method.approximate:
            self._measure(search)

    def _measure(self, search: IndexSearch) -> None:
        recall = measured_recall(search, self._base, self._k, self._cut.at_once)
        self.output.write_recall(recall)
        shown = ", ".join(f"{name} {value:,}" for name, value in self.parameters.items())
        _log.info("recall %.4f, on a sample of rows (%s)", recall, shown)
        if recall < _LOW_RECALL:
            more = "--nprobe" if "nprobe" in self.parameters else "--ef"
            _log.warning("recall %.4f is below %.2f: a larger %s finds more, in more time", recall, _LOW_RECALL, more)

    def _task(self, shard: int) -> _SearchShard:
        if self._search is None:
            raise RuntimeError("the search is not prepared")
        return _SearchShard(self._search, self.output, shard, *self.plan.bounds(shard))


@dataclass(frozen=True)
class _SearchShard:
    """One shard, done in a thread."""

    search: Search
    output: NeighbourOutput
    shard: int
    first: int
    end: int

    def __call__(self) -> ShardResult:
        begin = time.monotonic()
        nearest = self.search.search(self.first, self.end)
        block = with_itself_first(nearest.ids, nearest.cosines, np.arange(self.first, self.end))
        size, checksum = self.output.blocks.write(self.shard, block)
        return ShardResult(self.end - self.first, size, f"{checksum:08x}", None, (), time.monotonic() - begin)


def plan_neighbours(opened: OpenedSet, options: NeighbourOptions | None = None) -> NeighbourJob:
    """Plan the search for the nearest neighbours of all rows of a set; writes nothing.

    Parameters
    ----------
    opened : OpenedSet
    options : NeighbourOptions, optional

    Raises
    ------
    OptionError
        Where there are fewer rows than neighbours, or too little memory.
    MissingExtraError
        Where there is no faiss.
    """
    options = options or NeighbourOptions()
    need_faiss("build-knn")
    options.method.check_device()
    _check_options(opened, options)
    return NeighbourJob(opened, options)


def build_neighbours(
    opened: OpenedSet, options: NeighbourOptions | None = None, job: JobOptions | None = None
) -> JobSummary:
    """Find the k nearest neighbours of each row, by the cosine, and write them as their readers open them.

    Parameters
    ----------
    opened : OpenedSet
        As `open_feature_set` gave it.
    options : NeighbourOptions, optional
    job : JobOptions, optional
        Its workers and executor do not count: `NeighbourOptions.threads` does.

    Returns
    -------
    JobSummary
        Its facts say with what was searched, the ``recall`` (None where the search is exact), the ``files`` and their
        size, ``file_bytes``.

    Raises
    ------
    OptionError, MissingExtraError
        As `plan_neighbours`.
    FormatError
        Where a row is not finite or all zero; names it.
    OutputError
        Where the output cannot be written, or is not this job's.
    InterruptedJobError
        After SIGINT or SIGTERM; the same call goes on.
    """
    planned = plan_neighbours(opened, options)
    if options is None or options.output is None:
        _make_folder(os.path.dirname(planned.output.path))
    return planned.run(job or JobOptions())


def _check_options(opened: OpenedSet, options: NeighbourOptions) -> None:
    rows, files = opened.matrix.rows, opened.files
    if options.format not in FORMATS:
        raise OptionError(f"--format {options.format}: there are {', '.join(FORMATS)}")
    if options.k < 1:
        raise OptionError(f"--k {options.k}: expected 1 or more; a row is its own nearest neighbour")
    more = FORMATS[options.format].more
    if options.k + more > rows:
        beside = ", itself not counted, in this format" if more else ", itself among them"
        raise OptionError(
            f"--k {options.k:,}: {files.features} has {rows:,} rows, so a row has at most {rows - more:,} "
            f"neighbours{beside}; give a smaller --k"
        )
    if rows > _MOST_ROWS:
        raise OptionError(f"{files.features}: has {rows:,} rows; ids are int32, so at most {_MOST_ROWS:,} can be told")


def _path(opened: OpenedSet, options: NeighbourOptions, file_format: NeighbourFormat) -> str:
    if options.output is None:
        usual = opened.files.neighbours(options.method.file_name, options.k)
        return usual.removesuffix(".npz") + file_format.ending
    suffix = file_format.ending[-4:]
    if not options.output.endswith(suffix):
        raise OptionError(f"--output {options.output}: the format {options.format} is written to a name in {suffix}")
    return options.output


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise output_error(error, folder) from error
