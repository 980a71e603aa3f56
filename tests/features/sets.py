"""Feature sets for tests: rows around the centres of classes, their files, and their exact neighbours."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Trap:
    """Makes the folder ``trapped`` when its pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


def archive_of(name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with one member."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        archive.writestr(name, data)
    return whole.getvalue()


def saved(array: Array) -> bytes:
    """What ``np.save`` writes."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def people(rows: int, dimensions: int, of_each: int = 20, *, noise: float = 0.7, seed: int = 0) -> tuple[Array, Array]:
    """Unit rows, float32, around the centres of classes of `of_each` consecutive rows; and the classes."""
    random, labels = np.random.default_rng(seed), np.arange(rows) // of_each
    centres = random.normal(size=(labels.max() + 1, dimensions))
    features = centres[labels] + noise * random.normal(size=(rows, dimensions))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def write_set(root: Path, features: Array, labels: Array | str | None = None, name: str = "a") -> Path:
    """Write a set, with labels as an array or as the text of their file; returns its folder."""
    for folder in ("features", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    features.tofile(root / "features" / f"{name}.bin")
    if labels is not None:
        lines = labels if isinstance(labels, str) else "".join(f"{label}\n" for label in labels.tolist())
        (root / "labels" / f"{name}.meta").write_text(lines)
    return root


def read_set(root: Path, dimensions: int, name: str = "a") -> tuple[Array, list[int]]:
    """The rows and labels as the clustering code reads them: as many rows as there are labels."""
    labels = [int(line) for line in (root / "labels" / f"{name}.meta").read_text().splitlines()]
    rows = np.fromfile(root / "features" / f"{name}.bin", np.float32)
    return rows.reshape(len(labels), dimensions), labels


def nearest(features: Array, k: int) -> tuple[Array, Array]:
    """Ids and distances of the k nearest rows of each row, itself first, the plain way, in float64."""
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 2)
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return ids, np.clip(1 - np.take_along_axis(cosines, ids, axis=1), 0, 1)


def write_neighbours(root: Path, features: Array, k: int) -> Array:
    """Write the neighbours of a set as learn-to-cluster has them; returns the ids of the others, shape (N, k - 1)."""
    ids, distances = nearest(features, k)
    path = root / "knns" / "a" / f"faiss_k_{k}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=np.stack([ids, distances], axis=1))
    return ids[:, 1:]
