"""Templates: where eyes, nose and mouth corners lie in an aligned crop.

A template of one's own is a file, either JSON::

    {"size": 112, "points": [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]}

with ``"poses": [[[x, y], ...], ...]`` in place of ``"points"`` where there are several, or text, five lines to a pose::

    # size: 112
    38.3 51.7
    73.5 51.5   # a comma may stand between, too
    ...

The size is the side of the crop that the points are given in, 112 where it is left out. Points are in the order eye on
the image's left, eye on its right, nose tip, mouth corner on the left, on the right; the centre of the top left pixel
is (0, 0).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.similarity import FINE, LARGEST_COORDINATE, fits_mirrored, similarity_transforms
from facedata.errors import FormatError, InputNotFoundError, OptionError, input_error
from facedata.files import open_regular

__all__ = ["LARGEST_SIZE", "MOST_POSES", "TEMPLATES", "Template", "load_template"]

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]

LARGEST_SIZE = 4096
"""Pixels a side; a slip in a size must not take all memory."""

MOST_POSES = 16
"""Of a template of one's own."""

_LARGEST_FILE = 1 << 16
_USUAL_SIZE = 112
_SIZE_LINE = re.compile(r"#\s*size\s*[:=]\s*(.*)", re.IGNORECASE)
_KEYS = ("size", "points", "poses")

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
    """Where the five points lie in a crop of `size`.

    Attributes
    ----------
    name : str
        A key of `TEMPLATES`, or a file's name without its folder.
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


def _arcface(size: int) -> Floats:
    """InsightFace's rule: whole multiples of 112, or of 128 with 8 pixels more at either side."""
    points = np.array(_ARCFACE)
    if size % 112 == 0:
        return points * (size / 112)
    return points * (size / 128) + [8.0 * size / 128, 0.0]


def _five_pose(size: int) -> Floats:
    return np.array(_FIVE_POSES) * (size / 112)


@dataclass(frozen=True)
class _BuiltIn:
    steps: tuple[int, ...]
    points: Callable[[int], Floats]


_BUILT_IN: Mapping[str, _BuiltIn] = {
    "arcface": _BuiltIn((112, 128), _arcface),
    "facexzoo-5pose": _BuiltIn((112,), _five_pose),
}

TEMPLATES = tuple(_BUILT_IN)
"""The names of the templates that are built in."""


