"""The job with a real detector: from photos to faces, and again from the landmarks that it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from align_support import cv2
from skimage.data import astronaut
from support import tree

from facedata.align.codec import Encoding
from facedata.align.detectors import DetectorOptions
from facedata.align.job import AlignOptions, align_dataset
from facedata.errors import OptionError, OutputMismatchError
from facedata.jobs.job import JobOptions

MTCNN = DetectorOptions("mtcnn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos``: a face, a face turned a little, two faces beside each other, none; and all faces in ``out``."""
    folder = tmp_path_factory.mktemp("detected")
    picture: Any = astronaut()  # type: ignore[no-untyped-call]
    photo = np.ascontiguousarray(picture[:300, 80:380, ::-1])
    turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((145, 110), 12, 1.0), (300, 300))
    pictures = {"1": photo, "2": turned, "3": np.hstack([photo, photo[:, ::-1]]), "4": np.full_like(photo, 90)}
    (folder / "photos" / "eileen").mkdir(parents=True)
    for name, picture in pictures.items():
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folder / "photos" / "eileen" / f"{name}.jpg").write_bytes(data.tobytes())
    found = str(folder / "found.jsonl")
    options = AlignOptions(detector=MTCNN, faces="all", encoding=Encoding("png"), write_landmarks=found)
    summary = align_dataset(str(folder / "photos"), str(folder / "out"), options, JobOptions(2))
    assert (summary.samples, summary.failures, summary.facts["causes"]) == (4, 1, {"no face": 1})
    return folder


def faces(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if "/" in name}


def test_faces_are_found_and_the_run_can_be_repeated_without_the_detector(folder: Path, tmp_path: Path) -> None:
    written = faces(folder / "out")
    assert list(written) == ["eileen/1.png", "eileen/2.png", "eileen/3-face2.png", "eileen/3.png"]
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), 1).astype(int) for data in written.values()]
    apart = [np.abs(images[0] - other)[30:100, 20:92].mean() for other in images[1:]]
    assert apart[0] < 12.0
    assert min(apart[1:]) < 5.0  # the other of these two is the mirror image
    lines = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["eileen/1.jpg", "eileen/2.jpg", "eileen/3.jpg", "eileen/3.jpg"]
    assert all(line["score"] > 0.7 for line in lines)
    again = AlignOptions(landmarks=str(folder / "found.jsonl"), faces="all", encoding=Encoding("png"))
    align_dataset(str(folder / "photos"), str(tmp_path / "again"), again, JobOptions(1))
    assert faces(tmp_path / "again") == written


def test_the_detector_fills_the_gaps_of_a_landmark_file(folder: Path, tmp_path: Path) -> None:
    points, found = tmp_path / "points.jsonl", tmp_path / "all.jsonl"
    first = {"key": "eileen/1.jpg", "landmarks": [[123, 100], [166, 102], [144, 128], [122, 139], [165, 141]]}
    points.write_text(json.dumps(first) + "\n")
    detector = DetectorOptions("mtcnn", min_score=1.0)
    options = AlignOptions(landmarks=str(points), detector=detector, write_landmarks=str(found), min_score=1.0)
    summary = align_dataset(str(folder / "photos"), str(tmp_path / "out"), options, JobOptions(1))
    assert (summary.samples, summary.facts["causes"]) == (1, {"low score": 2, "no face": 1})
    assert json.loads(found.read_text()) == first


def test_the_journal_names_the_model_and_another_detector_is_another_job(folder: Path, tmp_path: Path) -> None:
    detector = json.loads((folder / "out" / ".facedata-plan.json").read_text())["options"]["detector"]
    assert "mtcnn" in json.dumps(detector)
    assert len(detector["models"]["pnet.onnx"]) == 64
    options = AlignOptions(detector=DetectorOptions("mtcnn", size=256))
    with pytest.raises(OutputMismatchError, match="detector"):
        align_dataset(str(folder / "photos"), str(folder / "out"), options, JobOptions(1))
    with pytest.raises(OptionError, match="look aligned already"):
        align_dataset(str(folder / "out"), str(tmp_path / "again"), AlignOptions(detector=MTCNN), JobOptions(1))
