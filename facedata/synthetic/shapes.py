"""What is drawn of a face, back to front, in the head frame."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from facedata.synthetic.curves import (
    BLACK,
    SHADE,
    WHITE,
    Floats,
    Shape,
    between,
    flat,
    mix,
    moved,
    oval,
    resampled,
    smooth,
    stroke,
)
from facedata.synthetic.landmarks import half_width
from facedata.synthetic.people import HAIR_STYLES, Hair, Identity, View, even

_STRANDS = ((3, 1), (6, 0), (9, 1), (11, 1), (14, -1), (16, 0), (19, -1), (22, -1))


def face_shapes(identity: Identity, view: View, points: Floats) -> list[Shape]:
    """All shapes of a person, back to front; `points` are the 68 in the head frame."""
    return [
        *_behind(identity),
        (identity.skin, [_outline(identity, points)]),
        *_beard(identity, points),
        *_one_eye(identity, view, points[36:42]),
        *_one_eye(identity, view, points[42:48]),
        *_nose_lines(identity, points),
        *_lips(identity, view, points),
        *_brows_and_freckles(identity, points),
        *_hair_in_front(identity, view.light[0] > 0.0),
        *_accessories(identity, points),
    ]


def _outline(identity: Identity, points: Floats) -> Floats:
    angle = np.linspace(0.0, np.pi, 13)[1:-1]
    sine = np.sin(angle)
    x = half_width(identity) * np.cos(angle)
    top = np.column_stack([x, 53.0 - 43.0 * sine, 8.0 * sine - 28.0])
    return smooth(np.concatenate([points[:17], top]), closed=True)


def _crown(identity: Identity, hair: Hair) -> Floats:
    """The outer edge of the hair from the right ear over the head to the left one."""
    angle = np.linspace(0.0, np.pi, 73 if hair.curl else 43)
    cosine, sine = np.cos(angle), np.sin(angle)
    puff = hair.volume + hair.curl * np.abs(np.sin(6.5 * angle))
    x = (half_width(identity) + puff) * np.sign(cosine) * np.abs(cosine) ** 0.9
    height = 43.0 + puff + hair.lift * sine**2 * (1.0 + 0.4 * cosine)
    return np.column_stack([x, 53.0 - height * sine**0.9, 8.0 * sine - 28.0])


@lru_cache(maxsize=256)
def _behind(identity: Identity) -> tuple[Shape, ...]:
    """What lies behind the face, the same in every view, so made once."""
    return (*_hair_behind(identity), *_body(identity), *_ears(identity))


def _hair_behind(identity: Identity) -> list[Shape]:
    hair, dark = HAIR_STYLES[identity.hair_style], mix(identity.hair_colour, BLACK, 0.14)
    half = half_width(identity)
    knots = [oval((x * half, y, -30.0), size, size * 1.1) for x, y, size in hair.knots]
    shapes: list[Shape] = [(dark, [knot]) for knot in knots]
    crown = _crown(identity, hair)
    if hair.hairline:  # seen beside the forehead when the head turns
        shapes.append((dark, [crown]))
    if hair.ends:
        down = np.sin(np.linspace(0.0, 0.5 * np.pi, 24))
        x = half + hair.volume + 3.0 * np.sin(2.5 * down) + hair.curl * np.abs(np.sin(11.0 * down))
        x *= (1.0 - down**6) ** 0.5
        side = np.column_stack([-x, 53.0 + (hair.ends - 53.0) * down, np.full(24, -28.0)])
        fall = np.concatenate([crown, side, side[::-1] * (-1.0, 1.0, 1.0)])
        shapes.append((dark, [fall]))
    return shapes


def _body(identity: Identity) -> list[Shape]:
    right_neck = [(18.0, 84.0), (19, 118), (23, 128), (40, 146)]
    right_shirt = [(0.0, 142.0), (14, 138), (24, 128), (48, 137), (68, 148), (80, 168), (84, 200)]
    right_shirt += [(76, 222), (44, 234), (6, 236)]
    sides = (right_neck, right_shirt)
    neck, shirt = (smooth(flat(even(*side), -14.0), closed=True) for side in sides)
    shadow = mix(identity.skin, SHADE, 0.3)
    neckline = smooth(flat([(-24, 128), (-14, 138), (0, 142), (14, 138), (24, 128)], -14.0))
    collar = stroke(neckline, [3.0] * len(neckline))
    dark_shirt = mix(identity.shirt_colour, BLACK, 0.2)
    return [(shadow, [neck]), (identity.shirt_colour, [shirt]), (dark_shirt, [collar])]


def _ears_covered(identity: Identity) -> bool:
    hairline = HAIR_STYLES[identity.hair_style].hairline
    return bool(hairline) and hairline[0][1] > 70.0


def _ears(identity: Identity) -> list[Shape]:
    if _ears_covered(identity):
        return []
    x = half_width(identity) + 1.0
    inner = mix(identity.skin, SHADE, 0.35)
    outer = mix(identity.skin, SHADE, 0.1)
    return [
        (colour, [oval((side * x, 62.0, -26.0), width, height, tilt=-0.15 * side)])
        for side in (-1.0, 1.0)
        for colour, width, height in ((outer, 6.5, 10.5), (inner, 3.6, 6.8))
    ]


def _beard(identity: Identity, points: Floats) -> list[Shape]:
    kind = identity.beard
    colour = mix(identity.hair_colour, identity.skin, 0.08)
    moustache = [*even((17, 90), (8, 82.5), (0, 81.5)), (-8, 89), (0, 88), (8, 89)]
    shapes: list[Shape] = []
    if kind == "full":
        shapes.append((colour, [_beard_area(identity, points)]))
    if kind == "goatee":
        chin = points[8, 1]
        around = [*even((19, 88), (18, 98), (10, chin), (0, chin + 2)), (0, 84)]
        shapes.append((colour, [smooth(flat(around, 7.0), closed=True)]))
    if kind in ("goatee", "moustache"):
        shapes.append((colour, [smooth(flat(moustache, 12.0), closed=True)]))
    return shapes


def _beard_area(identity: Identity, points: Floats) -> Floats:
    half = half_width(identity)
    cheeks = even((0.86 * half, 72), (0.66 * half, 81), (17, 83.5), (0, 81))
    return np.concatenate([points[1:16] * (1.015, 1.015, 1.0), flat(cheeks, 4.0)])


def _one_eye(identity: Identity, view: View, lids: Floats) -> list[Shape]:
    """White, iris, pupil and highlight, then skin around the opening, then the lids' lines."""
    upper = smooth(lids[[0, 1, 2, 3]])
    lower = smooth(lids[[3, 4, 5, 0]])
    opening = np.concatenate([upper, lower[1:-1]])
    centre = lids.mean(axis=0)
    radius = 4.4 * identity.eye_size
    lid = np.concatenate([[1.0], np.full(len(upper) - 2, 2.1 if identity.lashes else 1.5), [1.0]])
    around = oval(centre, 8.7 * identity.eye_size, radius + 1.5, power=0.6)
    glint = moved(centre, np.copysign(0.44 * radius, view.light[0]), -0.46 * radius)
    shapes: list[Shape] = [
        ((238.0, 242.0, 246.0), [opening]),
        (mix(identity.eye_colour, BLACK, 0.45), [oval(centre, radius, radius)]),
        (identity.eye_colour, [oval(centre, 0.84 * radius, 0.84 * radius)]),
        ((22.0, 18.0, 18.0), [oval(centre, 0.48 * radius, 0.48 * radius)]),
        (WHITE, [oval(glint, 0.26 * radius, 0.26 * radius, count=10)]),
        (identity.skin, [around, opening]),
        (mix(identity.skin, SHADE, 0.45), [stroke(lower, [0.7] * len(lower))]),
        (
            mix(identity.skin, SHADE, 0.35),
            [stroke(moved(upper, 0.0, -2.4), [0.7] * len(upper))],
        ),
        ((28.0, 26.0, 32.0), [stroke(upper, lid)]),
    ]
    if identity.lashes:
        corner = lids[0] if lids[0, 0] < -20.0 * identity.eye_spacing else lids[3]
        flick = moved(corner, np.copysign(3.2, corner[0]), -2.6)
        shapes.append(((28.0, 26.0, 32.0), [stroke(np.array([corner, flick]), [2.0, 0.4])]))
    return shapes


