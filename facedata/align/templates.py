"""Templates: where eyes, nose and mouth corners are in an aligned crop.

A user's own template is a file, either JSON::

    {"size": 112, "points": [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]}

with ``"poses": [[[x, y], ...], ...]`` in place of ``"points"`` for several poses, or text, five lines to a pose::

    # size: 112
    38.3 51.7
    73.5 51.5   # a comma may separate them, too
    ...

The size is the side of the crop that the points are given in, 112 by default. Points are in the order eye on the
image's left, eye on its right, nose tip, mouth corner on the left, on the right; the centre of the top left pixel is
(0, 0).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.similarity import FINE, LARGEST_COORDINATE, fits_mirrored, similarity_transforms
from facedata.errors import FormatError, InputNotFoundError, OptionError
from facedata.files import read_small

__all__ = ["LARGEST_SIZE", "MOST_POSES", "TEMPLATES", "Template", "load_template"]

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]

LARGEST_SIZE = 4096
"""Pixels a side; a mistyped size must not take all memory."""

MOST_POSES = 16
"""The most poses of a user's own template."""

_LARGEST_FILE = 1 << 16
_USUAL_SIZE = 112
_SIZE_LINE = re.compile(r"#\s*size\s*[:=]\s*(.*)", re.IGNORECASE)

# InsightFace, python-package/insightface/utils/face_align.py
_ARCFACE = (((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)),)

# FaceX-Zoo, face_sdk/core/image_cropper/arcface_cropper/FaceRecImageCropper.py:
# left profile, left, frontal, right, right profile
_FIVE_POSES = (
    ((51.642, 50.115), (57.617, 49.990), (35.740, 69.007), (51.157, 89.050), (57.025, 89.702)),
    ((45.031, 50.118), (65.568, 50.872), (39.677, 68.111), (45.177, 86.190), (64.246, 86.758)),
    ((39.730, 51.138), (72.270, 51.138), (56.000, 68.493), (42.463, 87.010), (69.537, 87.010)),
    ((46.845, 50.872), (67.382, 50.118), (72.737, 68.111), (48.167, 86.758), (67.236, 86.190)),
    ((54.796, 49.990), (60.771, 50.115), (76.673, 69.007), (55.388, 89.702), (61.257, 89.050)),
)


@dataclass(frozen=True, eq=False)
class Template:
    """The places of the five points in a crop.

    Attributes
    ----------
    name : str
        One of `TEMPLATES`, or the name of a file without its folder.
    points : ndarray of shape (T, 5, 2), float64
        For each pose, x then y in pixels of the crop.
    size : int
        The side of the crop in pixels.
    """

    name: str
    points: Floats
    size: int

    def identity(self) -> dict[str, Any]:
        """All that decides where a face goes, as JSON values."""
        return {"name": self.name, "size": self.size, "points": self.points.tolist()}


# The points at 112 pixels, and the numbers of which a size has to be a multiple. At multiples of 128 InsightFace keeps
# the points of 112 and adds 8 pixels on either side.
_BUILT_IN: Mapping[str, tuple[Any, tuple[int, ...]]] = {
    "arcface": (_ARCFACE, (112, 128)),
    "facexzoo-5pose": (_FIVE_POSES, (112,)),
}

TEMPLATES = tuple(_BUILT_IN)
"""The names of the templates that are built in."""


