from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as from_numpy
from numpy.typing import NDArray
from support import MemorySource, jpeg, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.parquet.sink import ParquetSink
from facedata.dataset import Sample, Sink, Source, create_dataset, open_dataset
from facedata.errors import (
    DiskFullError,
    InputNotFoundError,
    MissingExtraError,
    OptionError,
    OutputMismatchError,
    SampleError,
)
from facedata.jobs.job import JobOptions, JobSummary

LANDMARKS = np.arange(10, dtype=np.float32).reshape(5, 2)


def write(
    source: Source, folder: Path, *, workers: int = 1, job: Mapping[str, Any] | None = None, **options: Any
) -> JobSummary:
    conversion = plan_conversion("test", source, create_dataset(f"parquet:{folder}", **options))
    return run_conversion(conversion, JobOptions(workers=workers, **(job or {})))


def write_shard(sink: Sink, shard: int, items: Sequence[Sample]) -> None:
    with sink.open_shard(shard) as writer:
        for place, item in enumerate(items):
            writer.write(place, item)


def read(folder: Path) -> list[Sample]:
    return list(open_dataset(f"parquet:{folder}"))


def samples(count: int, size: int = 1000) -> list[Sample]:
    return [Sample(str(n), n // 4, jpeg(bytes([n % 256]) * size)) for n in range(count)]


def assert_same(first: Sequence[Sample], second: Sequence[Sample]) -> None:
    assert [sample[:3] for sample in first] == [sample[:3] for sample in second]
    for sample, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(sample.landmarks, other.landmarks)


IMAGES = st.binary(max_size=200).map(jpeg)
POINTS = from_numpy.arrays(np.float32, (5, 2), elements=st.floats(width=32, allow_nan=False))
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
SAMPLES = st.builds(Sample, KEYS, st.integers(0, (1 << 31) - 1), IMAGES, st.none() | POINTS)


@settings(max_examples=15)
@given(items=st.lists(SAMPLES, max_size=30), count=st.integers(1, 12))
def test_what_is_written_is_read_again(items: list[Sample], count: int) -> None:
    with TemporaryDirectory() as folder:
        sink, ends = create_dataset(f"parquet:{folder}", shard_samples=count, landmark_column=True).fit(
            MemorySource(items)
        )
        assert ends is not None
        for shard, (begin, end) in enumerate(zip((0, *ends), ends, strict=False)):
            write_shard(sink, shard, items[begin:end])
        assert_same(read(Path(folder)), items)
        assert list(open_dataset(folder).keys()) == [sample.key for sample in items]


def test_a_shard_is_a_file_named_as_the_hub_names_them(tmp_path: Path) -> None:
    items = samples(40)
    summary = write(MemorySource(items), tmp_path / "out", shard_size=10_500)
    names = [f"train-{n:05d}-of-00004.parquet" for n in range(4)]
    assert sorted(tree(tmp_path / "out")) == names
    assert summary.facts["files"] == 4
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in names] == [10] * 4
    assert_same(read(tmp_path / "out"), items)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [40]),
        ({"shard_samples": 15}, [15, 15, 10]),
        ({"shard_size": 20_080, "shard_samples": 15}, [15, 15, 10]),
        ({"shard_size": 20_080, "shard_samples": 100}, [20, 20]),
        ({"shard_size": 1}, [1] * 40),
    ],
)
def test_files_are_cut_by_size_or_by_count_or_by_both(tmp_path: Path, options: dict[str, Any], rows: list[int]) -> None:
    write(MemorySource(samples(40)), tmp_path, **options)
    assert [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("*.parquet"))] == rows


def test_files_are_half_a_gigabyte_by_default(tmp_path: Path) -> None:
    class Large(MemorySource):
        def sizes(self) -> NDArray[np.int32]:
            return np.full(len(self), 30_000_000, np.int32)

    _, ends = create_dataset(f"parquet:{tmp_path}").fit(Large(samples(40)))
    assert ends == (16, 32, 40)


@pytest.mark.parametrize("option", ["shard_size", "shard_samples"])
def test_files_that_could_hold_nothing_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(OptionError, match=f"--{option.replace('_', '-')} 0: must be at least 1"):
        create_dataset(f"parquet:{tmp_path}", **{option: 0})


def test_more_files_than_can_be_named_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="this would write 100,001 files, but their names allow 100,000"):
        create_dataset(f"parquet:{tmp_path}", shard_samples=1).fit(MemorySource(samples(1) * 100_001))


def test_an_empty_source_is_one_empty_file(tmp_path: Path) -> None:
    write(MemorySource([]), tmp_path)
    assert read(tmp_path) == []


