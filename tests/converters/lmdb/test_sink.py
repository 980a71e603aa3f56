"""Building databases: what FFC's loader gets from them, the same bytes each time, and what is refused."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import lmdb_support
import numpy as np
import pytest
from lmdb_support import build, built, read_as_ffc, samples
from support import MemorySource, jpeg, tree

from facedata.converters.class_names import read_class_names
from facedata.converters.lmdb import create_sink, open_source
from facedata.converters.lmdb.datum import LAYOUTS
from facedata.dataset import Sample, Source, create_dataset
from facedata.errors import (
    DiskFullError,
    EmptyDatasetError,
    FacedataError,
    OptionError,
    OutputExistsError,
    OutputMismatchError,
    SampleError,
)
from facedata.images import import_opencv

IN_THREADS = {"executor_factory": ThreadPoolExecutor}


def items_of(source: Source) -> list[tuple[int, bytes]]:
    return [(sample.label, sample.image) for sample in source]


def keys_of(path: Path) -> list[str]:
    return [line.split(" ")[0] for line in built(path)[1].splitlines()]


def test_the_loader_of_ffc_reads_it(tmp_path: Path) -> None:
    cv2 = import_opencv()
    generator = np.random.default_rng(0)
    items = []  # real images of several sizes, some grey
    for n in range(24):
        shape = (int(generator.integers(4, 120)), int(generator.integers(4, 120)), 1 if n % 5 == 0 else 3)
        image = cv2.imencode((".jpg", ".png", ".webp")[n % 3], generator.integers(0, 255, shape, np.uint8))[1].tobytes()
        items.append(Sample(f"p/{n}", n // 2, image, generator.random((5, 2), np.float32) * 112 if n % 2 else None))
    summary = build(tmp_path / "people.lmdb", MemorySource(items))
    assert (summary.finished, summary.samples, summary.failures) == (True, 24, 0)
    read = list(read_as_ffc(tmp_path / "people.lmdb", tmp_path / "people_kv.txt"))
    assert [key for key, _, _ in read] == [f"people_{n // 2}_{n}" for n in range(24)]
    for sample, (_, label, datum) in zip(items, read, strict=True):
        assert (label, datum.label, datum.data, datum.encoded) == (sample.label, sample.label, sample.image, True)
        pixels = cv2.imdecode(np.frombuffer(datum.data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (*pixels.shape, 1)[:3] == (datum.height, datum.width, datum.channels)
        assert list(datum.landmarks) == ([] if sample.landmarks is None else sample.landmarks.ravel().tolist())


@pytest.mark.parametrize("single_file", [False, True], ids=["folder", "single file"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read(tmp_path: Path, layout: str, single_file: bool) -> None:
    path = tmp_path / "people.lmdb"
    summary = build(path, samples(60), datum=layout, single_file=single_file)
    assert summary.facts["classes"] == 7
    assert items_of(open_source(str(path))) == items_of(samples(60))
    assert set(tree(tmp_path)) == {"people.lmdb" if single_file else "people.lmdb/data.mdb", "people_kv.txt"}
    assert sorted(os.listdir(tmp_path)) == ["people.lmdb", *["people.lmdb.facedata"] * single_file, "people_kv.txt"]
    root = tmp_path / "people.lmdb.facedata" if single_file else path
    assert not [name for name in os.listdir(root) if "building" in name or "temporary" in name]
    assert build(path, samples(60), datum=layout, single_file=single_file).nothing_to_do


def test_it_is_of_the_data_format_that_all_read(tmp_path: Path) -> None:
    script = "import sys; sys.path[:0] = sys.argv[2:]; from lmdb_support import *; build(Path(sys.argv[1]), samples(9))"
    command = [sys.executable, "-c", script, str(tmp_path / "a.lmdb"), str(Path(lmdb_support.__file__).parent)]
    subprocess.run(command, check=True, env={**os.environ, "LMDB_DEFAULT_LIB_VERSION": "1"})
    assert len(open_source(str(tmp_path / "a.lmdb"))) == 9


@pytest.mark.parametrize("map_size", [0, 1 << 16], ids=["large enough", "growing"])
def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path, map_size: int) -> None:
    one, two = (tmp_path / name / "a.lmdb" for name in ("one", "two"))
    for workers, path in enumerate((one, two), 1):
        path.parent.mkdir()
        build(path, samples(600), workers=workers, map_size=map_size)
    assert items_of(open_source(str(one))) == items_of(samples(600))
    assert built(one) == built(two)


@pytest.mark.parametrize("keys", ["generated", "path"])
def test_it_is_compact(tmp_path: Path, keys: str) -> None:
    path = tmp_path / "a.lmdb"
    build(path, samples(1500), shards=8, keys=keys)
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        environment.copy(str(tmp_path), compact=True)
    assert (path / "data.mdb").stat().st_size <= 1.02 * (tmp_path / "data.mdb").stat().st_size


# Keys


def test_keys_may_be_those_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    for keys in ("path", "source"):
        for source in (samples(20), MemorySource([Sample("a/" + "b" * 509, 0, jpeg(1))])):
            build(path, source, keys=keys, job={"overwrite": True})
            assert keys_of(path) == list(source.keys())
    for name in ("msra", ""):
        build(path, samples(3), name=name, job={"overwrite": True})
        assert keys_of(path) == [f"{name}_0_0", f"{name}_2_1", f"{name}_4_2"]


BAD_KEYS = {
    "a space": ("path", "a/b c", "has a space or a line break"),
    "a line break": ("source", "a/b\n", "has a space or a line break"),
    "512 bytes": ("source", "a/" + "b" * 510, "its key has 512 bytes; LMDB takes 511"),
    "no UTF-8": ("source", "a/\ud800", "cannot be written as UTF-8"),
    "empty": ("source", "", "its key is empty"),
    "an absolute path": ("path", "/root/7.jpg", "the source's key '/root/7.jpg' is not a relative path"),
}


def test_an_impossible_key_is_refused_before_any_work(tmp_path: Path) -> None:
    for keys, key, message in BAD_KEYS.values():
        source = MemorySource([Sample("a/1", 0, jpeg(1)), Sample(key, 0, jpeg(2))])
        with pytest.raises(OptionError, match=f"--keys {keys}: .*{message}"):
            build(tmp_path / "a.lmdb", source, keys=keys)
    for name in ("two words", "n" * 500):
        with pytest.raises(OptionError, match=f"its keys would begin with '{name}', like its file name: its key has"):
            build(tmp_path / "a.lmdb", samples(3), name=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shards", [1, 4])
def test_of_two_samples_with_one_key_none_is_lost_silently(tmp_path: Path, shards: int) -> None:
    source = MemorySource([Sample(f"a/{n % 10}", n, jpeg(n)) for n in range(12)])
    with pytest.raises(OptionError, match=r"two samples have the key a/[01], .* give --keys generated"):
        build(tmp_path / "a.lmdb", source, keys="path", shards=shards, job=IN_THREADS)
    assert not (tmp_path / "a.lmdb" / "data.mdb").exists()


# What does not go in


def test_what_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    labelled = [Sample("1", 2**31 - 1, jpeg(1)), Sample("2", 2**31, jpeg(2)), Sample("3", -1, jpeg(2))]
    source = MemorySource([*labelled, Sample("4", 1, b"no image"), SampleError("m", "5", "bad", 3)])
    summary = build(tmp_path / "a.lmdb", source, shards=5, workers=2)  # shards without a record change nothing
    assert (summary.finished, summary.samples, summary.failures) == (True, 1, 4)
    assert items_of(open_source(str(tmp_path / "a.lmdb"))) == [(2**31 - 1, jpeg(1))]
    assert "not an image" in (tmp_path / "a.lmdb" / "failures.jsonl").read_text()
    summary = build(tmp_path / "b.lmdb", source, keep_undecodable=True)
    assert (summary.samples, summary.failures) == (2, 3)
    assert items_of(open_source(str(tmp_path / "b.lmdb"))) == [(2**31 - 1, jpeg(1)), (1, b"no image")]
    with pytest.raises(EmptyDatasetError, match=r"no image could be written.*failures\.jsonl"):
        build(tmp_path / "c.lmdb", source[1:])
    assert not (tmp_path / "c.lmdb" / "data.mdb").exists()


# What is told


def test_a_single_class_and_gaps_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned(name: str, labels: Sequence[int]) -> str:
        caplog.clear()
        build(tmp_path / name, MemorySource([Sample(str(n), label, jpeg(n)) for n, label in enumerate(labels)]))
        return caplog.text

    assert warned("a.lmdb", [0, 1, 1, 2]) == ""
    assert "has a single class" in warned("b.lmdb", [0, 0])
    assert "have no image; convert with --relabel" in warned("c.lmdb", [1, 3, 3, 5])


def test_the_names_of_classes_are_written_beside(tmp_path: Path) -> None:
    source = replace(samples(20), names={n: f"person {n}" for n in range(7)})
    build(tmp_path / "people.lmdb", source, kv=str(tmp_path / "list.txt"))
    assert sorted(os.listdir(tmp_path)) == ["list.txt", "people.lmdb", "people_classes.txt"]
    assert read_class_names(tmp_path / "people_classes.txt") == source.names
    sink, _ = create_sink(str(tmp_path / "more.lmdb")).fit(replace(source, names=dict.fromkeys(range(50_000), "name")))
    assert len(pickle.dumps(sink)) < 1000  # the names do not go to the workers with every shard


def test_options_that_cannot_be_are_refused_and_others_are_part_of_the_identity() -> None:
    for options, message in (
        ({"datum": "protobuf"}, "--datum protobuf: expected one of caffe, minimal, raw"),
        ({"keys": "random"}, "--keys random: expected one of generated, path, source"),
        ({"kv": "folder/a.lmdb/data.mdb"}, "is the database itself"),
        ({"kv": "folder/a.lmdb", "single_file": True}, "is the database itself"),
    ):
        with pytest.raises(OptionError, match=message):
            create_sink("folder/a.lmdb", **options)
    others: list[dict[str, Any]] = [{"datum": "raw"}, {"keys": "path"}, {"name": "b"}, {"kv": "kv.txt"}]
    others += [{}, {"single_file": True}, {"keep_undecodable": True}]
    identities = {str(create_sink("a.lmdb", **options).identity()) for options in others}
    assert len(identities) == len(others)
    assert create_dataset("lmdb:folder/a.lmdb/").root == "folder/a.lmdb"
    assert str(create_sink("a.lmdb", build_dir="/scratch").identity()) in identities


# What is there already


def test_nothing_that_is_there_is_overwritten_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    (tmp_path / "a_kv.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"a_kv\.txt: already exists"):
        build(path, samples(9))
    (tmp_path / "a_kv.txt").unlink()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"mine", b"mine")
    with pytest.raises(OutputExistsError, match="is not empty"):
        build(path, samples(9))
    build(path, samples(9), job={"overwrite": True})
    assert items_of(open_source(str(path))) == items_of(samples(9))
    assert "lock.mdb" not in os.listdir(path)
    with pytest.raises(OutputMismatchError, match="datum was caffe, is now raw"):
        build(path, samples(9), datum="raw")
    single = tmp_path / "b.lmdb"
    single.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"b\.lmdb: already exists"):
        build(single, samples(9), single_file=True)
    build(single, samples(9), single_file=True, job={"overwrite": True})
    assert items_of(open_source(str(single))) == items_of(samples(9))


# Where it is built


def test_it_is_moved_to_another_file_system(tmp_path: Path, small_disk: Path) -> None:
    build(tmp_path / "near.lmdb", samples(60), name="a")
    build(tmp_path / "far.lmdb", samples(60), name="a", build_dir=str(small_disk / "scratch"))
    assert built(tmp_path / "far.lmdb") == built(tmp_path / "near.lmdb")
    assert sorted(os.listdir(tmp_path)) == ["disk", "far.lmdb", "far_kv.txt", "near.lmdb", "near_kv.txt"]
    assert not [name for name in os.listdir(tmp_path / "far.lmdb") if "temporary" in name]
    assert os.listdir(small_disk / "scratch") == []


def test_a_network_file_system_needs_a_folder_to_build_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def network(path: str) -> str | None:
        return "nfs4" if "home" in str(path) else None

    monkeypatch.setattr("facedata.converters.lmdb.sink.network_file_system", network)
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(OptionError, match=r"lies on a network file system \(nfs4\), .* give --build-dir"):
        build(home / "a.lmdb", samples(9))
    assert not list(home.iterdir())
    with caplog.at_level(logging.WARNING):
        build(home / "a.lmdb", samples(9), build_dir=str(tmp_path / "local"))
        assert not caplog.records
        build(home / "b.lmdb", samples(9), build_dir=str(home / "scratch"))
    assert "lies on a network file system too (nfs4)" in caplog.text
    assert items_of(open_source(str(home / "a.lmdb"))) == items_of(samples(9))


# A full disk


@pytest.mark.parametrize("taken", [6_500_000, 8_200_000])
def test_a_full_disk_is_reported_and_the_next_run_continues(tmp_path: Path, small_disk: Path, taken: int) -> None:
    path = small_disk / "a.lmdb"
    build(tmp_path / "a.lmdb", samples(400), shards=8)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(taken))
    with pytest.raises(DiskFullError, match="free some space and run the same command again"):
        build(path, samples(400), shards=8, job=IN_THREADS)
    assert not (path / "data.mdb").exists()
    ballast.unlink()
    assert build(path, samples(400), shards=8, workers=2).finished
    assert (path / "data.mdb").read_bytes() == (tmp_path / "a.lmdb" / "data.mdb").read_bytes()


def test_a_full_disk_when_it_is_moved(tmp_path: Path, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(7_700_000))
    path, scratch = small_disk / "a.lmdb", str(tmp_path / "scratch")
    with pytest.raises(DiskFullError):
        build(path, samples(400), build_dir=scratch)
    assert sorted(name for name in os.listdir(path) if "temporary" in name or name == "data.mdb") == []
    ballast.unlink()
    assert build(path, samples(400), build_dir=scratch).finished
    assert items_of(open_source(str(path))) == items_of(samples(400))


def test_what_cannot_be_mapped_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FacedataError, match="LMDB cannot map"):
        build(tmp_path / "a.lmdb", samples(9), map_size=1 << 60)
