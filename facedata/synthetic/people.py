"""The looks of drawn people, the views of them, and how seeds choose both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from facedata.errors import OptionError
from facedata.synthetic.geometry import Colour, mirrored, mix


class Hair(NamedTuple):
    """A hair style: `volume`, `lift` and `curl` in pixels, and the y at which the hair `ends` at the back."""

    volume: float
    hairline: tuple[tuple[float, float], ...]  # (x / half width of the face, y), right to left
    ends: float = 0.0
    lift: float = 0.0
    curl: float = 0.0
    knots: tuple[tuple[float, float, float], ...] = ()  # (x / half width, y, radius): buns, tails


_HIGH = mirrored((0.97, 56), (0.88, 38), (0.6, 23), (0, 20))
_ROUND = mirrored((0.98, 56), (0.88, 40), (0.62, 27), (0.25, 23))
_SWEPT = ((0.98, 56), (0.88, 37), (0.5, 19), (0.15, 28), (-0.35, 34), (-0.82, 41), (-1.0, 62))
_PARTED = mirrored((1.03, 84), (0.93, 58), (0.72, 34), (0.2, 17), (0, 14))
_BANGS = mirrored((1.0, 76), (0.88, 42), (0.62, 35), (0.2, 36))
_TAILS = tuple((side * x, y, r) for side in (-1, 1) for x, y, r in ((1.06, 62, 8), (1.16, 77, 10), (1.22, 93, 12)))
HAIR_STYLES: dict[str, Hair] = {
    "side parting": Hair(5.5, _SWEPT, lift=3),
    "long": Hair(6, _PARTED, ends=146),
    "buzz cut": Hair(1.2, _HIGH),
    "buns": Hair(3.5, _HIGH, knots=((0.86, 12, 13), (-0.86, 12, 13))),
    "curls": Hair(7, _SWEPT, ends=112, curl=3),
    "bob": Hair(7, _BANGS, ends=100),
    "quiff": Hair(3, _HIGH, lift=7),
    "pigtails": Hair(4.5, _PARTED[1:-1], knots=_TAILS),
    "afro": Hair(13, _ROUND, ends=88, curl=2.2),
    "wavy": Hair(7.5, _SWEPT, ends=122, curl=1.5),
    "bald": Hair(0, ()),
}
_BEARDLESS = ("long", "bob", "pigtails", "wavy")


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
_BACKDROP_COLOURS = _palette("a9c8d8 d9c7a8 b7c9a4 c8b4cf 8fa3b5 e2cfc2 9db8ae c9a79a 7c8b92")
_GLASSES = ("none", "round", "square")
_BEARDS = ("none", "full", "goatee", "moustache", "stubble")
_BACKDROPS = ("plain", "bokeh", "stripes")


def _require(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{option} {value!r}: expected one of {', '.join(known)}")


@dataclass(frozen=True)
class Identity:
    """The look of one person.

    Colours are (blue, green, red), each 0 to 255. Sizes are factors, 1 for the mean face; slopes and tilts are pixels
    of the canonical frame, positive if the outer end is higher. `jaw_squareness` is 0 to 1.

    Raises
    ------
    OptionError
        If the hair style, the beard or the glasses are unknown.
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
    glasses: str = "none"
    beard: str = "none"
    lashes: bool = False
    freckles: bool = False
    earrings: bool = False

    def __post_init__(self) -> None:
        _require("hair_style", self.hair_style, tuple(HAIR_STYLES))
        _require("glasses", self.glasses, _GLASSES)
        _require("beard", self.beard, _BEARDS)


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
    backdrop : str
        ``"plain"``, ``"bokeh"`` or ``"stripes"``, in shades of `backdrop_colour` (BGR).
    blur, noise : float
        Gaussian sigma in canvas pixels; standard deviation in grey levels.
    seed : int
        The seed of the random numbers of the backdrop and of the noise.

    Raises
    ------
    OptionError
        If the backdrop is unknown, or the scale is not a number above 0.
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
    backdrop: str = "plain"
    backdrop_colour: Colour = _BACKDROP_COLOURS[0]
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require("backdrop", self.backdrop, _BACKDROPS)
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
    # strides coprime to the lengths go through a whole list before an entry comes again
    style = list(HAIR_STYLES)[(cast[0] + number) % len(HAIR_STYLES)]
    skin = _SKINS[(cast[1] + 3 * number) % len(_SKINS)]
    hair = _HAIR_COLOURS[(cast[2] + 5 * number) % len(_HAIR_COLOURS)]
    bearded = style not in _BEARDLESS and draw.random() < 0.5
    between = draw.uniform
    return Identity(
        skin=mix(skin, _SKINS[draw.integers(len(_SKINS))], 0.12),
        hair_style=style,
        hair_colour=hair,
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
        glasses=str(draw.choice(["none", "none", "none", "round", "square"])),
        beard=str(draw.choice(_BEARDS[1:])) if bearded else "none",
        lashes=bool(not bearded and draw.random() < 0.65),
        freckles=bool(draw.random() < 0.25),
        earrings=bool(not bearded and draw.random() < 0.4),
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
        backdrop=str(draw.choice(_BACKDROPS)),
        backdrop_colour=_BACKDROP_COLOURS[draw.integers(len(_BACKDROP_COLOURS))],
        blur=max(0.0, between(-0.6, 0.7)),
        noise=between(0.0, 2.5),
        seed=int(draw.integers(1 << 32)),
    )
