"""The shapes to paint for a person, back to front, in the head frame."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from facedata.synthetic.people import HAIR_STYLES, Colour, Floats, Identity, View

__all__ = ["Shape", "face_shapes", "mix", "tone_shapes"]

Shape = tuple[Colour, list[Floats]]
"""A colour, and the outlines of shape (n, 3) that it fills, by the even-odd rule."""

BLACK, WHITE = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
_SHADE = (24.0, 20.0, 70.0)  # of skin in deep shadow: a dark red
_STRANDS = ((3, 1), (6, 0), (9, 1), (11, 1), (14, -1), (16, 0), (19, -1), (22, -1))
_OTHER_SIDE = (-1.0, 1.0, 1.0)


# Curves


def mix(first: Colour, second: Colour, part: float) -> Colour:
    """The colour a `part` of the way from the first to the second."""
    b, g, r = (a + (z - a) * part for a, z in zip(first, second, strict=True))
    return b, g, r


@lru_cache(maxsize=64)
def _spline(count: int, closed: bool) -> Floats:
    """The matrix from `count` points to a Catmull-Rom curve through them, four steps a span."""
    spans = count if closed else count - 1
    t = np.arange(4)[:, None] / 4.0
    inner = (2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3)
    weights = np.hstack([-t + 2 * t**2 - t**3, *inner, t**3 - t**2]) / 2
    matrix = np.zeros((4 * spans + (not closed), count))
    for span in range(spans):
        for offset in range(4):
            point = span + offset - 1
            point = point % count if closed else min(max(point, 0), count - 1)
            matrix[4 * span : 4 * span + 4, point] += weights[:, offset]
    if not closed:
        matrix[-1, -1] = 1.0
    return matrix


def _smooth(points: Floats, closed: bool = False) -> Floats:
    curve: Floats = _spline(len(points), closed) @ points
    return curve


@lru_cache(maxsize=8)
def _unit_oval(count: int, power: float) -> Floats:
    angle = np.arange(count) * (2.0 * np.pi / count)
    unit = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(count)])
    oval: Floats = np.sign(unit) * np.abs(unit) ** power
    return oval


def _oval(centre: Any, width: float, height: float, *, count: int = 24, power: float = 1.0) -> Floats:
    """An ellipse of half axes `width` and `height`; a `power` below 1 makes it a rounded box."""
    oval: Floats = _unit_oval(count, power) * (width, height, 0.0) + centre
    return oval


def _flat(right: Any, depth: float) -> Floats:
    """A symmetrical outline at one depth, from its right half (x, y), given from the middle to the middle."""
    half = np.column_stack([right, np.full(len(right), depth)])
    return np.concatenate([half, half[::-1] * _OTHER_SIDE])


def _stroke(path: Floats, widths: Any) -> Floats:
    """The outline of a line of varying width; the lines of cv2 have whole-pixel widths only."""
    along = np.concatenate([path[1:2] - path[:1], path[2:] - path[:-2], path[-1:] - path[-2:-1]])
    across = np.column_stack([-along[:, 1], along[:, 0], np.zeros(len(path))])
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)
    across *= (0.5 * np.asarray(widths) / length)[:, None]
    return np.concatenate([path + across, (path - across)[::-1]])


# Shapes


def face_shapes(identity: Identity, view: View, points: Floats) -> list[Shape]:
    """All shapes of a person, back to front; `points` are the 68 landmarks in the head frame."""
    angle = np.linspace(0.0, np.pi, 13)[1:-1]
    sine = np.sin(angle)
    top = np.column_stack([identity.half_width * np.cos(angle), 53.0 - 43.0 * sine, 8.0 * sine - 28.0])
    outline = _smooth(np.concatenate([points[:17], top]), closed=True)

    wings = points[[31, 35]] + (0.0, -3.4, 0.0)
    base = _smooth(np.concatenate([wings[:1], points[31:36], wings[1:]]))
    widths = np.interp(np.linspace(0, 1, 25), (0, 0.2, 0.5, 1), (0.3, 1.5, 1.0, 0.3))
    nostrils = [_oval(points[i] + (0.0, -0.7, 0.0), 1.7 * identity.nose_width, 1.0, count=10) for i in (32, 34)]

    brow = mix(identity.hair_colour, (34.0, 38.0, 48.0), 0.45)
    thickness = np.interp(np.linspace(0, 4, 17), range(5), (0.7, 2.2, 2.8, 3.0, 2.0)) * identity.brow_thickness
    return [
        *_behind(identity),
        (identity.skin, [outline]),
        *_eye(identity, view, points[36:42]),
        *_eye(identity, view, points[42:48]),
        (mix(identity.skin, _SHADE, 0.42), [_stroke(base, widths)]),
        (mix(identity.skin, _SHADE, 0.75), nostrils),
        *_lips(identity, view, points),
        (brow, [_stroke(_smooth(points[17:22]), thickness)]),
        (brow, [_stroke(_smooth(points[22:27]), thickness[::-1])]),
        *_hair_in_front(identity, view.light[0] > 0.0),
    ]


def _crown(identity: Identity) -> Floats:
    """The outer edge of the hair, from the right ear over the head to the left one."""
    hair = HAIR_STYLES[identity.hair_style]
    angle = np.linspace(0.0, np.pi, 43)
    cosine, sine = np.cos(angle), np.sin(angle)
    x = (identity.half_width + hair.volume) * np.sign(cosine) * np.abs(cosine) ** 0.9
    height = 43.0 + hair.volume + hair.lift * sine**2 * (1.0 + 0.4 * cosine)
    return np.column_stack([x, 53.0 - height * sine**0.9, 8.0 * sine - 28.0])


@lru_cache(maxsize=256)
def _behind(identity: Identity) -> tuple[Shape, ...]:
    """Hair, body and ears behind the face, which are the same in every view."""
    hair, half = HAIR_STYLES[identity.hair_style], identity.half_width
    dark = mix(identity.hair_colour, BLACK, 0.14)
    shapes: list[Shape] = []
    if hair.hairline:  # seen beside the forehead when the head turns
        shapes.append((dark, [_crown(identity)]))
    if hair.ends:
        down = np.sin(np.linspace(0.0, 0.5 * np.pi, 24))
        x = (half + hair.volume + 3.0 * np.sin(2.5 * down)) * (1.0 - down**6) ** 0.5
        side = np.column_stack([-x, 53.0 + (hair.ends - 53.0) * down, np.full(24, -28.0)])
        shapes.append((dark, [np.concatenate([_crown(identity), side, side[::-1] * _OTHER_SIDE])]))

    neck = [(18, 84), (19, 118), (23, 128), (40, 146)]
    shirt = [(0, 142), (14, 138), (24, 128), (48, 137), (68, 148), (80, 168), (84, 200), (76, 222), (44, 234), (6, 236)]
    neckline = _smooth(_flat([(24, 128), (14, 138), (2, 142)], -14.0))
    shapes += [
        (mix(identity.skin, _SHADE, 0.3), [_smooth(_flat(neck, -14.0), closed=True)]),
        (identity.shirt_colour, [_smooth(_flat(shirt, -14.0), closed=True)]),
        (mix(identity.shirt_colour, BLACK, 0.2), [_stroke(neckline, 3.0)]),
    ]
    if not hair.hairline or hair.hairline[0][1] < 70.0:  # it does not cover the ears
        inner, outer = mix(identity.skin, _SHADE, 0.35), mix(identity.skin, _SHADE, 0.1)
        shapes += [
            (colour, [_oval((side * (half + 1.0), 62.0, -26.0), width, height)])
            for side in (-1.0, 1.0)
            for colour, width, height in ((outer, 6.5, 10.5), (inner, 3.6, 6.8))
        ]
    return tuple(shapes)


def _eye(identity: Identity, view: View, lids: Floats) -> list[Shape]:
    """White, iris, pupil and highlight, then the skin around the opening, then the lines of the lids."""
    upper, lower = _smooth(lids[[0, 1, 2, 3]]), _smooth(lids[[3, 4, 5, 0]])
    opening = np.concatenate([upper, lower[1:-1]])
    centre = lids.mean(axis=0)
    radius = 4.4 * identity.eye_size
    lid = np.concatenate([[1.0], np.full(len(upper) - 2, 1.7), [1.0]])
    around = _oval(centre, 8.7 * identity.eye_size, radius + 1.5, power=0.6)
    glint = centre + (np.copysign(0.44 * radius, view.light[0]), -0.46 * radius, 0.0)
    return [
        ((238.0, 242.0, 246.0), [opening]),
        (mix(identity.eye_colour, BLACK, 0.45), [_oval(centre, radius, radius)]),
        (identity.eye_colour, [_oval(centre, 0.84 * radius, 0.84 * radius)]),
        ((22.0, 18.0, 18.0), [_oval(centre, 0.48 * radius, 0.48 * radius)]),
        (WHITE, [_oval(glint, 0.26 * radius, 0.26 * radius, count=10)]),
        (identity.skin, [around, opening]),
        (mix(identity.skin, _SHADE, 0.45), [_stroke(lower, 0.7)]),
        (mix(identity.skin, _SHADE, 0.35), [_stroke(upper + (0.0, -2.4, 0.0), 0.7)]),
        ((28.0, 26.0, 32.0), [_stroke(upper, lid)]),
    ]


def _lips(identity: Identity, view: View, points: Floats) -> list[Shape]:
    red = mix(identity.skin, (72.0, 58.0, 186.0), 0.4)
    dark = mix(red, (30.0, 16.0, 60.0), 0.75)
    top, bottom = _smooth(points[48:55]), _smooth(points[[54, 55, 56, 57, 58, 59, 48]])
    upper, lower = _smooth(points[60:65]), _smooth(points[[60, 67, 66, 65, 64]])
    line = _smooth(points[[48, 60, 61, 62, 63, 64, 54]])
    shapes: list[Shape] = [
        (red, [np.concatenate([top, bottom[1:-1]])]),
        (mix(red, _SHADE, 0.22), [np.concatenate([top, line[::-1]])]),
    ]
    if view.mouth_open > 0.04:
        tongue, teeth = (lower + (upper - lower) * part for part in (0.38, 0.6))
        return [
            *shapes,
            (dark, [np.concatenate([upper, lower[::-1]])]),
            ((110.0, 100.0, 205.0), [np.concatenate([tongue, lower[::-1]])]),
            ((236.0, 242.0, 244.0), [np.concatenate([upper, teeth[::-1]])]),
        ]
    return [*shapes, (dark, [_stroke(line, np.interp(np.arange(25), (0, 6, 18, 24), (0.5, 1.2, 1.2, 0.5)))])]


def _hairline(identity: Identity) -> Floats:
    x, y = np.array(HAIR_STYLES[identity.hair_style].hairline).T
    return np.column_stack([x * identity.half_width, y, 6.0 - 33.0 * x**2])


@lru_cache(maxsize=256)
def _hair_in_front(identity: Identity, lit_right: bool) -> tuple[Shape, ...]:
    """The cap between the crown and the hairline, a shine on the side of the light, and strands."""
    if not HAIR_STYLES[identity.hair_style].hairline:
        return ()
    line, crown = _smooth(_hairline(identity)), _crown(identity)
    colour = mix(identity.hair_colour, identity.skin, 0.25 if identity.hair_style == "buzz cut" else 0.0)
    inner, outer = (curve[np.linspace(0, len(curve) - 1, 25).round().astype(np.intp)] for curve in (line, crown))
    start = 5 if lit_right else 11
    shine = [(outer + (inner - outer) * part)[start : start + 9] for part in (0.34, 0.5)]
    shine[1][[0, -1]] = shine[0][[0, -1]]
    rising = np.array([[0.06], [0.2], [0.4], [0.62]])
    strands = [inner[i] + (outer[i + lean] - inner[i]) * rising for i, lean in _STRANDS]
    return (
        (colour, [np.concatenate([crown, line[::-1]])]),
        (mix(colour, WHITE, 0.2), [np.concatenate([shine[0], shine[1][::-1]])]),
        *((mix(colour, BLACK, 0.18), [_stroke(strand, (0.2, 1.0, 0.8, 0.2))]) for strand in strands),
    )


def tone_shapes(identity: Identity, view: View, points: Floats) -> list[Shape]:
    """Soft shadows, blush and highlights, whose colours are factors in 1/200."""
    dark = -1.0 if view.light[0] > 0 else 1.0
    half = identity.half_width
    shade, deep = (176.0, 170.0, 184.0), (150.0, 146.0, 164.0)
    blush, shine = (176.0, 172.0, 204.0), (216.0, 216.0, 216.0)
    root, tip, lip = points[27], points[30], points[57]
    wing, beside = points[33] + (9.0 * dark, -1.0, -4.0), root + (6.0 * dark, 2.0, -2.0)
    shapes: list[Shape] = [
        (shine, [_oval((-dark * 6, 27, 8), 17, 7)]),
        (shade, [_oval(points[36:42].mean(axis=0) + (0.0, -4.0, 0.0), 10.0, 7.0)]),
        (shade, [_oval(points[42:48].mean(axis=0) + (0.0, -4.0, 0.0), 10.0, 7.0)]),
        (blush, [_oval((-0.6 * half, 76, 0), 8.5, 6.5)]),
        (blush, [_oval((0.6 * half, 76, 0), 8.5, 6.5)]),
        (shade, [np.array([root, tip, wing, beside])]),
        (shade, [_oval(tip + (0.0, 10.0, -6.0), 7, 2.5)]),
        (shade, [_oval(lip + (0.0, 3.5, -2.0), 8, 2)]),
        (shine, [_oval(tip + (-1.2 * dark, -2.0, 0.0), 2.6, 3.2)]),
        (shine, [_oval((-0.55 * half * dark, 68, 2), 5, 3.2)]),
    ]
    if HAIR_STYLES[identity.hair_style].hairline:
        edge = _hairline(identity) + (0.0, -1.0, 0.0)
        below = edge * (0.95, 1.0, 1.0) + (0.0, 5.0, 0.0)
        shapes.append((deep, [np.concatenate([edge, below[::-1]])]))
    return shapes
