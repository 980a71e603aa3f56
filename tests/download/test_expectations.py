from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import RecordSetMaker, file_of, jpeg, write_tree

from facedata.download.catalogue import load_catalogue
from facedata.download.expectations import (
    FeatureMatrix,
    IndexLines,
    LabelLines,
    RecordFile,
    TextLines,
    file_expectations,
    set_expectations,
    verify_set,
)
from facedata.download.verify import Finding
from facedata.errors import FormatError, InputError, InputNotFoundError

KNOWN = load_catalogue()


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2), (b"x" * (1 << 20) + b"\n", 1)]
)
def test_lines_of_any_text(tmp_path: Path, content: bytes, lines: int) -> None:
    (tmp_path / "a").write_bytes(content)
    assert TextLines(lines).check(str(tmp_path / "a")).good
    wrong = TextLines(7).check(str(tmp_path / "a"))
    assert (wrong.good, wrong.text) == (False, f"expected 7 lines, found {lines}")


def test_what_has_a_checksum_is_checked_by_it_and_other_files_by_their_structure() -> None:
    part1 = {each.path: each for each in file_expectations(KNOWN.find("ms1m-part1"))}
    assert part1["features/part1_test.bin"].digest is not None
    assert part1["features/part1_test.bin"].structure is None
    assert part1["labels/part1_test.meta"].structure == LabelLines(584013, 8573)
    ms1mv2 = {each.path: each for each in file_expectations(KNOWN.find("ms1mv2"))}
    assert ms1mv2["faces_emore/train.idx"].structure == IndexLines(5908396)
    assert ms1mv2["faces_emore/train.rec"].structure == RecordFile("train.idx", 5908396)


def test_features_that_are_not_in_the_catalogue_are_checked_against_their_labels() -> None:
    placed = ["features/y.bin", "labels/y.meta", "features/alone.bin", "knns/y/faiss_k_80.npz"]
    expected = {each.path: each.structure for each in file_expectations(KNOWN.find("youtube-face"), placed)}
    assert expected == {
        "features/alone.bin": FeatureMatrix(256),
        "features/y.bin": FeatureMatrix(256, labels="../labels/y.meta"),
        "knns/y/faiss_k_80.npz": None,
        "labels/y.meta": LabelLines(),
    }


def test_parts_are_needed_before_unpacking_and_files_afterwards(tmp_path: Path) -> None:
    write_tree(tmp_path, {"glint360k_00": ""})
    expected = set_expectations(KNOWN.find("glint360k"), tmp_path, {})
    assert [(each.path, each.optional) for each in expected] == [(f"glint360k_{part:02d}", False) for part in range(7)]
    write_tree(tmp_path, {"glint360k/train.rec": ""})
    optional = {each.path: each.optional for each in set_expectations(KNOWN.find("glint360k"), tmp_path, {})}
    assert (optional["glint360k_03"], optional["glint360k/train.idx"]) == (True, False)
    cars = set_expectations(KNOWN.find("cars196"), tmp_path, {"finished": "now"})
    assert {each.path: each.optional for each in cars} == {"car_ims.tgz": True, "Cars196/cars_annos.mat": False}


def test_files_with_the_names_of_an_old_release_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path, {"glint360k03": ""})
    verify_set(KNOWN.find("glint360k"), tmp_path)
    assert "glint360k03: has the name of the first release of Glint360K" in caplog.text
    assert "; the current one is glint360k_03" in caplog.text


MakeSet = Callable[[str], RecordSetMaker]
MAGIC = struct.pack("<I", 0xCED7230A)


def test_the_lines_of_an_index_are_counted(record_set: MakeSet) -> None:
    index = str(record_set("a").insightface([2, 3]) / "train.idx")
    assert IndexLines(8).check(index).text == "8 lines"
    assert IndexLines().check(index).good
    found = IndexLines(17_451_890).check(index)
    assert (found.good, found.text) == (False, "expected 17,451,890 lines, found 8")


