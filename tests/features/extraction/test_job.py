"""A dataset becomes a feature set: the rows that a plain loop gives, in order, each with its label and its key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from features.extraction.conftest import HEIGHT, WIDTH, Images, Net, Work, cv2, embedding_net, png, write_images
from format_support import DeadlySource
from support import MemorySource

from facedata import errors
from facedata.dataset import Sample
from facedata.errors import SampleError
from facedata.features.extraction import job as job_module
from facedata.features.extraction import model as model_module
from facedata.features.extraction.job import ExtractionOptions, plan_extraction, run_extraction
from facedata.features.extraction.model import ModelOptions
from facedata.features.extraction.output import FeatureOutput, encoded_key
from facedata.features.feature_set import FeatureSet, open_feature_set
from facedata.jobs.job import JobOptions
from facedata.jobs.journal import Journal, refuse_unfinished
from facedata.jobs.plan import Part
from facedata.jobs.status import job_status

pytestmark = pytest.mark.usefixtures("tried_here")


@pytest.mark.parametrize(
    ("made", "options", "batch"),
    [
        ({}, {"batch_size": 4}, 4),
        ({"shape": (16, 3, HEIGHT, WIDTH)}, {}, 16),
        ({"shape": (7, HEIGHT, WIDTH, 3)}, {}, 7),
        ({"half": True, "shape": ("N", 3, "H", "W")}, {"batch_size": 4, "input_size": (HEIGHT, WIDTH)}, 4),
    ],
    ids=["any batch", "fixed batch", "nhwc", "half, any size"],
)
def test_rows_equal_a_plain_loop_exactly(work: Work, made: dict[str, Any], options: dict[str, Any], batch: int) -> None:
    embedding_net(work.net, **made)
    summary = work.extract(**options)
    assert (summary.finished, summary.good, summary.samples) == (True, True, 30)
    found = work.read()
    np.testing.assert_array_equal(found.rows, work.expected(batch))
    assert (found.labels, found.keys) == (work.images.labels, work.images.keys)
    assert open_feature_set(work.root, "a").matrix.rows == 30


def test_the_bytes_do_not_depend_on_workers_and_the_numbers_hardly_on_batches(work: Work) -> None:
    work.images = write_images(work.root / "more", 66)
    for workers in (1, 3):
        assert work.extract(f"by {workers}", workers=workers, batch_size=1).shards == 33
    assert work.bytes_of("by 1") == work.bytes_of("by 3")
    work.extract(batch_size=500)
    for name in ("a", "by 1"):
        np.testing.assert_allclose(work.read(name).rows, work.expected(), rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_scaled_only_when_asked(work: Work) -> None:
    images = work.images = write_images(work.root / "large", 6, size=(HEIGHT * 2, WIDTH * 2))
    with pytest.raises(errors.OptionError, match=r"expected 12 x 16 pixels, found 24 x 32.*facedata align.*--resize"):
        work.extract()
    work.extract(resize=True)
    images.pixels[:] = [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for image in images.pixels]
    np.testing.assert_array_equal(work.read().rows, work.expected())


# Images that fail


def spoil(images: Images) -> list[int]:
    """Make some images unusable; returns which."""
    (images.folder / images.keys[3]).write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (images.folder / images.keys[4]).write_bytes(b"no image")
    (images.folder / images.keys[29]).write_bytes(png(np.zeros((20, 20, 3), np.uint8)))
    return [3, 4, 29]


def nan_for_black(net: Net, start: str, embedding: str) -> str:
    mean = net.add("Flatten", net.add("ReduceMean", start, axes=[1, 2, 3]))
    return net.add("Add", embedding, net.add("Sqrt", net.add("Add", mean, net.constant(np.float32(0.9)))))


def test_failures_are_listed_and_another_answer_needs_no_work(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    assert work.extract("good").good
    assert work.extract("good", on_error="skip").nothing_to_do  # nothing failed
    embedding_net(work.net, ending=nan_for_black)
    images, failed = work.images, sorted([*spoil(work.images), 7])
    (images.folder / images.keys[7]).write_bytes(png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    with pytest.raises(errors.InputError, match=r"not published, because 4 of 30 images failed: .*--on-error skip"):
        work.extract(batch_size=4)
    assert [path.name for path in work.root.glob("[fl]*/a*")] == ["a.bin.facedata"]
    with pytest.raises(errors.InputUnfinishedError, match="has not finished"):
        refuse_unfinished(work.root / "features/a.bin")
    journal = work.root / "features/a.bin.facedata/.facedata-journal.jsonl"
    done = journal.read_text().count('"shard":')
    summary = work.extract(batch_size=4, on_error="skip")
    assert done == journal.read_text().count('"shard":') > 0
    assert (summary.finished, summary.good, summary.failures, summary.facts["rows"]) == (True, False, 4, 26)
    text = (work.root / "features/a.bin.facedata/failures.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["index"], line["key"]) for line in lines] == [(row, images.keys[row]) for row in failed]
    assert "not an image" in lines[1]["reason"]
    assert lines[2]["reason"] == "unusable embedding: the model returned NaN"
    assert "wrong size: expected 12 x 16 pixels, found 20 x 20" in lines[3]["reason"]
    kept = [row for row in range(30) if row not in failed]
    found = work.read()
    np.testing.assert_array_equal(found.rows, work.expected(4)[kept])
    assert found.keys == [images.keys[row] for row in kept]
    assert found.labels == [images.labels[row] for row in kept]

    before = work.bytes_of()
    with pytest.raises(errors.OutputMismatchError, match="--on-error skip, not --on-error nan; use another --name"):
        work.extract(batch_size=4, on_error="nan")
    assert work.extract(batch_size=4, on_error="skip").nothing_to_do
    assert work.bytes_of() == before
    work.extract(on_error="nan", overwrite=True, normalize=True)
    assert "4 rows are NaN because their images failed" in caplog.text
    found = work.read()
    assert np.flatnonzero(np.isnan(found.rows).all(axis=1)).tolist() == failed
    assert (found.labels, found.keys) == (images.labels, images.keys)


def test_samples_without_a_label_or_an_image_keep_their_row(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Sample("1", 6, png(work.images.pixels[0]))
    source = MemorySource([SampleError("memory", "0", "cut off", 77), good])
    monkeypatch.setattr(job_module, "open_inputs", lambda specs, options, **_: [("rec", specs[0], source)])
    work.extract(on_error="nan")
    found = work.read()
    assert (found.keys, found.labels) == (["0", "1"], [-1, 6])
    assert np.isnan(found.rows).any(axis=1).tolist() == [True, False]
    failure = json.loads((work.root / "features/a.bin.facedata/failures.jsonl").read_text())
    assert (failure["key"], failure["offset"], failure["reason"]) == ("0", 77, "cut off")


def test_an_image_that_crashes_the_model_costs_its_own_row(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Sample(str(row), row, png(pixels)) for row, pixels in enumerate(work.images.pixels)]
    source = DeadlySource(items, deadly=("3", "13"))
    monkeypatch.setattr(job_module, "open_inputs", lambda specs, options, **_: [("rec", specs[0], source)])
    summary = work.extract(on_error="skip", batch_size=4)
    assert (summary.causes, summary.samples) == ({"crashed its worker": 2}, 28)
    kept = [row for row in range(30) if row not in (3, 13)]
    np.testing.assert_array_equal(work.read().rows, work.expected(4)[kept])
    assert work.read().labels == kept


def test_a_model_that_does_not_end_on_some_image_ends_the_job(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_extraction(str(work.images.folder), work.root, "a", ExtractionOptions(ModelOptions(str(work.net))))
    assert planned.model.timeout == 30
    monkeypatch.setattr(model_module, "_run_network", lambda *_: time.sleep(60))
    slow = replace(planned, model=replace(planned.model, timeout=0.3))
    with pytest.raises(
        errors.ModelError, match=r"net\.onnx: a batch of \d+ images takes longer than 0\.3 .*--model-time"
    ):
        run_extraction(slow, JobOptions(1))
    monkeypatch.undo()
    assert run_extraction(planned, JobOptions(1)).good  # the limits are not part of the job


def test_a_key_is_one_line_and_a_single_class_is_pointed_out(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    work.images = write_images(work.root / "few", 3, people=1)
    (work.images.folder / "person_0/1.png").rename(work.images.folder / "person_0/1\n.png")
    work.extract()
    assert work.read().keys[1] == "person_0/1\\n.png"
    assert "all rows have the same label; for a dataset without labels, --unlabeled writes -1" in caplog.text
    assert encoded_key(os.fsdecode(b"\xff.jpg")) == b"\xff.jpg"
    assert encoded_key("\ud800") == b"\\ud800"


# The job


def test_parts_of_a_job_array_write_one_set(work: Work) -> None:
    work.extract("whole", batch_size=2)
    for number in (3, 1):
        assert not work.extract(part=Part(number, 3), batch_size=2).finished
    assert not (work.root / "features/a.bin").exists()
    assert job_status(work.root / "features/a.bin").parts_missing == ["2/3"]
    assert work.extract(part=Part(2, 3), batch_size=2).finished
    assert work.bytes_of() == work.bytes_of("whole")


def test_existing_files_are_not_overwritten_nor_those_of_another_set(work: Work) -> None:
    for existing in ("labels/a.meta", "features/a.bin"):
        (work.root / existing).parent.mkdir(exist_ok=True)
        (work.root / existing).write_text("mine")
        with pytest.raises(errors.OutputExistsError, match=f"{existing}: already exists"):
            work.extract()
        assert (work.root / existing).read_text() == "mine"
    work.extract("a.more", flip=True)
    before = work.bytes_of("a.more")
    work.extract(overwrite=True)
    assert len(work.read().rows) == 30
    assert work.bytes_of("a.more") == before


def test_other_options_another_model_or_processor_are_another_job(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ExtractionOptions(ModelOptions(str(work.net)))
    planned = plan_extraction(str(work.images.folder), work.root, "b", options)
    work.extract()
    with pytest.raises(errors.OutputMismatchError, match="flip was False, is now True"):
        work.extract(flip=True)
    with monkeypatch.context() as patched:
        patched.setattr(model_module, "cpu_features", lambda: {"kind": "another"})
        with pytest.raises(errors.OutputMismatchError, match=r"processor, kind was \w+, is now another"):
            work.extract()
    embedding_net(work.net, seed=4)
    with pytest.raises(errors.OutputMismatchError, match=r"model, sha256 was [0-9a-f]{64}, is now [0-9a-f]{64}"):
        work.extract()
    with pytest.raises(errors.ChecksumError, match="the file has changed: expected sha256"):
        run_extraction(planned, JobOptions(1))
    for key in work.images.keys:
        (work.images.folder / key).write_bytes(b"no image")
    with pytest.raises(errors.EmptyDatasetError, match="no image has an embedding"):
        work.extract("none", on_error="skip")


def test_neither_input_is_written_over(work: Work) -> None:
    root, work.root = work.root, work.images.folder
    with pytest.raises(errors.OutputError, match="lies in the input"):
        work.extract()
    (root / "features").mkdir()
    work.root, work.net = root, work.net.rename(root / "features/a.bin")
    with pytest.raises(errors.OutputError, match="written over, or into, the input"):
        work.extract(overwrite=True)
    assert work.net.stat().st_size > 0


def test_a_build_that_lost_a_file_is_not_published(work: Work) -> None:
    spoil(work.images)
    with pytest.raises(errors.InputError):
        work.extract(batch_size=2)
    building = work.root / "features/a.bin.facedata/.facedata-building"
    (building / "000002").rename(building / "gone")
    with pytest.raises(errors.OutputMismatchError, match=r"000002: this job wrote the file, but it no longer exists"):
        work.extract(batch_size=2, on_error="skip")
    for damage in (b"", b"{}", b'{"labels": [1], "keys": [], "failed": []}'):
        (building / "000002").write_bytes(damage)
        with pytest.raises(errors.FormatError, match=r"000002: is corrupt; --overwrite starts the job over"):
            work.extract(batch_size=2, on_error="skip")
    (building / "gone").rename(building / "000002")
    (building / "matrix").unlink()
    with pytest.raises(errors.OutputMismatchError, match="rows that were written are lost"):
        work.extract(batch_size=2, on_error="skip")


@pytest.mark.parametrize(("on_error", "then"), [("fail", "fail"), ("skip", "skip"), ("nan", "skip")])
def test_killed_between_the_matrix_and_the_summary_it_publishes_again_and_no_row_shifts(
    work: Work, monkeypatch: pytest.MonkeyPatch, on_error: str, then: str
) -> None:
    if on_error != "fail":
        spoil(work.images)
    work.extract("whole", on_error=then)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write_summary", killed)
        with pytest.raises(KeyboardInterrupt):
            work.extract(on_error=on_error)
    assert (work.root / "features/a.bin").exists()
    if on_error == "nan":
        with pytest.raises(errors.InputError, match="is not published"):
            work.extract()
        assert not (work.root / "features/a.bin").exists()
    assert work.extract(on_error=then).finished
    assert work.bytes_of() == work.bytes_of("whole")


def test_a_matrix_that_does_not_fit_is_refused_before_the_work(small_disk: Path) -> None:
    output = FeatureOutput(FeatureSet(str(small_disk), "a"), 1 << 18, 8)
    output.prepare()
    (small_disk / "filler").write_bytes(bytes(1 << 20))
    with pytest.raises(errors.OutputError, match=r"of 262,144 rows of 8 float32 needs .* bytes, but .* are free"):
        output.prepare()


def test_the_parent_never_loads_onnx_runtime(work: Work) -> None:
    program = (
        "import sys\nfrom facedata.cli import facedata\n"
        "words = 'extract-features images --model net.onnx --output . --name a'.split()\n"
        "facedata(words, standalone_mode=False)\nassert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=work.root, check=True, timeout=60)
    np.testing.assert_array_equal(work.read().rows, work.expected())
