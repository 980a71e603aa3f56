"""Packing record sets: the same samples come out, in both styles, even if the job is killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, RecordSetMaker, jpeg, peak_bytes, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.rec import create_sink
from facedata.converters.rec.record_set import open_record_set
from facedata.converters.rec.recordio import (
    INSIGHTFACE,
    LARGEST_LABEL,
    MAGIC_BYTES,
    PLAIN,
)
from facedata.dataset import OrderedOutput, Sample, create_dataset
from facedata.errors import (
    DiskFullError,
    EmptyDatasetError,
    OptionError,
    OutputMismatchError,
    SampleError,
)
from facedata.jobs.engine import LocalExecutor
from facedata.jobs.job import JobOptions, JobSummary

BLOCK = 1 << 24  # the bytes of input that make a shard
STYLES = pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])


class Here(Executor):
    """Does each task at once, in this process; task and result are sent as they would be to another."""

    def submit(self, task: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        sent = pickle.loads(pickle.dumps(task))  # noqa: S301, our own bytes
        try:
            future.set_result(pickle.loads(pickle.dumps(sent())))  # noqa: S301
        except Exception as error:
            future.set_exception(error)
        return future


def pack(
    folder: Path,
    source: Any,
    *,
    shards: int = 3,
    workers: int = 1,
    executor: Any = lambda workers: Here(),
    overwrite: bool = False,
    **options: Any,
) -> JobSummary:
    conversion = plan_conversion("test", source, create_sink(str(folder), **options), size=shards * BLOCK)
    return run_conversion(conversion, JobOptions(workers=workers, executor_factory=executor, overwrite=overwrite))


def samples_of(labels: Sequence[int], size: int = 40) -> list[Sample]:
    return [
        Sample(f"id_{label}/{n}.jpg", label, jpeg(random.Random(n).randbytes(size + n % 7)))
        for n, label in enumerate(labels)
    ]


IMAGES = st.lists(st.binary(max_size=5) | st.just(MAGIC_BYTES), max_size=6).map(b"".join).map(jpeg)
ITEMS = st.lists(st.tuples(st.integers(0, 4) | st.just(LARGEST_LABEL), IMAGES | st.just(b"no image")), min_size=1)


@settings(max_examples=20)  # each forces some files to the disk
@given(ITEMS, st.integers(1, 5), st.sampled_from([INSIGHTFACE, PLAIN]))
def test_what_is_packed_is_read_back(drawn: list[tuple[int, bytes]], shards: int, style: str) -> None:
    items = [  # among them some that are refused, and errors in the place of some
        SampleError("memory", str(n), "cannot be read") if len(image) == 11 else Sample(str(n), label, image)
        for n, (label, image) in enumerate(sorted(drawn) if style == INSIGHTFACE else drawn)
    ]
    good = [item for item in items if isinstance(item, Sample) and item.image != b"no image"]
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        if not good:
            with pytest.raises(EmptyDatasetError, match="no image could be written"):
                pack(Path(folder), MemorySource(items), shards=shards, style=style)
            return
        summary = pack(Path(folder), MemorySource(items), shards=shards, style=style, list_file=True)
        assert (summary.samples, summary.failures) == (len(good), len(items) - len(good))
        labels = sorted({sample.label for sample in good})
        assert summary.facts["identities"] == len(labels)
        first = 1 if style == INSIGHTFACE else 0
        source = open_record_set(folder)
        assert source.dialect == style
        assert source.classes == labels[-1] + 1
        assert list(source) == [Sample(str(key), s.label, s.image) for key, s in enumerate(good, first)]
        lines = [f"{key}\t{sample.label}\t{sample.key}" for key, sample in enumerate(good, first)]
        assert Path(folder, "train.lst").read_text().splitlines() == lines
        maker = RecordSetMaker(Path(other))  # what a plain loop writes
        if style == PLAIN:
            for key, sample in enumerate(good):
                maker.add(key, float(sample.label), sample.image)
        else:
            maker.insightface_of(good)
        expected = tree(maker.write(num_classes=labels[-1] + 1))
        assert {name: data for name, data in tree(Path(folder)).items() if name in expected} == expected


def test_a_set_of_many_people_ends_as_the_other_writer_ends_it(tmp_path: Path) -> None:
    people = (1 << 12) + 5  # more than are written at once
    source = MemorySource([Sample(str(n), n, jpeg(n)) for n in range(people)])
    pack(tmp_path / "set", source)
    RecordSetMaker(tmp_path).insightface_of([item for item in source.items if isinstance(item, Sample)])
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_all_files_and_nothing_else_are_there(tmp_path: Path) -> None:
    source = MemorySource(samples_of([0, 0, 2, 3]), names={0: "ann", 2: "bo", 3: "cy"})
    pack(tmp_path / "set", source, list_file=True)
    written = tree(tmp_path / "set")
    assert sorted(written) == ["classes.txt", "property", "train.idx", "train.lst", "train.rec"]
    assert written["property"] == b"4,112,112\n"
    assert written["train.lst"] == b"1\t0\tid_0/0.jpg\n2\t0\tid_0/1.jpg\n3\t2\tid_2/2.jpg\n4\t3\tid_3/3.jpg\n"
    assert written["classes.txt"] == b"0\tann\n2\tbo\n3\tcy\n"
    index = [line.split(b"\t") for line in written["train.idx"].splitlines()]
    assert [int(key) for key, _ in index] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert not [name for name in os.listdir(tmp_path / "set") if "building" in name or "temporary" in name]


def png(height: int, width: int) -> bytes:
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR"
    return header + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00" + bytes(40)


def test_the_property_has_the_size_of_the_first_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = MemorySource([Sample("a", 0, png(96, 112)), Sample("b", 0, png(96, 112))])
    pack(tmp_path / "one", source)
    assert not caplog.records
    pack(tmp_path / "two", MemorySource([*source.items, Sample("c", 0, png(224, 224))]))
    assert [(tmp_path / name / "property").read_text() for name in ("one", "two")] == ["1,96,112\n"] * 2
    assert "different sizes (96 x 112, 224 x 224)" in caplog.text


def test_bytes_that_are_no_image_are_kept_on_request_unless_empty(tmp_path: Path) -> None:
    source = MemorySource([Sample("0", 0, b"<html>"), Sample("1", 0, b""), Sample("2", 0, jpeg(2))])
    assert pack(tmp_path, source, keep_undecodable=True).failures == 1
    assert [sample.image for sample in open_record_set(tmp_path)] == [b"<html>", jpeg(2)]
    assert "an image of 0 bytes" in (tmp_path / "failures.jsonl").read_text()


def test_a_label_that_float32_rounds_is_refused_by_name(tmp_path: Path) -> None:
    pack(tmp_path, MemorySource([Sample("0", LARGEST_LABEL, jpeg(0)), Sample("1", LARGEST_LABEL + 1, jpeg(1))]))
    assert [sample.label for sample in open_record_set(tmp_path)] == [LARGEST_LABEL]
    reason = json.loads((tmp_path / "failures.jsonl").read_text())["reason"]
    assert reason.startswith("label 16777217: records hold labels in float32, which is exact only from 0 to 16,777,216")


def test_keys_stand_in_the_list_as_they_are_or_are_refused(tmp_path: Path) -> None:
    keys = ["0", "a\tb", "a\nb", "a\rb", "\ud800", "a/\udcff.jpg"]
    source = MemorySource([Sample(key, 0, jpeg(n)) for n, key in enumerate(keys)])
    assert pack(tmp_path / "listed", source, list_file=True).failures == 4
    assert (tmp_path / "listed" / "train.lst").read_bytes() == b"1\t0\t0\n2\t0\ta/\xff.jpg\n"
    assert pack(tmp_path / "unlisted", source).failures == 0


# What is refused or reported before any work


def test_labels_out_of_order_are_refused_for_insightface(tmp_path: Path) -> None:
    source = MemorySource(samples_of([0, 2, 2, 1]))
    with pytest.raises(OptionError, match=r"label 1 \(image 3, 'id_1/3\.jpg'\) comes after 2; facedata pack-rec group"):
        pack(tmp_path / "set", source)
    assert not (tmp_path / "set").exists()
    pack(tmp_path / "set", source, style=PLAIN)
    assert [sample.label for sample in open_record_set(tmp_path / "set")] == [0, 2, 2, 1]
    items: list[Sample | SampleError] = list(samples_of([0, 0, 1]))
    items[1:1] = [SampleError("memory", "x", "cannot be read")]  # its label is unknown
    assert pack(tmp_path / "unknown", MemorySource(items)).samples == 3


def test_gaps_in_the_labels_are_reported_with_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path / "one", MemorySource(samples_of([0, 1, 2])))
    assert not caplog.records
    pack(tmp_path / "two", MemorySource(samples_of([1, 5])))
    assert "the largest label is 5, but only 2 labels have images; --relabel closes the gaps" in caplog.text
    source = open_record_set(tmp_path / "two")
    assert (source.classes, [sample.label for sample in source]) == (6, [1, 5])


class ManyLabels(MemorySource):
    """Has no samples, but as many labels as the largest datasets: 64 of each."""

    count = (1 << 24) // 65 * 64

    def __len__(self) -> int:
        return self.count

    def labels(self) -> Iterator[Any]:
        for begin in range(0, self.count, 1 << 20):
            yield np.arange(begin, min(begin + (1 << 20), self.count)) // 64


def test_more_records_than_float32_counts_are_refused_in_bounded_memory() -> None:
    sink = create_sink("set")
    sink.fit(ManyLabels([]))  # 258,111 people, 16,519,104 images: 2**24 - 1 records with meta

    def fit() -> None:
        source = ManyLabels([])
        object.__setattr__(source, "count", source.count + 2)
        with pytest.raises(OptionError, match=r"in float32, which is exact only up to 16,777,216, .*--style plain has"):
            sink.fit(source)
        create_sink("set", style=PLAIN).fit(source)

    assert peak_bytes(fit) < 64 << 20


def test_an_empty_source_and_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="there is no image to write"):
        create_sink(str(tmp_path)).fit(MemorySource([]))
    with pytest.raises(OptionError, match="--style mxnet: expected insightface or plain"):
        create_sink(str(tmp_path), style="mxnet")
    with pytest.raises(OptionError, match=r"name a folder; the record file is written in it, as train\.rec"):
        create_sink(str(tmp_path / "train.rec"))


def test_each_option_tells_one_job_from_another() -> None:
    assert isinstance(create_dataset("rec:set"), OrderedOutput)
    options: list[dict[str, Any]] = [{}, {"style": PLAIN}, {"list_file": True}, {"keep_undecodable": True}]
    identities = [json.dumps(create_sink("set", **given).identity(), sort_keys=True) for given in options]
    assert len(set(identities)) == len(options)


def test_class_names_are_not_sent_with_every_shard() -> None:
    sink, _ = create_sink("set").fit(MemorySource(samples_of([0]), names=dict.fromkeys(range(1000), "x" * 100)))
    assert sink.names is not None
    assert len(pickle.dumps(sink)) < 1000
    assert pickle.loads(pickle.dumps(sink)) == sink  # noqa: S301


# Interrupted jobs

LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 4, 5, 5, 5]


def broken_source() -> MemorySource:
    """Splits a record in most shards, and has a sample that fails in some."""
    items: list[Sample | SampleError] = [
        Sample(sample.key, sample.label, sample.image + MAGIC_BYTES * (n % 3))
        for n, sample in enumerate(samples_of(LABELS))
    ]
    items[4] = SampleError("memory", "4", "cannot be read")
    return MemorySource(items, names={0: "ann", 5: "bo"})


def kill_at(step: int) -> None:
    """Make this process die at the `step`-th change of a file; a write is cut off in its middle."""
    left = [step]

    def dying(name: str) -> None:
        real = getattr(os, name)

        def change(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(os, name, change)

    for name in ("write", "replace", "ftruncate", "fsync", "unlink", "rmdir", "mkdir", "link"):
        dying(name)


def killed(step: int, call: Callable[[], object]) -> bool:
    """Whether a forked process that makes the call is killed at a step; raises if it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has threads
        child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            kill_at(step)
            call()
            status = 0
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    source = broken_source()

    def run(folder: Path) -> JobSummary:
        return pack(folder, source, list_file=True)

    run(tmp_path / "undisturbed")
    expected = tree(tmp_path / "undisturbed")
    names = set(os.listdir(tmp_path / "undisturbed"))
    for step in range(1, 1000, 2):
        folder = tmp_path / str(step)
        if not killed(step, lambda: run(folder)):  # noqa: B023, called at once
            break
        if step % 3 == 0:
            killed(random.Random(step).randint(1, 40), lambda: run(folder))  # noqa: B023
        run(folder)
        assert tree(folder) == expected, f"killed at step {step}"
        # a killed engine may leave some files of its own
        assert {name for name in os.listdir(folder) if not name.startswith((".facedata-plan-", ".facedata-temp"))} == {
            name for name in names if not name.startswith(".facedata-plan-")
        }
    assert step > 40


