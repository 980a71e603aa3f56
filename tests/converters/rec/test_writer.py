"""Writing record sets: what is written is read back, and what cannot be is refused and leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import jpeg, tree

from facedata.converters.rec import writer as writer_module
from facedata.converters.rec.record_set import INSIGHTFACE, PLAIN, open_record_set
from facedata.converters.rec.recordio import MAGIC_BYTES, ImageRecord, pack_image_record
from facedata.converters.rec.writer import InsightFaceWriter, RecordWriter
from facedata.errors import EmptyDatasetError, FormatError, OptionError, OutputError


def image_payload(label: float, image: bytes) -> bytes:
    return pack_image_record(ImageRecord(0, (label,), 0, 0, image))


@given(st.dictionaries(st.integers(0, 1 << 40), st.binary(min_size=1, max_size=20), min_size=1, max_size=8))
def test_records_under_any_keys_are_read_back(images: dict[int, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with RecordWriter(Path(folder, "train.rec")) as writer:
            for key, image in images.items():
                assert writer.write(key, image_payload(3.0, image + MAGIC_BYTES)) % 4 == 0
        opened = open_record_set(folder)
        assert opened.dialect == PLAIN
        assert {int(sample.key): sample.image for sample in opened.source} == {
            key: image + MAGIC_BYTES for key, image in images.items()
        }


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_the_insightface_dialect_is_read_back_as_such(counts: list[int]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        with InsightFaceWriter(folder, (112, 112)) as writer:
            for key, label in enumerate(labels, 1):
                assert writer.write(label, jpeg(key)) == key
        opened = open_record_set(folder)
        assert (opened.dialect, opened.classes) == (INSIGHTFACE, len(counts))
        assert [(sample.key, sample.label) for sample in opened.source] == [
            (str(key), label) for key, label in enumerate(labels, 1)
        ]
        assert Path(folder, "property").read_text() == f"{len(counts)},112,112\n"


def test_nothing_appears_before_the_end_and_nothing_stays_after_an_error(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "train.rec")
    writer.write(0, image_payload(0.0, jpeg(0)))
    assert not (tmp_path / "train.rec").exists()
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert list(tmp_path.iterdir()) == []


def write_labels(folder: Path, labels: Sequence[int]) -> None:
    with InsightFaceWriter(folder, (112, 112)) as writer:
        for label in labels:
            writer.write(label, jpeg(label))


@pytest.mark.parametrize("labels", [[1], [0, 2], [0, 1, 0]])
def test_the_insightface_dialect_wants_its_labels_in_order(tmp_path: Path, labels: list[int]) -> None:
    with pytest.raises(OptionError, match="this dialect wants them in order"):
        write_labels(tmp_path, labels)
    assert list(tmp_path.iterdir()) == []


def test_more_records_than_float32_counts_are_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LARGEST_INSIGHTFACE_SET", 8)
    with pytest.raises(FormatError, match="write the plain dialect instead"):
        write_labels(tmp_path, [0, 0, 0, 1, 1, 1])
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="there is no image to write"):
        write_labels(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/train\.rec: cannot be written"):
        RecordWriter(tmp_path / "nowhere" / "train.rec")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_at_the_end_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.symlink_to("/dev/full")
    monkeypatch.setattr(writer_module, "temporary_name", lambda _: str(temporary))
    with pytest.raises(OutputError, match="free some space"), RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, image_payload(0.0, jpeg(0)))
    assert tree(tmp_path) == {}
    assert not os.path.lexists(temporary)


def test_a_disk_that_is_full_at_the_closing_records_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("full")

    monkeypatch.setattr(RecordWriter, "write_ranges", full)
    with pytest.raises(OutputError, match="full"):
        write_labels(tmp_path, [0, 1])
    assert list(tmp_path.iterdir()) == []
