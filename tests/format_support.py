"""What the tests of several formats share: samples, conversions in this process, and parts of sources."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import MemorySource, jpeg

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.dataset import Sample, Source, create_dataset
from facedata.errors import SampleError
from facedata.jobs.job import JobOptions, JobSummary

HERE = JobOptions(workers=1, executor_factory=ThreadPoolExecutor)
"""Without processes."""


def numbered(count: int, size: int = 100) -> MemorySource:
    """Images of so many bytes, whose keys count from 0; four of each label."""
    return MemorySource([Sample(str(n), n // 4, jpeg(n).ljust(size, b".")) for n in range(count)])


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


def convert(source: Source, target: str, job: JobOptions = HERE, **options: Any) -> JobSummary:
    """Convert as the engine does; the options are those of the sink."""
    return run_conversion(plan_conversion("test", source, create_dataset(target, **options)), job)


def assert_same(found: Iterable[Sample], expected: Iterable[Sample]) -> None:
    def comparable(sample: Sample) -> tuple[Any, ...]:
        points = sample.landmarks
        return (*sample[:3], None if points is None else (points.dtype, points.tolist()))

    assert list(map(comparable, found)) == list(map(comparable, expected))


def check_parts(source: Source, data: st.DataObject, *, ascending: bool = False) -> None:
    """Parts of a source, and parts of these, are sources of the same samples, in this process and in another."""

    def rows(source: Source) -> list[tuple[Any, ...]]:
        labels = source.labels().tolist()
        places = map(source.locate, range(len(source)))
        return list(zip(source, source.keys(), labels, source.sizes().tolist(), places, strict=True))

    whole, identity = rows(source), source.identity()
    assert [row[0][:2] for row in whole] == [row[1:3] for row in whole]
    for _ in range(3):
        if data.draw(st.booleans()):
            part = data.draw(st.slices(len(whole)).filter(lambda part: not ascending or (part.step or 1) > 0))
            source, whole = source[part], whole[part]
        else:
            chosen = data.draw(st.lists(st.sampled_from(range(len(whole))), max_size=99) if whole else st.just([]))
            chosen = sorted(chosen) if ascending else chosen
            source, whole = source.take(np.array(chosen, np.int64)), [whole[place] for place in chosen]
        source = pickle.loads(pickle.dumps(source))  # noqa: S301, our own bytes
        assert (rows(source), source.identity()) == (whole, identity)
        for place in data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), max_size=5)) if whole else ():
            assert source[place] == whole[place][0]
