"""Opening record sets: every dialect is told from its content, and what does not hang together is refused in words."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import RecordSetMaker, chunk, jpeg, raised_without_root

from facedata.converters.rec import record_set as record_set_module
from facedata.converters.rec.dialect import INSIGHTFACE, PLAIN, SetChecker, float32_error
from facedata.converters.rec.index import RecordIndex
from facedata.converters.rec.record_set import (
    OpenOptions,
    RecordSet,
    find_record_files,
    open_record_set,
)
from facedata.converters.rec.recordio import ImageRecord, RecordReader, encode_record, pack_image_record
from facedata.dataset import Sample
from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError, SampleError

MakeSet = Callable[..., RecordSetMaker]
SALVAGE, REBUILD = OpenOptions(salvage=True), OpenOptions(rebuild_index=True)
MENDED_BY = "give --rebuild-index to read without it, or rebuild it with facedata index-rec --overwrite"
NOT_A_HEADER = struct.pack("<IfQQ", 2, 0.0, 0, 0)
"""A payload that announces two labels and ends: the chunk is whole, the image record is not."""


def keys_and_labels(opened: RecordSet) -> list[tuple[int, int]]:
    return [(int(sample.key), sample.label) for sample in opened.source]


def failed(opened: RecordSet) -> list[str]:
    return [item.key for item in opened.source.read() if isinstance(item, SampleError)]


def delivered(opened: RecordSet) -> list[str]:
    return [item.key for item in opened.source.read() if isinstance(item, Sample)]


# Dialects


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
class TestDialects:
    def test_insightface_has_meta_and_identity_records_that_are_no_images(
        self, record_set: MakeSet, index: bool
    ) -> None:
        opened = open_record_set(record_set().insightface([3, 1, 2], index=index))
        assert (opened.dialect, opened.classes) == (INSIGHTFACE, 3)
        assert keys_and_labels(opened) == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 2)]
        assert [sample.image for sample in opened.source][3] == jpeg("label 1 key 4")

    @pytest.mark.parametrize("first_key", [0, 1], ids=["newer InsightFace or im2rec", "im2rec from 1"])
    def test_images_alone_are_a_plain_set(self, record_set: MakeSet, index: bool, first_key: int) -> None:
        opened = open_record_set(record_set().plain([0, 0, 1, 2], first_key, index=index))
        assert (opened.dialect, opened.classes) == (PLAIN, None)
        assert keys_and_labels(opened) == list(enumerate([0, 0, 1, 2], first_key))

    def test_a_set_in_random_label_order_is_a_plain_set(self, record_set: MakeSet, index: bool) -> None:
        labels = random.Random(0).choices(range(5), k=20)
        opened = open_record_set(record_set().plain(labels, index=index))
        assert opened.dialect == PLAIN
        assert keys_and_labels(opened) == list(enumerate(labels))

    def test_array_labels_make_no_identity_records_of_images(self, record_set: MakeSet, index: bool) -> None:
        maker = record_set()
        for key, label in enumerate([3.0, 0.0, 3.0]):
            maker.add(key, (label, 0.5, float("nan")), jpeg(key))
        opened = open_record_set(maker.write(index=index))
        assert opened.dialect == PLAIN
        assert keys_and_labels(opened) == [(0, 3), (1, 0), (2, 3)]

    def test_insightface_images_may_have_array_labels_too(self, record_set: MakeSet, index: bool) -> None:
        maker = record_set()
        for key in (1, 2):
            maker.add(key, (4.0, 1.0), jpeg(key))
        maker.add(3, (1.0, 3.0), b"")
        maker.add(0, (3.0, 4.0), b"")
        opened = open_record_set(maker.write(index=index))
        assert opened.dialect == INSIGHTFACE
        assert keys_and_labels(opened) == [(1, 4), (2, 4)]

    def test_insightface_without_people_has_images_alone(self, record_set: MakeSet, index: bool) -> None:
        maker = record_set()
        for key in (1, 2, 3):
            maker.add(key, 0.0, jpeg(key))
        maker.add(0, (4.0, 4.0), b"")
        assert keys_and_labels(open_record_set(maker.write(index=index))) == [(1, 0), (2, 0), (3, 0)]


def test_keys_that_are_not_in_file_order_are_delivered_in_their_own(record_set: MakeSet) -> None:
    maker = record_set()
    for key in (4, 2, 9, 0, 7):
        maker.add(key, float(key), jpeg(key))
    assert keys_and_labels(open_record_set(maker.write())) == [(key, key) for key in (0, 2, 4, 7, 9)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_boundary_of_the_identity_records_is_found_with_and_without_the_meta_record(
    counts: list[int],
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        RecordSetMaker(Path(folder, "whole")).insightface(counts)
        maker = RecordSetMaker(Path(folder, "no meta"))
        maker.insightface(counts)
        del maker.data[maker.offsets[maker.keys.index(0)] :], maker.keys[-1], maker.offsets[-1]
        maker.write()
        for one in ("whole", "no meta"):
            opened = open_record_set(Path(folder, one))
            assert (opened.dialect, opened.classes) == (INSIGHTFACE, len(counts))
            assert keys_and_labels(opened) == list(enumerate(labels, 1))
            assert opened.source.index.offsets.tolist() == maker.offsets[: len(labels)]


# Files


def test_the_path_of_a_rec_file_finds_the_index_of_its_own_name(record_set: MakeSet) -> None:
    folder = record_set().plain([0, 1], num_classes=7)
    for old, new in (("train.rec", "faces.rec"), ("train.idx", "faces.idx")):
        (folder / old).rename(folder / new)
    for path in (folder / "faces.rec", folder):
        found = find_record_files(path)
        assert found.records == str(folder / "faces.rec")
        assert found.index == str(folder / "faces.idx")
        assert found.property == str(folder / "property")
        assert open_record_set(path).classes == 7


def test_train_rec_is_taken_where_there_are_others_beside_it(record_set: MakeSet) -> None:
    folder = record_set().plain([0, 1])
    (folder / "val.rec").write_bytes(b"")
    assert find_record_files(folder).records == str(folder / "train.rec")


def test_a_relative_path_in_the_folder_itself_is_enough(record_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(record_set().plain([0, 1], num_classes=2))
    assert open_record_set("train.rec").classes == 2
    assert len(open_record_set(".").source) == 2


def test_no_such_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=re.escape(f"{tmp_path}/nowhere: no such file or folder")):
        open_record_set(tmp_path / "nowhere")
    with pytest.raises(InputNotFoundError, match=r"nowhere\.rec: no such file or folder"):
        open_record_set(tmp_path / "nowhere.rec")


def test_a_folder_without_records_is_said_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "train.idx").write_text("0\t0\n")
    with pytest.raises(InputNotFoundError, match=r"no \.rec file in this folder; expected train\.rec, with train\.idx"):
        open_record_set(tmp_path)


def test_of_several_record_files_one_must_be_named(tmp_path: Path) -> None:
    for name in ("b.rec", "a.rec", "d.rec", "c.rec"):
        (tmp_path / name).touch()
    with pytest.raises(InputNotFoundError, match=r"4 other \.rec files \(a\.rec, b\.rec, c\.rec\): name the one"):
        open_record_set(tmp_path)


def test_a_file_that_is_no_record_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"tar")
    with pytest.raises(FormatError, match=r"train\.tar: is neither a set folder nor a \.rec file"):
        open_record_set(tmp_path / "train.tar")


def test_folders_in_the_place_of_files_are_refused(record_set: MakeSet, tmp_path: Path) -> None:
    (tmp_path / "records" / "train.rec").mkdir(parents=True)
    with pytest.raises(InputError, match=r"train\.rec: is a folder, not a file"):
        open_record_set(tmp_path / "records")
    folder = record_set().plain([0], index=False)
    (folder / "train.idx").mkdir()
    with pytest.raises(InputError, match=r"train\.idx: is a folder, not a file"):
        open_record_set(folder)


def test_an_index_that_is_a_broken_link_is_not_the_same_as_none(record_set: MakeSet) -> None:
    folder = record_set().plain([0], index=False)
    (folder / "train.idx").symlink_to("gone.idx")
    with pytest.raises(InputNotFoundError, match=r"train\.idx: no such file"):
        open_record_set(folder)


@pytest.fixture
def public_set() -> Iterator[Path]:
    """A set that every user may read: pytest's own folders are for one user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield RecordSetMaker(Path(folder, "set")).plain([0, 1], num_classes=2)


