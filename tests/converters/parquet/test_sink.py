from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from format_support import assert_same, convert, numbered
from support import MemorySource, jpeg, tree

from facedata.dataset import Sample, create_dataset, open_dataset
from facedata.errors import InputNotFoundError, MissingExtraError, OptionError, SampleError
from facedata.jobs.job import JobOptions

LANDMARKS = np.arange(10, dtype=np.float32).reshape(5, 2)
ONLY = "train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [40]),
        ({"shard_samples": 15}, [15, 15, 10]),
        ({"shard_size": 20_000, "shard_samples": 15}, [15, 15, 10]),
        ({"shard_size": 20_000, "shard_samples": 100}, [20, 20]),
        ({"shard_size": 1}, [1] * 40),
    ],
)
def test_files_are_named_as_by_the_hub_and_cut_by_size_or_by_count_or_by_both(
    tmp_path: Path, options: dict[str, Any], rows: list[int]
) -> None:
    summary = convert(numbered(40, 1000), f"parquet:{tmp_path}", **options)
    names = [f"train-{n:05d}-of-{len(rows):05d}.parquet" for n in range(len(rows))]
    assert list(tree(tmp_path)) == names
    assert summary.facts["files"] == len(rows)
    assert [pq.read_metadata(tmp_path / name).num_rows for name in names] == rows
    assert_same(open_dataset(str(tmp_path)), numbered(40, 1000))


def test_more_files_than_can_be_named_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="this would write 100,001 files, but their names allow 100,000"):
        create_dataset(f"parquet:{tmp_path}", shard_samples=1).fit(MemorySource([*numbered(1)] * 100_001))


def test_an_empty_source_is_one_empty_file(tmp_path: Path) -> None:
    convert(MemorySource([]), f"parquet:{tmp_path}")
    assert list(open_dataset(f"parquet:{tmp_path}")) == []


def test_row_groups_are_bounded_and_images_are_not_compressed(tmp_path: Path) -> None:
    items = [*numbered(45, 400_000), Sample("large", 3, jpeg(bytes(9 << 20))), *numbered(9000, 10)]
    convert(MemorySource(items), f"parquet:{tmp_path}")
    metadata = pq.read_metadata(tmp_path / ONLY)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [20, 20, 5, 1, 8192, 808]
    for group in groups:
        columns = [group.column(place) for place in range(3)]
        assert [column.path_in_schema for column in columns] == ["image.bytes", "image.path", "label"]
        image, _, label = columns
        assert image.compression == "UNCOMPRESSED"
        assert not image.has_dictionary_page
        assert not image.is_stats_set or not image.statistics.has_min_max
        assert label.statistics.has_min_max
        assert image.has_offset_index
    assert metadata.serialized_size < 10_000
    assert_same(open_dataset(f"parquet:{tmp_path}"), items)


@pytest.mark.parametrize(
    "paths",
    [
        {"1": "1.jpg", "a.b": "a.b.jpg", "c/d": "c/d.jpg"},
        {"id_1/1_0.jpg": "id_1/1_0.jpg", "id_1/1_1.JPEG": "id_1/1_1.JPEG"},
        {"x.png": "x.png", "no extension": "no extension"},
    ],
)
def test_the_path_of_an_image_ends_as_a_file_name_does_and_its_key_comes_back(
    tmp_path: Path, paths: dict[str, str]
) -> None:
    convert(MemorySource([Sample(key, 0, jpeg(key)) for key in paths]), f"parquet:{tmp_path}")
    assert [image["path"] for image in pq.read_table(tmp_path / ONLY)["image"].to_pylist()] == list(paths.values())
    assert [sample.key for sample in open_dataset(f"parquet:{tmp_path}")] == list(paths)


@pytest.mark.parametrize(
    ("labels", "names", "expected", "class_label"),
    [
        ([0, -1, 2], None, [0, None, 2], None),
        ([-1, -1], None, [None, None], None),
        ([0, 2], {0: "anna", 2: "bert"}, [0, 2], ["anna", "1", "bert"]),
        ([0, 1], {0: "anna", 1: "anna"}, [0, 1], None),  # the library refuses names that are not unique
        ([5000], {5000: "anna"}, [5000], None),
    ],
)
def test_labels_are_null_without_one_and_a_class_label_with_names(
    tmp_path: Path,
    labels: list[int],
    names: dict[int, str] | None,
    expected: list[int | None],
    class_label: list[str] | None,
) -> None:
    source = MemorySource([Sample(str(n), label, jpeg(n)) for n, label in enumerate(labels)], names=names)
    convert(source, f"parquet:{tmp_path}")
    written = pq.read_table(tmp_path / ONLY)
    features = json.loads(written.schema.metadata[b"huggingface"])["info"]["features"]
    assert (written["label"].to_pylist(), features["label"].get("names")) == (expected, class_label)
    assert [sample.label for sample in open_dataset(f"parquet:{tmp_path}")] == labels


