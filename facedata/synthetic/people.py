"""Drawn people: their looks, the views of them, how seeds choose both, and where their landmarks are.

A face is a small three-dimensional model in the *head frame*: x to the image's right from the middle of the face, y
down, z towards the viewer, in pixels of the *canonical frame*. The canonical frame is a 112 x 112 crop in which the
eyes, the nose and the mouth lie near the ArcFace template.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import OptionError

__all__ = ["HAIR_STYLES", "Identity", "View", "generator", "head_landmarks", "identity_from_seed", "view_from_seed"]

Floats = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]
"""Blue, green, red, each 0 to 255."""


def _palette(hexadecimal: str) -> tuple[Colour, ...]:
    """Turn RRGGBB words into BGR colours."""
    return tuple(
        (float(value & 255), float(value >> 8 & 255), float(value >> 16))
        for value in (int(word, 16) for word in hexadecimal.split())
    )


_SKINS = _palette("fbdcc8 8a5536 eebb96 5d3a29 f4c9a8 b87a50 d69c70 73452f e6ac80 a0673f")
_HAIR_COLOURS = _palette("2b2320 d9a658 5a3825 a8441f 17171c e8cf96 7d4e2d b9b4ae 41302c c4622d 6b3a6e 2f6f78")
_EYE_COLOURS = _palette("5b3a1e 3f78a8 4f8a4c 2f211a 7d8a94 9a6a2a")
_SHIRTS = _palette("d8573f 3e6fb0 f0b541 4b9a77 8a5aa8 e8e3d8 39424e e58fa5")
_BACKDROPS = _palette("a9c8d8 d9c7a8 b7c9a4 c8b4cf 8fa3b5 e2cfc2 9db8ae c9a79a 7c8b92")


class Hair(NamedTuple):
    """A hair style: `volume` and `lift` in canonical pixels, and the y at which the hair `ends` at the back."""

    volume: float
    hairline: tuple[tuple[float, float], ...]  # (x / half width of the face, y), right to left
    ends: float = 0.0
    lift: float = 0.0


_HIGH = ((0.97, 56), (0.88, 38), (0.6, 23), (0, 20), (-0.6, 23), (-0.88, 38), (-0.97, 56))
_SWEPT = ((0.98, 56), (0.88, 37), (0.5, 19), (0.15, 28), (-0.35, 34), (-0.82, 41), (-1.0, 62))
_PARTED = ((1.03, 84), (0.93, 58), (0.72, 34), (0.2, 17), (-0.2, 17), (-0.72, 34), (-0.93, 58), (-1.03, 84))
_BANGS = ((1.0, 76), (0.88, 42), (0.62, 35), (0.2, 36), (-0.2, 36), (-0.62, 35), (-0.88, 42), (-1.0, 76))
HAIR_STYLES: dict[str, Hair] = {
    "side parting": Hair(5.5, _SWEPT, lift=3),
    "long": Hair(6, _PARTED, ends=146),
    "buzz cut": Hair(1.2, _HIGH),
    "shoulder length": Hair(7.5, _SWEPT, ends=120),
    "bob": Hair(7, _BANGS, ends=100),
    "quiff": Hair(3, _HIGH, lift=7),
    "bald": Hair(0, ()),
}


@dataclass(frozen=True)
class Identity:
    """The look of one person.

    Colours are (blue, green, red), each 0 to 255. Sizes are factors, 1 for the mean face; slopes and tilts are pixels
    of the canonical frame, positive if the outer end is higher. `jaw_squareness` is 0 to 1.

    Raises
    ------
    OptionError
        If the hair style is unknown.
    """

    skin: Colour = _SKINS[4]
    hair_style: str = "side parting"
    hair_colour: Colour = _HAIR_COLOURS[2]
    eye_colour: Colour = _EYE_COLOURS[0]
    shirt_colour: Colour = _SHIRTS[1]
    face_width: float = 1.0
    face_height: float = 1.0
    jaw_squareness: float = 0.5
    eye_size: float = 1.0
    eye_spacing: float = 1.0
    eye_tilt: float = 0.0
    brow_thickness: float = 1.0
    brow_slope: float = 0.0
    nose_length: float = 1.0
    nose_width: float = 1.0
    mouth_width: float = 1.0
    mouth_fullness: float = 1.0

    def __post_init__(self) -> None:
        if self.hair_style not in HAIR_STYLES:
            raise OptionError(f"hair_style {self.hair_style!r}: expected one of {', '.join(HAIR_STYLES)}")

    @property
    def half_width(self) -> float:
        """Half the width of the face at the ears, in canonical pixels."""
        return 39.0 * self.face_width


@dataclass(frozen=True)
class View:
    """What differs between two images of one person; the default is a frontal face at rest.

    Attributes
    ----------
    yaw, pitch, roll : float
        Degrees: `yaw` > 0 turns the nose to the image's right, `pitch` > 0 lifts it, `roll` > 0 turns clockwise on the
        screen. It looks right up to about 30 degrees of yaw or pitch.
    scale, shift_x, shift_y : float
        Size, 1 to fit the canonical frame, and offset in pixels of the canonical frame.
    light : (float, float)
        The direction that the light comes from, (x, y), of length up to about 1.
    brightness, warmth : float
        Factor of all pixels; colour temperature from -1 (blue) to 1 (orange).
    smile, mouth_open, eyes_open : float
        -1 to 1; 0 to 1; 0 to 1.
    backdrop : (float, float, float)
        Its colour (BGR).
    blur, noise : float
        Gaussian sigma in canvas pixels; standard deviation in grey levels.
    seed : int
        The seed of the noise.

    Raises
    ------
    OptionError
        If the scale is not a number above 0.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    light: tuple[float, float] = (-0.4, -0.5)
    brightness: float = 1.0
    warmth: float = 0.0
    smile: float = 0.5
    mouth_open: float = 0.0
    eyes_open: float = 1.0
    backdrop: Colour = _BACKDROPS[0]
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise OptionError(f"scale {self.scale}: expected a number above 0")


