"""A dataset becomes a feature set: the rows that a plain loop gives, in order, each with its label and its key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from features.extraction.conftest import (
    DIMENSIONS,
    HEIGHT,
    WIDTH,
    Images,
    Net,
    cv2,
    embedding_net,
    extract,
    plain_loop,
    read_set,
    set_bytes,
    write_images,
)
from support import MemorySource

from facedata.dataset import Sample
from facedata.errors import (
    ChecksumError,
    EmptyDatasetError,
    FormatError,
    InputError,
    InputUnfinishedError,
    OptionError,
    OutputError,
    OutputExistsError,
    OutputMismatchError,
    SampleError,
)
from facedata.features.extraction import job as job_module
from facedata.features.extraction.job import ExtractionOptions, plan_extraction, run_extraction
from facedata.features.extraction.model import ModelOptions
from facedata.features.extraction.output import FeatureOutput, encoded_key
from facedata.features.feature_set import FeatureSet, open_feature_set
from facedata.jobs.job import JobOptions
from facedata.jobs.journal import Journal, refuse_unfinished
from facedata.jobs.plan import Part
from facedata.jobs.status import job_status

pytestmark = pytest.mark.usefixtures("tried_here")


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return write_images(tmp_path / "images", 30)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return embedding_net(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("made", "batch", "fixed"),
    [
        ({}, 4, False),
        ({"batch": 16}, 16, True),
        ({"layout": "nhwc", "batch": 7}, 7, True),
        ({"half": True, "sides": ("H", "W")}, 4, False),
    ],
)
def test_rows_equal_a_plain_loop_bit_for_bit(
    images: Images, tmp_path: Path, made: dict[str, Any], batch: int, fixed: bool
) -> None:
    net = embedding_net(tmp_path / "net.onnx", **made)
    options: dict[str, Any] = {"input_size": (HEIGHT, WIDTH)} if "sides" in made else {}
    summary = extract(images.folder, tmp_path, net, batch_size=None if fixed else batch, **options)
    assert (summary.finished, summary.good, summary.samples) == (True, True, 30)
    found = read_set(tmp_path)
    like = {name: made[name] for name in ("layout", "half") if name in made}
    np.testing.assert_array_equal(found.rows, plain_loop(net, images.pixels, batch, fixed=fixed, **like))
    assert (found.labels, found.keys) == (images.labels, images.keys)
    opened = open_feature_set(tmp_path, "a")
    assert (opened.matrix.rows, opened.matrix.dimensions) == (30, DIMENSIONS)


def test_the_bytes_do_not_depend_on_workers_and_the_numbers_hardly_on_batches(tmp_path: Path, net: Path) -> None:
    images = write_images(tmp_path / "images", 66)
    for workers in (1, 3):
        assert extract(images.folder, tmp_path / str(workers), net, workers=workers, batch_size=1).shards == 33
    assert set_bytes(tmp_path / "1") == set_bytes(tmp_path / "3")
    extract(images.folder, tmp_path, net, batch_size=500)
    for root in (tmp_path, tmp_path / "1"):
        np.testing.assert_allclose(read_set(root).rows, plain_loop(net, images.pixels, 32), rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_scaled_only_when_asked(tmp_path: Path, net: Path) -> None:
    images = write_images(tmp_path / "images", 6, size=(HEIGHT * 2, WIDTH * 2))
    with pytest.raises(OptionError, match=r"expected 12 x 16 pixels, found 24 x 32.*facedata align.*--resize"):
        extract(images.folder, tmp_path, net)
    extract(images.folder, tmp_path, net, resize=True)
    scaled = [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for image in images.pixels]
    np.testing.assert_array_equal(read_set(tmp_path).rows, plain_loop(net, scaled, 32))


# Images that fail


def spoil(images: Images) -> list[int]:
    """Make some images unusable; returns which."""
    (images.folder / images.keys[3]).write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (images.folder / images.keys[4]).write_bytes(b"no image")
    other = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    (images.folder / images.keys[29]).write_bytes(other)
    return [3, 4, 29]


def shard_lines(root: Path) -> int:
    text = (root / "features/a.bin.facedata/.facedata-journal.jsonl").read_text()
    return sum("shard" in json.loads(line) for line in text.splitlines())


def test_failures_publish_nothing_and_are_listed_and_another_answer_needs_no_new_work(
    images: Images, tmp_path: Path, net: Path
) -> None:
    failed = spoil(images)
    with pytest.raises(InputError, match=r"not published, because 3 of 30 images failed: see .*--on-error skip"):
        extract(images.folder, tmp_path, net, batch_size=4)
    assert not list((tmp_path / "features").glob("*.txt")) + list((tmp_path / "labels").iterdir())
    assert not (tmp_path / "features/a.bin").exists()
    with pytest.raises(InputUnfinishedError, match="has not finished"):
        refuse_unfinished(tmp_path / "features/a.bin")
    done = shard_lines(tmp_path)
    summary = extract(images.folder, tmp_path, net, batch_size=4, on_error="skip")
    assert shard_lines(tmp_path) == done
    assert (summary.finished, summary.good, summary.failures, summary.facts["rows"]) == (True, False, 3, 27)
    text = (tmp_path / "features/a.bin.facedata/failures.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["index"], line["key"]) for line in lines] == [(row, images.keys[row]) for row in failed]
    assert "not an image" in lines[1]["reason"]
    assert "wrong size: expected 12 x 16 pixels, found 20 x 20" in lines[2]["reason"]
    kept = [row for row in range(30) if row not in failed]
    found = read_set(tmp_path)
    np.testing.assert_array_equal(found.rows, plain_loop(net, [images.pixels[row] for row in range(30)], 4)[kept])
    assert found.keys == [images.keys[row] for row in kept]
    assert found.labels == [images.labels[row] for row in kept]


def test_a_published_answer_is_not_changed_silently_and_nan_keeps_all_rows(
    images: Images, tmp_path: Path, net: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(images.folder, tmp_path, net, "good")
    assert extract(images.folder, tmp_path, net, "good", on_error="skip").nothing_to_do  # nothing failed
    failed = spoil(images)
    extract(images.folder, tmp_path, net, on_error="skip")
    before = set_bytes(tmp_path)
    with pytest.raises(
        OutputMismatchError, match="already written with --on-error skip, not --on-error nan; use another --name"
    ):
        extract(images.folder, tmp_path, net, on_error="nan")
    assert extract(images.folder, tmp_path, net, on_error="skip").nothing_to_do
    assert set_bytes(tmp_path) == before
    extract(images.folder, tmp_path, net, on_error="nan", overwrite=True)
    assert "3 rows are NaN because their images failed" in caplog.text
    found = read_set(tmp_path)
    assert np.flatnonzero(np.isnan(found.rows).all(axis=1)).tolist() == failed
    assert (found.labels, found.keys) == (images.labels, images.keys)


def _nan_for_black(net: Net, start: str, embedding: str) -> str:
    mean = net.add("ReduceMean", start, axes=[1, 2, 3], keepdims=0)
    column = net.add(
        "Unsqueeze", net.add("Sqrt", net.add("Add", mean, net.constant(np.float32(0.9)))), net.constant([1])
    )
    return net.add("Add", embedding, column)


def test_an_unusable_embedding_fails_by_name(images: Images, tmp_path: Path) -> None:
    net = embedding_net(tmp_path / "net.onnx", ending=_nan_for_black)
    black = cv2.imencode(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
    (images.folder / images.keys[7]).write_bytes(black)
    summary = extract(images.folder, tmp_path, net, on_error="skip", normalize=True)
    assert summary.failures == 1
    failure = json.loads((tmp_path / "features/a.bin.facedata/failures.jsonl").read_text())
    assert (failure["index"], failure["reason"]) == (7, "unusable embedding: the model returned NaN")
    assert images.keys[7] not in read_set(tmp_path).keys


# Labels and keys


def test_a_key_is_always_one_line_and_a_single_class_is_pointed_out(
    tmp_path: Path, net: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path / "images", 3, people=1)
    (images.folder / images.keys[1]).rename(images.folder / "person_0" / "1\n.png")
    extract(images.folder, tmp_path, net)
    assert read_set(tmp_path).keys[1] == "person_0/1\\n.png"
    assert "all rows have the same label; for a dataset without labels, --unlabeled writes -1" in caplog.text
    assert encoded_key(os.fsdecode(b"\xff.jpg")) == b"\xff.jpg"
    assert encoded_key("\ud800") == b"\\ud800"


# The job


def test_parts_of_a_job_array_write_one_set(images: Images, tmp_path: Path, net: Path) -> None:
    extract(images.folder, tmp_path, net, "whole", batch_size=2)
    for number in (3, 1):
        assert not extract(images.folder, tmp_path, net, part=Part(number, 3), batch_size=2).finished
    assert not (tmp_path / "features/a.bin").exists()
    assert job_status(tmp_path / "features/a.bin").parts_missing == ["2/3"]
    assert extract(images.folder, tmp_path, net, part=Part(2, 3), batch_size=2).finished
    assert set_bytes(tmp_path) == set_bytes(tmp_path, "whole")


@pytest.mark.parametrize("existing", ["labels/a.meta", "features/a.bin"])
def test_existing_files_are_not_overwritten_nor_those_of_another_set(
    images: Images, tmp_path: Path, net: Path, existing: str
) -> None:
    (tmp_path / existing).parent.mkdir()
    (tmp_path / existing).write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{existing}: already exists"):
        extract(images.folder, tmp_path, net)
    assert (tmp_path / existing).read_text() == "mine"
    extract(images.folder, tmp_path, net, "a.more", flip=True)
    before = set_bytes(tmp_path, "a.more")
    extract(images.folder, tmp_path, net, overwrite=True)
    assert len(read_set(tmp_path).rows) == 30
    assert set_bytes(tmp_path, "a.more") == before


def test_other_options_or_another_model_are_another_job(images: Images, tmp_path: Path, net: Path) -> None:
    planned = plan_extraction(str(images.folder), tmp_path, "b", ExtractionOptions(ModelOptions(str(net))))
    extract(images.folder, tmp_path, net)
    with pytest.raises(OutputMismatchError, match="flip was False, is now True"):
        extract(images.folder, tmp_path, net, flip=True)
    embedding_net(net, seed=4)
    with pytest.raises(OutputMismatchError, match=r"model, sha256 was [0-9a-f]{64}, is now [0-9a-f]{64}"):
        extract(images.folder, tmp_path, net)
    with pytest.raises(ChecksumError, match="the file has changed: expected sha256"):
        run_extraction(planned, JobOptions(1))
    for key in images.keys:
        (images.folder / key).write_bytes(b"no image")
    with pytest.raises(EmptyDatasetError, match="no image has an embedding"):
        extract(images.folder, tmp_path, net, "none", on_error="skip")


def test_neither_input_is_written_over(images: Images, tmp_path: Path, net: Path) -> None:
    with pytest.raises(OutputError, match="lies in the input"):
        extract(images.folder, images.folder, net)
    (tmp_path / "features").mkdir()
    trap = embedding_net(tmp_path / "features" / "a.bin")
    with pytest.raises(OutputError, match="written over, or into, the input"):
        extract(images.folder, tmp_path, trap, overwrite=True)
    assert trap.stat().st_size > 0


def test_a_build_that_lost_a_file_is_not_published(images: Images, tmp_path: Path, net: Path) -> None:
    spoil(images)
    with pytest.raises(InputError):
        extract(images.folder, tmp_path, net, batch_size=2)
    building = tmp_path / "features/a.bin.facedata/.facedata-building"
    (building / "000002").rename(building / "gone")
    with pytest.raises(OutputMismatchError, match=r"000002: this job wrote the file, but it no longer exists"):
        extract(images.folder, tmp_path, net, batch_size=2, on_error="skip")
    for damage in (b"", b"{}", b'{"labels": [1], "keys": [], "failed": []}'):
        (building / "000002").write_bytes(damage)
        with pytest.raises(FormatError, match=r"000002: is corrupt; --overwrite starts the job over"):
            extract(images.folder, tmp_path, net, batch_size=2, on_error="skip")
    (building / "gone").rename(building / "000002")
    (building / "matrix").unlink()
    with pytest.raises(OutputMismatchError, match="rows that were written are lost"):
        extract(images.folder, tmp_path, net, batch_size=2, on_error="skip")


def killed_before_the_summary(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> None:
    """Run an extraction that dies after it has published the matrix."""

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write_summary", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(*arguments, **options)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_killed_between_the_matrix_and_the_summary_it_publishes_again(
    images: Images, tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    if on_error != "fail":
        spoil(images)
    extract(images.folder, tmp_path, net, "whole", on_error=on_error)
    killed_before_the_summary(monkeypatch, images.folder, tmp_path, net, on_error=on_error)
    assert (tmp_path / "features/a.bin").exists()
    assert extract(images.folder, tmp_path, net, on_error=on_error).finished
    assert set_bytes(tmp_path) == set_bytes(tmp_path, "whole")


def test_another_answer_after_a_kill_shifts_no_row(
    images: Images, tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(images)
    extract(images.folder, tmp_path, net, "whole", on_error="skip")
    killed_before_the_summary(monkeypatch, images.folder, tmp_path, net, on_error="nan")
    with pytest.raises(InputError, match="is not published"):
        extract(images.folder, tmp_path, net)
    assert not (tmp_path / "features/a.bin").exists()
    assert extract(images.folder, tmp_path, net, on_error="skip").finished
    assert set_bytes(tmp_path) == set_bytes(tmp_path, "whole")


def test_a_matrix_that_does_not_fit_is_refused_before_the_work(small_disk: Path) -> None:
    output = FeatureOutput(FeatureSet(str(small_disk), "a"), 1 << 18, 8)
    output.prepare()
    (small_disk / "filler").write_bytes(bytes(1 << 20))
    with pytest.raises(OutputError, match=r"the matrix of 262,144 rows of 8 float32 needs .* bytes, but .* are free"):
        output.prepare()


def test_samples_without_a_label_or_an_image_keep_their_row(
    tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = cv2.imencode(".png", np.full((HEIGHT, WIDTH, 3), 9, np.uint8))[1].tobytes()
    items: list[Sample | SampleError] = [
        Sample("0", 5, good),
        SampleError("memory", "1", "cut off", 77),
        Sample("2", 6, good),
    ]
    monkeypatch.setattr(job_module, "open_inputs", lambda specs, options: [("rec", specs[0], MemorySource(items))])
    extract("memory", tmp_path, net, on_error="nan")
    found = read_set(tmp_path)
    assert (found.keys, found.labels) == (["0", "1", "2"], [5, -1, 6])
    assert np.isnan(found.rows).any(axis=1).tolist() == [False, True, False]
    failure = json.loads((tmp_path / "features/a.bin.facedata/failures.jsonl").read_text())
    assert (failure["key"], failure["offset"], failure["reason"]) == ("1", 77, "cut off")


def test_the_parent_never_loads_onnx_runtime(images: Images, tmp_path: Path, net: Path) -> None:
    program = (
        "import sys\n"
        "from facedata.features.extraction.model import ModelOptions\n"
        "from facedata.features.extraction.job import *\n"
        f"options = ExtractionOptions(ModelOptions({str(net)!r}))\n"
        f"run_extraction(plan_extraction({str(images.folder)!r}, {str(tmp_path)!r}, 'a', options))\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert FeatureSet(str(tmp_path), "a").features.endswith("features/a.bin")
    np.testing.assert_array_equal(read_set(tmp_path).rows, plain_loop(net, images.pixels, 32))
