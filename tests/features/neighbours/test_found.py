"""The row itself first, distances from cosines, and what must hold of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.features.neighbours.found import NEAREST, Neighbours, what_is_wrong_with, with_itself_first


def search_with_ties(values: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows against all, where the cosines have many ties, and a row is not always its own first or among its k."""
    cosines = np.array([[1 - abs(a - b) / 4 for b in values] for a in values], np.float32)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order.astype(np.int64), np.take_along_axis(cosines, order, axis=1)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.data())
def test_the_row_itself_comes_first_whatever_ties_with_it(values: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    ids, cosines = search_with_ties(values, k)
    found = with_itself_first(ids, cosines, np.arange(len(values)))
    assert what_is_wrong_with(found, 0, len(values)) is None
    assert (found.ids.dtype, found.distances.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
    for row, (before, after) in enumerate(zip(ids.tolist(), found.ids.tolist(), strict=True)):
        others = [one for one in before if one != row]
        assert after == [row, *others[: k - 1]]  # the others in the order in which they were found
    others_at = [[abs(values[row] - values[one]) / 4 for one in ids[1:]] for row, ids in enumerate(found.ids.tolist())]
    expected = np.clip(np.array(others_at, np.float32).reshape(len(values), k - 1), NEAREST, 1)
    np.testing.assert_array_equal(found.distances[:, 1:], expected)


def test_noise_about_one_and_cosines_below_zero_are_cut_off() -> None:
    cosines = np.array([[1.0000002, 1.0000001, 0.5, -0.25]], np.float32)
    found = with_itself_first(np.array([[7, 3, 1, 2]]), cosines, np.array([3]))
    assert found.ids.tolist() == [[3, 7, 1, 2]]
    assert found.distances.tolist() == [[0.0, NEAREST, 0.5, 1.0]]


@pytest.mark.parametrize("sort", ["quicksort", "heapsort", "stable"])
def test_a_reader_that_sorts_by_distance_keeps_the_row_first(sort: Any) -> None:
    rows = np.arange(50)
    ids = np.tile(rows, (50, 1)).astype(np.int64)  # all rows are the same
    found = with_itself_first(ids, np.ones((50, 50), np.float32), rows)
    order = np.argsort(found.distances, axis=1, kind=sort)
    np.testing.assert_array_equal(np.take_along_axis(found.ids, order, axis=1)[:, 0], rows)


@pytest.mark.parametrize(
    ("ids", "distances", "said"),
    [
        ([[5, 1, 2]], [[0, 0.1, 0.2]], None),
        ([[1, 5, 2]], [[0, 0.1, 0.2]], "not the first"),
        ([[5, 1, 9]], [[0, 0.1, 0.2]], "not one of 0 to 8"),
        ([[5, -1, 2]], [[0, 0.1, 0.2]], "not one of 0 to 8"),
        ([[5, 1, 2]], [[0.1, 0.1, 0.2]], "not 0 to the row itself"),
        ([[5, 1, 2]], [[0, 0.1, 1.1]], "not between 0 and 1"),
        ([[5, 1, 2]], [[0, 0.1, np.nan]], "not between 0 and 1"),
        ([[5, 1, 2]], [[0, 0.2, 0.1]], "do not ascend"),
        ([[5, 1, 2]], [[0, -0.1, 0.1]], "do not ascend"),
    ],
)
def test_what_is_wrong_is_said(ids: list[list[int]], distances: list[list[float]], said: str | None) -> None:
    found = what_is_wrong_with(Neighbours(np.array(ids, np.int32), np.array(distances, np.float32)), 5, 9)
    assert found is None if said is None else said in str(found)
