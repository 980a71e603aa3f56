"""Evaluation pairs: every published form is read into one, checked, spread over folds, and read by its readers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Ran, jpeg, write_tree

from facedata.errors import FacedataError, FormatError, InputError, OptionError
from facedata.lists.pairs import Pair, draw_pairs, fold_counts, pair_lines, read_pairs, spread

Facedata = Callable[..., Ran]
SAME = Pair("A_B/A_B_0001.jpg", "A_B/A_B_0012.jpg", True)
DIFFERENT = Pair("A_B/A_B_0001.jpg", "C/C_0003.jpg", False)

FORMS = {
    "lfw": "1\t1\nA_B\t1\t12\nA_B\t1\tC\t3\n",
    "lfw for development": "1\nA_B\t1\t12\nA_B\t1\tC\t3\n",
    "rfw": "A_B\t1\t12\r\nA_B\t1\tC\t3\r\n",
    "lfw, blanks": "10 300\nA_B 1 12\nA_B 1 C 3\n\n",
    "ffc": "A_B/A_B_0001.jpg A_B/A_B_0012.jpg 1\nA_B/A_B_0001.jpg C/C_0003.jpg 0\n",
    "minus one, tabs": "\ufeffA_B/A_B_0001.jpg\tA_B/A_B_0012.jpg\t1\nA_B/A_B_0001.jpg\tC/C_0003.jpg\t-1",
    "cplfw": "A_B/A_B_0001.jpg 1\nA_B/A_B_0012.jpg 1\nA_B/A_B_0001.jpg 0\nC/C_0003.jpg 0\n",
    "calfw": "A_B/A_B_0001.jpg 7\nA_B/A_B_0012.jpg 7\nA_B/A_B_0001.jpg 0\nC/C_0003.jpg 0\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_text_is_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "pairs.txt").write_bytes(FORMS[form].encode())
    assert read_pairs(tmp_path / "pairs.txt") == [SAME, DIFFERENT]


def test_names_with_blanks_are_read_if_there_are_tabs(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("Ana Müller/1.jpg\tAna Müller/2.jpg\t1\n")
    assert read_pairs(tmp_path / "pairs.txt")[0].second == "Ana Müller/2.jpg"


def test_the_folder_of_cfp_is_read(tmp_path: Path) -> None:
    lists = {
        f"Pair_list_{letter}.txt": "".join(f"{i} ../Data/Images/001/{kind}/0{i}.jpg\n" for i in (1, 2))
        for letter, kind in (("F", "frontal"), ("P", "profile"))
    }
    split = {f"Split/FP/{fold:02d}/{name}.txt": "1,2\n2,1" for fold in (1, 2) for name in ("same", "diff")}
    split |= {"Split/FF/01/same.txt": "1,2\n", "Split/FF/01/diff.txt": "2,1\n"}
    write_tree(tmp_path / "Protocol", {**lists, **split})
    pairs = read_pairs(tmp_path / "Protocol")
    assert len(pairs) == 8
    assert pairs[0] == Pair("Data/Images/001/frontal/01.jpg", "Data/Images/001/profile/02.jpg", True)
    assert read_pairs(tmp_path / "Protocol/Split/FF")[1] == Pair(
        "Data/Images/001/frontal/02.jpg", "Data/Images/001/frontal/01.jpg", False
    )
    (tmp_path / "Protocol/Split/FP/02/diff.txt").write_text("1,9\n")
    with pytest.raises(FormatError, match=r"02/diff.txt: line 1: '1,9' names no two images"):
        read_pairs(tmp_path / "Protocol")


def test_the_protocol_of_agedb_is_read(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat

    def cell(value: Any) -> Any:
        whole = np.empty((1, 1), object)
        whole[0, 0] = value
        return whole

    names = np.empty((2, 2), object)
    for place, name in zip(np.ndindex(2, 2), ("1_A_2_m", "5_B_3_f", "2_A_9_m", "7_C_4_f"), strict=True):
        names[place] = cell(np.array([name]))
    split = np.empty((1, 1), [("pairs", object), ("labels", object)])
    split[0, 0] = (names, np.array([[1, -1]]))
    splits = np.empty((10, 1), object)
    for fold in range(10):
        splits[fold, 0] = split
    savemat(tmp_path / "AgeDB.mat", {"splits": splits})
    pairs = read_pairs(tmp_path / "AgeDB.mat")
    assert len(pairs) == 20
    assert pairs[:2] == [Pair("1_A_2_m.jpg", "2_A_9_m.jpg", True), Pair("5_B_3_f.jpg", "7_C_4_f.jpg", False)]
    (tmp_path / "AgeDB.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(FormatError, match="AgeDB-30"):
        read_pairs(tmp_path / "AgeDB.mat")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no pairs"),
        ("10\t300\n", "no pairs"),
        ("a b c d e\n", "line 1"),
        ("a/1.jpg b/1.jpg 2\n", "line 1: .* expected 'path path 1'"),
        ("A\t1\t2\nA\t1\tx\n", "line 2"),
        ("a 1\nb 1\nc 1\n", "3 lines"),
        ("a 1\nb 0\n", "one label"),
        ("a\xff\n", "UTF-8"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pairs.txt").write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=words) as raised:
        read_pairs(tmp_path / "pairs.txt")
    assert "pairs.txt: " in str(raised.value)


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 20))
def test_each_fold_gets_its_share_of_both_kinds(kinds: list[bool], folds: int) -> None:
    pairs = [Pair(f"{number}/a", f"{number}/b", same) for number, same in enumerate(kinds)]
    if len(pairs) < folds:
        with pytest.raises(OptionError, match="fewer --folds"):
            spread(pairs, folds)
        return
    ordered = spread(pairs, folds)
    assert sorted(ordered) == sorted(pairs)
    if not len(pairs) % folds and not sum(kinds) % folds:
        counts = fold_counts(ordered, folds)
        assert len(set(counts)) == 1 or max(c.same for c in counts) - min(c.same for c in counts) <= 1
    assert spread(ordered, folds) == ordered or len(pairs) % folds


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 6), min_size=20, max_size=60), st.integers(0, 3))
def test_drawn_pairs_are_different_right_and_even(labels: list[int], seed: int) -> None:
    keys, known = [f"{number}.jpg" for number in range(len(labels))], np.array(labels)
    counts = np.bincount(known[known >= 0], minlength=1)
    same = int((counts * (counts - 1) // 2).sum())
    if min(same, counts.sum() * (counts.sum() - 1) // 2 - same) < 10:
        with pytest.raises(OptionError, match="pairs of"):
            draw_pairs(keys, known, 20, 5, seed)
        return
    pairs = draw_pairs(keys, known, 20, 5, seed)
    assert len({frozenset(pair[:2]) for pair in pairs}) == 20
    of = dict(zip(keys, labels, strict=True))
    assert all((of[first] == of[second]) is same and of[first] >= 0 for first, second, same in pairs)
    assert fold_counts(pairs, 5) == [(2, 2)] * 5
    assert draw_pairs(keys, known, 20, 5, seed) == pairs


def ffc_reader(text: str) -> list[tuple[str, str, str]]:
    rows = [line.split(" ") for line in text.strip().split("\n")]
    assert {len(row) for row in rows} == {3}
    return [(row[0], row[1], row[2]) for row in rows]


def test_lists_are_written_for_their_readers(tmp_path: Path) -> None:
    pairs = [SAME, DIFFERENT]
    assert [row[2] for row in ffc_reader("\n".join(pair_lines(pairs, "ffc")))] == ["1", "0"]
    assert "\n".join(pair_lines(pairs, "lfw", 1)) == FORMS["lfw"].strip()
    assert "\n".join(pair_lines(pairs[::-1], "facex")) == FORMS["cplfw"].strip()
    for form in ("ffc", "lfw", "facex"):
        (tmp_path / form).write_text("\n".join(pair_lines(pairs, form, 1)))
        assert read_pairs(tmp_path / form) == pairs
    for form, bad, words in (
        ("ffc", Pair("a b/1.jpg", "c/1.jpg", True), "has a blank"),
        ("lfw", Pair("a/1.jpg", "a/2.jpg", True), "needs paths NAME/NAME_0001.jpg"),
        ("lfw", SAME._replace(same=False), "tells by the name"),
        ("lfw", SAME, "equal folds"),
    ):
        with pytest.raises(FacedataError, match=words):
            list(pair_lines([bad, DIFFERENT][: 1 if words == "equal folds" else 2], form, 1))


def test_a_set_goes_through_all_commands_and_back(inline_facedata: Facedata) -> None:
    write_tree(Path("lfw"), {f"{name}/{name}_000{n}.png": jpeg(f"{name}{n}") for name in "AB" for n in (1, 2, 3)})
    Path("pairs.txt").write_text("2\t1\nA\t1\t2\nB\t1\t2\nA\t1\tB\t3\nA\t2\tB\t2\n")
    ran = inline_facedata("make-pairs", "lfw", "--pairs", "pairs.txt", "--folds", "2", "-o", "pair_LFW.txt")
    assert ran.stdout == "pair_LFW.txt: 4 pairs, 2 of the same person; 2 folds of 1 same and 1 different\n"
    assert "come last; they are spread over the folds" in ran.stderr
    Path("twice.txt").write_text("A/A_0001.png A/A_0002.png 1\n" * 2)
    ran = inline_facedata("make-pairs", "lfw", "--pairs", "twice.txt", "--folds", "1", "-o", "twice.out")
    assert "twice.txt: 1 pair listed more than once" in ran.stderr
    assert ffc_reader(Path("pair_LFW.txt").read_text())[0] == ("A/A_0001.png", "A/A_0002.png", "1")
    ran = inline_facedata("pack-pairs", "pair_LFW.txt", "--root", "lfw", "-o", "lfw.bin", "--folds", "2", "--json")
    assert json.loads(ran.stdout)["folds"] == [{"same": 1, "different": 1}] * 2
    assert "not 112 x 112" in ran.stderr
    images, same = pickle.loads(Path("lfw.bin").read_bytes())  # noqa: S301, as InsightFace reads it
    assert images[:2] == [Path(f"lfw/A/A_000{n}.png").read_bytes() for n in (1, 2)]
    assert same == [True, False, True, False]
    for _ in range(2):
        ran = inline_facedata("unpack-pairs", "lfw.bin", "-o", "un", "--folds", "2")
        assert (ran.status, ran.stdout.partition(":")[0]) == (0, "un/pairs.txt")
    assert inline_facedata("pack-pairs", "un/pairs.txt", "--root", "un", "-o", "b.bin", "--folds", "2").status == 0
    assert Path("b.bin").read_bytes() == Path("lfw.bin").read_bytes()
    for words in (("pack-pairs", "un/pairs.txt", "--root", "un", "-o", "b.bin"), ("make-pairs", "un", "-o", "b.bin")):
        assert inline_facedata(*words).status != 0
    Path("un/000001_2.jpg").unlink()
    ran = inline_facedata("pack-pairs", "un/pairs.txt", "--root", "un", "-o", "c.bin", "--folds", "2")
    assert "1 image of the pairs of 8 not found: '000001_2.jpg'" in ran.stderr
    assert not Path("c.bin").exists()


def test_pairs_are_drawn_from_any_dataset(inline_facedata: Facedata) -> None:
    write_tree(Path("mine"), {f"{name}/{n}.jpg": jpeg(f"{name}{n}") for name in "abcd" for n in range(5)})
    ran = inline_facedata("make-pairs", "mine", "--count", "40", "--seed", "1", "-o", "-")
    rows = ffc_reader(ran.stdout)
    assert len(rows) == 40
    assert all((first[0] == second[0]) == (same == "1") for first, second, same in rows)
    assert "multiple of 20" in inline_facedata("make-pairs", "mine", "--count", "50", "-o", "p.txt").stderr
    assert (
        "40 pairs of the same person" in inline_facedata("make-pairs", "mine", "--count", "200", "-o", "p.txt").stderr
    )
