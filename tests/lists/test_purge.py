"""Deletion requests: what is left is read back, and holds no image of the people who asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran, jpeg, write_tree

Facedata = Callable[..., Ran]
TARGETS = ("folder:out", "rec:out", "lmdb:out", "webdataset:out/%06d.tar", "parquet:out")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = {f"{name}/{n}.jpg": jpeg(f"{name}{n}") for name in ("ann", "bob", "cid") for n in range(3)}
    write_tree(Path("im"), {**images, "cid/copy.jpg": images["ann/1.jpg"]})
    Path("ids.txt").write_text("ann\n\nann\n")


@pytest.mark.parametrize("target", TARGETS)
def test_no_byte_of_a_purged_image_is_left(inline_facedata: Facedata, target: str) -> None:
    gone = [path.read_bytes() for path in Path("im/ann").iterdir()]
    ran = inline_facedata("purge", "im", "--ids", "ids.txt", "-o", target, "--json")
    assert (ran.status, json.loads(ran.stdout)["purged"]) == (0, 4)
    proof = json.loads(Path("out.purge.json").read_text())
    assert set(proof["purged_sha256"].values()) == {hashlib.sha256(image).hexdigest() for image in gone}
    assert (proof["images_in_output"], proof["purged_copies"]) == (6, 1)
    files = [path for path in Path().glob("out*") if path.is_file()] + [
        p for p in Path("out").rglob("*") if p.is_file()
    ]
    assert not any(image in path.read_bytes() for image in gone for path in files)
    assert inline_facedata("purge", "im", "--ids", "ids.txt", "-o", target).status == 0
    Path("out.purge.json").write_text("of the user")
    assert inline_facedata("purge", "im", "--ids", "ids.txt", "-o", target).status == 1
    assert Path("out.purge.json").read_text() == "of the user"


def test_keys_can_be_purged_and_labels_closed(inline_facedata: Facedata) -> None:
    Path("keys.txt").write_text("bob/0.jpg\nbob/1.jpg\nbob/2.jpg\nnobody\n")
    ran = inline_facedata("purge", "im", "--keys", "keys.txt", "-o", "rec:out", "--relabel", "--proof", "p.json")
    assert "7 images without 3 images that were purged" in ran.stdout
    assert "1 id not found: 'nobody'" in ran.stderr
    assert len(json.loads(Path("p.json").read_text())["purged_sha256"]) == 3
    assert "labels 0 to 1" in inline_facedata("convert", "rec:out", "null:").stdout


def test_nothing_to_purge_or_nothing_left_is_an_error(inline_facedata: Facedata) -> None:
    for lines, message in (("zoe\n", "none of its lines"), ("ann\nbob\ncid\n", "no image is left"), ("\n", "no ids")):
        Path("ids.txt").write_text(lines)
        ran = inline_facedata("purge", "im", "--ids", "ids.txt", "-o", "rec:out")
        assert (ran.status, message in ran.stderr) == (1, True), ran.stderr
        assert not Path("out").exists()