def generator(entropy: list[int], *purpose: int) -> np.random.Generator:
    """The random numbers of one purpose, which the entropy decides."""
    # without the purpose, [seed, 3] and [seed, 3, 0] would give the same numbers: trailing zeros do not count
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=purpose))


def identity_from_seed(seed: int, number: int) -> Identity:
    """Choose the look of person `number`; the same seed and number always give the same person.

    Consecutive numbers get different skins, hair styles and hair colours.
    """
    draw = generator([seed, number], 1)
    cast = generator([seed], 2).integers(0, 1 << 16, 4)
    between = draw.uniform
    # strides coprime to the lengths go through a whole list before an entry comes again
    return Identity(
        skin=_SKINS[(cast[1] + 3 * number) % len(_SKINS)],
        hair_style=list(HAIR_STYLES)[(cast[0] + number) % len(HAIR_STYLES)],
        hair_colour=_HAIR_COLOURS[(cast[2] + 5 * number) % len(_HAIR_COLOURS)],
        eye_colour=_EYE_COLOURS[draw.integers(len(_EYE_COLOURS))],
        shirt_colour=_SHIRTS[(cast[3] + 3 * number) % len(_SHIRTS)],
        face_width=between(0.91, 1.08),
        face_height=between(0.95, 1.02),
        jaw_squareness=between(0.0, 1.0),
        eye_size=between(0.85, 1.2),
        eye_spacing=between(0.95, 1.05),
        eye_tilt=between(-1.2, 1.8),
        brow_thickness=between(0.6, 1.7),
        brow_slope=between(-2.5, 2.5),
        nose_length=between(0.9, 1.1),
        nose_width=between(0.75, 1.3),
        mouth_width=between(0.86, 1.12),
        mouth_fullness=between(0.65, 1.4),
    )


def view_from_seed(seed: int, number: int, image: int) -> View:
    """Choose the view for image `image` of person `number`; the same three numbers always give the same view."""
    draw = generator([seed, number, image])
    between = draw.uniform
    azimuth = between(0.0, 2.0 * np.pi)
    return View(
        yaw=float(np.clip(draw.normal(0.0, 11.0), -24.0, 24.0)),
        pitch=float(np.clip(draw.normal(0.0, 6.0), -12.0, 12.0)),
        roll=float(np.clip(draw.normal(0.0, 4.0), -9.0, 9.0)),
        scale=between(0.88, 0.98),
        shift_x=between(-2.0, 2.0),
        shift_y=between(-2.5, 1.0),
        light=(0.75 * float(np.cos(azimuth)), 0.5 * float(np.sin(azimuth)) - 0.3),
        brightness=between(0.82, 1.04),
        warmth=between(-1.0, 1.0),
        smile=between(-0.3, 1.0),
        mouth_open=max(0.0, between(-0.7, 0.9)),
        eyes_open=min(1.0, between(0.6, 1.3)),
        backdrop=_BACKDROPS[draw.integers(len(_BACKDROPS))],
        blur=max(0.0, between(-0.6, 0.7)),
        noise=between(0.0, 2.5),
        seed=int(draw.integers(1 << 32)),
    )


def head_landmarks(identity: Identity, view: View) -> Floats:
    """The 68 landmarks in the head frame, in the iBUG order, shape (68, 3)."""
    angle = np.linspace(0.0, np.pi, 17)
    cosine, sine = np.cos(angle), np.sin(angle)
    x = -identity.half_width * np.sign(cosine) * np.abs(cosine) ** (1.0 - 0.3 * identity.jaw_squareness)
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

    # the mouth: the outer edge of the upper lip and of the lower lip, then the inner edges
    across = np.array(
        [-1, -0.6, -0.22, 0, 0.22, 0.6, 1, 0.62, 0.3, 0, -0.3, -0.62, -0.86, -0.3, 0, 0.3, 0.86, 0.3, 0, -0.3]
    )
    lips = np.array([0, -0.72, -1, -0.75, -1, -0.72, 0, 0.72, 0.96, 1, 0.96, 0.72] + [0] * 8)
    lips *= np.where(lips < 0, 3.6, 4.6) * identity.mouth_fullness
    opening = np.array([0] + [-0.2] * 5 + [0] + [0.8] * 5 + [0] + [-0.2] * 3 + [0] + [0.8] * 3)
    x = (14.4 * identity.mouth_width + 1.6 * view.smile) * across
    rise = (4.6 * across**2 - 1.2) * (view.smile + 0.2)
    y = 92.3 - rise + lips + 9.0 * view.mouth_open * opening * (1.0 - across**2)
    mouth = np.column_stack([x, y, 11.0 - 11.0 * across**2])

    other_side = (-1.0, 1.0, 1.0)
    brows = (brow, brow[::-1] * other_side)
    eyes = (eye, eye[[3, 2, 1, 0, 5, 4]] * other_side)
    return np.concatenate([jaw, *brows, bridge, base, *eyes, mouth])
