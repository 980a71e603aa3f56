"""Lists of images: read by readers written as the consumers' are, and read back as sources."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support import FACEDATA, Ran, jpeg, write_tree

from facedata.columns import read_label_lines
from facedata.errors import FormatError

Facedata = Callable[..., Ran]
FORMATS = ("plain", "ffc", "im2rec", "insightface", "csv", "jsonl")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"id_2": 2, "id_10": 4, "ann": 1}
    write_tree(
        Path("im"), {f"{name}/{n}.jpg": jpeg(f"{name}{n}") for name, count in sizes.items() for n in range(count)}
    )


def facex(text: str) -> list[tuple[str, int]]:
    """As FaceX-Zoo's ImageDataset: up to the first blank line, cut at the space."""
    rows = []
    for line in text.split("\n"):
        if not line.strip():
            break
        path, label = line.strip().split(" ")
        rows.append((path, int(label)))
    return rows


def semi_siamese(text: str) -> dict[int, list[str]]:
    """As FaceX-Zoo's dataset for semi-siamese training: by label, of which each needs two images."""
    by_label: dict[int, list[str]] = {}
    for path, label in facex(text):
        by_label.setdefault(label, []).append(path)
    assert all(len(paths) > 1 for paths in by_label.values())
    assert sorted(by_label) == list(range(len(by_label)))
    return by_label


def udml(text: str) -> list[tuple[str, int]]:
    rows = [line.split(" ") for line in text.removesuffix("\n").split("\n")]
    assert all(len(row) == 2 and not row[0].startswith("/") for row in rows)
    return [(row[0], int(row[1])) for row in rows]


def test_a_train_list_is_what_its_readers_expect(inline_facedata: Facedata) -> None:
    ran = inline_facedata("make-list", "im", "-o", "train.txt", "--mapping", "map.tsv")
    assert (
        ran.stdout == f"train.txt: 7 lines, 3 classes with 1 image or more; paths start from {Path('im').resolve()}\n"
    )
    text = Path("train.txt").read_text()
    assert facex(text) == udml(text)
    assert Counter(label for _, label in facex(text)) == {0: 2, 1: 4, 2: 1}
    assert all(Path("im", path).is_file() for path, _ in facex(text))
    rows = [line.split("\t") for line in Path("map.tsv").read_text().splitlines()]
    assert rows[1:] == [["0", "im", "2", "id_2"], ["1", "im", "10", "id_10"], ["2", "im", "11", "ann"]]
    assert "already exists" in inline_facedata("make-list", "im", "-o", "train.txt").stderr


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_back(inline_facedata: Facedata, form: str) -> None:
    write_tree(Path("im"), {"id_3/Ünï.jpg": jpeg("u")})
    assert inline_facedata("make-list", "im", "--format", form, "-o", "a.txt").status == 0
    assert inline_facedata("make-list", "list:a.txt@im", "--labels", "keep", "-o", "b.txt").status == 0
    assert inline_facedata("make-list", "im", "-o", "c.txt").status == 0
    assert Path("b.txt").read_text() == Path("c.txt").read_text()


def test_the_shallow_set_has_two_random_images_of_each(inline_facedata: Facedata) -> None:
    def shallow(seed: int) -> str:
        return inline_facedata(
            "make-list", "im", "--per-class", "2", "--random", "--seed", f"{seed}", "-q", "-o", "-"
        ).stdout

    lists = {seed: shallow(seed) for seed in range(8)}
    assert shallow(3) == lists[3]
    assert len(set(lists.values())) > 1
    assert all({len(paths) for paths in semi_siamese(text).values()} == {2} for text in lists.values())
    assert len(facex(inline_facedata("make-list", "im", "--sample", "3", "-o", "-").stdout)) == 3
    assert "--per-class" in inline_facedata("make-list", "im", "--random", "-o", "-").stderr


def test_twins_follow_with_the_same_labels(inline_facedata: Facedata) -> None:
    write_tree(
        Path("masked"),
        {path.relative_to("im").with_suffix(".png").as_posix(): "m" for path in Path("im").rglob("*.jpg")},
    )
    ran = inline_facedata("make-list", "im", "--also", "masked", "-o", "-")
    rows = facex(ran.stdout)
    assert len(rows) == 14
    assert rows[1] == ("masked/" + rows[0][0].removeprefix("im/").replace("jpg", "png"), rows[0][1])
    Path("masked/id_2/1.png").unlink()
    ran = inline_facedata("make-list", "im", "--also", "masked", "-o", "new.txt")
    assert (ran.status, Path("new.txt").exists()) == (1, False)
    assert "no twin of 1 image of 7: 'im/id_2/1.jpg'" in ran.stderr


