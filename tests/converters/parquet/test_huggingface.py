"""The library ``datasets`` itself reads what we write, and we read what it writes; it runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import MemorySource

from facedata.converters.convert import plan_conversion, run_conversion
from facedata.dataset import Sample, create_dataset, open_dataset
from facedata.errors import SampleError
from facedata.jobs.job import JobOptions

LANDMARKS = np.arange(10, dtype=np.float32).reshape(5, 2)


def photo(number: int) -> bytes:
    """A real JPEG of one grey, 8 x (10 + number) pixels."""
    return bytes(cv2.imencode(".jpg", np.full((8, 10 + number, 3), 5 * number, np.uint8))[1])


def samples(count: int, *, landmarks: bool = False) -> list[Sample]:
    return [Sample(str(n), n // 4, photo(n), LANDMARKS + n if landmarks and n % 2 else None) for n in range(count)]


def hugging_face(tmp_path: Path, script: str, *arguments: object) -> Any:
    """What a script that uses the library prints, offline and with a cache of its own."""
    switches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "huggingface")}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **switches},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READ = """
import json, sys
from datasets import Dataset, Image, load_dataset

folder, first_file = sys.argv[1:]

def described(dataset):
    rows = [{**row, "image": [type(row["image"]).__module__.split(".")[0], *row["image"].size]} for row in dataset]
    raw = [row["image"] for row in dataset.cast_column("image", Image(decode=False))]
    return {
        "rows": rows,
        "bytes": [image["bytes"].hex() for image in raw],
        "paths": [image["path"] for image in raw],
        "image": str(dataset.features["image"]),
        "label": dataset.features["label"].dtype,
        "columns": dataset.column_names,
    }

print(json.dumps([
    described(load_dataset(folder)["train"]),
    described(load_dataset("parquet", data_files=folder + "/*.parquet", split="train")),
    described(load_dataset(folder, split="train", streaming=True)),
    described(Dataset.from_parquet(first_file)),
]))
"""


@pytest.mark.parametrize("landmarks", [False, True])
def test_the_library_shows_images_and_labels(tmp_path: Path, landmarks: bool) -> None:
    items = samples(20, landmarks=landmarks)
    source = MemorySource(
        [*items, Sample("bad", 0, b"no image"), SampleError("set", "gone", "cannot be read")],
        names={n: f"person {n}" for n in range(5)},
    )
    folder = tmp_path / "test"  # a name that the library looks for, to tell splits
    sink = create_dataset(f"parquet:{folder}", shard_samples=6)
    run_conversion(plan_conversion("test", source, sink), JobOptions(workers=1))
    files = [f"train-{n:05d}-of-00004.parquet" for n in range(4)]
    beside = ["classes.txt", "failures.jsonl"]  # neither must be taken for data
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [*beside, *files]

    for number, seen in enumerate(hugging_face(tmp_path, READ, folder, folder / files[0])):
        wanted = items if number < 3 else items[:6]
        assert seen["bytes"] == [item.image.hex() for item in wanted]
        assert seen["paths"] == [f"{item.key}.jpg" for item in wanted]
        assert [row["image"] for row in seen["rows"]] == [["PIL", 10 + int(item.key), 8] for item in wanted]
        assert [row["label"] for row in seen["rows"]] == [item.label for item in wanted]
        assert seen["image"].startswith("Image(")
        assert seen["label"] == "int64"
        if landmarks:
            points = [None if item.landmarks is None else item.landmarks.ravel().tolist() for item in wanted]
            assert [row["landmarks"] for row in seen["rows"]] == points
        else:
            assert seen["columns"] == ["image", "label"]


WRITE = """
import json, sys
from datasets import ClassLabel, Dataset, Features, Image, load_dataset

ours, folder = sys.argv[1:]
load_dataset(ours, split="train").to_parquet(folder + "/a.parquet")
rows = load_dataset(ours, split="train").cast_column("image", Image(decode=False)).to_list()
for row in rows:
    row["image"]["path"] = None
names = ["p%d" % n for n in range(5)]
features = Features({"image": Image(), "label": ClassLabel(names=names)})
Dataset.from_list(rows, features=features).to_parquet(folder + "/b.parquet", batch_size=7)
print(json.dumps(None))
"""


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    source = MemorySource(samples(20))
    sink = create_dataset(f"parquet:{tmp_path / 'ours'}")
    run_conversion(plan_conversion("test", source, sink), JobOptions(workers=1))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    hugging_face(tmp_path, WRITE, tmp_path / "ours", theirs)

    written = open_dataset(str(theirs / "a.parquet"))
    assert [(sample.label, sample.image) for sample in written] == [(item.label, item.image) for item in source]
    assert list(written.keys()) == [f"{item.key}.jpg" for item in source]
    assert written.class_names() is None
    with_names = open_dataset(str(theirs / "b.parquet"))
    assert [tuple(sample) for sample in with_names] == [(str(n), n // 4, photo(n), None) for n in range(20)]
    assert with_names.class_names() == {n: f"p{n}" for n in range(5)}
    assert with_names.declared_classes() == 5
    assert len(open_dataset(str(theirs))) == 40
