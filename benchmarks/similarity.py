"""The similarity transform from five landmarks to the ArcFace template: scikit-image face by face, and ours, in turn.

    python benchmarks/similarity.py [--repeats 9]

Ours is given faces one at a time, as a detector finds them, and in batches of several sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage.transform import SimilarityTransform

from facedata.align.similarity import similarity_transforms
from facedata.align.templates import load_template

Floats = NDArray[np.float64]

BATCHES = (1, 10, 100, 256, 1000, 10_000, 100_000)
SECONDS = 0.15
THEIRS, POSES = "scikit-image, one by one", "ours, 5 poses, 256 at once"
ARCFACE = load_template("arcface", 112).points
FIVE_POSES = load_template("facexzoo-5pose", 112).points


def faces(count: int) -> Floats:
    """The template shaken by some pixels, turned, scaled and shifted."""
    random = np.random.default_rng(0)
    shaken = (ARCFACE + random.normal(0.0, 3.0, (count, 5, 2))).view(np.complex128)[..., 0]
    turns = random.uniform(0.5, 3.0, (count, 1)) * np.exp(1j * random.uniform(-0.7, 0.7, (count, 1)))
    moved = (shaken - 56 - 56j) * turns + random.uniform(100.0, 150.0, (count, 1)) * (1 + 1j)
    return np.stack([moved.real, moved.imag], axis=-1)


def scikit_image(landmarks: Floats) -> None:
    for one in landmarks:
        SimilarityTransform.from_estimate(one, ARCFACE[0])


def in_batches(landmarks: Floats, size: int, template: Floats) -> None:
    for first in range(0, len(landmarks), size):
        similarity_transforms(landmarks[first : first + size], template)


def ways() -> dict[str, tuple[int, Callable[[Floats], None]]]:
    """What is compared: how many faces are done before the clock is looked at, and how."""
    compared: dict[str, tuple[int, Callable[[Floats], None]]] = {THEIRS: (100, scikit_image)}
    for size in BATCHES:
        name = f"ours, {size:,} at once" if size > 1 else "ours, one by one"
        compared[name] = max(size, 100), lambda landmarks, size=size: in_batches(landmarks, size, ARCFACE)  # type: ignore[misc]
    compared[POSES] = 256, lambda landmarks: in_batches(landmarks, 256, FIVE_POSES)
    return compared


def microseconds(way: Callable[[Floats], None], landmarks: Floats) -> float:
    """Microseconds for a face."""
    done, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < SECONDS:
        way(landmarks)
        done += len(landmarks)
    return elapsed / done * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    compared = ways()
    measured: dict[str, list[float]] = {name: [] for name in compared}
    landmarks = faces(max(BATCHES))
    for _ in range(parser.parse_args().repeats):
        for name, (count, way) in compared.items():
            measured[name].append(microseconds(way, landmarks[:count]))
    for name, times in measured.items():
        line = f"{name:28s} {statistics.median(times):8.3f} us a face  ({min(times):.3f} to {max(times):.3f})"
        ratios = [theirs / ours for theirs, ours in zip(measured[THEIRS], times, strict=True)]
        ratio = f"  scikit-image / ours: {statistics.median(ratios):6.1f}  ({min(ratios):.1f} to {max(ratios):.1f})"
        print(line if name == THEIRS else line + ratio)


if __name__ == "__main__":
    main()