IDS = {
    "names": ("ann\nid_2\n", {"ann", "id_2"}, ""),
    "blank, repeated, unknown": ("\ufeffann\r\n\r\nann\r\nnobody\r\n", {"ann"}, "1 id not found: 'nobody'"),
    "labels": ("2\n10\n", {"id_2", "id_10"}, ""),
    "more columns": ("id_10\t0.93\tother\n", {"id_10"}, ""),
}


@pytest.mark.parametrize("case", IDS)
def test_people_are_kept_or_left_out_by_name_or_label(inline_facedata: Facedata, case: str) -> None:
    text, people, warning = IDS[case]
    Path("ids.txt").write_bytes(text.encode())
    inline_facedata("make-list", "im", "-o", "all.txt", "--format", "jsonl")
    for source in ("im", "list:all.txt@im"):
        if case == "labels" and source != "im":
            continue
        kept = inline_facedata("make-list", source, "--keep-ids", "ids.txt", "-o", "-")
        left = inline_facedata("make-list", source, "--drop-ids", "ids.txt", "-o", "-")
        assert {path.partition("/")[0] for path, _ in facex(kept.stdout)} == people
        assert {path.partition("/")[0] for path, _ in facex(left.stdout)} == {"ann", "id_2", "id_10"} - people
        assert warning in kept.stderr
    ran = inline_facedata("convert", "im", "rec:out", "--drop-ids", "ids.txt", "--relabel", "--json")
    assert json.loads(ran.stdout)["images"] == len(facex(left.stdout))
    Path("ids.txt").write_text("nobody\n")
    assert "none of its lines" in inline_facedata("make-list", "im", "--drop-ids", "ids.txt", "-o", "-").stderr


def test_labels_in_several_sets_are_ambiguous(inline_facedata: Facedata, record_set: Callable[..., object]) -> None:
    for name in ("a", "b"):
        record_set(name).insightface([1, 2])  # type: ignore[attr-defined]
    Path("ids.txt").write_text("0\n")
    ran = inline_facedata("convert", "rec:a", "rec:b", "null:", "--drop-ids", "ids.txt")
    assert (ran.status, "labels would mean another person in each" in ran.stderr) == (2, True)
    assert (
        json.loads(inline_facedata("convert", "rec:a", "null:", "--drop-ids", "ids.txt", "--json").stdout)["images"]
        == 2
    )


def test_a_path_with_a_blank_is_refused_where_readers_split_it(inline_facedata: Facedata) -> None:
    write_tree(Path("im"), {"id_3/a b.jpg": jpeg("u")})
    ran = inline_facedata("make-list", "im", "-o", "a.txt")
    assert (ran.status, Path("a.txt").exists()) == (2, False)
    assert "'id_3/a b.jpg': has a blank" in ran.stderr
    assert inline_facedata("make-list", "im", "-o", "a.txt", "--format", "csv").status == 0


def test_a_list_goes_through_pipes() -> None:
    line = f"{shlex.join(FACEDATA)} make-list"
    piped = f"{line} im -o - -q | head -n 3 | {line} list:-@im -o - -q --format im2rec"
    ran = subprocess.run(piped, shell=True, capture_output=True, text=True, check=True)
    assert [row.split("\t")[0] for row in ran.stdout.splitlines()] == ["0", "1", "2"]


def test_a_long_list_loses_people_and_a_line_that_changes_meanwhile_is_named(inline_facedata: Facedata) -> None:
    lines = [f"é{number % 7}/{number}.jpg {number % 7}" for number in range(30_000)]
    write_tree(Path("big"), {"é0/0.jpg": jpeg("0")})
    Path("big.txt").write_bytes("\r\n".join(lines).encode())
    Path("ids.txt").write_text("é3\né5\n", encoding="utf-8")
    ran = inline_facedata(
        "make-list", "list:big.txt@big", "--drop-ids", "ids.txt", "--labels", "keep", "-o", "kept.txt"
    )
    assert ran.status == 0, ran.stderr
    left = [line for line in lines if not line.startswith(("é3/", "é5/"))]
    assert Path("kept.txt").read_text(encoding="utf-8").splitlines() == left
    read = read_label_lines("big.txt")
    Path("big.txt").write_bytes("\r\n".join([*lines[:20_000], "x" * len(lines[20_000]), *lines[20_001:]]).encode())
    with pytest.raises(FormatError, match="was changed while it was being read"):
        list(read.texts())
