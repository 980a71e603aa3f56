"""The job behind ``facedata build-knn``: shards of rows are searched in threads, then the file is written."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from facedata.errors import OptionError
from facedata.features.feature_set import Floats, OpenedSet
from facedata.features.neighbours.files import FORMATS, NeighbourOutput, with_itself_first
from facedata.features.neighbours.search import (
    CUDA,
    IndexSearch,
    Method,
    Nearest,
    UnitRows,
    cut_search,
    exact_nearest,
    fit_into_memory,
    import_faiss,
    measured_recall,
    use_one_core,
)
from facedata.jobs.job import JobOptions, JobSummary, run_job
from facedata.jobs.journal import ShardResult
from facedata.jobs.machine import available_cpus, available_memory, cpu_features
from facedata.jobs.output import check_output, make_folders, refuse_overlap
from facedata.jobs.plan import InputTimes, Plan

__all__ = ["NeighbourJob", "NeighbourOptions", "SearchThreads"]

_MOST_ROWS = (1 << 31) - 1
_LOW_RECALL = 0.95
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NeighbourOptions:
    """What is searched for, how, and what is written; the result does not depend on memory and threads."""

    k: int = 80
    """Neighbours of each row, itself included; the format ``gcn`` holds k others."""
    method: Method = field(default_factory=Method)
    format: str = "ltc"
    """One of `FORMATS`."""
    output: str | None = None
    """The file; by default in ``knns/NAME`` of the set, named as learn-to-cluster names it."""
    memory: int | None = None
    """Bytes that the search may take; by default half of what is available."""
    threads: int | None = None
    """Cores to use; by default those that this process may use."""
    command_line: str = ""
    """The command that resumes the job, for messages."""


class SearchThreads(ThreadPoolExecutor):
    """Threads that search with one core each and are stopped by `stopped`."""

    def __init__(self, threads: int, stopped: threading.Event) -> None:
        super().__init__(threads, "search", initializer=use_one_core)
        self._stopped = stopped

    def kill(self) -> None:
        """Stop the searches; they end within about a second."""
        self._stopped.set()


class NeighbourJob:
    """A planned search for the k nearest neighbours, by the cosine, of all rows of a set; planning writes nothing.

    Raises `OptionError` if there are fewer rows than neighbours, the memory is too small, or options contradict each
    other; `MissingExtraError` if faiss is not installed.
    """

    def __init__(self, opened: OpenedSet, options: NeighbourOptions | None = None) -> None:
        self._options = options = options or NeighbourOptions()
        self._method, matrix = options.method, opened.matrix
        self._method.check_device()
        path = _output_path(opened, options)
        self._k = options.k + FORMATS[options.format].more
        self._cut = cut_search(matrix.rows, matrix.dimensions, self._k)
        self._parameters = self._method.parameters(matrix.rows, self._k)
        self._threads = 1 if self._method.device == CUDA else options.threads or available_cpus()
        self._threads = min(self._threads, self._cut.shards)
        index_bytes = self._method.index_bytes(matrix.rows, matrix.dimensions, self._parameters)
        limit = options.memory or available_memory() // 2
        self.memory = fit_into_memory(matrix.rows, matrix.dimensions, self._k, self._threads, limit, index_bytes)

        self._base = UnitRows(matrix, self._cut.chunk, resident=self.memory.resident)
        self._stopped = threading.Event()
        self._nearest: Callable[[Floats], Nearest] = self._exact
        self.output = NeighbourOutput(path, FORMATS[options.format], matrix.rows, self._k, self._prepare)
        deciding = {
            "format": options.format,
            "k": options.k,
            "method": self._method.name,
            "device": self._method.device,
            **self._parameters,
            "rows at once": self._cut.at_once,
            "rows in a chunk": self._cut.chunk,
            "faiss": str(import_faiss().__version__),
            "processor": cpu_features(),
        }
        facts = {
            "set": opened.files.name,
            "features": os.path.abspath(matrix.path),
            **deciding,
            "named_files": [os.path.abspath(name) for name in self.output.named_files()],
            "command_line": options.command_line,
        }
        times = InputTimes.of([matrix.path])
        self.plan = Plan("build-knn", matrix.identity(), deciding, matrix.rows, self._cut.shards, facts, times=times)

    def check(self, *, overwrite: bool) -> None:
        """Raise an `OutputError` if the job may not write its output; changes nothing."""
        refuse_overlap({self._base.matrix.path: True}, self.output.root, self.output.named_files())
        if os.path.isdir(os.path.dirname(self.output.path) or "."):
            check_output(self.plan, self.output, overwrite=overwrite)

    def run(self, job: JobOptions) -> JobSummary:
        """Search for what has not been found yet, and write the file.

        The workers and the executor of `job` are ignored: `NeighbourOptions.threads` counts. The facts of the summary
        hold the parameters of the search, its ``recall`` (None if it is exact), the ``files`` and ``file_bytes``.

        Raises `FormatError` if a row is not finite or all zero; names it; `OutputError` if the output cannot be
        written, or belongs to another job; `InterruptedJobError` after SIGINT or SIGTERM; the same call resumes the
        job.
        """
        if self._options.output is None:
            make_folders(os.path.dirname(self.output.path))
        self.check(overwrite=job.overwrite)
        if job.overwrite or not os.path.isdir(self.output.root):
            self._base.load()  # a bad row is reported before anything is written
        threads = replace(
            job, workers=self.memory.threads, executor_factory=lambda count: SearchThreads(count, self._stopped)
        )
        return run_job(self.plan, self._task, self.output, threads)

    def _prepare(self) -> None:
        """Read the rows, or build the index and measure its recall; called before the first search of a run."""
        if self.memory.threads < self._threads:
            _log.info("--memory allows %d of %d threads", self.memory.threads, self._threads)
        if self._base.resident:
            self._base.load()
        if not self._method.needs_index:
            return
        begin = time.monotonic()
        search = IndexSearch(self._base, self._method, self._parameters, self._k, self._cut.at_once, self._stopped)
        _log.info("built the index in %.1f s", time.monotonic() - begin)
        self._nearest = search.nearest
        if not self._method.approximate:
            return
        recall = measured_recall(search, self._base, self._k, self._cut.at_once)
        self.output.write_recall(recall)
        shown = ", ".join(f"{name} {value:,}" for name, value in self._parameters.items())
        _log.info("recall %.4f on a sample of rows (%s)", recall, shown)
        if recall < _LOW_RECALL:
            option = "--nprobe" if "nprobe" in self._parameters else "--ef"
            _log.warning(
                "recall %.4f is below %.2f: a larger %s finds more, but takes longer", recall, _LOW_RECALL, option
            )

    def _exact(self, queries: Floats) -> Nearest:
        return exact_nearest(queries, self._base, self._k, self._cut.at_once, self._stopped)

    def _task(self, shard: int) -> Callable[[], ShardResult]:
        first, end = self.plan.bounds(shard)

        def search() -> ShardResult:
            begin = time.monotonic()
            nearest = self._nearest(self._base.rows(first, end))
            ids, distances = (part.data.cast("B") for part in with_itself_first(*nearest, np.arange(first, end)))
            self.output.write_part(shard, ids, distances)
            digest, size = crc32(distances, crc32(ids)), ids.nbytes + distances.nbytes
            return ShardResult(end - first, size, f"{digest:08x}", None, (), time.monotonic() - begin)

        return search


def _output_path(opened: OpenedSet, options: NeighbourOptions) -> str:
    """Check that the options fit each other and the set, and name the file to write."""
    matrix = opened.matrix
    if options.format not in FORMATS:
        raise OptionError(f"--format {options.format}: expected one of {', '.join(FORMATS)}")
    if options.k < 1:
        raise OptionError(f"--k {options.k}: expected 1 or more; a row is its own nearest neighbour")
    file_format = FORMATS[options.format]
    if options.k + file_format.more > matrix.rows:
        counted = "itself not counted in this format" if file_format.more else "itself included"
        raise OptionError(
            f"--k {options.k:,}: {matrix.path} has {matrix.rows:,} rows, so a row has at most "
            f"{matrix.rows - file_format.more:,} neighbours, {counted}; give a smaller --k"
        )
    if matrix.rows > _MOST_ROWS:
        raise OptionError(f"{matrix.path}: has {matrix.rows:,} rows; ids are int32, so at most {_MOST_ROWS:,} fit")
    if options.output is None:
        usual = opened.files.neighbours(options.method.file_name, options.k)
        return usual.removesuffix(".npz") + file_format.ending
    suffix = file_format.ending[-4:]
    if not options.output.endswith(suffix):
        raise OptionError(
            f"--output {options.output}: expected a name that ends in {suffix} for --format {options.format}"
        )
    return options.output
