"""NumPy's files written block by block, and the formats of the readers."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from facedata.features.neighbours import formats
from facedata.features.neighbours.formats import FORMATS
from facedata.features.neighbours.found import Neighbours
from facedata.features.neighbours.writing import StreamedArray, npy_header, write_npy, write_npz

Array = NDArray[Any]


def streamed(name: str, array: Array, step: int) -> StreamedArray:
    return StreamedArray(
        name, array.dtype, array.shape, lambda: (array[begin : begin + step] for begin in range(0, len(array), step))
    )


@given(
    st.sampled_from(["<f4", "<f8", "<i4", "|u1"]),
    st.integers(0, 20),
    st.integers(1, 5),
    st.integers(1, 7),
    st.booleans(),
)
def test_numpy_reads_the_array_that_came_in_blocks(dtype: str, rows: int, k: int, step: int, fortran: bool) -> None:
    array = np.random.default_rng(0).integers(0, 200, (rows, k)).astype(dtype)
    given = np.asfortranarray(array) if fortran else array
    with TemporaryDirectory() as folder:
        write_npy(f"{folder}/a.npy", streamed("a", given, step))
        write_npz(f"{folder}/a.npz", [streamed("one", given, step), streamed("two", given[:1], step)])
        mapped = np.load(f"{folder}/a.npy", mmap_mode="r", allow_pickle=False)
        assert mapped.dtype == array.dtype
        np.testing.assert_array_equal(mapped, array)
        with np.load(f"{folder}/a.npz", allow_pickle=False) as both:
            np.testing.assert_array_equal(both["one"], array)
            np.testing.assert_array_equal(both["two"], array[:1])


def test_a_header_is_the_one_that_numpy_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 5), np.float32))
    assert (tmp_path / "a.npy").read_bytes().startswith(npy_header("<f4", (3, 2, 5)))
    assert (tmp_path / "a.npy").stat().st_size == len(npy_header("<f4", (3, 2, 5))) + 3 * 2 * 5 * 4


def test_the_bytes_do_not_depend_on_the_blocks_or_the_day(tmp_path: Path) -> None:
    array = np.arange(30, dtype=np.float32).reshape(10, 3)
    for step in (1, 3, 10):
        write_npz(str(tmp_path / f"{step}.npz"), [streamed("data", array, step)])
    assert len({(tmp_path / f"{step}.npz").read_bytes() for step in (1, 3, 10)}) == 1
    with zipfile.ZipFile(tmp_path / "1.npz") as archive:
        assert archive.testzip() is None
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_nothing_is_left_where_a_block_cannot_be_had(tmp_path: Path) -> None:
    def broken() -> Iterator[Array]:
        yield np.zeros((1, 2), np.float32)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_npz(str(tmp_path / "a.npz"), [StreamedArray("data", "<f4", (2, 2), broken)])
    assert list(tmp_path.iterdir()) == []


def some_blocks() -> tuple[Neighbours, list[Neighbours]]:
    ids = np.array([[0, 2, 1], [1, 0, 2], [2, 0, 1]], np.int32)
    distances = np.array([[0, 0.25, 0.5], [0, 0.5, 0.75], [0, 0.25, 0.75]], np.float32)
    return Neighbours(ids, distances), [Neighbours(ids[:2], distances[:2]), Neighbours(ids[2:], distances[2:])]


def test_each_format_is_as_its_reader_wants_it(tmp_path: Path) -> None:
    whole, blocks = some_blocks()
    for name in FORMATS:
        path = str(tmp_path / f"a{FORMATS[name].ending}")
        FORMATS[name].write(path, lambda: iter(blocks), 3, 3)
        assert all(Path(file).is_file() for file in FORMATS[name].files(path))
    with np.load(tmp_path / "a.npz") as ltc:
        assert ltc.files == ["data"]
        assert ltc["data"].dtype == np.float32
        np.testing.assert_array_equal(ltc["data"], np.stack(whole, axis=1))
    with np.load(tmp_path / "a.cdp.npz") as cdp:
        assert [cdp["idx"].dtype, cdp["dist"].dtype] == [np.int32, np.float32]
        np.testing.assert_array_equal(cdp["idx"], whole.ids)
        np.testing.assert_array_equal(cdp["dist"], whole.distances)
    gcn = np.load(tmp_path / "a.gcn.npy")
    assert gcn.dtype == np.int32
    np.testing.assert_array_equal(gcn, whole.ids)
    np.testing.assert_array_equal(np.load(tmp_path / "a.ids.npy", mmap_mode="r"), whole.ids)
    np.testing.assert_array_equal(np.load(tmp_path / "a.distances.npy", mmap_mode="r"), whole.distances)


def test_ids_that_float32_cannot_hold_make_it_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_EXACT_IN_FLOAT32", 2)
    whole, blocks = some_blocks()
    FORMATS["ltc"].write(str(tmp_path / "a.npz"), lambda: iter(blocks), 3, 3)
    with np.load(tmp_path / "a.npz") as ltc:
        assert ltc["data"].dtype == np.float64
        np.testing.assert_array_equal(ltc["data"], np.stack(whole, axis=1))
