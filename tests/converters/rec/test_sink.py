"""Packing record sets: the same samples come out, in both styles, even if the job is killed on the way."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, RecordSetMaker, forked, jpeg, peak_bytes, tree

from facedata.converters.convert import convert_dataset, plan_conversion, run_conversion
from facedata.converters.rec import create_sink
from facedata.converters.rec.record_set import open_record_set
from facedata.converters.rec.recordio import INSIGHTFACE, LARGEST_LABEL, MAGIC_BYTES, PLAIN
from facedata.dataset import Sample
from facedata.errors import DiskFullError, EmptyDatasetError, OptionError, OutputMismatchError, SampleError
from facedata.jobs.engine import LocalExecutor
from facedata.jobs.job import JobOptions, JobSummary

BLOCK = 1 << 24  # the bytes of input that make a shard


def pack(folder: Path, source: Any, *, shards: int = 3, job: Any = None, **options: Any) -> JobSummary:
    conversion = plan_conversion("test", source, create_sink(str(folder), **options), size=shards * BLOCK)
    job = {"workers": 1, "executor_factory": ThreadPoolExecutor, **(job or {})}
    return run_conversion(conversion, JobOptions(**job))


class WithValues(MemorySource):
    may_have_values = True


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
        if style == INSIGHTFACE:
            maker.insightface_of(good)
        for key, sample in enumerate(good if style == PLAIN else ()):
            maker.add(key, float(sample.label), sample.image)
        expected = tree(maker.write(num_classes=labels[-1] + 1))
        assert {name: Path(folder, name).read_bytes() for name in expected} == expected


@pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])
def test_label_values_are_kept_and_a_label_array_is_written_if_asked_for(tmp_path: Path, style: str) -> None:
    def values(folder: Path, source: Any, **options: Any) -> list[tuple[float, ...] | None]:
        pack(folder, source, style=style, **options)
        source = open_record_set(folder)
        assert list(source) == [source[place] for place in range(len(source))]  # blocks, and one by one
        return [sample.values for sample in source]

    items = [sample._replace(image=sample.image + MAGIC_BYTES * 3) for sample in samples_of([0, 1, *[2] * 20])]
    aged = [item._replace(values=(float(n), 0.5) if n else (0.0,)) for n, item in enumerate(items)]
    assert values(tmp_path / "aged", WithValues(aged)) == [item.values for item in aged]
    again = values(tmp_path / "again", open_record_set(tmp_path / "aged"), label_array=True)
    assert again == [item.values for item in aged]
    # the first record of a plain set must not look like the meta record of the other style
    first = [None] if style == PLAIN else [(0.0,)]
    assert values(tmp_path / "arrays", MemorySource(items), label_array=True) == [*first, *[(0.0,)] * 21]
    assert values(tmp_path / "moved", open_record_set(tmp_path / "arrays")[1:])[0] in first


def test_packing_and_unpacking_agree_on_the_types_of_images(tmp_path: Path) -> None:
    ftyp = b"\0\0\0\x18ftyp"
    begins = {
        **{"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF....WEBP", "bmp": b"BM".ljust(26)},
        **{"gif": b"GIF89a", "tif": b"II*\0", "heic": ftyp + b"heic", "avif": ftyp + b"avif"},
        **{"jp2": b"\0\0\0\x0cjP  \r\n\x87\n", "j2k": b"\xff\x4f\xff\x51"},
    }
    items = [Sample(f"a/{n}.{extension}", 0, begins[extension].ljust(64)) for n, extension in enumerate(begins)]
    assert pack(tmp_path / "set", MemorySource(items)).failures == 0
    summary = convert_dataset([f"rec:{tmp_path}/set"], f"folder:{tmp_path}/out", job=JobOptions(workers=1))
    assert (summary.samples, summary.failures) == (len(begins), 0)
    written = {name: data for name, data in tree(tmp_path / "out").items() if name.startswith("id_0/")}
    assert written == {
        f"id_0/0_{n}.{extension}": item.image for (n, extension), item in zip(enumerate(begins), items, strict=True)
    }


def test_dropped_label_values_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, age in (("ages", 20.5), ("arrays", 0.0)):
        pack(tmp_path / name, MemorySource([item._replace(values=(age,)) for item in samples_of([0, 0, 1])]))
    sources = [f"rec:{tmp_path}/{name}" for name in ("ages", "arrays")]
    convert_dataset(sources, f"folder:{tmp_path}/out", job=JobOptions(workers=1))
    message = f"{tmp_path}/ages: its records have 2 label values, as in [0, 20.5]; only the first is kept, as the label"
    assert caplog.messages == [message]


def test_a_set_of_many_people_ends_as_the_other_writer_ends_it(tmp_path: Path) -> None:
    people = (1 << 12) + 5  # more than are written at once
    source = MemorySource([Sample(str(n), n, jpeg(n)) for n in range(people)])
    pack(tmp_path / "set", source)
    RecordSetMaker(tmp_path).insightface_of([item for item in source.items if isinstance(item, Sample)])
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_names_of_classes_are_written_and_not_sent_with_every_shard(tmp_path: Path) -> None:
    pack(tmp_path, MemorySource(samples_of([0, 0, 2, 3]), names={0: "ann", 2: "bo", 3: "cy"}), list_file=True)
    assert set(tree(tmp_path)) == {"classes.txt", "property", "train.idx", "train.lst", "train.rec"}
    assert (tmp_path / "classes.txt").read_text() == "0\tann\n2\tbo\n3\tcy\n"
    assert not [name for name in os.listdir(tmp_path) if "building" in name or "temporary" in name]
    sink, _ = create_sink("set").fit(MemorySource(samples_of([0]), names=dict.fromkeys(range(1000), "x" * 100)))
    assert sink.names is not None
    assert len(pickle.dumps(sink)) < 1000
    assert pickle.loads(pickle.dumps(sink)) == sink  # noqa: S301, our own bytes


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


def test_an_empty_image_and_a_label_that_float32_rounds_are_refused_by_name(tmp_path: Path) -> None:
    drawn = [(0, b"<html>"), (0, b""), (LARGEST_LABEL, jpeg(2)), (LARGEST_LABEL + 1, jpeg(3))]
    source = MemorySource([Sample(str(n), *pair) for n, pair in enumerate(drawn)])
    assert pack(tmp_path, source, keep_undecodable=True).failures == 2
    assert [(sample.label, sample.image) for sample in open_record_set(tmp_path)] == drawn[::2]
    empty, rounded = (json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines())
    assert (empty["key"], rounded["key"]) == ("1", "3")
    assert "an image of 0 bytes" in empty["reason"]
    expected = "label 16777217: records hold labels in float32, which is exact only from 0 to 16,777,216"
    assert rounded["reason"].startswith(expected)


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

    def label_blocks(self) -> Iterator[Any]:
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


def test_wrong_options_are_refused_and_others_are_part_of_the_identity() -> None:
    with pytest.raises(EmptyDatasetError, match="there is no image to write"):
        create_sink("set").fit(MemorySource([]))
    with pytest.raises(OptionError, match="--style mxnet: expected insightface or plain"):
        create_sink("set", style="mxnet")
    with pytest.raises(OptionError, match=r"name a folder; the record file is written in it, as train\.rec"):
        create_sink("set/train.rec")
    options: list[dict[str, Any]] = [{}, {"style": PLAIN}, {"list_file": True}, {"keep_undecodable": True}]
    assert len({str(create_sink("set", **given).identity()) for given in options}) == len(options)


# Interrupted jobs

LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 4, 5, 5, 5]


def killed(step: int, call: Callable[[], object]) -> bool:
    """Whether a forked process is killed at the `step`-th change of a file; a write is cut off in its middle."""
    left, write = step, os.write

    def dying(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            if real is write:
                write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    def doomed() -> None:
        for name in ("write", "replace", "ftruncate", "fsync", "unlink", "rmdir", "mkdir", "link"):
            setattr(os, name, partial(dying, getattr(os, name)))
        call()

    status = forked(doomed)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def entries(folder: Path) -> set[str]:
    """A killed engine may leave some files of its own."""
    return {name for name in os.listdir(folder) if not name.startswith((".facedata-plan-", ".facedata-temp"))}


def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    items: list[Sample | SampleError] = [  # most shards have a record that is split
        sample._replace(image=sample.image + MAGIC_BYTES * (n % 3)) for n, sample in enumerate(samples_of(LABELS))
    ]
    items[4] = SampleError("memory", "4", "cannot be read")

    def run(folder: Path) -> JobSummary:
        return pack(folder, MemorySource(items, names={0: "ann", 5: "bo"}), list_file=True)

    whole = tmp_path / "undisturbed"
    run(whole)
    for step in range(1, 1000, 2):
        folder = tmp_path / str(step)
        if not killed(step, lambda: run(folder)):  # noqa: B023, called at once
            break
        if step % 3 == 0:
            killed(random.Random(step).randint(1, 40), lambda: run(folder))  # noqa: B023
        run(folder)
        assert tree(folder) == tree(whole), f"killed at step {step}"
        assert entries(folder) == entries(whole)
    assert step > 40


def big_source(count: int = 60, size: int = 20_000) -> MemorySource:
    return MemorySource(samples_of([n // 4 for n in range(count)], size), names={0: "ann"})


@pytest.mark.parametrize("style", [INSIGHTFACE, PLAIN])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, style: str) -> None:
    options: dict[str, Any] = {"style": style, "list_file": True}
    pack(tmp_path / "here", big_source(), shards=1, **options)
    for workers in (1, 3):
        job = {"workers": workers, "executor_factory": LocalExecutor}
        pack(tmp_path / str(workers), big_source(), shards=9, job=job, **options)
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


BUILT = ["train.rec", "offsets", "labels"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 8)


def empty(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(100))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *[(name, cut, rf"{name}: has \d+ bytes, but earlier runs of this job wrote \d+") for name in BUILT],
        ("train.rec", empty, r"train\.rec: has 0 bytes, but"),
        ("train.rec", overwrite, r"train\.rec: is corrupt: .*--overwrite starts again"),
    ],
)
def test_a_changed_build_file_is_told(tmp_path: Path, name: str, change: Callable[[Path], None], message: str) -> None:
    source = MemorySource(samples_of(LABELS))
    assert killed(30, lambda: pack(tmp_path / "set", source, shards=6))
    change(tmp_path / "set" / ".facedata-building" / name)
    with pytest.raises(OutputMismatchError, match=message):
        pack(tmp_path / "set", source, shards=6)
    assert pack(tmp_path / "set", source, shards=6, job={"overwrite": True}).finished
