"""Packing record sets: the same samples come out, in both styles, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, RecordSetMaker, jpeg, peak_bytes, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.rec import create_sink
from facedata.converters.rec import writer as writer_module
from facedata.converters.rec.dialect import INSIGHTFACE, PLAIN
from facedata.converters.rec.record_set import open_record_set
from facedata.converters.rec.recordio import LARGEST_LABEL, MAGIC_BYTES, ImageRecord
from facedata.dataset import OrderedOutput, Sample, create_dataset
from facedata.errors import (
    DiskFullError,
    EmptyDatasetError,
    OptionError,
    OutputExistsError,
    OutputMismatchError,
    SampleError,
)
from facedata.jobs.executors import LocalExecutor
from facedata.jobs.job import JobOptions, JobSummary

BLOCK = 1 << 24  # the bytes of input that make a shard


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


def here(workers: int) -> Executor:
    return Here()


def pack(
    folder: Path, source: Any, *, shards: int = 3, workers: int = 1, executor: Any = here, **options: Any
) -> JobSummary:
    conversion = plan_conversion("test", source, create_sink(str(folder), **options), size=shards * BLOCK)
    return run_conversion(conversion, JobOptions(workers=workers, executor_factory=executor))


def samples_of(labels: Sequence[int], size: int = 40) -> list[Sample]:
    return [
        Sample(f"id_{label}/{n}.jpg", label, jpeg(random.Random(n).randbytes(size + n % 7)))
        for n, label in enumerate(labels)
    ]


IMAGES = st.lists(st.binary(max_size=5) | st.just(MAGIC_BYTES), max_size=6).map(b"".join).map(jpeg)
ITEMS = st.lists(st.tuples(st.integers(0, 4) | st.just(LARGEST_LABEL), IMAGES | st.just(b"no image")), min_size=1)


def items_of(drawn: list[tuple[int, bytes]]) -> list[Sample | SampleError]:
    """Samples, among them such as are refused, and errors in the place of those with an odd length."""
    return [
        SampleError("memory", str(n), "cannot be read") if len(image) == 11 else Sample(str(n), label, image)
        for n, (label, image) in enumerate(drawn)
    ]


def written_one_by_one(folder: str, samples: Sequence[Sample]) -> dict[str, bytes]:
    """What a plain loop writes."""
    maker = RecordSetMaker(Path(folder))
    for key, sample in enumerate(samples):
        maker.add(key, float(sample.label), sample.image)
    return tree(maker.write())


@settings(max_examples=40)  # each forces some files to the disk
@given(ITEMS, st.integers(1, 5))
def test_what_is_packed_plain_is_read_back(drawn: list[tuple[int, bytes]], shards: int) -> None:
    items = items_of(drawn)
    good = [item for item in items if isinstance(item, Sample) and item.image != b"no image"]
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        if not good:
            with pytest.raises(EmptyDatasetError, match="no image could be written"):
                pack(Path(folder), MemorySource(items), shards=shards, style=PLAIN)
            return
        summary = pack(Path(folder), MemorySource(items), shards=shards, style=PLAIN)
        assert (summary.samples, summary.failures) == (len(good), len(items) - len(good))
        opened = open_record_set(folder)
        assert opened.dialect == PLAIN
        assert opened.classes in (max(sample.label for sample in good) + 1, None)
        assert list(opened.source) == [Sample(str(key), s.label, s.image) for key, s in enumerate(good)]
        expected = written_one_by_one(other, good)
        assert {name: data for name, data in tree(Path(folder)).items() if name in expected} == expected


@settings(max_examples=40)  # each forces some files to the disk
@given(ITEMS, st.integers(1, 5))
def test_what_is_packed_for_insightface_is_read_back(drawn: list[tuple[int, bytes]], shards: int) -> None:
    items = items_of(sorted(drawn))
    good = [item for item in items if isinstance(item, Sample) and item.image != b"no image"]
    if not good:
        return
    labels = sorted({sample.label for sample in good})
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        summary = pack(Path(folder), MemorySource(items), shards=shards)
        assert summary.facts["identities"] == len(labels)
        opened = open_record_set(folder)
        assert opened.dialect == INSIGHTFACE
        assert list(opened.source) == [Sample(str(key), s.label, s.image) for key, s in enumerate(good, 1)]
        assert read_as_insightface(folder) == [(label, [s.image for s in good if s.label == label]) for label in labels]
        if labels == list(range(len(labels))):
            RecordSetMaker(Path(other)).insightface_of(good)
            assert tree(Path(folder)) | {"failures.jsonl": b""} == tree(Path(other)) | {"failures.jsonl": b""}


def read_as_insightface(folder: str) -> list[tuple[int, list[bytes]]]:
    """Label and images of each identity, found as InsightFace's loader finds them: from the meta record on."""
    from facedata.converters.rec.index import read_index
    from facedata.converters.rec.recordio import RecordReader, unpack_image_record

    index = read_index(Path(folder, "train.idx"))
    with RecordReader(Path(folder, "train.rec")) as reader:

        def record(key: float) -> ImageRecord:
            place = index.position(int(key))
            assert place is not None
            found = unpack_image_record(reader.read(int(index.offsets[place]))[0])
            assert found.id == key
            return found

        meta = record(0)
        assert meta.flag == 2
        identities = []
        for key in range(int(meta.labels[0]), int(meta.labels[1])):
            first, end = record(key).labels
            images = [record(image) for image in range(int(first), int(end))]
            assert len({image.labels for image in images}) == 1
            identities.append((int(images[0].labels[0]), [image.image for image in images]))
        assert [image for _, images in identities for image in images] == [
            record(key).image for key in range(1, int(meta.labels[0]))
        ]
        return identities


