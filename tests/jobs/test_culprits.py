"""Samples that end their worker: each is named, and nothing else is lost."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from format_support import numbered
from support import MemorySource, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.dataset import Sample, create_dataset
from facedata.errors import SampleError, TooManyFailuresError, WorkerCrashError
from facedata.jobs.job import JobOptions, JobSummary

SAMPLES = 24
WORDS = "crashed its worker (SIGSEGV), twice and by itself"


@dataclass(frozen=True)
class DeadlySource(MemorySource):
    """Ends the worker that reads some of its samples: always, or so many times in all."""

    deadly: tuple[str, ...] = ()
    signal: int = signal.SIGSEGV
    notes: Path | None = None
    times: int = 0
    parent: int = os.getpid()

    def read(self) -> Iterator[Sample | SampleError]:
        for item in self.items:
            if item.key in self.deadly and os.getpid() != self.parent and self._kills():
                faulthandler.disable()
                os.kill(os.getpid(), self.signal)
            yield item

    def keys(self) -> Iterator[str]:
        return (item.key for item in self.items)

    def _kills(self) -> bool:
        if self.notes is None:
            return True
        before = len(list(self.notes.iterdir()))
        (self.notes / str(before)).touch()
        return before < self.times


def convert(source: MemorySource, target: str, job: JobOptions | None = None) -> JobSummary:
    cut = {"shard_samples": 8} if target.startswith(("webdataset", "parquet")) else {}
    style = {"style": "plain"} if target.startswith("rec") else {}
    sink = create_dataset(target, **cut, **style)
    ends = None if cut else (8, 16, SAMPLES)
    return run_conversion(plan_conversion("test", source, sink, ends=ends), job or JobOptions(2))


@pytest.mark.parametrize("target", ["folder:{}", "webdataset:{}", "parquet:{}", "lmdb:{}.lmdb", "rec:{}"])
def test_a_sample_that_crashes_its_worker_is_named_and_costs_no_other(tmp_path: Path, target: str) -> None:
    items = list(numbered(SAMPLES).read())
    deadly = ("8", "9")
    summary = convert(DeadlySource(items, deadly=deadly), target.format(tmp_path / "out"))
    assert (summary.finished, summary.good, summary.samples, summary.failures) == (True, False, 22, 2)
    assert summary.causes == {"crashed its worker": 2}
    failing = [SampleError("memory", item.key, WORDS, int(item.key)) if item.key in deadly else item for item in items]
    convert(MemorySource(failing), target.format(tmp_path / "same"))
    written, expected = (
        {name: data for name, data in tree(tmp_path / name).items() if ".facedata-" not in name and "mdb" not in name}
        for name in ("out", "same")
    )
    assert written == expected


def test_a_worker_that_is_killed_while_others_take_the_memory_blames_no_sample(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    items = list(numbered(SAMPLES).read())  # the sixth time it is alone for the first time
    source = DeadlySource(items, deadly=("5",), signal=signal.SIGKILL, notes=tmp_path / "notes", times=6)
    summary = convert(source, f"folder:{tmp_path}/out", JobOptions(1))
    assert (summary.finished, summary.good, summary.samples) == (True, True, SAMPLES)


def test_a_job_in_which_every_sample_crashes_stops_and_resumes(tmp_path: Path) -> None:
    items = list(numbered(SAMPLES).read())
    keys = tuple(item.key for item in items)
    with pytest.raises(WorkerCrashError, match=r"8 samples end the process .* crashed its worker .* run the same"):
        convert(DeadlySource(items, deadly=keys), f"folder:{tmp_path}/out", JobOptions(1))
    assert convert(MemorySource(items), f"folder:{tmp_path}/out").good


@pytest.mark.parametrize("target", ["folder:{}", "lmdb:{}.lmdb"])
def test_a_job_that_passes_its_bound_stops_early_and_resumes_with_a_larger_one(tmp_path: Path, target: str) -> None:
    items: list[Sample | SampleError] = list(numbered(SAMPLES).read())
    items[:9:2] = [SampleError("memory", str(n), "not an image: 00") for n in range(0, 9, 2)]
    source, target = MemorySource(items), target.format(tmp_path / "out")
    for job in (JobOptions(1, max_failures=3), JobOptions(1, max_failures=0.1), JobOptions(1, max_failures=0)):
        with pytest.raises(
            TooManyFailuresError, match=r"4 of 24 samples failed: 4 not an image; see .*jsonl\. .* allo"
        ):
            convert(source, target, job)
    with pytest.raises(TooManyFailuresError, match="5 of 24"):
        convert(source, target, JobOptions(1, max_failures=4))
    summary = convert(source, target, JobOptions(1, max_failures=0.25))
    assert (summary.finished, summary.good, summary.failures, summary.samples) == (True, True, 5, 19)
    assert not convert(source, target, JobOptions(1, max_failures=3)).good
    assert len([json.loads(line) for line in (Path(summary.output) / "failures.jsonl").read_text().splitlines()]) == 5