@pytest.mark.parametrize("name", [".", "train.rec", "train.idx", "property"])
def test_a_folder_or_file_without_read_permission_is_said_by_name(public_set: Path, name: str) -> None:
    (public_set / name).chmod(0o000)
    try:
        message = raised_without_root(lambda: open_record_set(public_set))
    finally:
        public_set.chmod(0o755)
    assert message == f"InputPermissionError: {public_set / name}: no permission to read it; check its mode and owner"


# Sets that do not hang together


def test_a_record_file_cut_in_the_middle_is_refused_with_the_first_entry_behind_its_end(record_set: MakeSet) -> None:
    maker = record_set()
    folder = maker.insightface([5, 5])
    os.truncate(folder / "train.rec", maker.offsets[6])
    message = rf"train\.idx: 7 of 13 entries point past the end of .*train\.rec \({maker.offsets[6]} bytes\), "
    with pytest.raises(FormatError, match=message + rf"the first with key 0, offset {maker.offsets[-1]}: .* --salvage"):
        open_record_set(folder)
    opened = open_record_set(folder, SALVAGE)
    assert delivered(opened) == [str(key) for key in range(1, 7)]


@pytest.mark.parametrize("missing", [1, 9, 40])
def test_a_record_file_cut_in_its_last_record_is_refused_with_the_record(record_set: MakeSet, missing: int) -> None:
    maker = record_set()
    folder = maker.plain([0, 1, 2])
    os.truncate(folder / "train.rec", len(maker.data) - 3 - missing)  # 3 bytes are padding
    message = rf"its last record \(key 2, byte {maker.offsets[2]}\) is incomplete.*--salvage"
    with pytest.raises(FormatError, match=message):
        open_record_set(folder)
    assert delivered(open_record_set(folder, SALVAGE)) == ["0", "1"]
    assert failed(open_record_set(folder, SALVAGE)) == ["2"]


