"""Contact sheets: the grid, and files that appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from facedata.contact_sheet import contact_sheet, write_contact_sheet
from facedata.errors import OptionError, OutputError, OutputExistsError

RED = (0, 0, 255)


def image(height: int, width: int, colour: tuple[int, ...] = RED) -> NDArray[np.uint8]:
    return np.full((height, width, len(colour)), colour, np.uint8)


def test_images_lie_in_rows() -> None:
    colours = [[(10, 0, 0), (20, 0, 0)], [(30, 0, 0), (40, 0, 0)]]
    rows = [[image(8, 8, colour) for colour in row] for row in colours]
    sheet = contact_sheet(rows, cell=8, margin=2)
    assert (sheet.shape, str(sheet.dtype)) == ((22, 22, 3), "uint8")
    assert [[tuple(sheet[y, x]) for x in (2, 19)] for y in (2, 19)] == colours
    assert sheet[0, 0, 0] == sheet[0, 0, 1] == sheet[0, 0, 2]


@pytest.mark.parametrize(
    ("size", "shape"), [((10, 40), (20, 80)), ((200, 800), (20, 80)), ((20, 80), (20, 80)), ((1, 1000), (1, 80))]
)
def test_the_aspect_ratio_is_kept(size: tuple[int, int], shape: tuple[int, int]) -> None:
    sheet = contact_sheet([[image(*size)]], cell=80, margin=0)
    red = (sheet == RED).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], len(rows), len(columns)) == ((80 - shape[0]) // 2, *shape)


def test_grey_images_and_short_rows() -> None:
    grey = np.full((5, 5), 7, np.uint8)
    sheet = contact_sheet([[grey, image(5, 5)], [grey]], cell=5, margin=1)
    assert tuple(sheet[1, 1]) == (7, 7, 7)
    assert tuple(sheet[8, 8]) not in (RED, (7, 7, 7))


def test_labels_are_written_at_the_left_of_their_rows() -> None:
    rows = [[image(60, 60)], [image(60, 60)]]
    plain = contact_sheet(rows, cell=60, margin=4)
    sheet = contact_sheet(rows, labels=["", "person 7"], cell=60, margin=4)
    column = sheet[:, : sheet.shape[1] - plain.shape[1] + 4]
    assert sheet.shape[1] > plain.shape[1]
    assert (column[:64] == column[0, 0]).all()
    dark = np.argwhere(column.min(axis=2) < 120)
    assert 68 < dark[:, 0].min() <= dark[:, 0].max() < 128
    assert abs(dark[:, 0].mean() - 98) < 6
    assert contact_sheet(rows[:1], labels=["x" * 10_000]).shape[1] < 500
    foreign, marks = (contact_sheet(rows[:1], labels=[label]) for label in ("\u0416\n", "??"))
    np.testing.assert_array_equal(foreign, marks)


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_no_image_is_refused(rows: list[list[NDArray[np.uint8]]]) -> None:
    with pytest.raises(OptionError, match="at least one image"):
        contact_sheet(rows)


def test_the_extension_decides_the_encoding(tmp_path: Path) -> None:
    rows = [[image(20, 20)]]
    write_contact_sheet(tmp_path / "sheet.PNG", rows, labels=["a"], cell=20)
    read = cv2.imread(str(tmp_path / "sheet.PNG"))
    assert read is not None
    np.testing.assert_array_equal(read, contact_sheet(rows, labels=["a"], cell=20))
    write_contact_sheet(tmp_path / "sheet.jpg", rows)
    assert (tmp_path / "sheet.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    for name in ("sheet", "sheet.gif", "png"):
        with pytest.raises(OptionError, match=r"\.png"):
            write_contact_sheet(tmp_path / name, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.PNG", "sheet.jpg"]


def test_a_file_is_replaced_only_if_asked_and_only_by_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = tmp_path / "sheet.png", [[image(4, 4)]]
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"sheet\.png"):
        write_contact_sheet(path, rows)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("os.replace", full)
        with pytest.raises(OutputError, match=r"sheet\.png"):
            write_contact_sheet(path, rows, overwrite=True)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]
    write_contact_sheet(path, rows, overwrite=True)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputError, match="absent"):
        write_contact_sheet(tmp_path / "absent" / "sheet.png", rows)
