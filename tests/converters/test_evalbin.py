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
from facedata.dataset import Sample
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


NESTED = b"]" * 100_000 + b"a" * 99_999
LAUGHS = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60))
PICTURE = b"X\xc8\x00\x00\x00" + b"\xc3\xa9" * 100 + b"q\x00X\x06\x00\x00\x00latin1q\x01"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LAUGHS + b"h\x01\x93.", "would run"),
        (NESTED + b"N\x93.", "would run"),
        (b"cnumpy\ndtype\n" + NESTED + b"\x85R.", "has an array of"),
        (PICTURE + b"](" + b"c_codecs\nencode\nh\x00h\x01\x86R" * 9 + b"e.", "larger than the file"),
        (b"cnumpy\nndarray\n)R(K\x01(" + b"K\x01" * 40 + b"tK\x01K\x00C\x01xtb.", "impossible shape"),
        (b"cnumpy\nndarray\n)R(K\x01K\x01\x85](K\x01eK\x00C\x01xtb.", "impossible shape"),
    ],
    ids=["references", "nested-name", "nested-type", "repeated-text", "dimensions", "item-size"],
)
def test_a_pickle_that_would_take_hours_or_all_memory_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(b"\x80\x04" + data)
    with pytest.raises(FormatError, match=words):
        open_source(str(path))


def test_arrays_of_python_2_are_read(tmp_path: Path) -> None:
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K%c\x85"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    images = b"".join(head % len(i) + kind + b"U%c" % len(i) + i + b"tb" for i in IMAGES[:2])
    path = tmp_path / "old.bin"
    path.write_bytes(b"\x80\x02](" + images + b"e](\x88e\x86.")
    read = pickle.loads(path.read_bytes(), encoding="bytes")[0]  # noqa: S301, as InsightFace reads it
    assert [image.tobytes() for image in read] == IMAGES[:2]
    assert [sample.image for sample in open_source(str(path)).read() if isinstance(sample, Sample)] == IMAGES[:2]


def test_what_is_written_is_what_pickle_reads(inline_facedata: Callable[..., Ran]) -> None:
    with open("new.bin", "wb") as file:
        write_evalbin(file, IMAGES, SAME)
    assert pickle.loads(Path("new.bin").read_bytes()) == (IMAGES, SAME)  # noqa: S301
    assert json.loads(inline_facedata("convert", "new.bin", "folder:out", "--json").stdout)["images"] == len(IMAGES)
    assert [path.read_bytes() for path in sorted(Path("out").rglob("*.jpg"))] == IMAGES
    assert "--label 0" in inline_facedata("convert", "evalbin:new.bin", "rec:rec").stderr