def load_template(name_or_path: str | os.PathLike[str], size: int) -> Template:
    """Get a template for crops of one size.

    Parameters
    ----------
    name_or_path
        One of `TEMPLATES`, or a file as the module describes it. A name has precedence over a file of that name:
        write ``./arcface`` for the file.
    size : int
        The side of the crop in pixels. ``arcface`` takes multiples of 112 and of 128, ``facexzoo-5pose`` those of
        112, a file any.

    Raises
    ------
    OptionError
        If the template does not take the size, or there is neither such a name nor such a file.
    FormatError
        If the file is not a template; the message names the line if it can.
    InputError
        If the file cannot be read.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise OptionError(f"size {size}: expected 1 to {LARGEST_SIZE} pixels")
    name = os.fspath(name_or_path)
    if name not in _BUILT_IN:
        return _from_file(name, size)
    if os.path.exists(name):
        _log.warning(
            "template %s: using the built-in one, not the file of that name; for the file, write ./%s", name, name
        )
    points, steps = _BUILT_IN[name]
    step = next((step for step in steps if size % step == 0), None)
    if step is None:
        nearest = max(size // step * step for step in steps), min((size // step + 1) * step for step in steps)
        listed = " and ".join(str(near) for near in nearest if 0 < near <= LARGEST_SIZE)
        multiples = " or ".join(map(str, steps))
        raise OptionError(f"size {size}: the template {name} takes multiples of {multiples}; the nearest: {listed}")
    scale = size / step
    return Template(name, np.array(points) * scale + [(step - _USUAL_SIZE) / 2 * scale, 0.0], size)


def _from_file(path: str, size: int) -> Template:
    try:
        data = read_small(path, _LARGEST_FILE)
    except InputNotFoundError as error:
        names = ", ".join(TEMPLATES)
        raise OptionError(f"template {path!r}: expected {names} or a file, found no such file") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(f"{path}: line {line}: is not text; expected a template as JSON or lines of 'x y'") from error
    own_size, poses = _parse_json(path, text) if text.lstrip()[:1] in ("{", "[") else _parse_text(path, text)
    if len(poses) > MOST_POSES:
        raise FormatError(f"{path}: expected at most {MOST_POSES} poses, found {len(poses)}")
    arcface = np.array(_ARCFACE)
    bad = np.flatnonzero(similarity_transforms(poses, arcface).defects != FINE)
    if len(bad):
        raise FormatError(
            f"{path}: pose {bad[0] + 1} of {len(poses)}: its points are equal, on a line or unlike a face"
        )
    if fits_mirrored(poses, arcface).any():
        _log.warning("%s: looks mirrored; the first point is the eye on the image's left, the person's right", path)
    if poses.min() < -0.5 or poses.max() > own_size - 0.5:
        _log.warning("%s: has points outside a crop of %g pixels; is that the size they are given in?", path, own_size)
    return Template(os.path.basename(path), poses * (size / own_size), size)


def _parse_text(path: str, text: str) -> tuple[float, Floats]:
    size: float | None = None
    points: list[list[float | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path}: line {number}"
        if found := _SIZE_LINE.fullmatch(line.strip()):
            if size is not None:
                raise FormatError(f"{place}: gives the size a second time; expected one")
            size = _checked_size(place, _number(found[1]))
        elif content := line.partition("#")[0].strip():
            point = [_number(field) for field in re.split(r"\s*,\s*|\s+", content)]
            if len(point) != 2 or None in point:
                raise FormatError(f"{place}: expected a point 'x y', two numbers, found {content[:80]!r}")
            points.append(point)
    if not points or len(points) % 5:
        raise FormatError(f"{path}: expected five lines of 'x y', or a multiple of five, found {len(points)}")
    return size or _USUAL_SIZE, np.array(points, np.float64).reshape(-1, 5, 2)


def _number(text: str) -> float | None:
    try:
        value = float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None
    return value if value is not None and abs(value) <= LARGEST_COORDINATE else None


def _parse_json(path: str, text: str) -> tuple[float, Floats]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: line {error.lineno}: is not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # endless nesting, an integer of thousands of digits
        raise FormatError(f"{path}: is JSON of excessive size; expected a template, which is a few points") from error
    if not isinstance(value, dict) or value.keys() - {"size"} not in ({"points"}, {"poses"}):
        found = f"the keys {', '.join(value) or 'none'}"[:200] if isinstance(value, dict) else type(value).__name__
        raise FormatError(f'{path}: expected an object of "size" and either "points" or "poses", found {found}')
    size = _checked_size(path, value.get("size", _USUAL_SIZE))
    poses = [value["points"]] if "points" in value else value["poses"]
    if not isinstance(poses, list) or not poses:
        raise FormatError(f'{path}: expected "poses" to be a list of five points each')
    for number, pose in enumerate(poses, 1):
        points = pose if isinstance(pose, list) and len(pose) == 5 else [None]
        if not all(isinstance(point, list) and len(point) == 2 and all(map(_is_number, point)) for point in points):
            place = f"pose {number}: " if len(poses) > 1 else ""
            raise FormatError(f"{path}: {place}expected five points [x, y], each two finite numbers")
    return size, np.array(poses, np.float64)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_COORDINATE  # NaN is not


def _checked_size(place: str, size: Any) -> float:
    if not _is_number(size) or not 1 <= size <= LARGEST_SIZE:
        raise FormatError(f"{place}: the size: expected a number of pixels from 1 to {LARGEST_SIZE}")
    return float(size)