def test_it_is_an_output_with_a_single_writer() -> None:
    assert isinstance(create_dataset("rec:set"), OrderedOutput)


def test_all_files_and_nothing_else_are_there(tmp_path: Path) -> None:
    source = MemorySource(samples_of([0, 0, 2, 3]), names={0: "ann", 2: "bo", 3: "cy"})
    summary = pack(tmp_path / "set", source, list_file=True)
    written = tree(tmp_path / "set")
    assert sorted(written) == ["classes.txt", "property", "train.idx", "train.lst", "train.rec"]
    assert written["property"] == b"4,112,112\n"
    assert written["train.lst"] == b"1\t0\tid_0/0.jpg\n2\t0\tid_0/1.jpg\n3\t2\tid_2/2.jpg\n4\t3\tid_3/3.jpg\n"
    assert written["classes.txt"] == b"0\tann\n2\tbo\n3\tcy\n"
    index = [line.split(b"\t") for line in written["train.idx"].splitlines()]
    assert [int(key) for key, _ in index] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert summary.facts["identities"] == 3
    assert not [name for name in os.listdir(tmp_path / "set") if "building" in name or "temporary" in name]


def test_the_property_has_the_size_of_the_first_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = MemorySource([Sample("a", 0, _png(96, 112)), Sample("b", 0, _png(96, 112))])
    pack(tmp_path / "one", source)
    assert (tmp_path / "one" / "property").read_text() == "1,96,112\n"
    assert not caplog.records
    source = MemorySource([*source.items, Sample("c", 0, _png(224, 224))])
    pack(tmp_path / "two", source)
    assert (tmp_path / "two" / "property").read_text() == "1,96,112\n"
    assert "different sizes (96 x 112, 224 x 224)" in caplog.text


def _png(height: int, width: int) -> bytes:
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR"
    return header + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00" + bytes(40)


@pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])
def test_samples_that_fail_leave_no_gap_in_the_keys(tmp_path: Path, style: str) -> None:
    items: list[Sample | SampleError] = list(samples_of([0, 0, 1, 1, 2, 2, 3, 3]))
    items[0] = SampleError("memory", "0", "cannot be read", 7)
    items[3] = Sample("3", 1, b"<html>")
    items[6] = Sample("6", 3, b"")
    summary = pack(tmp_path, MemorySource(items), shards=4, style=style, list_file=True)
    first = 1 if style == INSIGHTFACE else 0
    assert [sample.key for sample in open_record_set(tmp_path).source] == [str(key + first) for key in range(5)]
    assert summary.failures == 3
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(failure["key"], failure["index"]) for failure in failures] == [("0", 0), ("3", 3), ("6", 6)]
    assert "not an image: its bytes begin 3c 68 74 6d 6c 3e" in failures[1]["reason"]
    keys = [line.split("\t")[0] for line in (tmp_path / "train.lst").read_text().splitlines()]
    assert keys == [str(key + first) for key in range(5)]


