"""Samples that end their worker: each is named, and nothing else is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from align_support import decoded, draw_photos, norm_crop, write_csv, write_photos
from format_support import DeadlySource, numbered
from support import MemorySource, tree

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.dataset import Sample, create_dataset
from facedata.errors import SampleError, TooManyFailuresError, WorkerCrashError
from facedata.jobs.job import JobOptions, JobSummary

SAMPLES = 24
WORDS = "crashed its worker (SIGSEGV), twice and by itself"


def convert(source: MemorySource, target: str, job: JobOptions | None = None) -> JobSummary:
    cut = {"shard_samples": 8} if target.startswith(("webdataset", "parquet")) else {}
    style = {"style": "plain"} if target.startswith("rec") else {}
    sink = create_dataset(target, **cut, **style)
    ends = None if cut else (*range(8, len(source), 8), len(source))
    return run_conversion(plan_conversion("test", source, sink, ends=ends), job or JobOptions(2))


@pytest.mark.parametrize("target", ["folder:{}", "webdataset:{}", "parquet:{}", "lmdb:{}.lmdb", "rec:{}"])
def test_a_sample_that_crashes_its_worker_is_named_and_costs_no_other(tmp_path: Path, target: str) -> None:
    items = list(numbered(SAMPLES).read())
    deadly = ("8", "9")
    summary = convert(DeadlySource(items, deadly=deadly), target.format(tmp_path / "out"))
    assert (summary.finished, summary.good, summary.samples, summary.failures) == (True, False, 22, 2)
    assert summary.causes == {"crashed its worker": 2}
    failing = [SampleError("memory", item.key, WORDS, int(item.key)) if item.key in deadly else item for item in items]
    convert(MemorySource(failing), target.format(tmp_path / "same"))
    written, expected = (
        {name: data for name, data in tree(tmp_path / name).items() if ".facedata-" not in name and "mdb" not in name}
        for name in ("out", "same")
    )
    assert written == expected


def test_a_worker_that_is_killed_while_others_take_the_memory_blames_no_sample(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    items = list(numbered(SAMPLES).read())  # the sixth time it is alone for the first time
    source = DeadlySource(items, deadly=("5",), signal=signal.SIGKILL, notes=tmp_path / "notes", times=6)
    summary = convert(source, f"folder:{tmp_path}/out", JobOptions(1))
    assert (summary.finished, summary.good, summary.samples) == (True, True, SAMPLES)


def test_a_job_in_which_every_sample_crashes_stops_and_resumes(tmp_path: Path) -> None:
    items = list(numbered(3).read())
    keys = tuple(item.key for item in items)
    with pytest.raises(WorkerCrashError, match=r"3 samples end the process .* crashed its worker .* run the same"):
        convert(DeadlySource(items, deadly=keys), f"folder:{tmp_path}/out", JobOptions(1))
    assert convert(MemorySource(items), f"folder:{tmp_path}/out").good


def test_a_crash_of_a_decoder_costs_the_photo_and_moves_no_landmarks(tmp_path: Path) -> None:
    photos = draw_photos()[:8]
    raw, points = write_photos(tmp_path / "raw", photos), write_csv(tmp_path / "points.csv", photos)
    program = _CRASHING.format(bad=[photos[2].data, photos[3].data])
    command = ["align", str(raw), "--landmarks", str(points), "-o", "out", "--format", "png", "--max-failures", "2"]
    ran = subprocess.run([sys.executable, "-c", program, *command], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.startswith("out: 6 images of 2 identities")) == (0, True)
    assert "warning: 2 of 8 images failed: 2 crashed its worker; see out/failures.jsonl" in ran.stderr
    for photo in photos[:2] + photos[4:]:
        crop = decoded((tmp_path / "out" / photo.key.replace(".jpg", ".png")).read_bytes())
        assert np.abs(crop - norm_crop(photo)).max() <= 1


_CRASHING = """
import os, signal, cv2
bad, parent, decode = {bad!r}, os.getpid(), cv2.imdecode
def crash(data, flags):
    if os.getpid() != parent and bytes(data) in bad:
        os.kill(os.getpid(), signal.SIGBUS)
    return decode(data, flags)
cv2.imdecode = crash
from facedata.cli import main
main()
"""


@pytest.mark.parametrize("target", ["folder:{}", "lmdb:{}.lmdb"])
def test_a_job_that_passes_its_bound_stops_early_and_resumes_with_a_larger_one(tmp_path: Path, target: str) -> None:
    items: list[Sample | SampleError] = list(numbered(SAMPLES).read())
    items[:9:2] = [SampleError("memory", str(n), "not an image: 00") for n in range(0, 9, 2)]
    source, target = MemorySource(items), target.format(tmp_path / "out")
    for job in (JobOptions(1, max_failures=3), JobOptions(1, max_failures=0.1), JobOptions(1, max_failures=0)):
        with pytest.raises(TooManyFailuresError, match=r"4 of 24 images failed: 4 not an image; see .*jsonl\. .* allo"):
            convert(source, target, job)
    with pytest.raises(TooManyFailuresError, match="5 of 24"):
        convert(source, target, JobOptions(1, max_failures=4))
    summary = convert(source, target, JobOptions(1, max_failures=0.25))
    assert (summary.finished, summary.good, summary.failures, summary.samples) == (True, True, 5, 19)
    assert not convert(source, target, JobOptions(1, max_failures=3)).good
    assert len([json.loads(line) for line in (Path(summary.output) / "failures.jsonl").read_text().splitlines()]) == 5
