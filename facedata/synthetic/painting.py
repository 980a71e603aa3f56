"""From the head frame to pixels: projection, filling, light."""

from __future__ import annotations

import numpy as np

from facedata.images import import_opencv
from facedata.synthetic.curves import BLACK, WHITE, Floats, Pixels, Shape, mix
from facedata.synthetic.people import View, generator

Canvas = tuple[int, int]  # height, width


# About the middle of the five points, so that turning keeps them near; x = 0 is x = 56 in the crop.
_PIVOT = np.array([0.0, 72.0, 8.0])


_NEUTRAL_TONE = 200  # value of the tone layer that leaves a pixel as it is


_FIXED_POINT_BITS = 6


_FAR = 30000.0  # keeps cv2's fixed-point coordinates far from overflow


def head_projection(view: View, matrix: Floats) -> Floats:
    """The affine map from the head frame to canvas pixels, shape (2, 4)."""
    yaw, pitch, roll = np.radians([view.yaw, view.pitch, view.roll])
    second = (np.sin(pitch) * np.sin(yaw), np.cos(pitch), -np.sin(pitch) * np.cos(yaw))
    turned = np.array([(np.cos(yaw), 0.0, np.sin(yaw)), second])
    rolled = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    linear = view.scale * rolled @ turned
    offset = np.array([56.0 + view.shift_x, 72.0 + view.shift_y]) - linear @ _PIVOT
    return np.column_stack([matrix[:, :2] @ linear, matrix[:, :2] @ offset + matrix[:, 2]])


def _resampled_projection(projection: Floats, factors: tuple[float, float]) -> Floats:
    """The projection to an image resized by `factors` (x, y), outer pixel edges kept together."""
    factor = np.array(factors)[:, None]
    scaled: Floats = projection * factor
    scaled[:, 3:] += (factor - 1.0) / 2.0
    return scaled


def _fill(image: Pixels, shapes: list[Shape], projection: Floats, line: int) -> None:
    """Fill each shape's contours, even-odd, in its colour, in place."""
    cv2 = import_opencv()

    contours = [contour for _, parts in shapes for contour in parts]
    pixels = np.concatenate(contours) @ projection[:, :3].T + projection[:, 3]
    fixed = np.rint(np.clip(pixels, -_FAR, _FAR) * (1 << _FIXED_POINT_BITS)).astype(np.int32)
    start = 0
    for colour, parts in shapes:
        pieces = []
        for part in parts:
            pieces.append(fixed[start : start + len(part)])
            start += len(part)
        cv2.fillPoly(image, pieces, (*colour, 255.0), line, _FIXED_POINT_BITS)


def paint(
    shapes: list[Shape],
    projection: Floats,
    scale: float,
    view: View,
    canvas: Canvas,
) -> Pixels:
    """The unlit face over its backdrop, (H, W, 4); the fourth channel says how much is person."""
    cv2 = import_opencv()

    height, width = canvas
    # cv2's smooth edges widen a shape by half a pixel: small faces need finer pixels to keep thin.
    finer = max(1, min(8, max(2, round(2.0 / scale)), 2048 // max(canvas)))
    backdrop = _backdrop(view, height, width)
    finest = (width * finer, height * finer)
    image = np.asarray(cv2.resize(backdrop, finest, interpolation=cv2.INTER_NEAREST), np.uint8)
    _fill(image, shapes, _resampled_projection(projection, (finer, finer)), cv2.LINE_AA)
    coarser = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(coarser, np.uint8)


def _backdrop(view: View, height: int, width: int) -> Pixels:
    cv2 = import_opencv()

    draw = generator([view.seed], 3)
    top, bottom = mix(view.backdrop_colour, WHITE, 0.25), mix(view.backdrop_colour, BLACK, 0.18)
    image = np.empty((height, width, 4), np.uint8)
    image[:] = np.linspace((*top, 0.0), (*bottom, 0.0), height).astype(np.uint8)[:, None]
    side = max(height, width)
    for part, x, y in draw.uniform(size=(8, 3)):
        colour = (*mix(view.backdrop_colour, WHITE, 0.1 + 0.35 * part), 0.0)
        if view.backdrop == "bokeh":
            centre = round(x * width), round(y * height)
            cv2.circle(image, centre, round(side * (0.16 - 0.1 * part)), colour, -1, cv2.LINE_AA)
        elif view.backdrop == "stripes":
            left = round((2.0 * x - 0.5) * width)
            ends = (left, 0), (left - height // 3, height)
            cv2.line(image, *ends, colour, max(1, side // 20), cv2.LINE_AA)
    return image


def paint_tone(shapes: list[Shape], projection: Floats, scale: float, canvas: Canvas) -> Pixels:
    """Soft shadows, blush and highlights as factors in 1 / 200, shape (H, W, 3).

    They are smooth, so they are painted no finer than the canonical frame, blurred and enlarged.
    """
    cv2 = import_opencv()

    height, width = canvas
    factor = min(1.0, 1.0 / scale)
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    layer = np.full((rows, columns, 3), _NEUTRAL_TONE, np.uint8)
    smaller = _resampled_projection(projection, (columns / width, rows / height))
    _fill(layer, shapes, smaller, cv2.LINE_8)
    soft = cv2.GaussianBlur(layer, (0, 0), max(0.3, 2.4 * scale * factor))
    if factor < 1.0:
        soft = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(soft, np.uint8)


def apply_light(
    painted: Pixels,
    toned: Pixels,
    view: View,
    projection: Floats,
    scale: float,
) -> Pixels:
    """Light the person as a ball under the soft tones, then colour, blur and add noise to all."""
    cv2 = import_opencv()

    middle = projection @ (0.0, 62.0, -8.0, 1.0)
    x, y = (
        ((np.arange(length) - centre) / (56.0 * scale)).clip(-1.2, 1.2).astype(np.float32)
        for length, centre in zip(painted.shape[1::-1], middle, strict=True)
    )
    column = 1.1 + 0.3 * view.light[1] * y - 0.17 * y**2
    row = 0.3 * view.light[0] * x - 0.17 * x**2
    ball = np.maximum(column[:, None] + row, np.float32(0.6)) / np.float32(_NEUTRAL_TONE)
    # One layer per channel merged by cv2 is five times as fast as NumPy's broadcasting over three.
    person = cv2.merge([painted[..., 3]] * 3) * np.float32(1 / 255)
    lit = cv2.merge([ball] * 3)
    lit *= toned
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
