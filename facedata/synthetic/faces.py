"""Drawn faces: cartoon people with exactly known landmarks, for tests and demonstrations.

All shapes and the landmarks are projected through the same affine map, so that the landmarks lie where the features
are. Pixel coordinates are x, then y; the centre of the top left pixel is (0, 0), and images are BGR, as in OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facedata.images import import_opencv
from facedata.synthetic.people import (
    Floats,
    Identity,
    View,
    generator,
    head_landmarks,
    identity_from_seed,
    view_from_seed,
)
from facedata.synthetic.shapes import BLACK, WHITE, Shape, face_shapes, mix, tone_shapes

__all__ = ["DrawnFace", "Identity", "View", "draw_face", "face_landmarks", "identity_from_seed", "view_from_seed"]

Pixels = NDArray[np.uint8]

# the centre of rotation: near the middle of the five points, so that they stay near; x = 0 is x = 56 in the crop
_PIVOT = np.array([0.0, 72.0, 8.0])
_NEUTRAL_TONE = 200  # the value of the tone layer that leaves a pixel as it is
_FIXED_POINT_BITS = 6
_FAR = 30000.0  # keeps the fixed-point coordinates of cv2 far from overflow


@dataclass(frozen=True, eq=False)
class DrawnFace:
    """A drawn face and its landmarks.

    Attributes
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    landmarks68 : ndarray of shape (68, 2), float32
        Pixels, x then y, in the iBUG order: 0-16 jaw, 17-26 brows, 27-35 nose, 36-41 eye on the image's left, 42-47 eye
        on its right, 48-67 mouth. They may lie outside the canvas.
    landmarks5 : ndarray of shape (5, 2), float32
        The means of 36-41 and of 42-47, then points 30, 48 and 54.
    """

    image: Pixels
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
        Side in pixels of the square image that the canonical frame is scaled to fill, outer pixel edges on outer pixel
        edges as in ``cv2.resize``. With `matrix`, only the default of `canvas`.
    matrix : array of shape (2, 3), optional
        Similarity transform from canonical pixels to canvas pixels, x then y.
    canvas : (int, int), optional
        Height and width of the image.
    """
    view = View() if view is None else view
    matrix = _resizing(size) if matrix is None else matrix
    canvas = (size, size) if canvas is None else canvas
    projection = _projection(view, matrix)
    scale = view.scale * float(np.hypot(matrix[0, 0], matrix[1, 0]))
    points = head_landmarks(identity, view)
    landmarks5, landmarks68 = _projected(points, projection)
    painted = _paint(face_shapes(identity, view, points), projection, scale, view, canvas)
    tones = _paint_tones(tone_shapes(identity, view, points), projection, scale, canvas)
    return DrawnFace(_apply_light(painted, tones, view, projection, scale), landmarks68, landmarks5)


