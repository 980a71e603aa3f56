"""Verification sets of InsightFace: written by pickle itself in every form, read without running anything."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Ran

from facedata import open_dataset
from facedata.converters.evalbin import EvalBinSource, open_source, write_evalbin
from facedata.errors import EmptyDatasetError, FormatError

IMAGES = [b"\xff\xd8\xff" + bytes([number]) * 50 * number for number in range(1, 9)]
SAME = [True, False, True, True]


def array(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8).copy()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("image", [bytes, array], ids=["bytes", "arrays"])
@pytest.mark.parametrize(
    "flags",
    [SAME, tuple(SAME), np.array(SAME), [*map(np.bool_, SAME)], [*map(int, SAME)], np.array(SAME, np.int64)],
    ids=["bools", "tuple", "array", "scalars", "ints", "int64"],
)
def test_what_pickle_wrote_is_read(tmp_path: Path, protocol: int, image: Any, flags: Any) -> None:
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(([*map(image, IMAGES)], flags), protocol))
    source = open_dataset(path)
    assert isinstance(source, EvalBinSource)
    assert [sample.image for sample in source] == IMAGES
    assert [source[3].key, source[-1].key] == ["000001_2.jpg", "000003_2.jpg"]
    assert source.same.tolist() == SAME
    assert pickle.loads(pickle.dumps(source[2:5]))[1].image == IMAGES[3]  # noqa: S301


def test_strings_of_python_2_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.bin"
    strings = b"".join(b"T" + len(image).to_bytes(4, "little") + image for image in IMAGES[:2])
    path.write_bytes(b"\x80\x02](" + strings + b"e]I01\na\x86.")
    assert [sample.image for sample in open_source(str(path))] == IMAGES[:2]


class Attack:
    def __reduce__(self) -> Any:
        return open, ("attacked", "w")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((IMAGES, SAME[:3]), "8 images and 3 flags"),
        ((IMAGES[:7], SAME), "7 images and 4 flags"),
        (([], []), "no pairs"),
        (IMAGES, "expected a pickle of"),
        ((["a", "b"], [True]), "str in the place of an image"),
        (([np.zeros(3), np.zeros(3)], [True]), "array of 'f8'"),
        (([Attack(), b"b"], [True]), "would run 'io.open'"),
        ({"images": IMAGES}, "EMPTY_DICT"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, value: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.bin").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises((FormatError, EmptyDatasetError), match=words) as raised:
        open_source("bad.bin")
    assert str(raised.value).startswith("bad.bin: ")
    assert not Path("attacked").exists()


def test_a_file_that_is_cut_short_or_announces_terabytes_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    write_evalbin(file, IMAGES, SAME)
    whole = file.getvalue()
    path = tmp_path / "cut.bin"
    for end in [*range(1, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError, match="cut short"):
            open_source(str(path))
    path.write_bytes(b"\x80\x04](\x8e" + (1 << 40).to_bytes(8, "little") + b"\xff\xd8\xff")
    with pytest.raises(FormatError, match="cut short"):
        open_source(str(path))


def test_what_is_written_is_what_pickle_reads(inline_facedata: Callable[..., Ran]) -> None:
    with open("new.bin", "wb") as file:
        write_evalbin(file, IMAGES, SAME)
    assert pickle.loads(Path("new.bin").read_bytes()) == (IMAGES, SAME)  # noqa: S301
    assert json.loads(inline_facedata("convert", "new.bin", "folder:out", "--json").stdout)["images"] == len(IMAGES)
    assert [path.read_bytes() for path in sorted(Path("out").rglob("*.jpg"))] == IMAGES
    assert "--label 0" in inline_facedata("convert", "evalbin:new.bin", "rec:rec").stderr