def test_what_is_no_image_is_kept_where_that_is_asked_for_unless_it_is_empty(tmp_path: Path) -> None:
    source = MemorySource([Sample("0", 0, b"<html>"), Sample("1", 0, b""), Sample("2", 0, jpeg(2))])
    summary = pack(tmp_path, source, keep_undecodable=True)
    assert [sample.image for sample in open_record_set(tmp_path).source] == [b"<html>", jpeg(2)]
    assert "an image of 0 bytes" in (tmp_path / "failures.jsonl").read_text()
    assert summary.failures == 1


@pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])
def test_a_label_that_float32_rounds_is_refused_by_name(tmp_path: Path, style: str) -> None:
    source = MemorySource([Sample("0", LARGEST_LABEL, jpeg(0)), Sample("1", LARGEST_LABEL + 1, jpeg(1))])
    pack(tmp_path, source, style=style)
    assert [sample.label for sample in open_record_set(tmp_path).source] == [LARGEST_LABEL]
    reason = json.loads((tmp_path / "failures.jsonl").read_text())["reason"]
    assert reason.startswith("label 16777217: records hold labels in float32, which is exact only from 0 to 16,777,216")


@pytest.mark.parametrize("key", ["a\tb", "a\nb", "a\rb", "\ud800"])
def test_a_key_that_would_break_the_list_is_refused_by_name(tmp_path: Path, key: str) -> None:
    source = MemorySource([Sample("0", 0, jpeg(0)), Sample(key, 0, jpeg(1))])
    assert pack(tmp_path / "listed", source, list_file=True).failures == 1
    assert pack(tmp_path / "unlisted", source).failures == 0


def test_a_file_name_that_is_not_utf8_is_listed_as_it_is(tmp_path: Path) -> None:
    pack(tmp_path, MemorySource([Sample("a/\udcff.jpg", 0, jpeg(0))]), list_file=True)
    assert (tmp_path / "train.lst").read_bytes() == b"1\t0\ta/\xff.jpg\n"


def test_labels_out_of_order_are_refused_before_any_work(tmp_path: Path) -> None:
    source = MemorySource(samples_of([0, 2, 2, 1]))
    with pytest.raises(OptionError, match=r"label 1 \(image 3, 'id_1/3\.jpg'\) comes after 2; facedata pack-rec group"):
        pack(tmp_path / "set", source)
    assert not (tmp_path / "set").exists()
    pack(tmp_path / "set", source, style=PLAIN)
    assert [sample.label for sample in open_record_set(tmp_path / "set").source] == [0, 2, 2, 1]


def test_labels_that_cannot_be_told_do_not_disturb_the_order(tmp_path: Path) -> None:
    items: list[Sample | SampleError] = list(samples_of([0, 0, 1]))
    items[1:1] = [SampleError("memory", "x", "cannot be read")]
    assert pack(tmp_path, MemorySource(items)).samples == 3


def test_gaps_in_the_labels_are_told_with_the_way_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path / "one", MemorySource(samples_of([0, 1, 2])))
    assert not caplog.records
    pack(tmp_path / "two", MemorySource(samples_of([1, 5])))
    assert "the largest label is 5, but only 2 labels have images; --relabel closes the gaps" in caplog.text
    opened = open_record_set(tmp_path / "two")
    assert (opened.classes, [sample.label for sample in opened.source]) == (6, [1, 5])


def test_more_records_than_float32_counts_are_refused_before_any_work_with_the_way_out(tmp_path: Path) -> None:
    source = MemorySource(samples_of([0, 0, 1, 2]))
    with patch.object(writer_module, "LARGEST_INSIGHTFACE_SET", 4 + 3 + 1):
        pack(tmp_path / "fits", source)
    with (
        patch.object(writer_module, "LARGEST_INSIGHTFACE_SET", 4 + 3),
        pytest.raises(OptionError, match=r"in float32, which is exact only up to 7, .*--style plain has no such limit"),
    ):
        pack(tmp_path / "too-many", source)
    assert not (tmp_path / "too-many").exists()