def big_source(count: int = 60, size: int = 20_000) -> MemorySource:
    return MemorySource(samples_of([n // 4 for n in range(count)], size), names={0: "ann"})


@STYLES
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, style: str) -> None:
    options: dict[str, Any] = {"style": style, "list_file": True}
    pack(tmp_path / "here", big_source(), shards=1, **options)
    for workers in (1, 3):
        pack(tmp_path / str(workers), big_source(), shards=9, workers=workers, executor=LocalExecutor, **options)
        assert tree(tmp_path / str(workers)) == tree(tmp_path / "here")


def test_a_full_disk_is_reported_and_the_next_run_continues(tmp_path: Path, small_disk: Path) -> None:
    source = big_source(size=200_000)
    pack(tmp_path / "roomy", source, shards=12, list_file=True)
    with pytest.raises(DiskFullError, match=r"train\.rec: .*free some space and run the same command again"):
        pack(small_disk / "set", source, shards=12, list_file=True)
    assert not set(os.listdir(small_disk / "set")) & {"train.rec", "train.idx", "property", "train.lst"}
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    assert pack(small_disk / "set", source, shards=12, list_file=True).finished
    assert tree(small_disk / "set") == tree(tmp_path / "roomy")


def empty(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(100))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *[(name, lambda path: os.truncate(path, path.stat().st_size // 8), "") for name in ("train.rec", "offsets")],
        ("labels", lambda path: os.truncate(path, 1), r"labels: has 1 bytes, but earlier runs of this job wrote \d+"),
        ("train.rec", empty, r"train\.rec: has 0 bytes, but"),
        ("train.rec", overwrite, r"train\.rec: is corrupt: .*--overwrite starts again"),
    ],
)
def test_a_changed_build_file_is_reported(
    tmp_path: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    source = MemorySource(samples_of(LABELS))
    assert killed(30, lambda: pack(tmp_path / "set", source, shards=6))
    change(tmp_path / "set" / ".facedata-building" / name)
    with pytest.raises(OutputMismatchError, match=message or f"{name}: has"):
        pack(tmp_path / "set", source, shards=6)
    assert pack(tmp_path / "set", source, shards=6, overwrite=True).finished
