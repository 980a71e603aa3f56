from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from support import Ran

Facedata = Callable[..., Ran]


@pytest.fixture
def sample(inline_facedata: Facedata, tmp_path: Path) -> Path:
    inline_facedata("make-sample", "sample", "--identities", 5, "--images", 3, "--size", 32)
    inline_facedata("unpack-rec", "sample", "-o", "out")
    (tmp_path / "out/id_0").rename(tmp_path / "out/\u015euh\u00e9da")
    inline_facedata("unpack-rec", "sample", "--limit", 7, "-o", "all")
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted((tmp_path / "all").rglob("*.jpg"))):
        path.rename(tmp_path / f"flat/{number}.jpg")
    return tmp_path


def test_a_sheet_of_any_dataset(inline_facedata: Facedata, sample: Path) -> None:
    cell = 32 + 6
    for spec, options, rows, drawn in (
        ("sample", ["--columns", 2], 5, 10),
        ("sample", ["--rows", 2], 2, 6),
        ("out", [], 5, 15),
        ("flat", ["--columns", 4], 2, 7),
        ("sample", ["--labels", "none", "--rows", 1, "--columns", 3], 1, 3),
    ):
        ran = inline_facedata("preview", spec, "-fo", "sheet.png", "--cell", 32, *options, "--json")
        assert (ran.status, json.loads(ran.stdout)["drawn"]) == (0, drawn), ran.stderr
        drawn_sheet = cv2.imread("sheet.png")
        assert drawn_sheet is not None
        assert len(drawn_sheet) == rows * cell + 6, (spec, options)
    assert inline_facedata("preview", "flat", "-o", "new.jpg").stdout == "new.jpg: 7 of 7 images\n"


def test_what_cannot_be_drawn_is_named_and_nothing_is_replaced(inline_facedata: Facedata, sample: Path) -> None:
    (sample / "flat/3.jpg").write_bytes(b"\xff\xd8\xff junk")
    ran = inline_facedata("preview", "flat", "-o", "sheet.png")
    assert (ran.status, ran.stdout) == (1, "sheet.png: 6 of 7 images\n")
    assert "3.jpg: not drawn: " in ran.stderr
    assert ran.stderr.endswith("facedata: error: 1 of 7 images could not be drawn\n")
    for name, status, said in (("sheet.png", 1, "already exists"), ("sheet.gif", 2, "expected a name that ends in")):
        ran = inline_facedata("preview", "flat", "-o", name)
        assert (ran.status, said in ran.stderr) == (status, True)
    ran = inline_facedata("preview", "flat/3.jpg", "-o", "none.png")
    assert (ran.status, "none.png: not written: no image can be drawn" in ran.stderr) == (1, True)
