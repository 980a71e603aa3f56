from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support import Ran, RecordSetMaker

MakeSet = Callable[[str], RecordSetMaker]
Facedata = Callable[..., Ran]


def test_a_missing_index_is_written_as_it_was(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path) -> None:
    record_set("a").insightface([2, 1, 3])
    index = tmp_path / "a" / "train.idx"
    before = index.read_bytes()
    index.unlink()
    ran = inline_facedata("index-rec", "a")
    assert (ran.status, ran.stdout) == (0, "a/train.idx: has 10 lines\n")
    assert index.read_bytes() == before


def test_an_index_that_is_there_is_replaced_only_if_asked(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    record_set("a").plain([0, 1])
    index = tmp_path / "a" / "train.idx"
    good = index.read_bytes()
    index.write_text("0\t18446744073709551615\n")
    ran = inline_facedata("index-rec", "a/train.rec")
    assert ran.status == 1
    assert "give --overwrite to replace it" in ran.stderr
    assert inline_facedata("index-rec", "a", "--overwrite", "--dry-run").status == 0
    assert index.read_text() == "0\t18446744073709551615\n"
    assert inline_facedata("index-rec", "a", "--overwrite").status == 0
    assert index.read_bytes() == good


def test_a_damaged_file_can_be_salvaged(record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path) -> None:
    maker = record_set("a")
    maker.plain([0, 1, 2], index=False)
    records = tmp_path / "a" / "train.rec"
    records.write_bytes(records.read_bytes()[:-10])
    ran = inline_facedata("index-rec", "a")
    assert ran.status == 1
    assert f"byte {maker.offsets[2]}" in ran.stderr
    assert "--salvage" in ran.stderr
    assert not (tmp_path / "a" / "train.idx").exists()
    ran = inline_facedata("index-rec", "a", "--salvage", "--json")
    assert ran.status == 1
    assert json.loads(ran.stdout)["damaged"] == 1
    assert inline_facedata("unpack-rec", "--include", "a", "--output", "out", "--salvage").status == 1
    assert len(list((tmp_path / "out").glob("id_*/*.jpg"))) == 2