def test_records_without_an_index_that_were_cut_are_refused_with_the_place(record_set: MakeSet) -> None:
    maker = record_set()
    folder = maker.plain([0, 1, 2], index=False)
    os.truncate(folder / "train.rec", len(maker.data) - 9)
    with pytest.raises(
        FormatError, match=rf"train\.rec: byte {maker.offsets[2]} of .*2 records before it are complete"
    ):
        open_record_set(folder)
    opened = open_record_set(folder, SALVAGE)
    assert (delivered(opened), failed(opened)) == (["0", "1"], ["2"])


@pytest.mark.parametrize("dialect", [INSIGHTFACE, PLAIN])
def test_an_index_too_short_is_refused_with_what_is_behind_its_last_record(record_set: MakeSet, dialect: str) -> None:
    maker = record_set()
    folder = maker.insightface([2, 2]) if dialect == INSIGHTFACE else maker.plain([0, 1, 2])
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:-2]))
    rest = len(maker.data) - maker.offsets[-2]
    with pytest.raises(FormatError, match=rf"lists {len(lines) - 2} records.* has {rest} bytes more: .*{MENDED_BY}"):
        open_record_set(folder)
    assert len(open_record_set(folder, REBUILD).source) == (4 if dialect == INSIGHTFACE else 3)


@pytest.mark.parametrize("offset", [10_000, 1 << 40, (1 << 63) - 2])
def test_an_index_of_a_longer_file_is_refused(record_set: MakeSet, offset: int) -> None:
    maker = record_set()
    maker.plain([0, 1])
    maker.keys.append(2)
    maker.offsets.append(offset)
    message = rf"1 of 3 entries point past the end of .*the first with key 2, offset {offset}: .*--salvage"
    with pytest.raises(FormatError, match=message):
        open_record_set(maker.write())
    assert delivered(open_record_set(maker.folder, SALVAGE)) == ["0", "1"]


def test_a_line_missing_in_the_middle_shows_in_the_count_of_the_meta_record(record_set: MakeSet) -> None:
    maker = record_set()
    maker.insightface([3, 3])
    del maker.keys[2], maker.offsets[2]
    message = r"train\.idx: has 8 records, but its meta record counts 9 \(6 images, 2 people and itself\): "
    with pytest.raises(FormatError, match=message + f"lines are missing.*{MENDED_BY}"):
        open_record_set(maker.write())
    for way_out in (REBUILD, SALVAGE):
        assert delivered(open_record_set(maker.folder, way_out)) == list("123456")


