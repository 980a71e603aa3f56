from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support import Ran, RecordSetMaker

MakeSet = Callable[..., RecordSetMaker]
Facedata = Callable[..., Ran]


def test_an_index_is_replaced_only_if_asked(record_set: MakeSet, inline_facedata: Facedata) -> None:
    index = record_set("a").insightface([2, 1, 3]) / "train.idx"
    before = index.read_bytes()
    index.unlink()
    ran = inline_facedata("index-rec", "a")
    assert (ran.status, ran.stdout) == (0, "a/train.idx: has 10 lines\n")
    assert index.read_bytes() == before
    ran = inline_facedata("index-rec", "a")
    assert (ran.status, ran.stdout) == (0, "a/train.idx: is up to date: 10 lines\n")
    index.write_bytes(before[: before.index(b"\n", 20) + 1])
    ran = inline_facedata("index-rec", "a")
    assert ran.status == 1
    assert "does not list the 10 records of a/train.rec; give --overwrite to replace it" in ran.stderr
    index.write_text("0\t18446744073709551615\n")
    ran = inline_facedata("index-rec", "a/train.rec")
    assert ran.status == 1
    assert "give --overwrite to replace it" in ran.stderr
    assert inline_facedata("index-rec", "a", "--overwrite", "--dry-run").status == 0
    assert index.read_text() == "0\t18446744073709551615\n"
    assert inline_facedata("index-rec", "a", "--overwrite").status == 0
    assert index.read_bytes() == before


def test_a_damaged_file_can_be_salvaged(record_set: MakeSet, inline_facedata: Facedata) -> None:
    maker = record_set("a")
    records = maker.plain([0, 1, 2], index=False) / "train.rec"
    records.write_bytes(records.read_bytes()[:-10])
    ran = inline_facedata("index-rec", "a")
    assert ran.status == 1
    assert f"byte {maker.offsets[2]}" in ran.stderr
    assert "--salvage" in ran.stderr
    assert not Path("a/train.idx").exists()
    ran = inline_facedata("index-rec", "a", "--salvage", "--json")
    assert (ran.status, json.loads(ran.stdout)["damaged"]) == (1, 1)
    assert inline_facedata("unpack-rec", "--include", "a", "--output", "out", "--salvage").status == 1
    assert len(list(Path("out").glob("id_*/*.jpg"))) == 2