def _nose_lines(identity: Identity, points: Floats) -> list[Shape]:
    line, hole = mix(identity.skin, SHADE, 0.42), mix(identity.skin, SHADE, 0.75)
    wings = moved(points[[31, 35]], 0, -3.4)
    base = np.concatenate([wings[:1], points[31:36], wings[1:]])
    width = 1.7 * identity.nose_width
    nostrils = [oval(moved(points[i], 0.0, -0.7), width, 1.0, count=10) for i in (32, 34)]
    return [
        (
            line,
            [
                stroke(
                    smooth(base),
                    np.interp(np.linspace(0, 1, 25), (0, 0.2, 0.5, 1), (0.3, 1.5, 1.0, 0.3)),
                )
            ],
        ),
        *[(hole, [nostril]) for nostril in nostrils],
    ]


def _lips(identity: Identity, view: View, points: Floats) -> list[Shape]:
    red = mix(identity.skin, (72.0, 58.0, 186.0), 0.5 if identity.lashes else 0.32)
    dark = mix(red, (30.0, 16.0, 60.0), 0.75)
    top = smooth(points[48:55])
    bottom = smooth(points[[54, 55, 56, 57, 58, 59, 48]])
    upper, lower = smooth(points[60:65]), smooth(points[[60, 67, 66, 65, 64]])
    shapes: list[Shape] = [
        (red, [np.concatenate([top, bottom[1:-1]])]),
        (
            mix(red, SHADE, 0.22),
            [np.concatenate([top, smooth(points[[54, 64, 63, 62, 61, 60, 48]])])],
        ),
    ]
    if view.mouth_open > 0.04:
        biting, tongue = between(upper, lower, 0.4), between(lower, upper, 0.38)
        shapes += [
            (dark, [np.concatenate([upper, lower[::-1]])]),
            ((110.0, 100.0, 205.0), [np.concatenate([tongue, lower[::-1]])]),
            ((236.0, 242.0, 244.0), [np.concatenate([upper, biting[::-1]])]),
        ]
    else:
        line = smooth(points[[48, 60, 61, 62, 63, 64, 54]])
        widths = np.interp(np.arange(25), (0, 6, 18, 24), (0.5, 1.2, 1.2, 0.5))
        shapes.append((dark, [stroke(line, widths)]))
    return shapes


