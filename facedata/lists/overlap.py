"""People who are in two sets, or twice in one: classes whose centres in feature space are near each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.columns import read_labels, whole_lines
from facedata.dataset import open_dataset
from facedata.errors import EmptyDatasetError, InputNotFoundError, OptionError
from facedata.features.checks import set_names
from facedata.features.feature_set import OpenedSet, open_feature_set
from facedata.features.neighbours.search import to_unit_length

__all__ = ["Centres", "Match", "class_centres", "draw_matches", "find_overlap"]

Floats = NDArray[np.float32]

_ROWS, _COLUMNS = 1024, 16384  # of the products that are computed at a time: 64 MiB
_MOST = 5_000_000
_MOST_DRAWN, _IMAGES_DRAWN = 20, 4
_LONGEST_KEY = 1 << 14


@dataclass(frozen=True)
class Centres:
    """The mean directions of the classes of a feature set.

    Attributes
    ----------
    labels : ndarray of shape (C,), int64
        Ascending.
    names : sequence of str
        For each class the folder of its images, by the keys of the set, or else its label.
    vectors : ndarray of shape (C, D), float32
        At unit length.
    """

    path: str
    labels: NDArray[np.int64]
    names: Sequence[str]
    vectors: Floats


class Match(NamedTuple):
    """Two classes, by their positions in the centres, and the cosine similarity of these."""

    first: int
    second: int
    similarity: float


def class_centres(path: str) -> Centres:
    """The centres of the classes of a feature set: the means of their rows at unit length; -1 is no class.

    Parameters
    ----------
    path : str
        The folder of the set, or its matrix ``features/NAME.bin``.

    Raises
    ------
    OptionError
        If the folder has several sets.
    InputError
        If the set cannot be read, or has no labels.
    """
    opened = _open(path)
    labels = np.concatenate(list(read_labels(opened.files.labels)))
    there = np.unique(labels[labels >= 0])
    if not len(there):
        raise EmptyDatasetError(f"{opened.files.labels}: no row has a label, so there are no people to compare")
    sums = np.zeros((len(there), opened.matrix.dimensions), np.float32)
    for first, block in opened.matrix.blocks():
        known = np.flatnonzero(labels[first : first + len(block)] >= 0)
        if not len(known):
            continue
        rows = to_unit_length(block, first, opened.matrix.path)
        codes = np.searchsorted(there, labels[first + known])
        order = np.argsort(codes, kind="stable")
        kinds, starts = np.unique(codes[order], return_index=True)
        sums[kinds] += np.add.reduceat(rows[known[order]], starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    np.divide(sums, lengths, out=sums, where=lengths > 0)
    return Centres(path, there, _names(opened, labels, there), sums)


def _open(path: str) -> OpenedSet:
    if not os.path.lexists(path):
        raise InputNotFoundError(f"{path}: no such file or folder; expected a feature set, or its features/NAME.bin")
    if not os.path.isdir(path):
        folder, file = os.path.split(os.path.abspath(path))
        return open_feature_set(os.path.dirname(folder), file.removesuffix(".bin"))
    names = set_names(path)
    if len(names) > 1:
        choice = os.path.join(path, "features", f"{names[0]}.bin")
        raise OptionError(f"{path}: has {len(names)} sets; name the matrix of one, as {choice}")
    return open_feature_set(path, names[0])


def _names(opened: OpenedSet, labels: NDArray[np.int64], there: NDArray[np.int64]) -> list[str]:
    """The folder that all images of a class are in, if each class has its own; else the label."""
    folders: dict[int, str] = {}
    if os.path.isfile(opened.files.keys):
        place = 0
        for lines in whole_lines(opened.files.keys, _LONGEST_KEY):
            for key in lines.block.decode(errors="surrogateescape").splitlines():
                label, folder = int(labels[place]), key.rpartition("/")[0]
                place += 1
                if label >= 0 and folders.setdefault(label, folder) != folder:
                    folders[label] = ""
    names = [folders.get(label, "") for label in there.tolist()]
    return names if all(names) and len(set(names)) == len(names) else list(map(str, there.tolist()))


def find_overlap(first: Centres, second: Centres | None, threshold: float) -> list[Match]:
    """The pairs of classes whose centres have at least this cosine similarity, the most similar first.

    Without `second`, the pairs within `first`, each once.

    Raises
    ------
    OptionError
        If the sets have different dimensions, or more than five million pairs are that similar.
    """
    within = second is None
    other = first if second is None else second
    if first.vectors.shape[1] != other.vectors.shape[1]:
        raise OptionError(
            f"{first.path} has {first.vectors.shape[1]} values a row, {other.path} has {other.vectors.shape[1]}; "
            "compare features of one model"
        )
    matches: list[Match] = []
    for row in range(0, len(first.vectors), _ROWS):
        for column in range(row if within else 0, len(other.vectors), _COLUMNS):
            products = first.vectors[row : row + _ROWS] @ other.vectors[column : column + _COLUMNS].T
            if products.max() < threshold:
                continue
            places = np.argwhere(products >= threshold)
            values = products[places[:, 0], places[:, 1]].tolist()
            pairs = zip((places + (row, column)).tolist(), values, strict=True)
            matches += [Match(a, b, value) for (a, b), value in pairs if not within or a < b]
            if len(matches) > _MOST:
                raise OptionError(
                    f"more than {_MOST:,} pairs have a similarity of {threshold} or more; raise --threshold"
                )
    return sorted(matches, key=lambda match: (-match.similarity, match))


def draw_matches(
    path: str, matches: Sequence[Match], centres: Sequence[Centres], datasets: Sequence[str], *, overwrite: bool = False
) -> None:
    """Draw the most similar pairs as a contact sheet: in each row images of the one, then of the other.

    `datasets` are those that the features were computed from, with the same labels: one for each of the centres.
    """
    from facedata.align.codec import decode_image
    from facedata.contact_sheet import write_contact_sheet

    shown = matches[:_MOST_DRAWN]
    sources = [open_dataset(spec) for spec in datasets]
    every = [source.labels() for source in sources]
    rows = []
    for match in shown:
        row = []
        for side, position in ((0, match.first), (-1, match.second)):
            places = np.flatnonzero(every[side] == centres[side].labels[position])[:_IMAGES_DRAWN]
            row += [decode_image(item.image) for item in sources[side].take(places)]
        rows.append(row)
    names = [(centres[0].names[match.first], centres[-1].names[match.second]) for match in shown]
    texts = [f"{match.similarity:.2f} {a} {b}" for match, (a, b) in zip(shown, names, strict=True)]
    write_contact_sheet(path, rows, labels=texts, overwrite=overwrite)