class ManyLabels(MemorySource):
    """Says that it is as large as the largest datasets."""

    def __len__(self) -> int:
        return 200 << 20

    def labels(self) -> Iterator[Any]:
        for block in range(200):
            yield np.full(1 << 20, block, np.int64)


def test_looking_at_the_labels_takes_the_same_memory_for_any_number() -> None:
    sink = create_sink("set")

    def fit() -> None:
        with pytest.raises(OptionError, match="--style plain"):
            sink.fit(ManyLabels([]))

    assert peak_bytes(fit) < 64 << 20


def test_an_empty_source_and_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="there is no image to write"):
        create_sink(str(tmp_path)).fit(MemorySource([]))
    with pytest.raises(OptionError, match="--style mxnet: expected insightface or plain"):
        create_sink(str(tmp_path), style="mxnet")
    with pytest.raises(OptionError, match=r"name a folder; the record file is written in it, as train\.rec"):
        create_sink(str(tmp_path / "train.rec"))


def test_each_option_tells_one_job_from_another() -> None:
    options: list[dict[str, Any]] = [{}, {"style": PLAIN}, {"list_file": True}, {"keep_undecodable": True}]
    identities = [json.dumps(create_sink("set", **one).identity(), sort_keys=True) for one in options]
    assert len(set(identities)) == len(options)


def test_class_names_are_not_sent_with_every_shard() -> None:
    sink, _ = create_sink("set").fit(MemorySource(samples_of([0]), names=dict.fromkeys(range(1000), "x" * 100)))
    assert sink.names is not None
    assert len(pickle.dumps(sink)) < 1000
    assert pickle.loads(pickle.dumps(sink)) == sink  # noqa: S301


def test_a_foreign_set_is_not_touched_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "train.rec").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"is not empty \(it holds 'train\.rec'\)"):
        pack(tmp_path, MemorySource(samples_of([0])))
    conversion = plan_conversion("test", MemorySource(samples_of([0])), create_sink(str(tmp_path)))
    assert run_conversion(conversion, JobOptions(overwrite=True, executor_factory=here)).finished
    assert len(open_record_set(tmp_path).source) == 1


LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 4, 5, 5, 5]
STYLES = pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])


def broken_source() -> MemorySource:
    """Splits a record in most shards, and has a sample that fails in some."""
    items: list[Sample | SampleError] = [
        Sample(sample.key, sample.label, sample.image + MAGIC_BYTES * (n % 3))
        for n, sample in enumerate(samples_of(LABELS))
    ]
    items[4] = SampleError("memory", "4", "cannot be read")
    return MemorySource(items, names={0: "ann", 5: "bo"})


ENGINES_OWN = (".facedata-plan-", ".facedata-temporary-failures", ".facedata-temporary-.facedata")
"""What a killed engine may leave, of which nothing is said here."""


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


def in_child(call: Callable[[], object]) -> int:
    """The exit status of a forked process that makes the call; -9 where it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has threads
        child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            call()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@STYLES
def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(tmp_path: Path, style: str) -> None:
    source = broken_source()

    def run(folder: Path, step: int) -> int:
        def packing() -> None:
            if step:
                kill_at(step)
            pack(folder, source, shards=5, style=style, list_file=True)

        return in_child(packing)

    assert run(tmp_path / "undisturbed", 0) == 0
    expected = tree(tmp_path / "undisturbed")
    names = set(os.listdir(tmp_path / "undisturbed"))
    steps = 1
    while run(folder := tmp_path / str(steps), steps) == -signal.SIGKILL:
        if steps % 3 == 0:
            run(folder, random.Random(steps).randint(1, 40))
        assert run(folder, 0) == 0
        assert tree(folder) == expected, f"killed at step {steps}"
        left = [name for name in os.listdir(folder) if not name.startswith(ENGINES_OWN)]
        assert set(left) == names
        steps += 1
    assert steps > 50


SCRIPT = """
import sys, time
from support import MemorySource
from test_sink import LocalExecutor, broken_source, pack

class Slow(MemorySource):
    def read(self):
        for item in super().read():
            time.sleep(0.02)
            yield item

