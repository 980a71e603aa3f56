"""The 68 landmarks of a drawn face in the head frame, in the iBUG order."""

from __future__ import annotations

import numpy as np

from facedata.synthetic.curves import Floats
from facedata.synthetic.people import Identity, View


def head_landmarks(identity: Identity, view: View) -> Floats:
    """The 68 points in the head frame, shape (68, 3)."""
    return np.concatenate(
        [
            _jaw(identity, view),
            _both_sides(_brow(identity, view), [4, 3, 2, 1, 0]),
            _nose(identity),
            _both_sides(_eye(identity, view), [3, 2, 1, 0, 5, 4]),
            _mouth(identity, view),
        ]
    )


def _both_sides(left: Floats, order: list[int]) -> Floats:
    """The part on the image's left and its mirror image, whose points come in `order`."""
    return np.concatenate([left, left[order] * (-1.0, 1.0, 1.0)])


def _jaw(identity: Identity, view: View) -> Floats:
    angle = np.linspace(0.0, np.pi, 17)
    cosine, sine = np.cos(angle), np.sin(angle)
    power = 1.0 - 0.3 * identity.jaw_squareness
    x = -half_width(identity) * np.sign(cosine) * np.abs(cosine) ** power
    drop = 54.5 * identity.face_height + 2.5 * view.mouth_open
    return np.column_stack([x * (1.0 - 0.06 * sine), 53.0 + drop * sine, 34.0 * sine - 28.0])


def half_width(identity: Identity) -> float:
    """Half the width of the face at the ears, in canonical pixels."""
    return 39.0 * identity.face_width


def _brow(identity: Identity, view: View) -> Floats:
    outward = np.linspace(1.0, -1.0, 5)
    x = -19.0 * identity.eye_spacing - 10.0 * outward
    arch = (0.0, 2.4, 3.4, 2.8, 0.8)
    y = 42.0 - np.array(arch) - 0.5 * identity.brow_slope * outward - 2.0 * view.mouth_open
    return np.column_stack([x, y, (-2.0, 2.0, 5.0, 7.0, 8.0)])


def _eye(identity: Identity, view: View) -> Floats:
    across = np.array([-1.0, -0.42, 0.42, 1.0, 0.42, -0.42])
    lids = np.array([0.0, -4.9, -4.9, 0.0, 3.7, 3.7]) * identity.eye_size * view.eyes_open
    x = 7.9 * identity.eye_size * across - 17.6 * identity.eye_spacing
    y = 51.6 + lids - lids.mean() + identity.eye_tilt * across
    return np.column_stack([x, y, (0.0, 3.5, 5.0, 4.0, 5.0, 3.5)])


def _nose(identity: Identity) -> Floats:
    tip = 71.7 + 20.0 * (identity.nose_length - 1.0)
    bridge = np.column_stack([np.zeros(4), np.linspace(53.0, tip, 4), (9.0, 14.0, 19.0, 24.0)])
    x = 7.2 * identity.nose_width * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    y = tip + np.array([4.2, 5.6, 6.4, 5.6, 4.2])
    base = np.column_stack([x, y, (10.0, 14.0, 16.0, 14.0, 10.0)])
    return np.concatenate([bridge, base])


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
