"""`WebDatasetSink`: what is in the tars, where they are cut, and that they are whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from job_tasks import KillingSource
from support import MemorySource, jpeg, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.converters.webdataset import create_sink, open_source
from facedata.dataset import Sample, Source, create_dataset
from facedata.errors import DiskFullError, OptionError, OutputError, OutputExistsError, SampleError
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part

HERE = JobOptions(workers=1, executor_factory=ThreadPoolExecutor)
SIGNATURES = {
    "jpg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "bmp": b"BM" + bytes(24),
    "gif": b"GIF89a",
    "tif": b"II*\0",
}
LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5, 92.25], [70, 1e-7]], np.float32
)


def write(source: Source, path: Path | str, job: JobOptions = HERE, **options: Any) -> JobSummary:
    """Convert as the engine does."""
    return run_conversion(plan_conversion("test", source, create_sink(str(path), **options)), job)


def numbered(count: int, size: int = 100) -> MemorySource:
    return MemorySource([Sample(str(one), one % 7, jpeg(one).ljust(size, b".")) for one in range(count)])


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def samples_in(folder: Path) -> list[int]:
    """How many samples each tar has."""
    return [sum(name.endswith(".cls") for name, _ in members(path)) for path in sorted(folder.glob("*.tar"))]


# Members


def test_a_sample_is_its_image_and_its_label_named_by_its_number(tmp_path: Path) -> None:
    summary = write(MemorySource([Sample("7", 0, jpeg("a")), Sample("3", 12, jpeg("b"))]), tmp_path / "out")
    assert list(tree(tmp_path / "out")) == ["shard-000000.tar"]
    assert members(tmp_path / "out" / "shard-000000.tar") == [
        ("000000000.jpg", jpeg("a")),
        ("000000000.cls", b"0"),
        ("000000001.jpg", jpeg("b")),
        ("000000001.cls", b"12"),
    ]
    assert (summary.samples, summary.facts["tars"], summary.finished) == (2, 1, True)


def test_keys_that_are_not_numbers_and_landmarks_go_into_json(tmp_path: Path) -> None:
    broken = LANDMARKS.copy()
    broken[2, 1] = np.nan
    keys = ["id_1/ü.jpg", "5", "6", "٣", "", "7"]
    landmarks = [None, LANDMARKS, None, None, None, broken]
    items = [Sample(key, 0, jpeg(key), points) for key, points in zip(keys, landmarks, strict=True)]
    write(MemorySource(items), tmp_path / "s-%d.tar")
    described = {name[8:-5]: data for name, data in members(tmp_path / "s-0.tar") if name.endswith(".json")}
    assert list(described) == ["0", "1", "3", "4", "5"]
    assert described["0"] == b'{"key":"id_1/\\u00fc.jpg"}'
    assert described["1"].startswith(b'{"key":"5","landmarks":[[38.29')
    assert (np.array(json.loads(described["1"])["landmarks"], np.float32) == LANDMARKS).all()
    assert described["5"] == b'{"key":"7"}'  # JSON has no word for a number that is not finite
    assert list(open_source(str(tmp_path)).keys()) == ["id_1/ü.jpg", "5", "000000002", "٣", "", "7"]


def test_images_get_their_extension_and_other_bytes_fail_or_are_kept_on_request(tmp_path: Path) -> None:
    images = {extension: signature + b"rest" for extension, signature in SIGNATURES.items()}
    items: list[Sample | SampleError] = [Sample(str(n), 0, image) for n, image in enumerate(images.values())]
    source = MemorySource([*items, Sample("6", 0, b"<html>"), SampleError("memory", "7", "broken")])
    summary = write(source, tmp_path / "a")
    assert (summary.samples, summary.failures) == (6, 2)
    expected = [(f"{n:09d}.{extension}", image) for n, (extension, image) in enumerate(images.items())]
    assert members(tmp_path / "a" / "shard-000000.tar")[::2] == expected
    assert write(source, tmp_path / "b", keep_undecodable=True).samples == 7
    assert members(tmp_path / "b" / "shard-000000.tar")[-2] == ("000000006.bin", b"<html>")


def test_the_names_of_the_classes_are_written_beside_the_tars_but_not_sent_to_workers(tmp_path: Path) -> None:
    names = {1: "Grace", 0: "Ada", **dict.fromkeys(range(2, 1000), "name" * 100)}
    source = MemorySource([Sample("0", 0, jpeg("a"))], names=names)
    write(source, tmp_path / "out")
    assert (tmp_path / "out" / "classes.txt").read_text().startswith("0\tAda\n1\tGrace\n")
    assert open_source(str(tmp_path / "out")).class_names() == names
    sink, _ = create_sink("out").fit(source)
    sent = pickle.dumps(sink)
    assert len(sent) < 1000
    assert pickle.loads(sent) == sink  # noqa: S301, our own bytes
    assert pickle.loads(sent).class_names is None  # noqa: S301


# Where tars are cut


def test_tars_end_where_the_options_say(tmp_path: Path) -> None:
    large = [Sample(str(number), 0, jpeg("x").ljust(30_000)) for number in range(6, 12)]
    cuts: list[tuple[Sequence[Any], dict[str, Any], list[int]]] = [
        (numbered(10).items, {"shard_samples": 4}, [4, 4, 2]),
        (numbered(8).items, {"shard_samples": 4}, [4, 4]),
        ([*numbered(6).items, *large], {"shard_size": 80_000, "shard_samples": 4}, [4, 4, 2, 2]),
        ([Sample("1", 0, jpeg(1)), *large[:2], Sample("4", 0, jpeg(1))], {"shard_size": 20_000}, [1, 1, 1, 1]),
    ]
    for number, (items, options, counts) in enumerate(cuts):
        write(MemorySource(items), tmp_path / str(number), **options)
        assert samples_in(tmp_path / str(number)) == counts
    write(numbered(300, size=1300), tmp_path / "out", shard_size=100_000)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) > 80_000
    assert sum(samples_in(tmp_path / "out")) == 300


def test_by_default_a_tar_has_a_gigabyte() -> None:
    image = jpeg(0).ljust(1 << 20)
    source = MemorySource([Sample(str(number), 0, image) for number in range(1100)])
    assert create_sink("out").fit(source)[1] == (952, 1100)
    assert create_sink("out", shard_samples=600).fit(source)[1] == (600, 1100)


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


def test_the_sizes_that_the_source_knows_are_left_as_they_are(tmp_path: Path) -> None:
    write(numbered(5), tmp_path)
    source = open_source(str(tmp_path))
    create_sink("out").fit(source)
    assert source.sizes().tolist() == [100] * 5
    assert source.size() == 500


# The same bytes however it is run


def test_the_same_samples_give_the_same_bytes_whatever_runs_it(tmp_path: Path) -> None:
    source = numbered(90, size=1500)
    options = {"shard_size": 50_000}
    write(source, tmp_path / "one", JobOptions(workers=1), **options)
    write(source, tmp_path / "two", JobOptions(workers=2), **options)
    for number in (2, 1):
        job = JobOptions(workers=1, part=Part(number, 2), executor_factory=ThreadPoolExecutor)
        summary = write(source, tmp_path / "parts", job, **options)
        assert summary.finished == (number == 1)
    expected = tree(tmp_path / "one")
    assert len(expected) > 4
    assert tree(tmp_path / "two") == tree(tmp_path / "parts") == expected
    for data in expected.values():
        assert len(data) % 10240 == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # pytest-xdist has threads
def test_kills_leave_whole_tars_and_end_in_the_same_bytes(tmp_path: Path) -> None:
    plain = numbered(60, size=60_000)  # so that part of a tar was written when the kill comes
    job = JobOptions(workers=2)
    write(plain, tmp_path / "expected", job, shard_samples=25)
    expected = tree(tmp_path / "expected")
    killing = KillingSource(plain.items, at="47", parent=True, mark=str(tmp_path / "killed"))
    process = multiprocessing.get_context("fork").Process(
        target=write, args=(killing, tmp_path / "out", job), kwargs={"shard_samples": 25}
    )
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert tree(tmp_path / "out").items() <= expected.items()
    assert "shard-000001.tar" not in tree(tmp_path / "out")
    worker_killing = KillingSource(plain.items, at="47", parent=False, mark=str(tmp_path / "killed again"))
    assert write(worker_killing, tmp_path / "out", job, shard_samples=25).good
    assert tree(tmp_path / "out") == expected
    assert [name for name in os.listdir(tmp_path / "out") if "temporary" in name] == []


def test_a_full_disk_is_reported_and_leaves_no_part_of_a_tar(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(7_000_000))
    with pytest.raises(DiskFullError, match="free some space and run the same command again"):
        write(numbered(40, size=100_000), small_disk / "out")
    assert tree(small_disk / "out") == {}
    (small_disk / "ballast").unlink()
    assert write(numbered(40, size=100_000), small_disk / "out").finished


def test_a_tar_that_is_gone_when_the_job_ends_is_named(tmp_path: Path) -> None:
    job = JobOptions(workers=1, part=Part(1, 2), executor_factory=ThreadPoolExecutor)
    write(numbered(4), tmp_path / "out", job, shard_samples=2)
    (tmp_path / "out" / "shard-000000.tar").unlink()
    with pytest.raises(OutputError, match=r"shard-000000\.tar: this job wrote it, but the file is gone; --overwrite"):
        write(numbered(4), tmp_path / "out", shard_samples=2)


# Names and options


def test_the_pattern_gives_the_folder_and_the_names(tmp_path: Path) -> None:
    write(numbered(3), tmp_path / "a" / "glint-%05d.tar", shard_samples=1)
    assert list(tree(tmp_path / "a")) == [f"glint-0000{number}.tar" for number in range(3)]
    assert create_sink("glint-%d.tar").root == "."
    assert create_sink("50%/x").root == "50%/x"


def test_names_and_options_that_do_not_fit_are_refused_with_what_to_write_instead() -> None:
    for path in ("out/glint.tar", "glint.tar.gz", "glint-{000000..000009}.tar", "x.tgz", "a-{0..9}.tar"):
        with pytest.raises(OptionError, match=r"say where their number goes, as in .*(glint|x|a)-%06d\.tar"):
            create_sink(path)
    for path in ("out/glint-%06d", "glint-%06d.tar.gz", "out/.facedata-%d.tar", "%d.zip"):
        with pytest.raises(OptionError, match=r"expected names that end in \.tar and are not hidden"):
            create_sink(path)
    bad: list[dict[str, Any]] = [{"shard_size": 0}, {"shard_samples": 0}, {"shard_size": -5}]
    for options in bad:
        with pytest.raises(OptionError, match=r"--shard-(size|samples) .*: must be at least 1"):
            create_sink("out", **options)


def test_only_its_tars_and_the_names_of_the_classes_are_its_own(tmp_path: Path) -> None:
    sink = create_sink("out/glint-%06d.tar")
    assert all(map(sink.owns, ("glint-000000.tar", "glint-1000000.tar", "classes.txt")))
    foreign = ("glint-0.tar", "other-000000.tar", "glint-000000.tar.gz", "glint-0000000.tar", "id_0", "glint-%06d.tar")
    assert not any(map(sink.owns, foreign))
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        write(numbered(1), tmp_path)


def test_options_that_decide_what_is_written_tell_sinks_apart() -> None:
    options: list[dict[str, Any]] = [{}, {"shard_size": 5}, {"shard_samples": 5}, {"keep_undecodable": True}]
    identities = [create_sink("a/%d.tar").identity(), *(create_sink("a", **some).identity() for some in options)]
    assert all(identities.count(identity) == 1 for identity in identities)
    assert create_dataset("webdataset:b", shard_size=5).identity() == identities[2]
    assert json.loads(json.dumps(identities)) == identities


# Read by others


def test_gnu_tar_lists_and_unpacks_what_was_written(tmp_path: Path) -> None:
    tar = shutil.which("tar")
    if tar is None or b"GNU tar" not in subprocess.run([tar, "--version"], capture_output=True, check=True).stdout:
        pytest.skip("there is no GNU tar")
    write(numbered(3), tmp_path / "out")
    path = str(tmp_path / "out" / "shard-000000.tar")
    listed = subprocess.run(
        [tar, "--numeric-owner", "-tvf", path], capture_output=True, text=True, check=True, env={"TZ": "UTC"}
    )
    assert listed.stderr == ""
    assert listed.stdout.splitlines()[0].split() == [
        "-rw-r--r--", "0/0", "100", "1970-01-01", "00:00", "000000000.jpg",
    ]  # fmt: skip
    (tmp_path / "unpacked").mkdir()
    subprocess.run([tar, "-xf", path, "-C", str(tmp_path / "unpacked")], check=True)
    assert tree(tmp_path / "unpacked") == dict(members(Path(path)))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its files to the collector
def test_the_webdataset_library_reads_and_decodes_the_same_sequence(tmp_path: Path) -> None:
    webdataset, cv2 = pytest.importorskip("webdataset"), pytest.importorskip("cv2")
    images = [np.random.default_rng(n).integers(0, 256, (8, 9, 3), np.uint8) for n in range(25)]
    encoded = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    source = MemorySource([Sample(f"a/{n}.png", n % 7, image, LANDMARKS) for n, image in enumerate(encoded)])
    write(source, tmp_path / "s-%06d.tar", shard_samples=10)
    read = webdataset.WebDataset(str(tmp_path / "s-{000000..000002}.tar"), shardshuffle=False).decode("rgb8")
    for number, (sample, image) in enumerate(zip(read, images, strict=True)):
        assert sample["__key__"] == f"{number:09d}"
        assert (sample["png"] == image[:, :, ::-1]).all()
        assert sample["cls"] == number % 7
        assert sample["json"] == {"key": f"a/{number}.png", "landmarks": LANDMARKS.tolist()}


# And back


COORDINATES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.builds(
            Sample,
            st.text(max_size=20).filter(lambda key: not (key.isascii() and key.isdigit())),
            st.integers(0, (1 << 31) - 1),
            st.binary(max_size=1200).map(jpeg),
            st.none() | arrays(np.float32, (5, 2), elements=COORDINATES),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=25)
def test_what_is_written_is_read_again(items: Sequence[Sample]) -> None:
    with TemporaryDirectory() as folder:
        with create_sink(folder).open_shard(0) as writer:
            for index, sample in enumerate(items):
                writer.write(index, sample)
        read = open_source(folder)
        assert list(read.keys()) == [one.key for one in items]
        assert np.concatenate(list(read.labels())).tolist() == [one.label for one in items]
        assert read.declared_classes() == max(one.label for one in items) + 1
        for mine, theirs in zip(read, items, strict=True):
            assert (mine.key, mine.label, mine.image) == (theirs.key, theirs.label, theirs.image)
            np.testing.assert_array_equal(mine.landmarks, theirs.landmarks)
