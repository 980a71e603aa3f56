"""From an image to faces, with each detector, on small networks that see white squares."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from align.detectors.conftest import BOX, SPOTTERS, Model, expected_landmarks, untried
from numpy.typing import NDArray

from facedata.align.detectors import DETECTORS, DetectorOptions, PreparedDetector, prepare_detector
from facedata.align.detectors.networks import sha256_of

NAMES = list(SPOTTERS)


@pytest.fixture(scope="module")
def prepared(model: Model) -> Mapping[str, PreparedDetector]:
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
def test_a_face_is_found_where_it_is(name: str, prepared: Mapping[str, PreparedDetector]) -> None:
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
def test_doubtful_faces_are_given_too_after_the_others(name: str, prepared: Mapping[str, PreparedDetector]) -> None:
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
def test_points_are_those_of_the_unscaled_image(name: str, prepared: Mapping[str, PreparedDetector]) -> None:
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