def _brows_and_freckles(identity: Identity, points: Floats) -> list[Shape]:
    colour = mix(identity.hair_colour, (34.0, 38.0, 48.0), 0.45)
    widths = np.interp(np.linspace(0, 4, 17), range(5), (0.7, 2.2, 2.8, 3.0, 2.0))
    widths *= identity.brow_thickness
    left, right = smooth(points[17:22]), smooth(points[22:27])
    shapes: list[Shape] = [
        (colour, [stroke(left, widths)]),
        (colour, [stroke(right, widths[::-1])]),
    ]
    if identity.freckles:
        spot = mix(identity.skin, (40.0, 66.0, 120.0), 0.5)
        places = [(13, 68), (17, 66), (21, 69), (25, 67), (15, 72), (20, 73), (9, 70)]
        spots = [oval((s * x, y, 5.0), 0.7, 0.7, count=6) for x, y in places for s in (-1, 1)]
        shapes.append((spot, spots))
    return shapes


@lru_cache(maxsize=256)
def _hair_in_front(identity: Identity, lit_right: bool) -> tuple[Shape, ...]:
    """The cap between the crown and the hairline, a shine on the side of the light, and strands."""
    hair = HAIR_STYLES[identity.hair_style]
    if not hair.hairline:
        return ()
    x, y = np.array(hair.hairline).T
    depth = 6.0 - 33.0 * x**2
    line = smooth(np.column_stack([x * half_width(identity), y, depth]))
    crown = _crown(identity, hair)
    colour = identity.hair_colour
    if identity.hair_style == "buzz cut":
        colour = mix(colour, identity.skin, 0.25)
    inner, outer = resampled(line, 25), resampled(crown, 25)
    start = 5 if lit_right else 11
    shine = [between(outer, inner, part)[start : start + 9] for part in (0.34, 0.5)]
    shine[1][[0, -1]] = shine[0][[0, -1]]
    shapes: list[Shape] = [
        (colour, [np.concatenate([crown, line[::-1]])]),
        (mix(colour, WHITE, 0.2), [np.concatenate([shine[0], shine[1][::-1]])]),
    ]
    strand_colour = mix(colour, BLACK, 0.18)
    if hair.curl:
        inner, outer = resampled(line, 73), resampled(crown, 73)
        rows = [between(outer, inner, part)[7:66] for part in (0.3, 0.62)]
        return (*shapes, *[(strand_colour, [stroke(row, [0.8] * 59)]) for row in rows])
    taper = (0.2, 1.0, 0.8, 0.2)
    rising = np.array([[0.06], [0.2], [0.4], [0.62]])
    paths = [inner[i] + (outer[i + lean] - inner[i]) * rising for i, lean in _STRANDS]
    strands = [stroke(path, taper) for path in paths]
    return (*shapes, *[(strand_colour, [strand]) for strand in strands])


