"""What the formats ``folder``, ``parquet`` and ``webdataset`` have in common; their own tests have the rest."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from format_support import HERE, assert_same, convert, numbered
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import MemorySource, jpeg

from facedata.dataset import Sample, create_dataset, open_dataset
from facedata.errors import OptionError, OutputMismatchError

each = pytest.mark.parametrize("name", ["folder", "parquet", "webdataset"])
sharded = pytest.mark.parametrize("name", ["parquet", "webdataset"])

KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda key: not (key.isascii() and key.isdigit())
)
POINTS = arrays(np.float32, (5, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
IMAGES = st.binary(max_size=1200).map(jpeg)
SAMPLES = st.builds(Sample, KEYS, st.integers(0, (1 << 31) - 1), IMAGES, st.none() | POINTS)


@sharded
@settings(max_examples=20)
@given(items=st.lists(SAMPLES, min_size=1, max_size=30), count=st.integers(1, 12))
def test_what_is_written_is_read_again(name: str, items: list[Sample], count: int) -> None:
    options: dict[str, Any] = {"landmark_column": True} if name == "parquet" else {}
    with TemporaryDirectory() as folder:
        convert(MemorySource(items), f"{name}:{folder}", shard_samples=count, **options)
        source = open_dataset(f"{name}:{folder}")
        assert_same(source, items)
        assert list(source.keys()) == [item.key for item in items]
        assert source.labels().tolist() == [item.label for item in items]


@each
def test_the_identity_knows_the_content_and_not_the_place(tmp_path: Path, name: str) -> None:
    items = list(numbered(8))
    relabelled, other = items[-1]._replace(label=9), items[-1]._replace(image=jpeg("other").ljust(100))
    changed = [items[:-1], items[::-1], [*items[:-1], relabelled], [*items[:-1], other]]
    identities = []
    for number, some in enumerate([items, items, *changed]):
        convert(MemorySource(some), f"{name}:{tmp_path}/{number}")
        identities.append(open_dataset(f"{name}:{tmp_path}/{number}").identity())
    first, moved, *others = identities
    assert json.loads(json.dumps(first)) == moved
    assert first not in others


@each
def test_a_part_takes_no_more_than_its_own_to_a_worker(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {} if name == "folder" else {"shard_samples": 4}
    convert(numbered(600), f"{name}:{tmp_path}", **options)
    source = open_dataset(f"{name}:{tmp_path}")
    sent = pickle.dumps(source[200:202])
    assert len(sent) < min(3000, len(pickle.dumps(source)) / 3)
    assert_same(pickle.loads(sent), list(source)[200:202])  # noqa: S301, our own bytes


@each
def test_names_of_classes_come_back_and_are_not_sent_to_workers(tmp_path: Path, name: str) -> None:
    names = {1: "Grace", 0: "Ada", **dict.fromkeys(range(2, 1000), "name" * 100)}
    source = MemorySource([Sample("0", 0, jpeg(0)), Sample("1", 999, jpeg(1))], names=names)
    convert(source, f"{name}:{tmp_path}")
    assert (tmp_path / "classes.txt").read_text().startswith("0\tAda\n1\tGrace\n")
    read = open_dataset(f"{name}:{tmp_path}").class_names()
    assert read is not None
    assert (read[0], read[999]) == (names[0], names[999])
    sink, _ = create_dataset(f"{name}:{tmp_path}").fit(source)
    sent = pickle.dumps(sink)
    assert len(sent) < 1000
    assert pickle.loads(sent).identity() == sink.identity()  # noqa: S301, our own bytes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("folder", [{"layout": "imagefolder"}, {"keep_undecodable": True}]),
        ("parquet", [{"shard_samples": 4}, {"shard_size": 400}, {"landmark_column": True}, {"keep_undecodable": True}]),
        ("webdataset", [{"shard_samples": 4}, {"shard_size": 400}, {"keep_undecodable": True}]),
    ],
)
def test_every_option_that_decides_the_bytes_makes_another_job(
    tmp_path: Path, name: str, options: list[dict[str, Any]]
) -> None:
    convert(numbered(8), f"{name}:{tmp_path}/a")
    for some in options:
        with pytest.raises(OutputMismatchError):
            convert(numbered(8), f"{name}:{tmp_path}/a", **some)
    (tmp_path / "a").rename(tmp_path / "b")
    assert convert(numbered(8), f"{name}:{tmp_path}/b").nothing_to_do
    assert convert(numbered(8), f"{name}:{tmp_path}/b", replace(HERE, overwrite=True), **options[0]).samples == 8
    assert len(open_dataset(f"{name}:{tmp_path}/b")) == 8


@pytest.mark.parametrize(("name", "ends"), [("parquet", (16, 32, 40)), ("webdataset", (33, 40))])
def test_files_have_half_a_gigabyte_of_images_and_tars_one_by_default(name: str, ends: tuple[int, ...]) -> None:
    source = MemorySource([Sample("1", 0, jpeg(0).ljust(30_000_000))] * 40)
    assert create_dataset(f"{name}:out").fit(source)[1] == ends
    for samples, cut in ((25, (25, 40)), (20, (20, 40))):
        assert create_dataset(f"{name}:out", shard_samples=samples).fit(source)[1] == cut


@sharded
@pytest.mark.parametrize("option", ["shard_size", "shard_samples"])
def test_files_that_could_hold_nothing_are_refused(name: str, option: str) -> None:
    for value in (0, -5):
        with pytest.raises(OptionError, match=f"--{option.replace('_', '-')} {value}: must be at least 1"):
            create_dataset(f"{name}:out", **{option: value})


@pytest.mark.parametrize(
    ("spec", "own", "foreign"),
    [
        (
            "folder:out",
            ["id_0", "id_16777216", "00000007", "123456789", ".facedata-list", "classes.txt"],
            ["id_", "id_x", "id_0.jpg", "0000007", "photos", "id_0\n", "ID_0", "2024-01-01", ".git"],
        ),
        (
            "parquet:out",
            ["train-00000-of-00001.parquet", "train-99999-of-100000.parquet", "classes.txt"],
            ["test-00000-of-00001.parquet", "train-0-of-1.parquet", "photo.jpg"],
        ),
        (
            "webdataset:out/a-%06d.tar",
            ["a-000000.tar", "a-1000000.tar", "classes.txt"],
            ["a-0.tar", "b-000000.tar", "a-000000.tar.gz", "a-0000000.tar", "id_0", "a-%06d.tar"],
        ),
    ],
)
def test_a_sink_owns_what_it_writes_and_nothing_else(spec: str, own: list[str], foreign: list[str]) -> None:
    assert list(filter(create_dataset(spec).owns, own + foreign)) == own


@sharded
@pytest.mark.parametrize("room", [0, 4096, 9_000_000])
def test_a_full_disk_is_reported_and_leaves_no_partial_file(small_disk: Path, name: str, room: int) -> None:
    filler, items = small_disk / "filler", list(numbered(300, 40_000))  # 12 MB
    filler.write_bytes(bytes(max((8 << 20) - room, 0)))
    sink, _ = create_dataset(f"{name}:{small_disk}").fit(MemorySource(items))

    def write(count: int) -> None:
        with sink.open_shard(0) as writer:
            for index, item in enumerate(items[:count]):
                writer.write(index, item)

    message = {"parquet": r"train-00000-of-00001\.parquet: no space left", "webdataset": "No space left on device"}
    with pytest.raises(OSError, match=message[name]):
        write(300)
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    write(150)
    assert [sample.image for sample in open_dataset(f"{name}:{small_disk}")] == [item.image for item in items[:150]]