def face_landmarks(identity: Identity, view: View, size: int = 112) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The 5 and the 68 landmarks that `draw_face` would return, without drawing."""
    return _projected(head_landmarks(identity, view), _projection(view, _resizing(size)))


def _projected(points: Floats, projection: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    landmarks68 = (points @ projection[:, :3].T + projection[:, 3]).astype(np.float32)
    eyes = landmarks68[36:48].reshape(2, 6, 2).mean(axis=1)
    return np.concatenate([eyes, landmarks68[[30, 48, 54]]]).astype(np.float32), landmarks68


def _resizing(size: int) -> Floats:
    """The matrix that scales the canonical frame to a square image."""
    factor = size / 112.0
    return np.array([[factor, 0.0, (factor - 1.0) / 2.0], [0.0, factor, (factor - 1.0) / 2.0]])


def _projection(view: View, matrix: Floats) -> Floats:
    """The affine map from the head frame to canvas pixels, shape (2, 4)."""
    yaw, pitch, roll = np.radians([view.yaw, view.pitch, view.roll])
    second = (np.sin(pitch) * np.sin(yaw), np.cos(pitch), -np.sin(pitch) * np.cos(yaw))
    turned = np.array([(np.cos(yaw), 0.0, np.sin(yaw)), second])
    rolled = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    linear = view.scale * rolled @ turned
    offset = np.array([56.0 + view.shift_x, 72.0 + view.shift_y]) - linear @ _PIVOT
    return np.column_stack([matrix[:, :2] @ linear, matrix[:, :2] @ offset + matrix[:, 2]])


def _resized(projection: Floats, factors: tuple[float, float]) -> Floats:
    """The projection to an image resized by `factors` (x, y), outer pixel edges on outer pixel edges."""
    factor = np.array(factors)[:, None]
    scaled: Floats = projection * factor
    scaled[:, 3:] += (factor - 1.0) / 2.0
    return scaled


def _fill(image: Pixels, shapes: list[Shape], projection: Floats, line: int) -> None:
    """Fill the outlines of each shape in its colour, in place."""
    cv2 = import_opencv()
    outlines = [outline for _, parts in shapes for outline in parts]
    pixels = np.concatenate(outlines) @ projection[:, :3].T + projection[:, 3]
    fixed = np.rint(np.clip(pixels, -_FAR, _FAR) * (1 << _FIXED_POINT_BITS)).astype(np.int32)
    pieces = iter(np.split(fixed, np.cumsum([len(outline) for outline in outlines[:-1]])))
    for colour, parts in shapes:
        cv2.fillPoly(image, [next(pieces) for _ in parts], (*colour, 255.0), line, _FIXED_POINT_BITS)


def _paint(shapes: list[Shape], projection: Floats, scale: float, view: View, canvas: tuple[int, int]) -> Pixels:
    """Paint the face, without light, over its backdrop: (H, W, 4), whose fourth channel is the share of the person."""
    cv2 = import_opencv()
    height, width = canvas
    top, bottom = mix(view.backdrop, WHITE, 0.25), mix(view.backdrop, BLACK, 0.18)
    image = np.empty((height, width, 4), np.uint8)
    image[:] = np.linspace((*top, 0.0), (*bottom, 0.0), height).astype(np.uint8)[:, None]
    # the smooth edges of cv2 widen a shape by half a pixel: small faces need finer pixels to keep it thin
    finer = max(1, min(8, max(2, round(2.0 / scale)), 2048 // max(canvas)))
    enlarged = cv2.resize(image, (width * finer, height * finer), interpolation=cv2.INTER_NEAREST)
    image = np.asarray(enlarged, np.uint8)
    _fill(image, shapes, _resized(projection, (finer, finer)), cv2.LINE_AA)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _paint_tones(shapes: list[Shape], projection: Floats, scale: float, canvas: tuple[int, int]) -> Pixels:
    """Paint soft shadows, blush and highlights: factors in 1 / `_NEUTRAL_TONE`, shape (H, W, 3).

    They are smooth, so they are painted no finer than the canonical frame, then blurred and enlarged.
    """
    cv2 = import_opencv()
    height, width = canvas
    factor = min(1.0, 1.0 / scale)
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    layer = np.full((rows, columns, 3), _NEUTRAL_TONE, np.uint8)
    _fill(layer, shapes, _resized(projection, (columns / width, rows / height)), cv2.LINE_8)
    soft = cv2.GaussianBlur(layer, (0, 0), max(0.3, 2.4 * scale * factor))
    if factor < 1.0:
        soft = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(soft, np.uint8)


def _apply_light(painted: Pixels, tones: Pixels, view: View, projection: Floats, scale: float) -> Pixels:
    """Light the person like a ball, under the soft tones, then tint, blur and add noise to the whole image."""
    cv2 = import_opencv()
    middle = projection @ (0.0, 62.0, -8.0, 1.0)
    x, y = (
        ((np.arange(length) - centre) / (56.0 * scale)).clip(-1.2, 1.2).astype(np.float32)
        for length, centre in zip(painted.shape[1::-1], middle, strict=True)
    )
    column = 1.1 + 0.3 * view.light[1] * y - 0.17 * y**2
    row = 0.3 * view.light[0] * x - 0.17 * x**2
    ball = np.maximum(column[:, None] + row, np.float32(0.6)) / np.float32(_NEUTRAL_TONE)
    # one layer a channel, merged by cv2, is five times as fast as broadcasting over three channels in NumPy
    person = cv2.merge([painted[..., 3]] * 3) * np.float32(1 / 255)
    lit = cv2.merge([ball] * 3)
    lit *= tones
    lit -= 1.0
    lit *= person
    lit += 1.0
    lit *= painted[..., :3]
    warm = 0.09 * view.warmth
    lit = cv2.transform(lit, view.brightness * np.diag([1.0 - warm, 1.0, 1.0 + warm]))
    if view.blur:
        lit = cv2.GaussianBlur(lit, (0, 0), view.blur)
    if view.noise:
        draw = generator([view.seed], 4)
        noise = np.float32(view.noise) * draw.standard_normal(lit.shape[:2], np.float32)
        lit += cv2.merge([noise] * 3)
    image: Pixels = np.clip(lit + np.float32(0.5), 0, 255).astype(np.uint8)
    return image
