"""Neighbours keep their rules, and their files are what the readers open."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from features.sets import Array
from hypothesis import given
from hypothesis import strategies as st

from facedata.features.neighbours.files import FORMATS, NEAREST, Neighbours, what_is_wrong_with, with_itself_first


def search_with_ties(values: list[int], k: int) -> tuple[Array, Array]:
    """All rows against all, with many equal cosines; a row is not always its own first, or among its k at all."""
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
        others = [other for other in before if other != row]
        assert after == [row, *others[: k - 1]]  # the others in the order in which they were found
    at = [[abs(values[row] - values[other]) / 4 for other in ids[1:]] for row, ids in enumerate(found.ids.tolist())]
    expected = np.clip(np.array(at, np.float32).reshape(len(values), k - 1), NEAREST, 1)
    np.testing.assert_array_equal(found.distances[:, 1:], expected)


@pytest.mark.parametrize(
    ("ids", "distances", "said"),
    [
        ([[1, 5, 2]], [[0, 0.1, 0.2]], "not the first"),
        ([[5, 1, 9]], [[0, 0.1, 0.2]], "not between 0 and 8"),
        ([[5, 1, 2]], [[0.1, 0.1, 0.2]], "the distance to the row itself is not 0"),
        ([[5, 1, 2]], [[0, 0.1, np.nan]], "not between 0 and 1"),
        ([[5, 1, 2]], [[0, -0.1, 0.1]], "do not ascend"),
    ],
)
def test_a_broken_rule_is_named(ids: list[list[int]], distances: list[list[float]], said: str) -> None:
    found = what_is_wrong_with(Neighbours(np.array(ids, np.int32), np.array(distances, np.float32)), 5, 9)
    assert said in str(found)


WHOLE = Neighbours(
    np.array([[0, 2, 1], [1, 0, 2], [2, 0, 1]], np.int32),
    np.array([[0, 0.25, 0.5], [0, 0.5, 0.75], [0, 0.25, 0.75]], np.float32),
)


def blocks(*ends: int) -> list[Neighbours]:
    bounds = zip((0, *ends), (*ends, 3), strict=True)
    return [Neighbours(WHOLE.ids[begin:end], WHOLE.distances[begin:end]) for begin, end in bounds]


def test_each_format_is_what_its_reader_expects(tmp_path: Path) -> None:
    for file_format in FORMATS.values():
        path = str(tmp_path / f"a{file_format.ending}")
        file_format.write(path, lambda: iter(blocks(2)), 3, 3)
        assert all(Path(file).is_file() for file in file_format.files(path))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as ltc:
        assert (ltc.files, ltc["data"].dtype) == (["data"], np.float32)
        np.testing.assert_array_equal(ltc["data"], np.stack(WHOLE, axis=1))
    with np.load(tmp_path / "a.cdp.npz", allow_pickle=False) as cdp:
        assert [cdp["idx"].dtype, cdp["dist"].dtype] == [np.int32, np.float32]
        np.testing.assert_array_equal(cdp["idx"], WHOLE.ids)
        np.testing.assert_array_equal(cdp["dist"], WHOLE.distances)
    for name, expected in (("gcn", WHOLE.ids), ("ids", WHOLE.ids), ("distances", WHOLE.distances)):
        np.save(tmp_path / "expected.npy", expected)
        assert (tmp_path / f"a.{name}.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_the_bytes_do_not_depend_on_the_blocks_or_the_day(tmp_path: Path) -> None:
    for number, ends in enumerate([(), (1,), (1, 2)]):
        FORMATS["ltc"].write(str(tmp_path / f"{number}.npz"), lambda ends=ends: iter(blocks(*ends)), 3, 3)  # type: ignore[misc]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with zipfile.ZipFile(tmp_path / "0.npz") as archive:
        assert archive.testzip() is None
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_ids_that_float32_cannot_hold_make_it_float64(tmp_path: Path) -> None:
    rows = (1 << 24) + 1
    FORMATS["ltc"].write(str(tmp_path / "a.npz"), lambda: iter(blocks(2)), rows, 3)  # far fewer rows than it says
    with zipfile.ZipFile(tmp_path / "a.npz") as archive, archive.open("data.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        assert np.lib.format.read_array_header_1_0(member) == ((rows, 2, 3), False, np.dtype("<f8"))
        found = np.frombuffer(member.read(), "<f8").reshape(3, 2, 3)
    np.testing.assert_array_equal(found, np.stack(WHOLE, axis=1))