def test_a_line_too_many_shows_in_the_count_of_the_meta_record(record_set: MakeSet) -> None:
    maker = record_set()
    maker.insightface([3, 3])
    maker.keys.append(99)
    maker.offsets.append(4)
    with pytest.raises(FormatError, match=rf"has 10 records, but its meta record counts 9 .*{MENDED_BY}"):
        open_record_set(maker.write())


@pytest.mark.parametrize("twice", [(0, 1), (0, 4), (3, 4), (1, 3)])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [3, 1, 4, 0, 2]], ids=["in order", "last", "any"])
def test_two_keys_with_one_offset_are_refused(record_set: MakeSet, twice: tuple[int, int], order: list[int]) -> None:
    maker = record_set()
    maker.plain(range(6))
    offsets = [maker.offsets[place] for place in order]
    offsets[twice[0]] = offsets[twice[1]]
    maker.offsets[:5] = offsets
    with pytest.raises(FormatError, match=rf"train\.idx: two keys have the same offset.*{MENDED_BY}"):
        open_record_set(maker.write())


def test_a_key_in_place_of_another_is_said_by_the_one_that_is_missing(record_set: MakeSet) -> None:
    maker = record_set()
    maker.insightface([3, 3])
    maker.keys[2] = 99
    message = rf"train\.idx: key 3 is missing, although the meta record counts it; {MENDED_BY}"
    with pytest.raises(FormatError, match=message):
        open_record_set(maker.write())


def test_an_index_whose_keys_belong_to_other_records_is_refused(record_set: MakeSet) -> None:
    maker = record_set()
    maker.insightface([3, 3])
    maker.keys[5], maker.keys[6] = maker.keys[6], maker.keys[5]  # the last image and the first person
    with pytest.raises(FormatError, match=rf"says that identity records begin at key 7, but the records .*{MENDED_BY}"):
        open_record_set(maker.write())


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_the_way_out_that_is_told_for_a_missing_record_leads_out(record_set: MakeSet, index: bool) -> None:
    maker = record_set()
    for key in (1, 2, 4):  # a builder that could not read an image leaves out its key
        maker.add(key, 0.0, jpeg(key))
    maker.add(5, (1.0, 5.0), b"")
    maker.add(0, (5.0, 6.0), b"")
    folder = maker.write(index=index)
    with pytest.raises(FormatError, match=r"train\.(idx|rec): ") as caught:
        open_record_set(folder)
    options = OpenOptions(salvage="--salvage" in str(caught.value), rebuild_index="--rebuild" in str(caught.value))
    assert delivered(open_record_set(folder, options)) == ["1", "2", "4"]


ABSURD = {
    "NaN": (float("nan"), 6.0),
    "infinite": (4.0, float("inf")),
    "backwards": (6.0, 5.0),
    "from 0": (0.0, 6.0),
    "negative": (-1.0, 6.0),
    "larger than any file": (1e30, 2e30),
}


@pytest.mark.parametrize("announced", ABSURD.values(), ids=ABSURD)
def test_a_meta_record_that_cannot_be_is_refused(record_set: MakeSet, announced: tuple[float, float]) -> None:
    folder = set_with_meta(record_set(), announced)
    with pytest.raises(FormatError, match=r"train\.rec: key 0 is a meta record that says .*, which is impossible"):
        open_record_set(folder)


@pytest.mark.parametrize("announced", ABSURD.values(), ids=ABSURD)
def test_with_salvage_an_absurd_meta_record_is_done_without(
    record_set: MakeSet, announced: tuple[float, float]
) -> None:
    opened = open_record_set(set_with_meta(record_set(), announced), SALVAGE)
    assert (opened.dialect, delivered(opened)) == (INSIGHTFACE, ["1", "2", "3"])


def set_with_meta(maker: RecordSetMaker, announced: tuple[float, float]) -> Path:
    for key in (1, 2, 3):
        maker.add(key, 0.0, jpeg(key))
    maker.add(4, (1.0, 4.0), b"")
    maker.add(0, announced, b"")
    return maker.write()


def test_a_meta_record_that_contradicts_the_last_record_is_refused(record_set: MakeSet) -> None:
    with pytest.raises(FormatError, match=r"its meta record (counts|says)"):
        open_record_set(set_with_meta(record_set(), (5.0, 5.0)))


