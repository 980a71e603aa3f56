"""The library ``datasets`` reads the files of facedata, and facedata reads its files; it runs in one subprocess."""

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
from format_support import convert
from support import MemorySource, tree

from facedata.dataset import Sample, open_dataset
from facedata.errors import SampleError

LANDMARKS = np.arange(10, dtype=np.float32).reshape(5, 2)

SCRIPT = """
import json, sys
from datasets import ClassLabel, Dataset, Features, Image, load_dataset

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

def described_in_every_way(folder):
    return [
        described(load_dataset(folder)["train"]),
        described(load_dataset("parquet", data_files=folder + "/*.parquet", split="train")),
        described(load_dataset(folder, split="train", streaming=True)),
        described(Dataset.from_parquet(folder + "/train-00000-of-00004.parquet")),
    ]

plain, with_landmarks, target = sys.argv[1:]
load_dataset(plain, split="train").to_parquet(target + "/a.parquet")
rows = load_dataset(plain, split="train").cast_column("image", Image(decode=False)).to_list()
for row in rows:
    row["image"]["path"] = None
features = Features({"image": Image(), "label": ClassLabel(names=["p%d" % n for n in range(5)])})
Dataset.from_list(rows, features=features).to_parquet(target + "/b.parquet", batch_size=7)
print(json.dumps([described_in_every_way(plain), described_in_every_way(with_landmarks)]))
"""


def photo(number: int) -> bytes:
    """A real JPEG of one grey, 8 x (10 + number) pixels."""
    return bytes(cv2.imencode(".jpg", np.full((8, 10 + number, 3), 5 * number, np.uint8))[1])


def samples(*, landmarks: bool) -> list[Sample]:
    return [Sample(str(n), n // 4, photo(n), LANDMARKS + n if landmarks and n % 2 else None) for n in range(20)]


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[dict[str, Any]]], Path]:
    """What the library saw in a folder without and in one with landmarks, and the folder of the files it wrote."""
    root = tmp_path_factory.mktemp("huggingface")
    folders = [root / "plain" / "test", root / "landmarks" / "test"]  # the library takes "test" for a split
    failing: list[Sample | SampleError] = [Sample("bad", 0, b"no image"), SampleError("set", "gone", "cannot be read")]
    names = {n: f"person {n}" for n in range(5)}
    files = [f"train-{n:05d}-of-00004.parquet" for n in range(4)]
    for landmarks, folder in zip((False, True), folders, strict=True):
        source = MemorySource([*samples(landmarks=landmarks), *failing], names=names)
        convert(source, f"parquet:{folder}", shard_samples=6)
        assert list(tree(folder)) == ["classes.txt", "failures.jsonl", *files]  # the library takes two for no data
    (root / "written").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, folders), str(root / "written")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(root / "cache")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), root / "written"


@pytest.mark.parametrize("landmarks", [False, True])
def test_the_library_shows_images_and_labels(hugging_face: tuple[Any, Path], landmarks: bool) -> None:
    items = samples(landmarks=landmarks)
    for number, seen in enumerate(hugging_face[0][landmarks]):
        wanted = items if number < 3 else items[:6]
        assert seen["bytes"] == [item.image.hex() for item in wanted]
        assert seen["paths"] == [f"{item.key}.jpg" for item in wanted]
        assert [row["image"] for row in seen["rows"]] == [["PIL", 10 + int(item.key), 8] for item in wanted]
        assert [row["label"] for row in seen["rows"]] == [item.label for item in wanted]
        assert (seen["image"][:6], seen["label"]) == ("Image(", "int64")
        if landmarks:
            points = [None if item.landmarks is None else item.landmarks.ravel().tolist() for item in wanted]
            assert [row["landmarks"] for row in seen["rows"]] == points
        else:
            assert seen["columns"] == ["image", "label"]


def test_files_written_by_the_library_are_read(hugging_face: tuple[Any, Path]) -> None:
    items = samples(landmarks=False)
    written = open_dataset(f"{hugging_face[1]}/a.parquet")
    assert list(written) == [item._replace(key=f"{item.key}.jpg") for item in items]
    assert written.class_names() == {n: f"person {n}" for n in range(5)}
    with_names = open_dataset(f"{hugging_face[1]}/b.parquet")
    assert list(with_names) == items
    assert with_names.class_names() == {n: f"p{n}" for n in range(5)}
    assert with_names.declared_classes() == 5
    assert len(open_dataset(str(hugging_face[1]))) == 40
