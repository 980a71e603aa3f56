"""Drawn faces: cartoon people with exactly known landmarks, for tests and demonstrations.

A face is a small three-dimensional model, the *head frame*: x to the image's right from the middle
of the face, y down, z towards the viewer, in pixels of the *canonical frame*. The canonical frame
is a 112 x 112 crop in which the eyes, the nose and the mouth lie near the ArcFace template. Every
shape is projected through one affine map, the landmarks too, so they lie where the features are.

Pixel coordinates are x, then y, and the centre of the top-left pixel is (0, 0), as in OpenCV.
Images are BGR, as in OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.errors import OptionError
from facedata.synthetic.curves import Floats
from facedata.synthetic.landmarks import head_landmarks
from facedata.synthetic.painting import apply_light, head_projection, paint, paint_tone
from facedata.synthetic.people import Identity, View, identity_from_seed, view_from_seed
from facedata.synthetic.shapes import face_shapes, tone_shapes

__all__ = [
    "MAX_CANVAS",
    "DrawnFace",
    "Identity",
    "View",
    "draw_face",
    "identity_from_seed",
    "view_from_seed",
]


MAX_CANVAS = 4096
"""The longest side of a canvas, in pixels: a slip in a size must not take all memory."""


@dataclass(frozen=True, eq=False)
class DrawnFace:
    """A drawn face and where its landmarks are.

    Attributes
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    landmarks68 : ndarray of shape (68, 2), float32
        Pixels, x then y, in the iBUG order: 0-16 jaw, 17-26 brows, 27-35 nose, 36-41 eye on the
        image's left, 42-47 eye on its right, 48-67 mouth. They may lie outside the canvas.
    landmarks5 : ndarray of shape (5, 2), float32
        The means of 36-41 and of 42-47, then points 30, 48 and 54.
    """

    image: NDArray[np.uint8]
    landmarks68: NDArray[np.float32]
    landmarks5: NDArray[np.float32]


def draw_face(
    identity: Identity,
    view: View | None = None,
    size: int = 112,
    *,
    matrix: Floats | None = None,
    canvas: tuple[int, int] | None = None,
) -> DrawnFace:
    """Draw one face.

    Parameters
    ----------
    identity, view : Identity, View
        Who, and how; the default view is `View()`.
    size : int
        Side in pixels of the square image that the canonical frame is scaled to fill, outer pixel
        edges on outer pixel edges as in ``cv2.resize``. With `matrix`, only `canvas`'s default.
    matrix : array of shape (2, 3), optional
        Similarity transform from canonical pixels to canvas pixels, x then y.
    canvas : (int, int), optional
        Height and width of the image.

    Returns
    -------
    DrawnFace
        The image, and the landmarks in its pixels.

    Raises
    ------
    OptionError
        If `matrix` is no similarity transform, or a side of the canvas not 1 to `MAX_CANVAS`.
    """
    view = View() if view is None else view
    matrix = _resizing(size) if matrix is None else np.asarray(matrix, dtype=np.float64)
    height, width = _checked((size, size) if canvas is None else canvas, matrix)
    projection = head_projection(view, matrix)
    points = head_landmarks(identity, view)
    landmarks68 = (points @ projection[:, :3].T + projection[:, 3]).astype(np.float32)
    shapes = face_shapes(identity, view, points)
    scale = _scale_of(view, matrix)
    painted = paint(shapes, projection, scale, view, (height, width))
    toned = paint_tone(tone_shapes(identity, view, points), projection, scale, (height, width))
    image = apply_light(painted, toned, view, projection, scale)
    return DrawnFace(image, landmarks68, _five(landmarks68))


def _five(points: NDArray[np.float32]) -> NDArray[np.float32]:
    eyes = points[36:48].reshape(2, 6, 2).mean(axis=1)
    return np.concatenate([eyes, points[[30, 48, 54]]]).astype(np.float32)


def _resizing(size: int) -> Floats:
    factor = size / 112.0
    return np.array([[factor, 0.0, (factor - 1.0) / 2.0], [0.0, factor, (factor - 1.0) / 2.0]])


def _checked(canvas: tuple[int, int], matrix: Floats) -> tuple[int, int]:
    height, width = canvas
    if not (1 <= height <= MAX_CANVAS and 1 <= width <= MAX_CANVAS):
        raise OptionError(f"canvas of {height} x {width} pixels: expected 1 to {MAX_CANVAS} a side")
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
        raise OptionError(f"matrix: expected 2 x 3 finite numbers, found shape {matrix.shape}")
    (a, b), (c, d) = matrix[:, :2]
    scale = float(np.hypot(a, c))
    if not (scale > 0.0 and np.hypot(a - d, b + c) <= 1e-6 * scale):
        raise OptionError(f"matrix: expected [[a, -b, x], [b, a, y]], found {matrix.tolist()}")
    return height, width


def _scale_of(view: View, matrix: Floats) -> float:
    return view.scale * float(np.hypot(matrix[0, 0], matrix[1, 0]))