def test_refused_samples_are_listed_with_the_reason(tmp_path: Path) -> None:
    refused: dict[Sample | SampleError, str] = {
        Sample("bad", 0, b"<html>"): "its bytes begin 3c 68",
        Sample("caf\udce9.jpg", 0, jpeg(0)): "not valid UTF-8",
        Sample("x" * 5000, 0, jpeg(0)): "key has 5,000 bytes",
        SampleError("set", "gone", "cannot be read"): "cannot be read",
    }
    summary = convert(MemorySource([*numbered(2), *refused]), f"parquet:{tmp_path}")
    assert (summary.samples, summary.failures) == (2, 4)
    failures = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert all(reason in line for reason, line in zip(refused.values(), failures, strict=True))
    assert_same(open_dataset(f"parquet:{tmp_path}"), numbered(2))


def with_landmarks(*places: int) -> MemorySource:
    samples = enumerate(numbered(40))
    return MemorySource([s._replace(landmarks=LANDMARKS + n if n in places else None) for n, s in samples])


@pytest.mark.parametrize(
    ("places", "options"),
    [(range(40), {}), (range(20, 40), {}), ([0], {}), ([3], {"landmark_column": True})],
)
def test_landmarks_get_a_column_on_request_or_if_some_samples_have_them(
    tmp_path: Path, places: Sequence[int], options: dict[str, Any]
) -> None:
    source = with_landmarks(*places)
    assert convert(source, f"parquet:{tmp_path}", shard_samples=10, **options).good
    assert pq.read_schema(tmp_path / "train-00000-of-00004.parquet").names == ["image", "label", "landmarks"]
    assert_same(open_dataset(f"parquet:{tmp_path}"), source)


def test_landmarks_without_a_column_are_refused_or_left_out_on_request(tmp_path: Path) -> None:
    assert convert(with_landmarks(3), f"parquet:{tmp_path}/default").failures == 1
    assert "use --landmark-column" in (tmp_path / "default" / "failures.jsonl").read_text()
    assert pq.read_schema(tmp_path / "default" / ONLY).names == ["image", "label"]
    assert convert(with_landmarks(3), f"parquet:{tmp_path}/without", landmark_column=False).good
    assert_same(open_dataset(f"parquet:{tmp_path}/without"), numbered(40))


@pytest.mark.parametrize("classes", [10, None])
def test_the_declared_number_of_classes_comes_back_and_no_names_where_there_were_none(
    tmp_path: Path, classes: int | None
) -> None:
    convert(MemorySource(numbered(4).items, classes=classes), f"parquet:{tmp_path}")
    source = open_dataset(str(tmp_path))
    assert (source.declared_classes(), source.class_names(), source[:0].class_names()) == (classes, None, None)


def test_parquet_to_parquet_reads_and_forks_in_one_process(tmp_path: Path) -> None:
    convert(numbered(400), f"parquet:{tmp_path}/large")
    two = JobOptions(workers=2)
    convert(open_dataset(f"{tmp_path}/large"), f"parquet:{tmp_path}/small", two, shard_samples=30)
    assert_same(open_dataset(f"{tmp_path}/small"), numbered(400))
    convert(open_dataset(f"{tmp_path}/small"), f"parquet:{tmp_path}/again", two)
    assert tree(tmp_path / "again") == tree(tmp_path / "large")


def test_an_error_of_the_input_is_not_reported_as_one_of_the_output(tmp_path: Path) -> None:
    sink, _ = create_dataset(f"parquet:{tmp_path}").fit(numbered(3))
    with pytest.raises(InputNotFoundError, match="gone"), sink.open_shard(0):
        raise InputNotFoundError("gone")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(numbered(3), f"parquet:{tmp_path}/set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = re.escape("the format parquet needs the extra 'parquet': pip install -e '.[parquet]'")
    with pytest.raises(MissingExtraError, match=message):
        open_dataset(str(tmp_path / "set"))  # recognised without it
    with pytest.raises(MissingExtraError, match=message):
        convert(numbered(3), f"parquet:{tmp_path}/out")
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
assert len(list(source.read())) == len(list(source.keys())) == len(source.labels()) == 10_000
assert len(os.listdir("/proc/self/task")) == before  # forked workers would wait for them for ever
assert "pandas" not in sys.modules  # half a second, for nothing
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True, timeout=60)