@pytest.mark.parametrize("options", [OpenOptions(), SALVAGE], ids=["", "salvage"])
def test_without_a_readable_meta_record_the_people_are_found_by_search(
    record_set: MakeSet, caplog: pytest.LogCaptureFixture, options: OpenOptions
) -> None:
    maker = record_set()
    for key in range(1, 6):
        maker.add(key, float(key > 3), jpeg(key))
    maker.add(6, (1.0, 4.0), b"")
    maker.add(7, (4.0, 6.0), b"")
    maker.add_payload(0, NOT_A_HEADER)
    with caplog.at_level(logging.WARNING, logger="facedata"):
        opened = open_record_set(maker.write(), options)
    assert (opened.dialect, opened.classes) == (INSIGHTFACE, 2)
    assert keys_and_labels(opened) == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    assert re.search(r"train\.idx: .*key 0.* missing or corrupt", caplog.text)


@pytest.mark.parametrize("damaged", range(9))
def test_with_salvage_one_damaged_record_anywhere_costs_no_image_but_itself(record_set: MakeSet, damaged: int) -> None:
    maker = record_set()
    maker.insightface([3, 2, 1])  # keys 1..6 are images, 7..9 people, the meta record is last
    maker.data[maker.offsets[damaged]] ^= 0xFF
    opened = open_record_set(maker.write(), SALVAGE)
    assert delivered(opened) == [str(key) for key in range(1, 7) if key != damaged + 1]


@given(
    st.sampled_from([INSIGHTFACE, PLAIN]),
    st.sampled_from([OpenOptions(), REBUILD, SALVAGE]),
    st.integers(1, 255) | st.sampled_from([4, 8, 16, 32, 64, 128]),
    st.integers(0, 471),
)
@example(INSIGHTFACE, REBUILD, 212, 212)  # a length that reaches to the end of the file
@example(PLAIN, REBUILD, 116, 56)  # a length that reaches to another record
def test_a_flipped_byte_is_refused_or_costs_no_image_but_its_own(
    dialect: str, options: OpenOptions, flip: int, place: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        maker = RecordSetMaker(Path(folder))
        maker.insightface([2, 3, 1]) if dialect == INSIGHTFACE else maker.plain([2, 0, 1, 1, 0, 2])
        whole = {sample.image: sample.label for sample in open_record_set(folder).source}
        place %= len(maker.data)
        maker.data[place] ^= flip
        maker.write()
        touched = sum(offset <= place for offset in maker.offsets) - 1
        try:
            samples = list(open_record_set(folder, options).source.read())
            found = {item.image: item.label for item in samples if isinstance(item, Sample)}
        except FormatError:
            assert not options.salvage
            return
    untouched = list(whole)[:touched] + list(whole)[touched + 1 :]
    assert {image: found.get(image) for image in untouched} == {image: whole[image] for image in untouched}


def test_a_damaged_first_image_leaves_a_plain_set_a_plain_set(record_set: MakeSet) -> None:
    for number, payload in enumerate((NOT_A_HEADER, b"short", b"")):
        maker = record_set(f"set {number}")
        maker.add_payload(0, payload)
        maker.add(1, 3.0, jpeg(1))
        maker.add(2, 4.0, jpeg(2))
        opened = open_record_set(maker.write())
        assert (opened.dialect, len(opened.source)) == (PLAIN, 3)
        assert (failed(opened), delivered(opened)) == (["0"], ["1", "2"])


def test_a_single_image_is_a_set(record_set: MakeSet) -> None:
    assert keys_and_labels(open_record_set(record_set().plain([5]))) == [(0, 5)]


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_a_record_file_of_no_bytes_is_said_to_be_empty(record_set: MakeSet, index: bool) -> None:
    with pytest.raises(EmptyDatasetError, match=r"train\.rec: is empty \(0 bytes\)"):
        open_record_set(record_set().write(index=index))


def test_an_index_without_a_line_is_said_to_be_empty(record_set: MakeSet) -> None:
    folder = record_set().plain([0, 1])
    (folder / "train.idx").write_bytes(b"")
    with pytest.raises(EmptyDatasetError, match=r"train\.idx: lists no record"):
        open_record_set(folder)
    assert delivered(open_record_set(folder, REBUILD)) == ["0", "1"]


def test_a_set_of_meta_and_identity_records_alone_is_empty(record_set: MakeSet) -> None:
    maker = record_set()
    maker.add(1, (1.0, 1.0), b"")
    maker.add(0, (1.0, 2.0), b"")
    with pytest.raises(EmptyDatasetError, match=r"train\.rec: holds no image, only meta and identity records"):
        open_record_set(maker.write())


def test_a_set_of_identity_records_alone_is_empty(record_set: MakeSet) -> None:
    maker = record_set()
    for key in (1, 2, 3):
        maker.add(key, (1.0, 1.0), b"")
    with pytest.raises(EmptyDatasetError, match=r"train\.rec: holds no image"):
        open_record_set(maker.write())


def test_a_page_saved_under_the_name_of_a_record_file_is_refused_at_its_beginning(record_set: MakeSet) -> None:
    folder = record_set().plain([0, 1])
    (folder / "train.rec").write_bytes(b"<!DOCTYPE html>" + b" " * 5000)
    with pytest.raises(FormatError, match=r"train\.rec: its last record .* no record begins at byte"):
        open_record_set(folder)
    with pytest.raises(FormatError, match=r"train\.rec: byte 0 of 5015: .* the 0 records before it"):
        open_record_set(folder, REBUILD)


# The property file


@pytest.mark.parametrize("text", ["7,112,112\n", "7,112,112\n1000\n", "7", " 7 ,112,112\r\n"])
def test_the_property_file_declares_the_classes(record_set: MakeSet, text: str) -> None:
    folder = record_set().plain([0, 1])
    (folder / "property").write_text(text)
    assert open_record_set(folder).classes == 7


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"classes\n", b"-3,112,112", b"0,112,112", b"1.5,2", b"\xff" * 1000, b"9" * 1000, b"\0\0,1"]
)
def test_a_property_file_of_garbage_is_not_used_and_said(
    record_set: MakeSet, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    folder = record_set().insightface([2, 2])
    (folder / "property").write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="facedata"):
        assert open_record_set(folder).classes == 2  # by the identity records
    assert "property: its first line is not num_classes,height,width; the file is ignored" in caplog.text