def test_row_groups_are_bounded_and_images_are_not_compressed(tmp_path: Path) -> None:
    items = [*samples(45, 400_000), Sample("large", 3, jpeg(bytes(9 << 20))), *samples(9000, 10)]
    write(MemorySource(items), tmp_path)
    metadata = pq.read_metadata(tmp_path / "train-00000-of-00001.parquet")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [20, 20, 5, 1, 8192, 808]
    for group in groups:
        image, path, label = (group.column(place) for place in range(3))
        assert (image.path_in_schema, path.path_in_schema, label.path_in_schema) == (
            "image.bytes",
            "image.path",
            "label",
        )
        assert image.compression == "UNCOMPRESSED"
        assert not image.has_dictionary_page
        assert not image.is_stats_set or not image.statistics.has_min_max
        assert label.statistics.has_min_max
        assert image.has_offset_index
    assert metadata.serialized_size < 10_000
    assert_same(read(tmp_path), items)


@pytest.mark.parametrize(
    ("keys", "paths"),
    [
        (["1", "2"], ["1.jpg", "2.jpg"]),
        (["a.b", "c/d"], ["a.b.jpg", "c/d.jpg"]),
        (["id_1/1_0.jpg", "id_1/1_1.JPEG"], ["id_1/1_0.jpg", "id_1/1_1.JPEG"]),
        (["x.png", "no extension"], ["x.png", "no extension"]),
    ],
)
def test_the_path_of_an_image_ends_as_a_file_name_does_and_its_key_comes_back(
    tmp_path: Path, keys: list[str], paths: list[str]
) -> None:
    write(MemorySource([Sample(key, 0, jpeg(key)) for key in keys]), tmp_path)
    written = pq.read_table(tmp_path / "train-00000-of-00001.parquet")
    assert [image["path"] for image in written["image"].to_pylist()] == paths
    assert [sample.key for sample in read(tmp_path)] == keys


def test_refused_samples_are_listed_with_the_reason(tmp_path: Path) -> None:
    items = [
        *samples(2),
        Sample("bad", 0, b"<html>"),
        Sample("caf\udce9.jpg", 0, jpeg(0)),
        Sample("x" * 5000, 0, jpeg(0)),
    ]
    summary = write(MemorySource([*items, SampleError("set", "gone", "cannot be read")]), tmp_path / "out")
    assert (summary.samples, summary.failures) == (2, 4)
    failures = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    reasons = ["its bytes begin 3c 68", "not valid UTF-8", "key has 5,000 bytes", "cannot be read"]
    assert [reason in line for reason, line in zip(reasons, failures, strict=True)] == [True] * 4
    assert_same(read(tmp_path / "out"), samples(2))
    write(MemorySource(items[:3]), tmp_path / "all", keep_undecodable=True)
    assert [(sample.key, sample.image) for sample in read(tmp_path / "all")][2] == ("bad", b"<html>")


def with_landmarks(*places: int, count: int = 40) -> MemorySource:
    return MemorySource(
        [sample._replace(landmarks=LANDMARKS + n if n in places else None) for n, sample in enumerate(samples(count))]
    )


@pytest.mark.parametrize("places", [range(40), range(20, 40), [0]])
def test_landmarks_get_a_column_if_some_samples_have_them(tmp_path: Path, places: Sequence[int]) -> None:
    source = with_landmarks(*places)
    write(source, tmp_path, shard_samples=10)
    assert pq.read_schema(tmp_path / "train-00000-of-00004.parquet").names == ["image", "label", "landmarks"]
    assert_same(read(tmp_path), list(source))


def test_landmarks_without_a_column_are_refused(tmp_path: Path) -> None:
    source = with_landmarks(3)
    assert write(source, tmp_path / "default").failures == 1
    assert "use --landmark-column" in (tmp_path / "default" / "failures.jsonl").read_text()
    assert pq.read_schema(tmp_path / "default" / "train-00000-of-00001.parquet").names == ["image", "label"]
    assert write(source, tmp_path / "column", landmark_column=True).failures == 0
    assert_same(read(tmp_path / "column"), list(source))
    assert write(source, tmp_path / "without", landmark_column=False).failures == 0
    assert_same(read(tmp_path / "without"), samples(40))


def test_names_of_classes_and_their_number_come_back(tmp_path: Path) -> None:
    names = {0: "anna", 9: "bert\tclaes"}
    source = MemorySource(samples(40), names=names, classes=10)
    summary = write(source, tmp_path, shard_samples=10)
    assert (tmp_path / "classes.txt").read_text() == "0\tanna\n9\tbert claes\n"
    assert summary.facts["files"] == 4
    assert open_dataset(str(tmp_path)).class_names() == {0: "anna", 9: "bert claes"}
    assert open_dataset(str(tmp_path)).declared_classes() == 10
    assert open_dataset(str(tmp_path))[:0].class_names() is None
    write(MemorySource(samples(3)), tmp_path / "without")
    assert open_dataset(str(tmp_path / "without")).class_names() is None
    assert open_dataset(str(tmp_path / "without")).declared_classes() is None