source = Slow(broken_source().items, names=broken_source().names)
options = {"executor": LocalExecutor, "style": sys.argv[2], "list_file": True}
pack(sys.argv[1], source, shards=10, workers=2, **options)
"""


@STYLES
def test_killed_with_its_workers_at_work_it_goes_on(tmp_path: Path, style: str) -> None:
    pack(tmp_path / "undisturbed", broken_source(), shards=10, style=style, list_file=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "set"), style]
    journal = tmp_path / "set" / ".facedata-journal.jsonl"
    for shards in (1, 4, 8):
        with subprocess.Popen(command, env=environment) as process:
            while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"shard") >= shards):
                time.sleep(0.001)
            process.kill()
        assert not (tmp_path / "set" / "train.rec").exists()
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert tree(tmp_path / "set") == tree(tmp_path / "undisturbed")


def big_source(count: int = 60, size: int = 20_000) -> MemorySource:
    return MemorySource(samples_of([n // 4 for n in range(count)], size), names={0: "ann"})


@STYLES
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, style: str) -> None:
    source = big_source()
    pack(tmp_path / "here", source, shards=1, style=style, list_file=True)
    for workers in (1, 2, 3):
        pack(tmp_path / str(workers), source, shards=9, workers=workers, executor=LocalExecutor, style=style, list_file=True)  # fmt: skip  # noqa: E501
        assert tree(tmp_path / str(workers)) == tree(tmp_path / "here")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs to mount a small file system")
@STYLES
def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path: Path, small_disk: Path, style: str) -> None:
    source = big_source()
    pack(tmp_path / "roomy", source, shards=12, style=style, list_file=True)
    with pytest.raises(DiskFullError, match=r"train\.rec: .*free some space and run the same command again"):
        pack(small_disk / "set", source, shards=12, style=style, list_file=True)
    assert not set(os.listdir(small_disk / "set")) & {"train.rec", "train.idx", "property", "train.lst"}
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    summary = pack(small_disk / "set", source, shards=12, style=style, list_file=True)
    assert summary.finished
    assert tree(small_disk / "set") == tree(tmp_path / "roomy")


def stopped_halfway(folder: Path, source: MemorySource) -> Path:
    """A job that was killed when some shards were done; returns its building folder."""

    def packing() -> None:
        kill_at(30)
        pack(folder, source, shards=6)

    assert in_child(packing) == -signal.SIGKILL
    return folder / ".facedata-building"


@pytest.mark.parametrize("name", ["train.rec", "offsets", "labels"])
def test_a_build_file_that_was_cut_is_told(tmp_path: Path, name: str) -> None:
    source = MemorySource(samples_of(LABELS))
    path = stopped_halfway(tmp_path / "set", source) / name
    os.truncate(path, path.stat().st_size // 8)
    with pytest.raises(OutputMismatchError, match=rf"{name}: has \d+ bytes, but earlier runs of this job wrote \d+"):
        pack(tmp_path / "set", source, shards=6)
    conversion = plan_conversion("test", source, create_sink(str(tmp_path / "set")), size=6 * BLOCK)
    assert run_conversion(conversion, JobOptions(overwrite=True, executor_factory=here)).finished


def test_a_building_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    source = MemorySource(samples_of(LABELS))
    building = stopped_halfway(tmp_path / "set", source)
    for path in building.iterdir():
        path.unlink()
    with pytest.raises(OutputMismatchError, match=r"train\.rec: has 0 bytes, but"):
        pack(tmp_path / "set", source, shards=6)


def test_a_build_file_that_was_overwritten_is_told(tmp_path: Path) -> None:
    source = MemorySource(samples_of(LABELS))
    building = stopped_halfway(tmp_path / "set", source)
    with open(building / "train.rec", "r+b") as file:
        file.write(bytes(100))
    with pytest.raises(OutputMismatchError, match=r"train\.rec: is corrupt: .*--overwrite starts again"):
        pack(tmp_path / "set", source, shards=6)


def test_a_set_of_many_people_ends_as_the_other_writer_ends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    people = (1 << 16) + 5  # more than are written at once
    source = MemorySource([Sample(str(n), n, jpeg(n)) for n in range(people)])
    pack(tmp_path / "set", source)
    RecordSetMaker(tmp_path).insightface_of([item for item in source.items if isinstance(item, Sample)])
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / name).read_bytes()