def test_without_property_and_identity_records_no_classes_are_declared(record_set: MakeSet) -> None:
    assert open_record_set(record_set().plain([0, 1])).classes is None


# A rebuilt index


def kept_index(record_set: MakeSet, tmp_path: Path) -> tuple[Path, Path, OpenOptions]:
    """A set without an index, the file in which its rebuilt one is kept, and the options to find that."""
    folder, cache = record_set().plain([0, 0, 1], index=False), tmp_path / "cache"
    cache.mkdir()
    opened = open_record_set(folder)
    opened.save_rebuilt(cache)
    return folder, cache / opened.rebuilt_name, OpenOptions(cache_folder=cache)


def test_a_rebuilt_index_is_kept_and_used_again(
    record_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kept, options = kept_index(record_set, tmp_path)
    expected = keys_and_labels(open_record_set(folder))
    monkeypatch.setattr(record_set_module, "walk_records", lambda *_, **__: pytest.fail("walked again"))
    assert kept.name.startswith(".facedata-")
    assert keys_and_labels(open_record_set(folder, options)) == expected
    assert [path.name for path in folder.iterdir()] == ["train.rec"]


def test_a_rebuilt_index_of_another_file_or_of_a_salvage_is_not_used(record_set: MakeSet, tmp_path: Path) -> None:
    folder, _, options = kept_index(record_set, tmp_path)
    with open(folder / "train.rec", "ab") as file:
        file.write(encode_record(pack_image_record(ImageRecord(0, (9.0,), 9, 0, jpeg(9)))))
    assert len(open_record_set(folder, options).source) == 4
    salvaging = OpenOptions(salvage=True, cache_folder=options.cache_folder)
    assert open_record_set(folder, salvaging).rebuilt_name != open_record_set(folder, options).rebuilt_name


def test_a_set_with_an_index_keeps_nothing(record_set: MakeSet, tmp_path: Path) -> None:
    opened = open_record_set(record_set().plain([0, 1]))
    (tmp_path / "cache").mkdir()
    opened.save_rebuilt(tmp_path / "cache")
    assert opened.rebuilt is None
    assert list((tmp_path / "cache").iterdir()) == []


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


BAD_INDEXES = {
    "empty": b"",
    "garbage": b"not numpy at all",
    "no zip file": b"PK\3\4 cut",
    "cut": npz(keys=[0, 1], offsets=[0, 52])[:-30],
    "flipped": npz(keys=[0, 1], offsets=[0, 52]).replace((52).to_bytes(8, "little"), bytes(8)),
    "half of it": npz(keys=[0]),
    "lengths differ": npz(keys=[0, 1, 2], offsets=[0, 52]),
    "not in a row": npz(keys=[[0, 1]], offsets=[[0, 52]]),
    "not whole numbers": npz(keys=[0, 1], offsets=[0.0, 52.0]),
}


@pytest.mark.parametrize("content", BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_a_kept_index_that_is_damaged_is_refused_with_what_to_do(
    record_set: MakeSet, tmp_path: Path, content: bytes
) -> None:
    folder, kept, options = kept_index(record_set, tmp_path)
    kept.write_bytes(content)
    message = re.escape(str(kept)) + ": this rebuilt index of an earlier run is corrupt; remove it"
    with pytest.raises(FormatError, match=message):
        open_record_set(folder, options)


# The float32 trap: a set of 17 million records, of which the file has one of each kind


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], tuple[str, RecordIndex, int | None]]:
    """What is found for a set of so many images and people; the ranges in its meta record are kept in float32."""
    folder = tmp_path_factory.mktemp("float32")

    def opened(images: int, people: int) -> tuple[str, RecordIndex, int | None]:
        maker = RecordSetMaker(folder)
        image, person = maker.add(1, 0.0, b""), maker.add(2, (1.0, 2.0), b"")
        meta = maker.add(0, (float(images + 1), float(images + 1 + people)), b"")
        maker.write(index=False)
        offsets = np.repeat(np.array([meta, image, person], np.uint8), [1, images, people])
        index = RecordIndex(range(len(offsets)), offsets)  # type: ignore[arg-type]
        with RecordReader(folder / "train.rec") as reader:
            return SetChecker(reader, index, "train.idx", salvage=False).dialect()

    return opened


