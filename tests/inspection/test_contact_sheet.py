"""Contact sheets: the grid, its limits, and files that appear whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from facedata.errors import OptionError, OutputError, OutputExistsError
from facedata.inspection.contact_sheet import MAX_CELLS, contact_sheet, write_contact_sheet

RED = (0, 0, 255)


def image(height: int, width: int, colour: tuple[int, ...] = RED) -> NDArray[np.uint8]:
    return np.full((height, width, len(colour)), colour, np.uint8)


def test_images_lie_in_rows() -> None:
    colours = [[(10, 0, 0), (20, 0, 0)], [(30, 0, 0), (40, 0, 0)]]
    rows = [[image(8, 8, colour) for colour in row] for row in colours]
    sheet = contact_sheet(rows, cell=8, margin=2)
    assert sheet.shape == (22, 22, 3)
    assert str(sheet.dtype) == "uint8"
    found = [[tuple(sheet[y, x]) for x in (2, 19)] for y in (2, 19)]
    assert found == colours
    assert sheet[0, 0, 0] == sheet[0, 0, 1] == sheet[0, 0, 2]


@pytest.mark.parametrize("size", [(10, 40), (200, 800), (20, 80)])
def test_aspect_is_kept(size: tuple[int, int]) -> None:
    sheet = contact_sheet([[image(*size)]], cell=80, margin=0)
    red = (sheet == RED).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], len(rows), len(columns)) == (30, 20, 80)


def test_a_very_thin_image_keeps_a_pixel() -> None:
    sheet = contact_sheet([[image(1, 1000)]], cell=20, margin=0)
    assert (sheet == RED).all(axis=2).sum() == 20


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


def test_long_labels_are_shortened_and_others_than_ascii_replaced() -> None:
    rows = [[image(30, 30)]]
    long = contact_sheet(rows, labels=["x" * 10_000])
    assert long.shape[1] < 500
    foreign, marks = (contact_sheet(rows, labels=[label]) for label in ("\u0416\n", "??"))
    np.testing.assert_array_equal(foreign, marks)


def test_inputs_are_not_changed() -> None:
    original = image(30, 50)
    contact_sheet([[original]], labels=["a"], cell=50)
    assert (original == RED).all()


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_a_sheet_without_images_is_refused(rows: list[list[NDArray[np.uint8]]]) -> None:
    with pytest.raises(OptionError, match="at least one image"):
        contact_sheet(rows)


def test_too_many_cells_are_refused() -> None:
    pixel = image(1, 1)
    assert contact_sheet([[pixel] * 64] * (MAX_CELLS // 64), cell=1, margin=0).shape == (64, 64, 3)
    with pytest.raises(ValueError, match=str(MAX_CELLS)):
        contact_sheet([[pixel] * (MAX_CELLS + 1)], cell=1)
    with pytest.raises(ValueError, match=str(MAX_CELLS)):  # one long row makes many empty cells
        contact_sheet([[pixel] * 1000, [pixel], [pixel], [pixel], [pixel]], cell=1)


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(OptionError, match="pixels"):
        contact_sheet([[image(1, 1)]], cell=100_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "expected 1 labels, one for each row, found 0"),
        ({"labels": ["a", "b"]}, "found 2"),
        ({"cell": 0}, "cell of at least 1"),
        ({"margin": -1}, "margin of at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        contact_sheet([[image(4, 4)]], **options)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 3, 3), np.uint8),
    ],
)
def test_a_wrong_array_is_reported_with_its_place(wrong: NDArray[Any]) -> None:
    with pytest.raises(OptionError, match=r"row 1, column 0.*found"):
        contact_sheet([[image(4, 4)], [wrong]])


def test_png_holds_the_sheet(tmp_path: Path) -> None:
    rows = [[image(20, 20)]]
    write_contact_sheet(tmp_path / "sheet.PNG", rows, labels=["a"], cell=20)
    read = cv2.imread(str(tmp_path / "sheet.PNG"))
    assert read is not None
    np.testing.assert_array_equal(read, contact_sheet(rows, labels=["a"], cell=20))


def test_jpeg_is_written(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.jpg", [[image(20, 20)]])
    assert (tmp_path / "sheet.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.jpg"]


def test_an_existing_file_is_kept_unless_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"sheet\.png"):
        write_contact_sheet(path, [[image(4, 4)]])
    assert path.read_bytes() == b"mine"
    write_contact_sheet(path, [[image(4, 4)]], overwrite=True)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"mine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match=r"sheet\.png"):
        write_contact_sheet(path, [[image(4, 4)]], overwrite=True)
    assert path.read_bytes() == b"mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("name", ["sheet", "sheet.gif", "png"])
def test_other_extensions_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"\.png"):
        write_contact_sheet(tmp_path / name, [[image(4, 4)]])


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"):
        write_contact_sheet(tmp_path / "absent" / "sheet.png", [[image(4, 4)]])
