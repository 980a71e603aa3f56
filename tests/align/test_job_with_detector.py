"""The job with a detector that really runs: from photos to faces, and again from the landmarks it found."""

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


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos: a face, a face turned a little, two faces beside each other, none."""
    picture: Any = astronaut()  # type: ignore[no-untyped-call]
    photo = np.ascontiguousarray(picture[:300, 80:380, ::-1])
    turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((145, 110), 12, 1.0), (300, 300))
    pictures = {"1": photo, "2": turned, "3": np.hstack([photo, photo[:, ::-1]]), "4": np.full_like(photo, 90)}
    for name, picture in pictures.items():
        path = tmp_path / "photos" / "eileen" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
    return tmp_path / "photos"


def faces(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if "/" in name}


def test_faces_are_found_and_the_run_can_be_repeated_without_the_detector(photos: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.jsonl"
    options = AlignOptions(detector=MTCNN, faces="all", encoding=Encoding("png"), write_landmarks=str(found))
    summary = align_dataset(str(photos), str(tmp_path / "out"), options, JobOptions(2))
    assert (summary.samples, summary.failures, summary.facts["causes"]) == (4, 1, {"no face": 1})
    names = ["eileen/1.png", "eileen/2.png", "eileen/3-face2.png", "eileen/3.png"]
    assert list(faces(tmp_path / "out")) == names
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), 1).astype(int) for data in faces(tmp_path / "out").values()]
    apart = [np.abs(images[0] - other)[30:100, 20:92].mean() for other in images[1:]]
    assert apart[0] < 12.0
    assert sorted(apart[1:])[0] < 5.0  # the other of these two is the mirror image
    lines = [json.loads(line) for line in found.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["eileen/1.jpg", "eileen/2.jpg", "eileen/3.jpg", "eileen/3.jpg"]
    assert all(line["score"] > 0.7 for line in lines)
    again = AlignOptions(landmarks=str(found), faces="all", encoding=Encoding("png"))
    align_dataset(str(photos), str(tmp_path / "again"), again, JobOptions(1))
    assert faces(tmp_path / "again") == faces(tmp_path / "out")


def test_the_detector_fills_the_gaps_of_a_landmark_file(photos: Path, tmp_path: Path) -> None:
    points = tmp_path / "points.jsonl"
    five = [[123, 100], [166, 102], [144, 128], [122, 139], [165, 141]]
    points.write_text(json.dumps({"key": "eileen/1.jpg", "landmarks": five}) + "\n")
    options = AlignOptions(landmarks=str(points), detector=MTCNN, write_landmarks=str(tmp_path / "all.jsonl"))
    summary = align_dataset(str(photos), str(tmp_path / "out"), options, JobOptions(1))
    assert (summary.samples, summary.facts["causes"]) == (3, {"no face": 1})
    first = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[0])
    assert first == {"key": "eileen/1.jpg", "landmarks": five}


def test_a_face_below_the_lowest_score_is_not_no_face(photos: Path, tmp_path: Path) -> None:
    options = AlignOptions(detector=DetectorOptions("mtcnn", min_score=1.0), min_score=1.0)
    summary = align_dataset(str(photos), str(tmp_path / "out"), options, JobOptions(1))
    assert summary.facts["causes"] == {"low score": 3, "no face": 1}


def test_the_journal_names_the_model_and_another_detector_is_another_job(photos: Path, tmp_path: Path) -> None:
    align_dataset(str(photos), str(tmp_path / "out"), AlignOptions(detector=MTCNN), JobOptions(1))
    text = (tmp_path / "out" / ".facedata-plan.json").read_text()
    detector = json.loads(text)["options"]["detector"]
    assert "mtcnn" in json.dumps(detector)
    assert len(detector["models"]["pnet.onnx"]) == 64
    options = AlignOptions(detector=DetectorOptions("centerface"))
    with pytest.raises(OutputMismatchError, match="detector"):
        align_dataset(str(photos), str(tmp_path / "out"), options, JobOptions(1))


def test_crops_are_not_looked_at_by_a_detector_again(photos: Path, tmp_path: Path) -> None:
    align_dataset(str(photos), str(tmp_path / "out"), AlignOptions(detector=MTCNN), JobOptions(1))
    with pytest.raises(OptionError, match="look aligned already"):
        align_dataset(str(tmp_path / "out"), str(tmp_path / "again"), AlignOptions(detector=MTCNN), JobOptions(1))
