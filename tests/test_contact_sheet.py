from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from facedata.contact_sheet import MOST_FACES, PreviewFace, contact_sheet, write_contact_sheet, write_preview
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


def test_labels_are_written_at_the_left_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setenv("PATH", "")  # no fontconfig
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


# The preview of aligned faces

GREY = 90
COLOURS = ((80, 220, 60), (255, 160, 40), (40, 220, 255), (220, 70, 255), (50, 90, 255))
POINTS = np.array([[40.0, 50], [70, 50], [55, 70], [42, 90], [68, 90]])
CROP = np.full((112, 112, 3), 40, np.uint8)
TILE = 232


def face(
    points: NDArray[Any] = POINTS, canvas: tuple[int, int] = (130, 110), box: NDArray[Any] | None = None, **more: Any
) -> PreviewFace:
    source = np.full((*canvas, 3), GREY, np.uint8)
    return PreviewFace(source, points, box, **{"crop": CROP, "label": "a/b.jpg", **more})


def sheet(tmp_path: Path, *faces: PreviewFace) -> NDArray[np.uint8]:
    path = tmp_path / "preview.png"
    write_preview(path, faces, overwrite=True)
    return np.asarray(cv2.imread(str(path)), np.uint8)


def spots(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The middle, x then y, of the pixels of each colour; NaN if there are none."""
    found = []
    for colour in COLOURS:
        rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 30).all(axis=2))
        found.append((columns.mean(), rows.mean()) if len(rows) else (np.nan, np.nan))
    return np.array(found)


def have_shape(found: NDArray[np.float64], points: NDArray[Any]) -> bool:
    """Whether these are the points, but for shift and size."""
    first, second = (places - places.mean(axis=0) for places in (found, points))
    return bool(np.abs(first / np.abs(first).max() - second / np.abs(second).max()).max() < 0.04)


@pytest.mark.parametrize("growth", [0.5, 8])
def test_the_points_have_their_colours_and_places_in_small_and_large_sources(tmp_path: Path, growth: float) -> None:
    canvas = (round(130 * growth), round(110 * growth))
    found = spots(sheet(tmp_path, face((POINTS + 0.5) * growth - 0.5, canvas))[:, :TILE])
    assert have_shape(found, POINTS)
    assert np.hypot(*(found[1] - found[0])) > 30


def test_a_face_that_is_small_in_its_source_is_shown_with_its_surroundings(tmp_path: Path) -> None:
    image = np.full((3000, 4000, 3), GREY, np.uint8)
    image[:, :2000] = 200
    points = POINTS + [3500, 100]
    shown = sheet(tmp_path, PreviewFace(image, points, None, CROP, ""))[:, :TILE]
    assert not (shown[: TILE - 24] == 200).all(axis=2).any()
    assert have_shape(spots(shown), points)
    whole = sheet(tmp_path, PreviewFace(image, POINTS * [1, 40] + [3500, -1500], None, CROP, ""))[:, :TILE]
    assert (whole[: TILE - 24] == 200).all(axis=2).any()


def test_the_box_is_drawn_around_the_points_and_the_template_on_the_crop(tmp_path: Path) -> None:
    template = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])
    plain, boxed = sheet(tmp_path, face()), sheet(tmp_path, face(box=np.array([30.0, 30, 80, 105])))
    rows, columns = np.nonzero((boxed != plain).any(axis=2))
    found = spots(boxed[:, :TILE])
    assert columns.min() < found[:, 0].min() < found[:, 0].max() < columns.max() < TILE
    assert rows.min() < found[:, 1].min() < found[:, 1].max() < rows.max()
    assert np.isnan(spots(plain[:, TILE:])).all()
    assert have_shape(spots(sheet(tmp_path, face(template=template))[:, TILE:]), template)


@pytest.mark.parametrize("shape", [(60, 112), (1024, 1024), (1, 1)])
def test_crops_of_any_size_are_fitted(tmp_path: Path, shape: tuple[int, int]) -> None:
    shown = sheet(tmp_path, face(crop=np.full((*shape, 3), (0, 120, 200), np.uint8)))[:, TILE:]
    rows, columns = np.nonzero((shown == (0, 120, 200)).all(axis=2))
    assert (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1) == (208, round(208 * shape[0] / shape[1]))


STRANGE = {
    "68 points": np.random.default_rng(1).uniform(20, 90, (68, 2)),
    "NaN": np.where(np.arange(10).reshape(5, 2) == 4, np.nan, POINTS),
    "all NaN": np.full((5, 2), np.nan),
    "far outside": POINTS + 1e9,
    "one far outside": POINTS + np.array([[0], [0], [0], [0], [1e300]]),
    "all in one place": np.full((5, 2), 7.0),
    "none": np.empty((0, 2)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_points_boxes_and_sources_do_no_harm(tmp_path: Path, name: str) -> None:
    boxes = [(-1e12, -1e12, 1e12, 1e12), (np.nan, 0, 0, 0), (50, 50, 40, 40)]
    faces = [face(STRANGE[name], box=box) for box in (None, *map(np.array, boxes))]
    faces += [face(STRANGE[name], canvas) for canvas in ((1, 1), (1, 5000), (5000, 1))]
    shown = sheet(tmp_path, *faces)
    assert shown.shape == (3 * TILE, 6 * TILE, 3)
    assert name != "68 points" or not np.isnan(spots(shown[:TILE, :TILE])[2, 0])


@pytest.mark.parametrize(("count", "rows", "pairs"), [(1, 1, 1), (7, 3, 3), (24, 6, 4)])
def test_several_pairs_are_in_a_row(tmp_path: Path, count: int, rows: int, pairs: int) -> None:
    assert sheet(tmp_path, *[face()] * count).shape == (rows * TILE, pairs * 2 * TILE, 3)


@pytest.mark.parametrize("label", ["b.jpg", "person/" * 40 + "0001.jpg", "日本語/é.png", "x" * 100_000])
def test_labels_stay_below_their_pictures(tmp_path: Path, label: str) -> None:
    rows, columns = np.nonzero((sheet(tmp_path, face(label=label)) != sheet(tmp_path, face(label=""))).any(axis=2))
    assert rows.min() > TILE - 24
    assert columns.max() < TILE


def test_one_source_at_a_time_is_in_memory_and_none_is_changed(tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []

    def faces() -> Iterator[PreviewFace]:
        for side in (208, 500, 208):
            shown = face(canvas=(side, side), crop=np.full((208, 208, 3), 40, np.uint8), template=POINTS)
            alive.append(weakref.ref(shown.image))
            yield shown
            assert ((shown.image == GREY).all(), (shown.crop == 40).all()) == (True, True)
            del shown
            assert sum(reference() is not None for reference in alive) <= 1

    write_preview(tmp_path / "preview.jpg", faces())


def test_previews_of_too_few_or_too_many_faces_are_refused(tmp_path: Path) -> None:
    for count, message in ((MOST_FACES + 1, f"at most {MOST_FACES} faces"), (0, "at least one")):
        with pytest.raises(OptionError, match=message):
            write_preview(tmp_path / "preview.png", [face()] * count)
    assert list(tmp_path.iterdir()) == []
