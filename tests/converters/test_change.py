"""A change of samples on their way: one becomes one, several or none, and each sink names them apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import MemorySource, tree

from facedata.converters.convert import ChangeItems, Refused, plan_conversion, run_conversion
from facedata.dataset import Sample, create_dataset, open_dataset
from facedata.errors import FaceError, SampleError
from facedata.jobs.job import JobOptions, JobSummary

HEADER = b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x02\x00\x03\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"


@dataclass(frozen=True)
class Repeat:
    """Gives each sample as often as its label says; its second copy is refused."""

    first: int = 0
    samples_per_shard: int | None = 2

    def identity(self) -> dict[str, Any]:
        return {"change": "repeat"}

    def files(self) -> tuple[str, ...]:
        return ()

    def part(self, first: int, end: int) -> Repeat:
        return Repeat(first)

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[ChangeItems]:
        yield self._change

    def _change(self, items: Iterable[Sample | SampleError]) -> Iterator[Sequence[Sample | SampleError | Refused]]:
        for item in items:
            if isinstance(item, SampleError):
                yield (item,)
                continue
            yield [
                Refused(f"{item.key}-{n}", FaceError("too small", "second"))
                if n == 1
                else item._replace(key=f"{item.key}-{n}")
                for n in range(item.label)
            ]


ITEMS: list[Sample | SampleError] = [
    Sample("a", 1, HEADER + b"a"),
    Sample("b", 3, HEADER + b"b"),
    SampleError("memory", "c", "is gone"),
    Sample("d", 0, HEADER + b"d"),
    Sample("e", 4, HEADER + b"e"),
]


def run(target: str, workers: int = 1) -> JobSummary:
    source = MemorySource(ITEMS)
    style = {"style": "plain"} if target.startswith("rec") else {}
    conversion = plan_conversion("test", source, create_dataset(target, **style), change=Repeat())
    return run_conversion(conversion, JobOptions(workers))


@pytest.mark.parametrize(
    "target", ["folder:{}/folder", "webdataset:{}/tars", "lmdb:{}/a.lmdb", "parquet:{}/parquet", "rec:{}/packed"]
)
def test_one_sample_may_become_several_or_none(tmp_path: Path, target: str) -> None:
    root = target.format(tmp_path)
    summary = run(root)
    assert (summary.finished, summary.samples, summary.failures, summary.skipped) == (True, 6, 1, 2)
    written = sorted(sample.image[len(HEADER) :] for sample in open_dataset(root))
    assert written == [b"a", b"b", b"b", b"e", b"e", b"e"]
    for name, expected in {
        "failures": [("c", 2, "is gone")],
        "skipped": [("b-1", 1, "too small: second"), ("e-1", 4, "too small: second")],
    }.items():
        lines = [json.loads(line) for line in (Path(summary.output) / f"{name}.jsonl").read_text().splitlines()]
        assert [(line["key"], line["index"], line["reason"]) for line in lines] == expected


def test_names_do_not_depend_on_the_workers_and_say_which_face_it_is(tmp_path: Path) -> None:
    run(f"folder:{tmp_path}/one")
    run(f"folder:{tmp_path}/three", 3)
    images = {name: data for name, data in tree(tmp_path / "one").items() if name.startswith("id_")}
    names = [f"id_{name}.jpg" for name in ("1/1_0", "3/3_1", "3/3_1_2", "4/4_4", "4/4_4_2", "4/4_4_3")]
    assert list(images) == names
    assert images == {name: data for name, data in tree(tmp_path / "three").items() if name.startswith("id_")}


def test_what_the_change_says_of_itself_decides_the_job(tmp_path: Path) -> None:
    source = MemorySource(ITEMS)
    sink = create_dataset(f"null:{tmp_path}")
    plain = plan_conversion("test", source, sink).plan
    changed = plan_conversion("test", source, sink, change=Repeat()).plan
    assert plain.fingerprint != changed.fingerprint
    assert (plain.shards, changed.shards) == (1, 3)