@pytest.mark.parametrize("dialect", ["insightface", "plain", "split"])
def test_a_record_file_ends_with_its_last_record(dialect: str, record_set: MakeSet) -> None:
    maker = record_set("a")
    if dialect == "insightface":
        folder = maker.insightface([3, 2])
    else:
        maker.add(0, 1.0, jpeg("first"))
        maker.add(1, 2.0, jpeg(MAGIC * 3 + b"ab" if dialect == "split" else "last"))
        folder = maker.write()
    path = folder / "train.rec"
    whole = path.read_bytes()
    assert RecordFile().check(str(path)).text == "its size fits train.idx"
    for cut in (1, 4, 8, len(whole) - maker.offsets[-1], len(whole) // 2, len(whole)):
        path.write_bytes(whole[: len(whole) - cut])
        found = RecordFile().check(str(path))
        assert not found.good
        assert "cut" in found.text
    path.write_bytes(whole + b"1234")
    assert "its last record by train.idx ends at byte" in RecordFile().check(str(path)).text


def test_a_record_file_with_the_index_of_another_is_bad(record_set: MakeSet, tmp_path: Path) -> None:
    folder = record_set("a").insightface([3, 2])
    other = record_set("b").plain([0] * 200)
    (folder / "train.idx").write_bytes((other / "train.idx").read_bytes())
    assert not RecordFile().check(str(folder / "train.rec")).good
    assert RecordFile(lines=201).check(str(other / "train.rec")).text == "train.idx: expected 201 lines, found 200"
    data = bytearray((other / "train.rec").read_bytes())
    data[:8] = bytes(8)
    (other / "train.rec").write_bytes(data)
    found = RecordFile().check(str(other / "train.rec"))
    assert "is cut short or does not fit train.idx: no record begins at byte 0: found 0x00000000" in found.text
    (folder / "train.idx").unlink()
    with pytest.raises(InputNotFoundError, match=r"train\.idx"):
        RecordFile().check(str(folder / "train.rec"))


@settings(max_examples=25)
@given(st.binary(max_size=120), st.lists(st.integers(0, 130), min_size=1, max_size=5, unique=True))
def test_any_bytes_are_a_record_file_or_not(data: bytes, offsets: list[int]) -> None:
    with file_of(data) as path:
        lines = "".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets))
        path.with_name("train.idx").write_text(lines)
        assert RecordFile().check(str(path)).text


def test_features_have_rows_of_their_size(tmp_path: Path) -> None:
    write_tree(tmp_path, {"features/part.bin": bytes(7 * 256 * 4), "labels/part.meta": "1\n" * 16})
    path = tmp_path / "features/part.bin"
    assert FeatureMatrix(256, 7).check(str(path)).text == "7,168 bytes, 7 rows of 256 float32"
    found = FeatureMatrix(256, 8).check(str(path))
    assert found.text.startswith("expected 8,192 bytes for 8 rows of 256 float32, found 7,168: ")
    path.write_bytes(bytes(2 * 8 * 256 * 4))
    assert "float64?" in FeatureMatrix(256, 8).check(str(path)).text
    assert FeatureMatrix(256).check(str(path)).good
    assert not FeatureMatrix(255).check(str(path)).good
    paired = FeatureMatrix(256, labels="../labels/part.meta")
    assert paired.check(str(path)).text == "16,384 bytes, 16 rows of 256 float32, as many as part.meta has lines"
    for rows in (15, 0):
        write_tree(tmp_path, {"labels/part.meta": "1\n" * rows})
        assert f"expected {rows * 1024:,} bytes for {rows} rows" in paired.check(str(path)).text


@pytest.mark.parametrize("text", ["0\n1\n-1\n1\n", "0\n1\n-1\n1", "0\r\n1\r\n-1\r\n1\r\n", " 0\n1 \n-1\n1\n"])
def test_labels_are_counted(text: str) -> None:
    with file_of(text.encode(), "a.meta") as path:
        assert LabelLines(4, 2).check(str(path)).text == "4 lines, 2 classes"
        assert LabelLines(4, 3).check(str(path)).text == "expected 3 classes, found 2"
        assert LabelLines(5, 2).check(str(path)).text == "expected 5 lines, found 4"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"1\n\n2\n", "line 2 is blank, expected an integer"),
        (b"1\nbanana\xff\n", r"line 2 is 'banana\\xff'"),
        (b"9" * 20_000_000, "line 1 is longer than 64 bytes; expected an integer"),
    ],
)
def test_a_line_that_is_no_number_is_named(text: bytes, reason: str) -> None:
    with file_of(text, "a.meta") as path, pytest.raises(FormatError) as raised:
        LabelLines().check(str(path))
    assert reason in str(raised.value)


def test_nothing_waits_for_a_named_pipe(tmp_path: Path) -> None:
    for name in ("train.rec", "train.idx"):
        os.mkfifo(tmp_path / name)
    for check in (IndexLines(), RecordFile(), FeatureMatrix(256), LabelLines()):
        with pytest.raises(InputError, match="is a named pipe"):
            check.check(str(tmp_path / ("train.idx" if isinstance(check, IndexLines) else "train.rec")))


@pytest.mark.parametrize(("name", "check"), [("train.idx", IndexLines()), ("a.meta", LabelLines())])
def test_an_empty_file_is_never_good(tmp_path: Path, name: str, check: IndexLines | LabelLines) -> None:
    (tmp_path / name).write_bytes(b"")
    assert check.check(str(tmp_path / name)) == Finding(False, "has no lines")
    (tmp_path / name).write_bytes(b"0\t0\n" if name == "train.idx" else b"-1\n")
    assert check.check(str(tmp_path / name)).good
