"""What a search found: ids and distances, the row itself first, and what must hold of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEAREST", "Neighbours", "what_is_wrong_with", "with_itself_first"]

NEAREST = 2.0**-24
"""The least distance of another row, half the step of float32 below 1, which is less than the products are exact to.

learn-to-cluster sorts each row by distance, in no stable way, and takes the first for the row itself. So a duplicate
must not be at distance 0 too.
"""


class Neighbours(NamedTuple):
    """Of consecutive rows: ids, int32, and distances, 1 - cosine, float32, both of shape (M, k), nearest first."""

    ids: NDArray[np.int32]
    distances: NDArray[np.float32]


def with_itself_first(ids: NDArray[np.int64], cosines: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbours:
    """Put each row first among its own neighbours, at distance 0, and turn cosines into distances.

    Parameters
    ----------
    ids : ndarray of shape (M, k)
        Nearest first; a row may come anywhere among its neighbours, or, behind k duplicates, not at all: then the last
        gives way to it.
    cosines : ndarray of shape (M, k)
    rows : ndarray of shape (M,)
        The numbers of the rows.

    Returns
    -------
    Neighbours
        Distances are 1 - cosine, clipped to [`NEAREST`, 1].
    """
    itself = ids == rows[:, None]
    place = np.where(itself.any(axis=1), itself.argmax(axis=1), ids.shape[1] - 1)
    moved = np.flatnonzero((place > 0) | (ids[:, 0] != rows))
    distances = np.clip(np.float32(1) - cosines, np.float32(NEAREST), np.float32(1))
    narrow = ids.astype(np.int32)
    if len(moved):
        columns = np.arange(ids.shape[1])
        order = np.where(columns <= place[moved, None], columns - 1, columns)  # up to its place, each one further back
        narrow[moved] = np.take_along_axis(narrow[moved], order, axis=1)
        distances[moved] = np.take_along_axis(distances[moved], order, axis=1)
        narrow[moved, 0] = rows[moved]
    distances[:, 0] = 0
    return Neighbours(narrow, distances)


def what_is_wrong_with(block: Neighbours, first: int, rows: int) -> str | None:
    """What is wrong with the neighbours of consecutive rows; None where all is as it must be.

    Parameters
    ----------
    block : Neighbours
    first : int
        The number of its first row.
    rows : int
        In the whole set.
    """
    ids, distances = block
    if not (ids[:, 0] == np.arange(first, first + len(ids))).all():
        return "a row is not the first of its own neighbours"
    if not ((ids >= 0) & (ids < rows)).all():
        return f"an id is not one of 0 to {rows - 1:,}"
    if not ((distances[:, 0] == 0).all() and (distances <= 1).all()):
        return "a distance is not between 0 and 1, or not 0 to the row itself"
    if not (distances[:, 1:] >= distances[:, :-1]).all():
        return "distances do not ascend"
    return None
