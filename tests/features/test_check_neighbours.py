"""Files of nearest neighbours: the layouts, each thing that can be wrong in them, and archives made to do harm."""

from __future__ import annotations

import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from features.sets import Array, Trap, archive_of, nearest, people
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of, peak_bytes

from facedata.errors import FacedataError
from facedata.features.checks.neighbours import check_neighbours, neighbour_files
from facedata.features.checks.report import Finding, NeighbourFile
from facedata.features.feature_set import open_matrix

ROWS, K, DIMENSIONS = 40, 6, 8
FEATURES = people(ROWS, DIMENSIONS, 1)[0]


def good(k: int = K) -> Array:
    """Exact neighbours of `FEATURES`, shape (N, 2, k)."""
    ids, distances = nearest(FEATURES, k)
    distances[:, 0] = 0
    return np.stack([ids, distances], axis=1)


def check(folder: Path, rows: int = ROWS, **arrays: Array) -> tuple[NeighbourFile, list[Finding]]:
    path = folder / "faiss_k_6.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return check_neighbours(str(path), rows)


def messages(findings: list[Finding]) -> list[str]:
    return [f"{found.check.removeprefix('neighbours: ')}: {found.message}" for found in findings]


@pytest.mark.parametrize(("kind", "save"), [("<f4", np.savez), (">f8", np.savez_compressed)])
def test_learn_to_cluster(tmp_path: Path, kind: str, save: Any) -> None:
    path = tmp_path / "faiss_k_6.npz"
    save(path, data=good().astype(kind))
    FEATURES.tofile(tmp_path / "a.bin")
    labels = np.arange(ROWS) % 3
    file, findings = check_neighbours(str(path), ROWS, labels, open_matrix(tmp_path / "a.bin", DIMENSIONS))
    assert (findings, file.layout, file.k, file.rows) == ([], "learn-to-cluster", K, ROWS)
    ids = good()[:, 0, 1:].astype(int)
    assert file.same_label is not None
    assert file.same_label.all == pytest.approx((labels[ids] == labels[:, None]).mean())


def test_cdp_may_leave_out_the_row_itself_and_fill_with_minus_one(tmp_path: Path) -> None:
    ids, distances = good()[:, 0, 1:].astype(np.int32), good()[:, 1, 1:].astype(np.float32) + 1
    ids[3, -2:], distances[3, -2:] = -1, -1
    file, findings = check(tmp_path, idx=ids, dist=distances)
    assert (file.layout, file.k, findings) == ("cdp", K - 1, [])


def test_gcn_and_two_files(tmp_path: Path) -> None:
    gcn, ids, distances = (tmp_path / f"faiss_k_{name}.npy" for name in ("5.gcn", "6.ids", "6.distances"))
    wrong = good()[:, 0].astype(int)
    wrong[4, :2] = wrong[4, 1::-1]
    for path, array in ((gcn, wrong), (ids, good()[:, 0].astype(int)), (distances, good()[:, 1].astype("f4"))):
        np.save(path, array)
    assert neighbour_files(str(tmp_path)) == [str(gcn), str(ids)]
    assert neighbour_files(str(tmp_path), 6) == [str(ids)]
    assert neighbour_files(str(tmp_path / "none")) == []
    file, findings = check_neighbours(str(gcn), ROWS)
    assert (file.layout, file.k) == ("gcn", K)
    assert messages(findings) == ["order: expected the row itself first, found it later in 1 of 40: row 4"]
    file, findings = check_neighbours(str(ids), ROWS)
    assert (file.layout, file.k, file.dtype, findings) == ("npy", K, "float32", [])


