"""SCRFD, RetinaFace, YOLOv5-Face, YOLOv8-Face and CenterFace, through the library uniface.

uniface knows what goes into these networks and what comes out. It takes only its own weights, from its own cache: here
its constructors are given a session of ours instead, so that it neither fetches, checks nor deletes any file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.families import Family
from facedata.align.detectors.fitting import Fitted, fit
from facedata.align.detectors.onnx_shapes import free_size
from facedata.align.detectors.protocol import Device
from facedata.align.detectors.sessions import new_session, one_line
from facedata.align.faces import Face
from facedata.errors import MissingExtraError, ModelError, OptionError

__all__ = ["UnifaceDetector", "check_model", "check_outputs", "load_uniface", "open_model"]

_SHOWN_OUTPUTS = 12


class UnifaceDetector:
    """A detector of uniface, which is given images of the size that its network wants.

    Parameters
    ----------
    detector : uniface.detection.BaseDetector
    family : Family
    size : int
    """

    def __init__(self, detector: Any, family: Family, size: int) -> None:
        self._detector, self._family, self._size = detector, family, size
        # CenterFace counts from the outer edge of the top left pixel, whose centre is (0, 0) elsewhere
        self._origin = 0.5 if family.uniface_class == "CenterFace" else 0.0

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Faces in an image; see `Detector`."""
        fitted = self._fitted(image)
        return [self._face(found, fitted) for found in self._detector.detect(fitted.image)]

    def _fitted(self, image: NDArray[np.uint8]) -> Fitted:
        """So that uniface itself scales nothing: it would lose up to a pixel, which matters far from the corner."""
        if self._family.uniface_class == "CenterFace":
            return fit(image, self._size, enlarge=True, multiple=self._family.step)
        return fit(image, self._size, enlarge=True, square=not self._family.only_size)

    def _face(self, found: Any, fitted: Fitted) -> Face:
        landmarks = np.asarray(found.landmarks, np.float64).reshape(5, 2)
        box = np.asarray(found.bbox, np.float64).reshape(2, 2)
        return Face(
            fitted.back(landmarks - self._origin), fitted.back(box - self._origin).reshape(4), float(found.confidence)
        )


def load_uniface(session: Any, family: Family, size: int, floor: float) -> UnifaceDetector:
    """A detector that runs a session.

    Raises
    ------
    MissingExtraError
        Where uniface is missing, or is of a version that works otherwise.
    """
    try:
        constructor = getattr(importlib.import_module("uniface.detection"), family.uniface_class)
        with _own_session(sys.modules[constructor.__module__], session):
            detector = constructor(
                confidence_threshold=floor,
                input_size=_input_size(family, size),
                providers=["CPUExecutionProvider"],
            )
    except (ImportError, AttributeError, TypeError) as error:
        raise MissingExtraError(f"the detector {family.uniface_class}", "detect", f"uniface: {error}") from error
    return UnifaceDetector(detector, family, size)


def _input_size(family: Family, size: int) -> Any:
    if family.only_size:
        return size
    return None if family.uniface_class == "CenterFace" else (size, size)


@contextmanager
def _own_session(module: ModuleType, session: Any) -> Iterator[None]:
    """Have what a module's constructors call give our session, for a moment."""
    ours = {"verify_model_weights": lambda *_, **__: "", "create_onnx_session": lambda *_, **__: session}
    theirs = {name: getattr(module, name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in theirs.items():
            setattr(module, name, function)


def open_model(model: bytes, name: str, family: Family, device: Device) -> Any:
    """A session of a model that takes images; CenterFace's of any size, whatever its file says.

    Raises
    ------
    ModelError
        Where it is no ONNX model, or its inputs are not what they should be.
    OptionError
        Where there is no such device.
    """
    session = new_session(model, name, device)
    _check_input(session, name)
    if family.uniface_class == "CenterFace" and _fixed_sides(session):
        try:
            session = new_session(free_size(model), name, device)
        except ValueError as error:
            raise ModelError(f"{name}: expected an ONNX model, found one that cannot be read: {error}") from error
    return session


def _check_input(session: Any, name: str) -> None:
    inputs = session.get_inputs()
    shapes = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
    fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4
    if not fits or (isinstance(inputs[0].shape[1], int) and inputs[0].shape[1] != 3):
        raise ModelError(
            f"{name}: expected one input, images of float and shape [N, 3, H, W]; found {shapes}: "
            "it is not a model of this detector"
        )


def _fixed_sides(session: Any) -> tuple[int, ...]:
    return tuple(side for side in session.get_inputs()[0].shape[2:] if isinstance(side, int))


def check_model(session: Any, name: str, family: Family, size: int | None) -> int:
    """The size that the model is used with.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    name : str
        Of the file, for messages.
    family : Family
    size : int, optional
        What was asked for.

    Raises
    ------
    OptionError
        Where the model takes another size only.
    ModelError
        Where its outputs are not what they should be.
    """
    fixed = _fixed_sides(session)
    chosen = size or (fixed[0] if fixed else family.size)
    if any(side != chosen for side in fixed):
        raise OptionError(
            f"{name}: takes images of {' x '.join(map(str, fixed))} pixels only: expected that as the detector's size, "
            f"found {chosen}"
        )
    found = _output_shapes(session, name, chosen)
    check_outputs(found, name, family, chosen)
    return chosen


def _output_shapes(session: Any, name: str, size: int) -> list[tuple[int, ...]]:
    images = np.zeros((1, 3, size, size), np.float32)
    try:
        return [np.shape(output) for output in session.run(None, {session.get_inputs()[0].name: images})]
    except Exception as error:  # what ONNX Runtime raises has no common class of its own
        raise ModelError(f"{name}: fails on an image of {size} x {size} pixels: {one_line(error)}") from error


def check_outputs(found: list[tuple[int, ...]], name: str, family: Family, size: int) -> None:
    """Compare the shapes of a model's outputs with those that the detector wants.

    Raises
    ------
    ModelError
    """
    expected = family.outputs(size) if family.outputs else ()
    if tuple(found) != expected:
        raise ModelError(
            f"{name}: for an image of {size} x {size} pixels, expected outputs of the shapes {_shown(expected)} "
            f"({family.contents}); found {_shown(found)}: it is not a model of this detector"
        )


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "one number" for shape in shapes[:_SHOWN_OUTPUTS]) or "none"
