"""Curves, outlines and colours in the head frame: x right, y down, z towards the viewer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]
"""Blue, green, red, each 0 to 255."""
Shape = tuple[Colour, list[Floats]]
"""A colour, and the outlines of shape (n, 3) that it fills, by the even-odd rule."""

BLACK: Colour = (0.0, 0.0, 0.0)
WHITE: Colour = (255.0, 255.0, 255.0)
SHADE: Colour = (24.0, 20.0, 70.0)  # of skin in deep shadow: a dark red


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


def smooth(points: Floats, closed: bool = False) -> Floats:
    """A Catmull-Rom curve through points of shape (n, 3), four steps a span."""
    curve: Floats = _spline(len(points), closed) @ points
    return curve


def between(start: Floats, end: Floats, part: float) -> Floats:
    """The curve a `part` of the way from one curve to another with as many points."""
    return start + (end - start) * part


def resampled(points: Floats, count: int) -> Floats:
    """The `count` points of a curve nearest to even steps along it."""
    return points[np.linspace(0, len(points) - 1, count).round().astype(np.intp)]


@lru_cache(maxsize=64)
def _unit_oval(count: int, power: float) -> Floats:
    angle = np.arange(count) * (2.0 * np.pi / count)
    unit = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(count)])
    oval: Floats = np.sign(unit) * np.abs(unit) ** power
    return oval


def oval(centre: Any, width: float, height: float, *, count: int = 24, power: float = 1.0, tilt: float = 0.0) -> Floats:
    """An ellipse of half axes `width` and `height`; a `power` below 1 makes it a rounded box."""
    points: Floats = _unit_oval(count, power) * (width, height, 0.0)
    points[:, 0] += tilt * points[:, 1]
    points += centre
    return points


def moved(points: Floats, x: float, y: float, z: float = 0.0) -> Floats:
    """Points, or a point, moved by (x, y, z)."""
    result: Floats = points + np.array((x, y, z))
    return result


def mirrored(*right: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """A symmetrical outline from its right half, given from the right to the middle."""
    return right + tuple((-x, y) for x, y in right[::-1] if x)


def flat(points: Any, depth: float) -> Floats:
    """Points (x, y) at one depth, shape (n, 3)."""
    return np.column_stack([np.array(points, dtype=np.float64), np.full(len(points), depth)])


def stroke(path: Floats, widths: Any) -> Floats:
    """The outline of a line of varying width; the lines of cv2 have whole-pixel widths only."""
    along = np.concatenate([path[1:2] - path[:1], path[2:] - path[:-2], path[-1:] - path[-2:-1]])
    across = np.column_stack([-along[:, 1], along[:, 0], np.zeros(len(path))])
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)
    across *= (0.5 * np.asarray(widths) / length)[:, None]
    return np.concatenate([path + across, (path - across)[::-1]])
