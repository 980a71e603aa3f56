"""People in two sets: compared with the whole matrix product, and dropped by the list that is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import Ran, jpeg, write_tree

from facedata.lists import overlap
from facedata.lists.overlap import class_centres, find_overlap

Facedata = Callable[..., Ran]


def write_set(folder: Path, vectors: np.ndarray, labels: list[int], keys: list[str] | None = None) -> None:
    write_tree(folder, {"labels/a.meta": "".join(f"{label}\n" for label in labels), "features/x": ""})
    (folder / "features" / "x").unlink()
    (folder / "features" / "a.bin").write_bytes(vectors.astype("<f4").tobytes())
    if keys:
        (folder / "features" / "a.keys.txt").write_text("".join(f"{key}\n" for key in keys))


@pytest.mark.parametrize("within", [False, True])
def test_pairs_are_those_of_the_whole_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: bool) -> None:
    monkeypatch.setattr(overlap, "_ROWS", 7)
    monkeypatch.setattr(overlap, "_COLUMNS", 5)
    random = np.random.default_rng(0)
    sets, products = [], []
    for name in "ab":
        labels = random.integers(-1, 30, 200).tolist()
        rows = random.standard_normal((200, 6)) * random.uniform(0.1, 9, (200, 1))
        write_set(tmp_path / name, rows, labels)
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        there = sorted(set(labels) - {-1})
        means = np.array([units[np.array(labels) == label].mean(axis=0) for label in there])
        products.append(means / np.linalg.norm(means, axis=1, keepdims=True))
        sets.append(class_centres(str(tmp_path / name)))
        np.testing.assert_allclose(sets[-1].vectors, products[-1], atol=1e-5)
    found = find_overlap(sets[0], None if within else sets[1], 0.5)
    whole = products[0] @ products[0 if within else 1].T
    expected = {(a, b) for a, b in np.argwhere(whole >= 0.5).tolist() if not within or a < b}
    assert {match[:2] for match in found} == expected
    assert [match.similarity for match in found] == sorted((match.similarity for match in found), reverse=True)


def test_the_people_of_a_test_set_leave_the_training_set(inline_facedata: Facedata) -> None:
    random = np.random.default_rng(1)
    people = random.standard_normal((6, 16))
    train = [f"{name}/{n}.jpg" for name in ("ann", "bob", "cid", "dee") for n in range(3)]
    write_tree(Path("train"), {key: jpeg(key) for key in train})
    noise = random.standard_normal((12, 16)) * 0.1
    write_set(Path("t"), np.repeat(people[:4], 3, axis=0) + noise, [n // 3 for n in range(12)], train)
    write_set(Path("l"), people[[5, 2, 1, 1]], [0, 1, 2, 2])
    ran = inline_facedata("find-overlap", "t", "l/features/a.bin", "-o", "overlap.txt")
    assert ran.stdout == "overlap.txt: 2 people in 2 pairs; compared 4 with 3\n"
    rows = [line.split("\t") for line in Path("overlap.txt").read_text().splitlines()]
    assert {(row[0], row[2]) for row in rows} == {("cid", "1"), ("bob", "2")}
    assert all(0.9 < float(row[1]) <= 1 for row in rows)
    ran = inline_facedata("make-list", "train", "--drop-ids", "overlap.txt", "-o", "-")
    assert {line.partition("/")[0] for line in ran.stdout.splitlines()} == {"ann", "dee"}
    write_set(Path("w"), people[[0, 1, 0]], [4, 5, 6])
    ran = inline_facedata("find-overlap", "w", "--within", "-o", "twice.txt", "--json")
    assert (json.loads(ran.stdout)["pairs"], Path("twice.txt").read_text()) == (1, "4\t1.0000\t6\n")


def test_what_cannot_be_compared_is_said(inline_facedata: Facedata) -> None:
    write_set(Path("a"), np.eye(4), [0, 1, 2, 3])
    write_set(Path("b"), np.eye(3), [0, 1, 2])
    write_set(Path("c"), np.eye(3), [-1, -1, -1])
    for words, message in (
        (("a", "b"), "features of one model"),
        (("a", "c"), "no row has a label"),
        (("a",), "two feature sets, or one and --within"),
        (("a", "a", "--sheet", "x.png"), "--images DATASET for each"),
        (("a", "nowhere"), "nowhere"),
    ):
        ran = inline_facedata("find-overlap", *words, "-o", "out.txt")
        assert (ran.status != 0, message in ran.stderr) == (True, True), ran.stderr
    write_tree(Path("a"), {"features/b.bin": "12341234"})
    assert "has 2 sets; name the matrix" in inline_facedata("find-overlap", "a", "b", "-o", "out.txt").stderr


def test_the_most_similar_people_are_drawn(inline_facedata: Facedata) -> None:
    inline_facedata("make-sample", "s", "--identities", "3", "--images", "2", "--size", "32")
    write_set(Path("f"), np.repeat(np.eye(2)[[0, 1, 0]], 2, axis=0), [0, 0, 1, 1, 2, 2])
    ran = inline_facedata("find-overlap", "f", "--within", "-o", "o.txt", "--sheet", "o.png", "--images", "s")
    assert ran.status == 0, ran.stderr
    assert Path("o.png").stat().st_size > 1000