def test_class_names_are_not_sent_to_workers(tmp_path: Path) -> None:
    source = MemorySource(samples(3), names=dict.fromkeys(range(1000), "x" * 100))
    sink, _ = create_dataset(f"parquet:{tmp_path}").fit(source)
    assert isinstance(sink, ParquetSink)
    assert len(pickle.dumps(sink)) < 1000
    assert pickle.loads(pickle.dumps(sink)) == replace(sink, class_names=None)  # noqa: S301, our own bytes


def test_names_of_its_files_are_its_own(tmp_path: Path) -> None:
    sink = create_dataset(f"parquet:{tmp_path}")
    own = ["train-00000-of-00001.parquet", "train-99999-of-100000.parquet", "classes.txt"]
    others = ["test-00000-of-00001.parquet", "train-0-of-1.parquet", "photo.jpg"]
    assert list(filter(sink.owns, own + others)) == own
    assert list(sink.named_files()) == []


def test_every_option_that_decides_the_bytes_makes_another_job(tmp_path: Path) -> None:
    source = MemorySource(samples(8))
    write(source, tmp_path)
    for options in ({"shard_samples": 4}, {"shard_size": 4000}, {"landmark_column": True}, {"keep_undecodable": True}):
        with pytest.raises(OutputMismatchError):
            write(source, tmp_path, **options)
    assert write(source, tmp_path).nothing_to_do
    summary = write(source, tmp_path, shard_samples=4, job={"overwrite": True})
    assert (summary.samples, len(list(tmp_path.glob("*.parquet")))) == (8, 2)


def test_parquet_to_parquet_reads_and_forks_in_one_process(tmp_path: Path) -> None:
    write(MemorySource(samples(400)), tmp_path / "large")
    source = open_dataset(str(tmp_path / "large"))
    assert write(source, tmp_path / "small", shard_samples=30, workers=2).samples == 400
    assert_same(read(tmp_path / "small"), samples(400))
    write(open_dataset(str(tmp_path / "small")), tmp_path / "again", workers=2)
    assert tree(tmp_path / "again") == tree(tmp_path / "large")


@pytest.mark.parametrize("room", [0, 4096, 9_000_000])
def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_disk: Path, room: int) -> None:
    filler, items = small_disk / "filler", samples(300, 40_000)  # 12 MB, in two row groups
    filler.write_bytes(bytes(max((8 << 20) - room, 0)))
    sink, _ = create_dataset(f"parquet:{small_disk}").fit(MemorySource(items))
    with pytest.raises(DiskFullError, match=r"train-00000-of-00001\.parquet: no space left"):
        write_shard(sink, 0, items)
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    write_shard(sink, 0, items[:150])
    assert_same(read(small_disk), items[:150])


def test_an_error_of_the_input_is_not_reported_as_one_of_the_output(tmp_path: Path) -> None:
    sink, _ = create_dataset(f"parquet:{tmp_path}").fit(MemorySource(samples(3)))
    with pytest.raises(InputNotFoundError, match="gone"), sink.open_shard(0):
        raise InputNotFoundError("gone")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(MemorySource(samples(3)), tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = re.escape("the format parquet needs the extra 'parquet': pip install 'facedata[parquet]'")
    with pytest.raises(MissingExtraError, match=message):
        open_dataset(str(tmp_path / "set"))  # recognised without it
    with pytest.raises(MissingExtraError, match=message):
        create_dataset(f"parquet:{tmp_path / 'out'}").fit(MemorySource(samples(3)))
    assert not (tmp_path / "out").exists()


def test_reading_and_writing_start_no_threads_and_load_no_pandas(tmp_path: Path) -> None:
    script = """
import os, sys
import numpy as np
from facedata.converters.parquet.sink import ParquetSink
from facedata.converters.parquet.library import import_pyarrow
from facedata.dataset import Sample, open_dataset
import_pyarrow()
before = len(os.listdir("/proc/self/task"))
with ParquetSink(sys.argv[1], landmarks=True, file_count=1).open_shard(0) as writer:
    for n in range(10_000):
        writer.write(n, Sample(str(n), n, b"\\xff\\xd8\\xff\\xe0" + bytes(2000), np.zeros((5, 2), np.float32)))
source = open_dataset(sys.argv[1])
assert len(list(source.read())) == len(list(source.keys())) == sum(map(len, source.labels())) == 10_000
assert len(os.listdir("/proc/self/task")) == before  # forked workers would wait for them for ever
assert "pandas" not in sys.modules  # half a second, for nothing
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, timeout=60)