LIMIT = 1 << 24


@pytest.mark.parametrize(
    ("images", "people"),
    [
        (17_091_657, 360_232),  # Glint360K itself
        *[(LIMIT + more, people) for more in range(-3, 4) for people in (2, 5)],
        *[(17_000_000 + more, 360_000 + person) for more in range(2) for person in range(2)],
        *[(2 * LIMIT + more, 3) for more in range(-2, 6)],
    ],
)
def test_identity_records_are_found_where_the_meta_record_is_rounded(
    one_of_each: Callable[[int, int], tuple[str, RecordIndex, int | None]], images: int, people: int
) -> None:
    dialect, index, classes = one_of_each(images, people)
    assert (dialect, classes) == (INSIGHTFACE, people)
    assert index.keys == range(1, images + 1)


def test_a_single_identity_record_is_found_where_the_meta_record_is_rounded(
    one_of_each: Callable[[int, int], tuple[str, RecordIndex, int | None]],
) -> None:
    for images in range(LIMIT - 1, LIMIT + 4):
        assert one_of_each(images, 1)[1].keys == range(1, images + 1)


@given(st.integers(1, 1 << 40))
def test_the_rounding_allowed_is_what_float32_does_and_little_more(number: int) -> None:
    error = abs(int(np.float32(number)) - number)
    allowed = float32_error(int(np.float32(number)))
    assert error <= allowed <= max(number >> 23, 1)
    assert allowed == 0 or number >= LIMIT - 1


@pytest.mark.parametrize("change", [-2, -1, 1, 2])
def test_below_2_to_the_24_a_meta_record_off_by_one_is_refused(record_set: MakeSet, change: int) -> None:
    maker = record_set()
    for key in range(1, 7):
        maker.add(key, 0.0, jpeg(key))
    for key in (7, 8, 9):
        maker.add(key, (1.0, 2.0), b"")
    maker.add(0, (7.0, 10.0 + change), b"")
    with pytest.raises(FormatError, match=f"has 10 records, but its meta record counts {10 + change}"):
        open_record_set(maker.write())


def test_a_length_that_the_index_contradicts_is_no_reason_to_read_too_much(record_set: MakeSet) -> None:
    maker = record_set()
    maker.add(0, 0.0, jpeg(0))
    maker.offsets.append(len(maker.data))
    maker.keys.append(1)
    maker.data += chunk(0, bytes(40), length=(1 << 29) - 1)
    with pytest.raises(FormatError, match="has 536870911 bytes, but the file ends 40 bytes after its header"):
        open_record_set(maker.write())
