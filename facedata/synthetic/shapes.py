"""The landmarks of a drawn person, and the shapes to paint, back to front, in the head frame."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from facedata.synthetic.geometry import (
    BLACK,
    SHADE,
    WHITE,
    Floats,
    Shape,
    between,
    flat,
    mirrored,
    mix,
    moved,
    oval,
    resampled,
    smooth,
    stroke,
)
from facedata.synthetic.people import HAIR_STYLES, Hair, Identity, View

__all__ = ["face_shapes", "head_landmarks", "tone_shapes"]

_STRANDS = ((3, 1), (6, 0), (9, 1), (11, 1), (14, -1), (16, 0), (19, -1), (22, -1))


# Landmarks


def head_landmarks(identity: Identity, view: View) -> Floats:
    """The 68 landmarks in the head frame, in the iBUG order, shape (68, 3)."""
    angle = np.linspace(0.0, np.pi, 17)
    cosine, sine = np.cos(angle), np.sin(angle)
    x = -_half_width(identity) * np.sign(cosine) * np.abs(cosine) ** (1.0 - 0.3 * identity.jaw_squareness)
    drop = 54.5 * identity.face_height + 2.5 * view.mouth_open
    jaw = np.column_stack([x * (1.0 - 0.06 * sine), 53.0 + drop * sine, 34.0 * sine - 28.0])

    outward = np.linspace(1.0, -1.0, 5)
    x = -19.0 * identity.eye_spacing - 10.0 * outward
    arch = np.array((0.0, 2.4, 3.4, 2.8, 0.8))
    y = 42.0 - arch - 0.5 * identity.brow_slope * outward - 2.0 * view.mouth_open
    brow = np.column_stack([x, y, (-2.0, 2.0, 5.0, 7.0, 8.0)])

    tip = 71.7 + 20.0 * (identity.nose_length - 1.0)
    bridge = np.column_stack([np.zeros(4), np.linspace(53.0, tip, 4), (9.0, 14.0, 19.0, 24.0)])
    x = 7.2 * identity.nose_width * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    base = np.column_stack([x, tip + np.array([4.2, 5.6, 6.4, 5.6, 4.2]), (10.0, 14.0, 16.0, 14.0, 10.0)])

    across = np.array([-1.0, -0.42, 0.42, 1.0, 0.42, -0.42])
    lids = np.array([0.0, -4.9, -4.9, 0.0, 3.7, 3.7]) * identity.eye_size * view.eyes_open
    x = 7.9 * identity.eye_size * across - 17.6 * identity.eye_spacing
    y = 51.6 + lids - lids.mean() + identity.eye_tilt * across
    eye = np.column_stack([x, y, (0.0, 3.5, 5.0, 4.0, 5.0, 3.5)])

    other_side = (-1.0, 1.0, 1.0)
    brows = (brow, brow[::-1] * other_side)
    eyes = (eye, eye[[3, 2, 1, 0, 5, 4]] * other_side)
    return np.concatenate([jaw, *brows, bridge, base, *eyes, _mouth(identity, view)])


def _mouth(identity: Identity, view: View) -> Floats:
    outer = (-1, -0.6, -0.22, 0, 0.22, 0.6, 1, 0.62, 0.3, 0, -0.3, -0.62)  # upper lip, lower lip
    inner = (-0.86, -0.3, 0, 0.3, 0.86, 0.3, 0, -0.3)
    across = np.array(outer + inner)
    upper, lower = 3.6 * identity.mouth_fullness, 4.6 * identity.mouth_fullness
    gap = 9.0 * view.mouth_open
    lips = np.array([0, -0.72, -1, -0.75, -1, -0.72, 0, 0.72, 0.96, 1, 0.96, 0.72] + [0] * 8)
    opening = np.array([0] + [-0.2] * 5 + [0] + [0.8] * 5 + [0] + [-0.2] * 3 + [0] + [0.8] * 3)
    x = (14.4 * identity.mouth_width + 1.6 * view.smile) * across
    rise = (4.6 * across**2 - 1.2) * (view.smile + 0.2)
    y = 92.3 - rise + lips * np.where(lips < 0, upper, lower) + gap * opening * (1.0 - across**2)
    return np.column_stack([x, y, 11.0 - 11.0 * across**2])


def _half_width(identity: Identity) -> float:
    """Half the width of the face at the ears, in canonical pixels."""
    return 39.0 * identity.face_width


# Shapes


def face_shapes(identity: Identity, view: View, points: Floats) -> list[Shape]:
    """All shapes of a person, back to front; `points` are the 68 landmarks in the head frame."""
    angle = np.linspace(0.0, np.pi, 13)[1:-1]
    sine = np.sin(angle)
    top = np.column_stack([_half_width(identity) * np.cos(angle), 53.0 - 43.0 * sine, 8.0 * sine - 28.0])
    outline = smooth(np.concatenate([points[:17], top]), closed=True)
    return [
        *_behind(identity),
        (identity.skin, [outline]),
        *_beard(identity, points),
        *_eye(identity, view, points[36:42]),
        *_eye(identity, view, points[42:48]),
        *_nose(identity, points),
        *_lips(identity, view, points),
        *_brows_and_freckles(identity, points),
        *_hair_in_front(identity, view.light[0] > 0.0),
        *_accessories(identity, points),
    ]


def _crown(identity: Identity, hair: Hair) -> Floats:
    """The outer edge of the hair, from the right ear over the head to the left one."""
    angle = np.linspace(0.0, np.pi, 73 if hair.curl else 43)
    cosine, sine = np.cos(angle), np.sin(angle)
    puff = hair.volume + hair.curl * np.abs(np.sin(6.5 * angle))
    x = (_half_width(identity) + puff) * np.sign(cosine) * np.abs(cosine) ** 0.9
    height = 43.0 + puff + hair.lift * sine**2 * (1.0 + 0.4 * cosine)
    return np.column_stack([x, 53.0 - height * sine**0.9, 8.0 * sine - 28.0])


@lru_cache(maxsize=256)
def _behind(identity: Identity) -> tuple[Shape, ...]:
    """Hair, body and ears behind the face, which are the same in every view."""
    hair, dark = HAIR_STYLES[identity.hair_style], mix(identity.hair_colour, BLACK, 0.14)
    half = _half_width(identity)
    shapes: list[Shape] = [(dark, [oval((x * half, y, -30.0), size, size * 1.1)]) for x, y, size in hair.knots]
    crown = _crown(identity, hair)
    if hair.hairline:  # seen beside the forehead when the head turns
        shapes.append((dark, [crown]))
    if hair.ends:
        down = np.sin(np.linspace(0.0, 0.5 * np.pi, 24))
        x = half + hair.volume + 3.0 * np.sin(2.5 * down) + hair.curl * np.abs(np.sin(11.0 * down))
        x *= (1.0 - down**6) ** 0.5
        side = np.column_stack([-x, 53.0 + (hair.ends - 53.0) * down, np.full(24, -28.0)])
        shapes.append((dark, [np.concatenate([crown, side, side[::-1] * (-1.0, 1.0, 1.0)])]))

    right_neck = [(18.0, 84.0), (19, 118), (23, 128), (40, 146)]
    right_shirt = [(0.0, 142.0), (14, 138), (24, 128), (48, 137), (68, 148), (80, 168), (84, 200), (76, 222)]
    right_shirt += [(44, 234), (6, 236)]
    neck, shirt = (smooth(flat(mirrored(*side), -14.0), closed=True) for side in (right_neck, right_shirt))
    neckline = smooth(flat([(-24, 128), (-14, 138), (0, 142), (14, 138), (24, 128)], -14.0))
    collar = stroke(neckline, [3.0] * len(neckline))
    shapes += [
        (mix(identity.skin, SHADE, 0.3), [neck]),
        (identity.shirt_colour, [shirt]),
        (mix(identity.shirt_colour, BLACK, 0.2), [collar]),
    ]

    if not _ears_covered(identity):
        inner, outer = mix(identity.skin, SHADE, 0.35), mix(identity.skin, SHADE, 0.1)
        shapes += [
            (colour, [oval((side * (half + 1.0), 62.0, -26.0), width, height, tilt=-0.15 * side)])
            for side in (-1.0, 1.0)
            for colour, width, height in ((outer, 6.5, 10.5), (inner, 3.6, 6.8))
        ]
    return tuple(shapes)


def _ears_covered(identity: Identity) -> bool:
    hairline = HAIR_STYLES[identity.hair_style].hairline
    return bool(hairline) and hairline[0][1] > 70.0


def _beard(identity: Identity, points: Floats) -> list[Shape]:
    colour = mix(identity.hair_colour, identity.skin, 0.08)
    shapes: list[Shape] = []
    if identity.beard == "full":
        shapes.append((colour, [_beard_area(identity, points)]))
    if identity.beard == "goatee":
        chin = points[8, 1]
        around = [*mirrored((19, 88), (18, 98), (10, chin), (0, chin + 2)), (0, 84)]
        shapes.append((colour, [smooth(flat(around, 7.0), closed=True)]))
    if identity.beard in ("goatee", "moustache"):
        moustache = [*mirrored((17, 90), (8, 82.5), (0, 81.5)), (-8, 89), (0, 88), (8, 89)]
        shapes.append((colour, [smooth(flat(moustache, 12.0), closed=True)]))
    return shapes


def _beard_area(identity: Identity, points: Floats) -> Floats:
    half = _half_width(identity)
    cheeks = mirrored((0.86 * half, 72), (0.66 * half, 81), (17, 83.5), (0, 81))
    return np.concatenate([points[1:16] * (1.015, 1.015, 1.0), flat(cheeks, 4.0)])


def _eye(identity: Identity, view: View, lids: Floats) -> list[Shape]:
    """White, iris, pupil and highlight, then the skin around the opening, then the lines of the lids."""
    upper, lower = smooth(lids[[0, 1, 2, 3]]), smooth(lids[[3, 4, 5, 0]])
    opening = np.concatenate([upper, lower[1:-1]])
    centre = lids.mean(axis=0)
    radius = 4.4 * identity.eye_size
    lid = np.concatenate([[1.0], np.full(len(upper) - 2, 2.1 if identity.lashes else 1.5), [1.0]])
    around = oval(centre, 8.7 * identity.eye_size, radius + 1.5, power=0.6)
    glint = moved(centre, np.copysign(0.44 * radius, view.light[0]), -0.46 * radius)
    line = (28.0, 26.0, 32.0)
    shapes: list[Shape] = [
        ((238.0, 242.0, 246.0), [opening]),
        (mix(identity.eye_colour, BLACK, 0.45), [oval(centre, radius, radius)]),
        (identity.eye_colour, [oval(centre, 0.84 * radius, 0.84 * radius)]),
        ((22.0, 18.0, 18.0), [oval(centre, 0.48 * radius, 0.48 * radius)]),
        (WHITE, [oval(glint, 0.26 * radius, 0.26 * radius, count=10)]),
        (identity.skin, [around, opening]),
        (mix(identity.skin, SHADE, 0.45), [stroke(lower, [0.7] * len(lower))]),
        (mix(identity.skin, SHADE, 0.35), [stroke(moved(upper, 0.0, -2.4), [0.7] * len(upper))]),
        (line, [stroke(upper, lid)]),
    ]
    if identity.lashes:
        corner = lids[0] if lids[0, 0] < -20.0 * identity.eye_spacing else lids[3]
        flick = moved(corner, np.copysign(3.2, corner[0]), -2.6)
        shapes.append((line, [stroke(np.array([corner, flick]), [2.0, 0.4])]))
    return shapes


def _nose(identity: Identity, points: Floats) -> list[Shape]:
    wings = moved(points[[31, 35]], 0, -3.4)
    base = smooth(np.concatenate([wings[:1], points[31:36], wings[1:]]))
    widths = np.interp(np.linspace(0, 1, 25), (0, 0.2, 0.5, 1), (0.3, 1.5, 1.0, 0.3))
    nostrils = [oval(moved(points[i], 0.0, -0.7), 1.7 * identity.nose_width, 1.0, count=10) for i in (32, 34)]
    hole = mix(identity.skin, SHADE, 0.75)
    return [(mix(identity.skin, SHADE, 0.42), [stroke(base, widths)]), *((hole, [nostril]) for nostril in nostrils)]


def _lips(identity: Identity, view: View, points: Floats) -> list[Shape]:
    red = mix(identity.skin, (72.0, 58.0, 186.0), 0.5 if identity.lashes else 0.32)
    dark = mix(red, (30.0, 16.0, 60.0), 0.75)
    top, bottom = smooth(points[48:55]), smooth(points[[54, 55, 56, 57, 58, 59, 48]])
    upper, lower = smooth(points[60:65]), smooth(points[[60, 67, 66, 65, 64]])
    shapes: list[Shape] = [
        (red, [np.concatenate([top, bottom[1:-1]])]),
        (mix(red, SHADE, 0.22), [np.concatenate([top, smooth(points[[54, 64, 63, 62, 61, 60, 48]])])]),
    ]
    if view.mouth_open > 0.04:
        teeth, tongue = between(upper, lower, 0.4), between(lower, upper, 0.38)
        shapes += [
            (dark, [np.concatenate([upper, lower[::-1]])]),
            ((110.0, 100.0, 205.0), [np.concatenate([tongue, lower[::-1]])]),
            ((236.0, 242.0, 244.0), [np.concatenate([upper, teeth[::-1]])]),
        ]
    else:
        line = smooth(points[[48, 60, 61, 62, 63, 64, 54]])
        shapes.append((dark, [stroke(line, np.interp(np.arange(25), (0, 6, 18, 24), (0.5, 1.2, 1.2, 0.5)))]))
    return shapes


def _brows_and_freckles(identity: Identity, points: Floats) -> list[Shape]:
    colour = mix(identity.hair_colour, (34.0, 38.0, 48.0), 0.45)
    widths = np.interp(np.linspace(0, 4, 17), range(5), (0.7, 2.2, 2.8, 3.0, 2.0)) * identity.brow_thickness
    shapes: list[Shape] = [
        (colour, [stroke(smooth(points[17:22]), widths)]),
        (colour, [stroke(smooth(points[22:27]), widths[::-1])]),
    ]
    if identity.freckles:
        places = [(13, 68), (17, 66), (21, 69), (25, 67), (15, 72), (20, 73), (9, 70)]
        spots = [oval((side * x, y, 5.0), 0.7, 0.7, count=6) for x, y in places for side in (-1, 1)]
        shapes.append((mix(identity.skin, (40.0, 66.0, 120.0), 0.5), spots))
    return shapes


@lru_cache(maxsize=256)
def _hair_in_front(identity: Identity, lit_right: bool) -> tuple[Shape, ...]:
    """The cap between the crown and the hairline, a shine on the side of the light, and strands."""
    hair = HAIR_STYLES[identity.hair_style]
    if not hair.hairline:
        return ()
    x, y = np.array(hair.hairline).T
    line = smooth(np.column_stack([x * _half_width(identity), y, 6.0 - 33.0 * x**2]))
    crown = _crown(identity, hair)
    colour = identity.hair_colour
    if identity.hair_style == "buzz cut":
        colour = mix(colour, identity.skin, 0.25)
    inner, outer = resampled(line, 25), resampled(crown, 25)
    start = 5 if lit_right else 11
    shine = [between(outer, inner, part)[start : start + 9] for part in (0.34, 0.5)]
    shine[1][[0, -1]] = shine[0][[0, -1]]
    if hair.curl:
        inner, outer = resampled(line, 73), resampled(crown, 73)
        strands = [stroke(between(outer, inner, part)[7:66], [0.8] * 59) for part in (0.3, 0.62)]
    else:
        rising = np.array([[0.06], [0.2], [0.4], [0.62]])
        paths = [inner[i] + (outer[i + lean] - inner[i]) * rising for i, lean in _STRANDS]
        strands = [stroke(path, (0.2, 1.0, 0.8, 0.2)) for path in paths]
    strand_colour = mix(colour, BLACK, 0.18)
    return (
        (colour, [np.concatenate([crown, line[::-1]])]),
        (mix(colour, WHITE, 0.2), [np.concatenate([shine[0], shine[1][::-1]])]),
        *((strand_colour, [strand]) for strand in strands),
    )


def _accessories(identity: Identity, points: Floats) -> list[Shape]:
    shapes: list[Shape] = []
    half = _half_width(identity)
    if identity.earrings and not _ears_covered(identity):
        shapes += [((70.0, 190.0, 235.0), [oval((side * (half + 2), 75, -24), 2.2, 2.2)]) for side in (-1, 1)]
    if identity.glasses == "none":
        return shapes
    corners = 1.0 if identity.glasses == "round" else 0.55
    frame = mix(identity.shirt_colour, (36.0, 30.0, 34.0), 0.6)
    centres = [moved(points[i : i + 6].mean(axis=0), 0, 1, 7) for i in (36, 42)]
    for side, centre in zip((-1.0, 1.0), centres, strict=True):
        rim = [oval(centre, 13.2 - d, 11.4 - d, count=32, power=corners) for d in (0.0, 1.7)]
        temple = np.array([moved(centre, 13.0 * side, -2.0, -1.0), (side * half, centre[1] - 1.0, -26.0)])
        shapes += [(frame, rim), (frame, [stroke(temple, [1.6, 1.6])])]
    middle = (0.0, centres[0][1] - 3.0, 12.0)
    bridge = np.array([moved(centres[0], 13, -1, 1), middle, moved(centres[1], -13, -1, 1)])
    return [*shapes, (frame, [stroke(smooth(bridge), [1.6] * 9)])]


def tone_shapes(identity: Identity, view: View, points: Floats) -> list[Shape]:
    """Soft shadows, blush and highlights, whose colours are factors in 1/200."""
    dark = -1.0 if view.light[0] > 0 else 1.0
    half = _half_width(identity)
    shade, deep = (176.0, 170.0, 184.0), (150.0, 146.0, 164.0)
    blush, shine = (176.0, 172.0, 204.0), (216.0, 216.0, 216.0)
    tip, lip = points[30], points[57]
    wing, root = moved(points[33], 9 * dark, -1, -4), moved(points[27], 6 * dark, 2, -2)
    sockets = [oval(moved(points[i : i + 6].mean(axis=0), 0, -4), 10.0, 7.0) for i in (36, 42)]
    shapes: list[Shape] = [
        (shine, [oval((-dark * 6, 27, 8), 17, 7)]),
        (shade, sockets[:1]),
        (shade, sockets[1:]),
        (blush, [oval((-0.6 * half, 76, 0), 8.5, 6.5)]),
        (blush, [oval((0.6 * half, 76, 0), 8.5, 6.5)]),
        (shade, [np.array([points[27], points[30], wing, root])]),
        (shade, [oval(moved(tip, 0, 10, -6), 7, 2.5)]),
        (shade, [oval(moved(lip, 0, 3.5, -2), 8, 2)]),
        (shine, [oval(moved(tip, -1.2 * dark, -2), 2.6, 3.2)]),
        (shine, [oval((-0.55 * half * dark, 68, 2), 5, 3.2)]),
    ]
    if identity.beard == "stubble":
        shapes.insert(1, ((178.0, 172.0, 164.0), [_beard_area(identity, points)]))
    hairline = HAIR_STYLES[identity.hair_style].hairline
    if hairline:
        x, y = np.array(hairline).T
        edge = np.column_stack([x * half, y - 1.0, 6.0 - 33.0 * x**2])
        shapes.append((deep, [np.concatenate([edge, moved(edge * (0.95, 1.0, 1.0), 0, 5)[::-1]])]))
    return shapes
