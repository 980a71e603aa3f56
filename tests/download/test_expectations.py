from __future__ import annotations

from pathlib import Path

import pytest

from facedata.download.catalogue import load_catalogue
from facedata.download.expectations import TextLines, file_expectations, old_releases, set_expectations
from facedata.download.structure import FeatureMatrix, IndexLines, LabelLines, RecordFile
from facedata.errors import InputNotFoundError

KNOWN = load_catalogue()


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2), (b"x" * (1 << 20) + b"\n", 1)]
)
def test_lines_of_any_text(tmp_path: Path, content: bytes, lines: int) -> None:
    (tmp_path / "a").write_bytes(content)
    assert TextLines(lines).check(str(tmp_path / "a")).good
    wrong = TextLines(7).check(str(tmp_path / "a"))
    assert (wrong.good, wrong.text) == (False, f"expected 7 lines, found {lines}")


def test_lines_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        TextLines(1).check(str(tmp_path / "a"))


def test_what_has_a_checksum_is_checked_by_it_and_other_files_by_their_structure() -> None:
    part1 = {one.path: one for one in file_expectations(KNOWN.find("ms1m-part1"))}
    assert part1["features/part1_test.bin"].digest is not None
    assert part1["features/part1_test.bin"].structure is None
    assert part1["labels/part1_test.meta"].structure == LabelLines(584013, 8573)
    ms1mv2 = {one.path: one for one in file_expectations(KNOWN.find("ms1mv2"))}
    assert ms1mv2["faces_emore/train.idx"].structure == IndexLines(5908396)
    assert ms1mv2["faces_emore/train.rec"].structure == RecordFile("train.idx", 5908396)


def test_features_that_nobody_named_are_checked_against_their_labels() -> None:
    placed = ["features/y.bin", "labels/y.meta", "features/alone.bin", "knns/y/faiss_k_80.npz"]
    expected = {one.path: one.structure for one in file_expectations(KNOWN.find("youtube-face"), placed)}
    assert expected == {
        "features/alone.bin": FeatureMatrix(256),
        "features/y.bin": FeatureMatrix(256, labels="../labels/y.meta"),
        "knns/y/faiss_k_80.npz": None,
        "labels/y.meta": LabelLines(),
    }


class TestBeforeAndAfterUnpacking:
    def test_before_it_the_parts_are_needed(self, tmp_path: Path) -> None:
        write(tmp_path, "glint360k_00")
        expected = set_expectations(KNOWN.find("glint360k"), tmp_path, {})
        assert [one.path for one in expected] == [f"glint360k_{part:02d}" for part in range(7)]
        assert not any(one.optional for one in expected)

    def test_afterwards_the_files_are_and_the_parts_need_not_be_there(self, tmp_path: Path) -> None:
        write(tmp_path, "glint360k/train.rec")
        expected = {one.path: one.optional for one in set_expectations(KNOWN.find("glint360k"), tmp_path, {})}
        assert expected["glint360k_03"] is True
        assert expected["glint360k/train.idx"] is False

    def test_plain_files_are_looked_for_in_their_places(self, tmp_path: Path) -> None:
        cars = {
            one.path: one.optional for one in set_expectations(KNOWN.find("cars196"), tmp_path, {"finished": "now"})
        }
        assert cars == {"car_ims.tgz": True, "Cars196/cars_annos.mat": False}


def test_files_with_the_names_of_an_old_release_are_pointed_out(tmp_path: Path) -> None:
    write(tmp_path, "glint360k03")
    (said,) = old_releases(KNOWN.find("glint360k"), tmp_path)
    assert "glint360k03: bears the name of the first release of Glint360K" in said
    assert said.endswith("the current one is glint360k_03")
