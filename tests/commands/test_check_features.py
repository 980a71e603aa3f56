from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from features.sets import people, read_set, write_neighbours, write_set
from support import Ran, tree

Facedata = Callable[..., Ran]
ROWS, DIMENSIONS = 60, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good set ``a``, with its neighbours."""
    rows, labels = people(ROWS, DIMENSIONS, 10, noise=0.3)
    root = write_set(tmp_path / "data", rows, labels)
    write_neighbours(root, rows, 5)
    return root


def test_a_good_set(inline_facedata: Facedata, folder: Path) -> None:
    before = tree(folder)
    ran = inline_facedata("check-features", "data/", "--name", "a")
    assert (ran.status, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[:5] == [
        "a: good",
        "  60 rows of 16 values",
        "  norms: 1 to 1, mean 1; 100.0 % of unit length",
        "  labels: 6 classes of 10 to 10 rows, median 10, 0 of one",
        "  neighbours: data/knns/a/faiss_k_5.npz: k 5, float64, layout of learn-to-cluster",
    ]
    assert "of 4 neighbours (at most 100.0 % with these classes)" in lines[5]
    assert lines[5].endswith("from data/knns/a/faiss_k_5.npz")
    assert len(lines) == 8
    assert tree(folder) == before


def test_an_error_has_a_line(inline_facedata: Facedata, folder: Path) -> None:
    with open(folder / "labels/a.meta", "a") as file:
        file.write("5\n")
    ran = inline_facedata("check-features", "data", "--name", "a", "--dim", 16)
    assert (ran.status, ran.stdout.splitlines()[0]) == (1, "a: 1 error")
    (line,) = [line for line in ran.stdout.splitlines() if ": WRONG: " in line]
    assert line == (
        "data/features/a.bin: WRONG: expected 3,904 bytes for 61 rows of 16 float32, found 3,840: "
        "it has 60 rows, 1 fewer (61 lines in data/labels/a.meta); "
        "find the labels of this matrix, or give the right --dim"
    )
    facts = json.loads(inline_facedata("check-features", "data", "--dim", 16, "--json").stdout)
    assert (facts["good"], facts["plot"], len(facts["sets"])) == (False, None, 1)
    (finding,) = facts["sets"][0]["findings"]
    assert (finding["path"], finding["check"], finding["wrong"]) == ("data/features/a.bin", "size", True)


def test_a_matrix_alone_and_missing_files(inline_facedata: Facedata, folder: Path) -> None:
    matrix = "data/features/a.bin"
    ran = inline_facedata("check-features", matrix, "--dim", 16)
    assert (ran.status, ran.stdout[:37]) == (0, "a.bin: good\n  60 rows of 16 values\n  "[:37])
    for arguments, status, said in (
        ((matrix,), 2, "give --dim"),
        ((matrix, "--dim", 16, "--name", "a"), 2, "--name does not apply to a matrix"),
        (("none.bin", "--dim", 4), 1, "no such file"),
        (("data", "--name", "b"), 1, "no such file"),
    ):
        ran = inline_facedata("check-features", *arguments)
        assert (ran.status, said in ran.stderr) == (status, True)


def test_all_sets_of_a_folder(inline_facedata: Facedata, folder: Path) -> None:
    write_set(folder, np.zeros((ROWS, DIMENSIONS), np.float32), "-1\n" * ROWS, "b")
    ran = inline_facedata("check-features", "data")
    assert ran.status == 1
    for line in ("a: good", "b: 1 error", "  labels: none; 60 rows unlabelled"):
        assert f"{line}\n" in ran.stdout
    refused = inline_facedata("check-features", "data", "--plot", "a.png")
    assert (refused.status, "one of a, b" in refused.stderr) == (2, True)


def test_notes_fail_only_where_asked(inline_facedata: Facedata, folder: Path) -> None:
    rows, labels = read_set(folder, DIMENSIONS)
    rows[7] = rows[3]
    write_set(folder, rows, np.array(labels))
    (folder / "knns/a/faiss_k_5.npz").unlink()
    ran = inline_facedata("check-features", "data", "--name", "a", "--k", 5)
    assert ran.status == 0
    note = "note: expected each row once, found 1 copy of others in 1 group: rows 3, 7"
    for words in ("a: good, 1 note\n", note, "of 4 neighbours", "from exact neighbours of 60 rows"):
        assert words in ran.stdout
    assert inline_facedata("check-features", "data", "--name", "a", "--strict").status == 1


def test_a_plot(inline_facedata: Facedata, folder: Path, tmp_path: Path) -> None:
    ran = inline_facedata("check-features", "data", "--plot", "a.png")
    assert ran.status == 0, ran.stderr
    assert ran.stdout.endswith("plot: a.png\n")
    before = (tmp_path / "a.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    again = inline_facedata("check-features", "data", "--plot", "a.png", "--overwrite", "--json")
    assert json.loads(again.stdout)["plot"] == "a.png"
    assert (tmp_path / "a.png").read_bytes() == before
