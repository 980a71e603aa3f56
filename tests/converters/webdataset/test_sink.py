"""`WebDatasetSink`: what is in the tars, where they are cut, and that they are whole or not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from format_support import HERE, convert, numbered
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, jpeg, tree

from facedata.converters.webdataset import create_sink, open_source
from facedata.dataset import Sample
from facedata.errors import OptionError, OutputError
from facedata.jobs.plan import Part

LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5, 92.25], [70, 1e-7]], np.float32
)


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def test_a_sample_is_its_image_and_its_label_named_by_its_number(tmp_path: Path) -> None:
    items = [Sample("7", 0, jpeg("a")), Sample("3", 12, b"\x89PNG\r\n\x1a\n"), Sample("4", 1, b"<html>")]
    summary = convert(MemorySource(items), f"webdataset:{tmp_path}/out", keep_undecodable=True)
    assert list(tree(tmp_path / "out")) == ["shard-000000.tar"]
    assert members(tmp_path / "out" / "shard-000000.tar") == [
        ("000000000.jpg", jpeg("a")),
        ("000000000.cls", b"0"),
        ("000000001.png", b"\x89PNG\r\n\x1a\n"),
        ("000000001.cls", b"12"),
        ("000000002.bin", b"<html>"),
        ("000000002.cls", b"1"),
    ]
    assert (summary.samples, summary.facts["tars"], summary.finished) == (3, 1, True)


def test_a_sample_without_a_label_has_no_cls_and_is_read_as_such(tmp_path: Path) -> None:
    items = [Sample("7", -1, jpeg("a")), Sample("3", 12, jpeg("b"))]
    for count in (1, 2):
        convert(MemorySource(items[:count]), f"webdataset:{tmp_path}/{count}")
        assert members(tmp_path / f"{count}/shard-000000.tar")[0] == ("000000000.jpg", jpeg("a"))
        source = open_source(str(tmp_path / f"{count}"))
        assert ([sample.label for sample in source], source.labelled) == ([-1, 12][:count], count == 2)


def test_keys_that_are_not_numbers_and_landmarks_go_into_json(tmp_path: Path) -> None:
    broken = LANDMARKS.copy()
    broken[2, 1] = np.nan
    keys = ["id_1/ü.jpg", "5", "6", "٣", "", "7"]
    landmarks = [None, LANDMARKS, None, None, None, broken]
    items = [Sample(key, 0, jpeg(key), points) for key, points in zip(keys, landmarks, strict=True)]
    convert(MemorySource(items), f"webdataset:{tmp_path}/s-%d.tar")
    described = {name[8:-5]: data for name, data in members(tmp_path / "s-0.tar") if name.endswith(".json")}
    assert list(described) == ["0", "1", "3", "4", "5"]
    assert described["0"] == b'{"key":"id_1/\\u00fc.jpg"}'
    assert described["1"].startswith(b'{"key":"5","landmarks":[[38.29')
    assert (np.array(json.loads(described["1"])["landmarks"], np.float32) == LANDMARKS).all()
    assert described["5"] == b'{"key":"7"}'  # JSON has no word for a number that is not finite
    assert list(open_source(str(tmp_path)).keys()) == ["id_1/ü.jpg", "5", "000000002", "٣", "", "7"]


def test_tars_are_nearly_as_large_as_asked_for(tmp_path: Path) -> None:
    convert(numbered(300, size=1300), f"webdataset:{tmp_path}", shard_size=100_000)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))]
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) > 80_000
    assert {size % 10_240 for size in sizes} == {0}
    source = open_source(str(tmp_path))
    create_sink("again").fit(source)
    assert source.sizes().tolist() == [1300] * 300  # which fitting a sink leaves as they are


@settings(max_examples=40)
@given(st.lists(st.integers(4, 9000), min_size=1, max_size=30), st.integers(10_241, 40_000), st.integers(1, 12))
def test_tars_are_filled_as_far_as_they_may_be(sizes: list[int], limit: int, most: int) -> None:
    source = MemorySource([Sample("1", 0, jpeg("").ljust(size)) for size in sizes])
    expected, size, samples = [], 0, 0
    for place, image in enumerate(sizes):
        taken = -(-image // 512) * 512 + 1536
        if samples and (size + taken > limit - 10_240 or samples == most):
            expected.append(place)
            size = samples = 0
        size, samples = size + taken, samples + 1
    _, ends = create_sink("out", shard_size=limit, shard_samples=most).fit(source)
    assert ends == (*expected, len(sizes))


def test_a_tar_that_is_gone_when_the_job_ends_is_named_and_written_again(tmp_path: Path) -> None:
    convert(numbered(4), f"webdataset:{tmp_path}", replace(HERE, part=Part(1, 2)), shard_samples=2)
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(
        OutputError, match=r"shard-000000\.tar: this job wrote it, but it is gone; run the same command"
    ):
        convert(numbered(4), f"webdataset:{tmp_path}", shard_samples=2)
    convert(numbered(4), f"webdataset:{tmp_path}", shard_samples=2)
    assert sorted(tree(tmp_path)) == ["shard-000000.tar", "shard-000001.tar"]


def test_the_run_that_finishes_removes_what_killed_runs_elsewhere_left(tmp_path: Path) -> None:
    names = [".facedata-temporary-shard-000000.tar-elsewhere", ".facedata-temporary-notes.txt-elsewhere"]
    for part, left in ((Part(1, 2), names), (Part(2, 2), names[1:])):
        for name in names:
            (tmp_path / name).write_bytes(b"unfinished")
        convert(numbered(4), f"webdataset:{tmp_path}", replace(HERE, part=part), shard_samples=2)
        assert sorted(path.name for path in tmp_path.glob(".facedata-temporary-*")) == sorted(left)


def test_the_pattern_gives_the_folder_and_the_names(tmp_path: Path) -> None:
    convert(numbered(3), f"webdataset:{tmp_path}/a/glint-%05d.tar", shard_samples=1)
    assert list(tree(tmp_path / "a")) == [f"glint-0000{number}.tar" for number in range(3)]
    assert create_sink("glint-%d.tar").root == "."
    assert create_sink("50%/x").root == "50%/x"
    assert create_sink("a/%d.tar").identity() != create_sink("a").identity()


def test_names_that_do_not_fit_are_refused_with_what_to_write_instead() -> None:
    for path in ("out/glint.tar", "glint.tar.gz", "glint-{000000..000009}.tar", "x.tgz", "a-{0..9}.tar"):
        with pytest.raises(OptionError, match=r"say where their number goes, as in .*(glint|x|a)-%06d\.tar"):
            create_sink(path)
    for path in ("out/glint-%06d", "glint-%06d.tar.gz", "out/.facedata-%d.tar", "%d.zip"):
        with pytest.raises(OptionError, match=r"expected names that end in \.tar and are not hidden"):
            create_sink(path)


def test_gnu_tar_lists_and_unpacks_what_was_written(tmp_path: Path) -> None:
    tar = shutil.which("tar")
    if tar is None or b"GNU tar" not in subprocess.run([tar, "--version"], capture_output=True, check=True).stdout:
        pytest.skip("there is no GNU tar")
    convert(numbered(3), f"webdataset:{tmp_path}/out")
    path = str(tmp_path / "out" / "shard-000000.tar")
    listed = subprocess.run(
        [tar, "--numeric-owner", "-tvf", path], capture_output=True, text=True, check=True, env={"TZ": "UTC"}
    )
    assert listed.stderr == ""
    assert " ".join(listed.stdout.splitlines()[0].split()) == "-rw-r--r-- 0/0 100 1970-01-01 00:00 000000000.jpg"
    (tmp_path / "unpacked").mkdir()
    subprocess.run([tar, "-xf", path, "-C", str(tmp_path / "unpacked")], check=True)
    assert tree(tmp_path / "unpacked") == dict(members(Path(path)))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its files to the collector
def test_the_webdataset_library_reads_and_decodes_the_same_sequence(tmp_path: Path) -> None:
    webdataset, cv2 = pytest.importorskip("webdataset"), pytest.importorskip("cv2")
    images = [np.random.default_rng(n).integers(0, 256, (8, 9, 3), np.uint8) for n in range(25)]
    encoded = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    source = MemorySource([Sample(f"a/{n}.png", n % 7, image, LANDMARKS) for n, image in enumerate(encoded)])
    convert(source, f"webdataset:{tmp_path}/s-%06d.tar", shard_samples=10)
    read = webdataset.WebDataset(str(tmp_path / "s-{000000..000002}.tar"), shardshuffle=False).decode("rgb8")
    for number, (sample, image) in enumerate(zip(read, images, strict=True)):
        assert sample["__key__"] == f"{number:09d}"
        assert (sample["png"] == image[:, :, ::-1]).all()
        assert sample["cls"] == number % 7
        assert sample["json"] == {"key": f"a/{number}.png", "landmarks": LANDMARKS.tolist()}