@pytest.mark.parametrize(
    ("arrays", "rows", "expected"),
    [
        ({"data": good()}, 41, "shape: expected neighbours of 41 rows, found those of 40"),
        ({"data": np.zeros((4, 2, 7))}, 4, "shape: expected at most 4 neighbours, as many as there are rows, found k"),
        ({"data": np.zeros((3000, 2, 1), "f2")}, 3000, "shape: float16 holds row numbers up to 2,048 only, but there"),
        ({"data": good().astype(int)}, ROWS, "shape: expected float32 or float64, since distances are in it too"),
        ({"data": good(k=5)}, ROWS, "name: expected k = 6 from its name, found 5 neighbours of a row"),
        ({"data": good().reshape(ROWS, K, 2)}, ROWS, "file: expected 'data' of shape (N, 2, k)"),
        ({"data": good()[:, :, :0]}, ROWS, "file: expected 'data' of shape (N, 2, k)"),
        ({"data": good().astype("U3")}, ROWS, "file: array 'data': expected an array of numbers"),
        ({"data": np.asfortranarray(good())}, ROWS, "file: array 'data': is stored column by column"),
        ({"knn": good()}, ROWS, "file: expected 'data' of shape (N, 2, k)"),
        ({"idx": good()[:, 0], "dist": good()[:, 1, 1:]}, ROWS, "file: expected 'data' of shape (N, 2, k)"),
    ],
)
def test_other_shapes_and_types(tmp_path: Path, arrays: dict[str, Array], rows: int, expected: str) -> None:
    (message,) = messages(check(tmp_path, rows, **arrays)[1])
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("place", "values", "expected"),
    [
        (np.s_[5, 0, 3], 40, ["ids: expected row numbers from 0 to 39, found others"]),
        (np.s_[5, 0, 3], 2.5, ["ids: expected row numbers from 0 to 39, found others"]),
        (np.s_[5, 0, 3], np.nan, ["ids: expected row numbers from 0 to 39, found others"]),
        (np.s_[5, 1, -1], np.nan, ["NaN: expected finite distances, found NaN or infinity"]),
        (np.s_[5, 1, -1], 1.1, ["range: expected distances 1 - cosine from -1e-05 to 1 + 1e-05, found others"]),
        (np.s_[5, :, 1:], good()[5, :, :0:-1], ["descending: expected ascending distances, found descending ones"]),
        (np.s_[5, 0, 0], good()[5, 0, 1], ["row itself: expected every row", "ids twice: expected different"]),
        (np.s_[5, :, :2], [good()[5, 0, 1::-1], [0, 0.005]], ["order: expected the row itself first, found it later"]),
    ],
    ids=str,
)
def test_a_wrong_row(tmp_path: Path, place: Any, values: Any, expected: list[str]) -> None:
    array = good()
    array[place] = values
    _, findings = check(tmp_path, data=array)
    assert all(found.wrong for found in findings)
    for message, words in zip(messages(findings), expected, strict=True):
        assert message.startswith(words)
        assert message.endswith(" in 1 of 40: row 5")


def test_ties_are_noted_and_distances_of_other_features_found(tmp_path: Path) -> None:
    FEATURES[::-1].tofile(tmp_path / "a.bin")
    array = good()
    array[3, :, :2] = array[3, 0, 1::-1], [0, 0]
    np.savez(tmp_path / "x.npz", data=array)
    matrix = open_matrix(tmp_path / "a.bin", DIMENSIONS)
    other, note = check_neighbours(str(tmp_path / "x.npz"), ROWS, None, matrix)[1]
    assert "found other distances in 4" in other.message
    expected = "the row itself comes after others at the same distance in 1: row 3"
    assert (other.wrong, note.wrong, note.message) == (True, False, expected)


# Made to do harm


def member(shape: str = "(40, 2, 6)", kind: str = "'<f8'", values: int = 40 * 12 * 8) -> bytes:
    """What is in an archive for an array, its header made by hand."""
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(values)


def npz_of(data: bytes) -> bytes:
    return archive_of("data.npy", data, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    "data",
    [
        b"PK",
        pickle.dumps(Trap()),
        npz_of(member(kind="'|O'") + pickle.dumps(Trap())),
        npz_of(member(shape="(40, 2, 1000000000000)")),
        npz_of(member())[:-30],
    ],
    ids=range(5),
)
def test_a_hostile_file_is_one_clear_finding(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with file_of(data, "faiss_k_6.npz") as path:
        file, (finding,) = check_neighbours(str(path), ROWS)
    assert (finding.wrong, len(finding.line()) < 600, file.same_label) == (True, True, None)
    assert not (tmp_path / "trapped").exists()


def test_a_zip_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "faiss_k_6.npz"
    path.write_bytes(npz_of(member("(40, 2, 2000000)", values=0) + bytes(40_000_000)))  # far less than it says
    assert peak_bytes(lambda: check_neighbours(str(path), ROWS)) < 4_000_000
    assert "1,280,000,128 bytes" in check_neighbours(str(path), ROWS)[1][0].message


@settings(max_examples=20)
@given(data=st.data())
def test_any_damage_gives_findings_and_no_crash(data: st.DataObject) -> None:
    whole = npz_of(member()) if data.draw(st.booleans()) else member()
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    broken = broken[: data.draw(st.integers(1, len(whole)))]
    with file_of(bytes(broken), "faiss_k_6.npz") as path, suppress(FacedataError):
        assert all(finding.line() for finding in check_neighbours(str(path), ROWS)[1])