def load_template(name_or_path: str | os.PathLike[str], size: int) -> Template:
    """Get a template for crops of one size.

    Parameters
    ----------
    name_or_path : str or path
        One of `TEMPLATES`, or a file as the module describes it. A name goes before a file that is called so: write
        ``./arcface`` for the file.
    size : int
        The side of the crop in pixels. ``arcface`` takes multiples of 112 and of 128, ``facexzoo-5pose`` those of
        112, a file any.

    Raises
    ------
    OptionError
        If the size is none that the template takes, or there is neither such a name nor such a file.
    FormatError
        If the file is no template; the message names the line where it can.
    InputError
        If the file cannot be read.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise OptionError(f"size {size}: expected 1 to {LARGEST_SIZE} pixels")
    name = os.fspath(name_or_path)
    if name not in _BUILT_IN:
        return _from_file(name, size)
    if os.path.exists(name):
        _log.warning("template %s: the one built in is used, not the file of that name; for it, write ./%s", name, name)
    built_in = _BUILT_IN[name]
    if all(size % step for step in built_in.steps):
        raise OptionError(_size_refused(name, size, built_in.steps))
    return Template(name, built_in.points(size), size)


def _size_refused(name: str, size: int, steps: Sequence[int]) -> str:
    below = max(size // step * step for step in steps)
    above = min((size // step + 1) * step for step in steps)
    nearest = " and ".join(str(one) for one in (below, above) if 0 < one <= LARGEST_SIZE)
    rule = " or ".join(map(str, steps))
    return f"size {size}: the template {name} takes multiples of {rule}; the nearest: {nearest}"


def _from_file(path: str, size: int) -> Template:
    try:
        text = _read(path)
    except InputNotFoundError as error:
        names = ", ".join(TEMPLATES)
        raise OptionError(f"template {path!r}: expected {names} or a file, found no such file") from error
    own_size, points = _parse_json(path, text) if text.lstrip()[:1] in ("{", "[") else _parse_text(path, text)
    _check(path, own_size, points)
    return Template(os.path.basename(path), points * (size / own_size), size)


def _read(path: str) -> str:
    descriptor = open_regular(path)
    try:
        with open(descriptor, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise input_error(error, path) from error
    if len(data) > _LARGEST_FILE:
        raise FormatError(f"{path}: is larger than {_LARGEST_FILE} bytes; expected a template, which is a few points")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(f"{path}: line {line}: is not text; expected a template as JSON or lines of 'x y'") from error


def _parse_text(path: str, text: str) -> tuple[float, Floats]:
    size: float | None = None
    points: list[tuple[float, float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path}: line {number}"
        if found := _SIZE_LINE.fullmatch(line.strip()):
            if size is not None:
                raise FormatError(f"{place}: gives the size a second time; expected one")
            size = _checked_size(place, _number(found[1]))
        elif content := line.partition("#")[0].strip():
            points.append(_point(place, content))
    if not points or len(points) % 5:
        raise FormatError(f"{path}: expected five lines of 'x y', or several times five, found {len(points)}")
    return size or _USUAL_SIZE, _checked_poses(path, np.reshape(points, (-1, 5, 2)))


def _point(place: str, content: str) -> tuple[float, float]:
    fields = re.split(r"\s*,\s*|\s+", content)
    numbers = [_number(field) for field in fields]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise FormatError(f"{place}: expected a point 'x y', two numbers, found {content[:80]!r}")
    return numbers[0], numbers[1]


def _number(text: str) -> float | None:
    """A finite number within bounds."""
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
    except (RecursionError, ValueError) as error:  # nested without end, an integer of thousands of digits
        raise FormatError(f"{path}: is JSON beyond all measure; expected a template, which is a few points") from error
    if not isinstance(value, dict) or not set(value) <= set(_KEYS) or ("points" in value) == ("poses" in value):
        found = f"the keys {', '.join(value) or 'none'}"[:200] if isinstance(value, dict) else type(value).__name__
        raise FormatError(f'{path}: expected an object of "size" and either "points" or "poses", found {found}')
    size = _checked_size(path, value.get("size", _USUAL_SIZE))
    poses = [value["points"]] if "points" in value else value["poses"]
    return size, _checked_poses(path, _poses(path, poses))


def _poses(path: str, poses: Any) -> Floats:
    if not isinstance(poses, list) or not poses:
        raise FormatError(f'{path}: expected "poses" to be a list of five points each')
    for number, pose in enumerate(poses, 1):
        if not isinstance(pose, list) or len(pose) != 5 or not all(map(_is_point, pose)):
            where = f"pose {number}: " if len(poses) > 1 else ""
            raise FormatError(f"{path}: {where}expected five points [x, y], each two finite numbers")
    return np.array(poses, np.float64)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_COORDINATE  # NaN is not


def _checked_size(place: str, size: Any) -> float:
    if not _is_number(size) or not 1 <= size <= LARGEST_SIZE:
        raise FormatError(f"{place}: the size: expected a number of pixels from 1 to {LARGEST_SIZE}")
    return float(size)


def _checked_poses(path: str, poses: Floats) -> Floats:
    if len(poses) > MOST_POSES:
        raise FormatError(f"{path}: expected at most {MOST_POSES} poses, found {len(poses)}")
    return poses


def _check(path: str, size: float, poses: Floats) -> None:
    """Refuse poses that nothing can be aligned to, and warn of what is hardly meant."""
    arcface = np.array(_ARCFACE)
    for number, defect in enumerate(similarity_transforms(poses, arcface).defects, 1):
        if defect != FINE:
            raise FormatError(f"{path}: pose {number} of {len(poses)}: its points are equal, on a line or like no face")
    if fits_mirrored(poses, arcface).any():
        _log.warning("%s: looks mirrored; the points begin with the eye on the image's left, the person's right", path)
    if poses.min() < -0.5 or poses.max() > size - 0.5:
        _log.warning("%s: has points outside a crop of %g pixels; is that the size they are given in?", path, size)