def _accessories(identity: Identity, points: Floats) -> list[Shape]:
    shapes: list[Shape] = []
    half = half_width(identity)
    if identity.earrings and not _ears_covered(identity):
        rings = [oval((side * (half + 2), 75, -24), 2.2, 2.2) for side in (-1, 1)]
        shapes += [((70.0, 190.0, 235.0), [ring]) for ring in rings]
    if identity.glasses == "none":
        return shapes
    corners = 1.0 if identity.glasses == "round" else 0.55
    frame = mix(identity.shirt_colour, (36.0, 30.0, 34.0), 0.6)
    centres = [moved(points[i : i + 6].mean(axis=0), 0, 1, 7) for i in (36, 42)]
    for side, centre in zip((-1.0, 1.0), centres, strict=True):
        rim = [oval(centre, 13.2 - d, 11.4 - d, count=32, power=corners) for d in (0.0, 1.7)]
        ear = (side * half, centre[1] - 1.0, -26.0)
        temple = np.array([moved(centre, 13.0 * side, -2.0, -1.0), ear])
        shapes += [(frame, rim), (frame, [stroke(temple, [1.6, 1.6])])]
    middle = (0.0, centres[0][1] - 3.0, 12.0)
    bridge = np.array([moved(centres[0], 13, -1, 1), middle, moved(centres[1], -13, -1, 1)])
    return [*shapes, (frame, [stroke(smooth(bridge), [1.6] * 9)])]


def tone_shapes(identity: Identity, view: View, points: Floats) -> list[Shape]:
    """Soft shadows, blush and highlights, as factors in 1 / `NEUTRAL_TONE`."""
    dark = -1.0 if view.light[0] > 0 else 1.0
    half = half_width(identity)
    shade, deep = (176.0, 170.0, 184.0), (150.0, 146.0, 164.0)
    blush, shine = (176.0, 172.0, 204.0), (216.0, 216.0, 216.0)
    tip, lip = points[30], points[57]
    wing, root = moved(points[33], 9 * dark, -1, -4), moved(points[27], 6 * dark, 2, -2)
    side = np.array([points[27], points[30], wing, root])
    sockets = [oval(moved(points[i : i + 6].mean(axis=0), 0, -4), 10.0, 7.0) for i in (36, 42)]
    shapes: list[Shape] = [
        (shine, [oval((-dark * 6, 27, 8), 17, 7)]),
        (shade, sockets[:1]),
        (shade, sockets[1:]),
        (blush, [oval((-0.6 * half, 76, 0), 8.5, 6.5)]),
        (blush, [oval((0.6 * half, 76, 0), 8.5, 6.5)]),
        (shade, [side]),
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
