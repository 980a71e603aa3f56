"""The preview: points and boxes where they belong, whatever the size of the source, and nothing that breaks it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from facedata.align.preview import MOST_FACES, PreviewFace, write_preview
from facedata.errors import OptionError, OutputExistsError

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


def spot(image: NDArray[np.uint8], colour: tuple[int, ...]) -> tuple[float, float]:
    """The middle, x then y, of what has a colour; NaN where nothing has."""
    rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 30).all(axis=2))
    return (float(columns.mean()), float(rows.mean())) if len(rows) else (np.nan, np.nan)


def spots(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.array([spot(image, colour) for colour in COLOURS])


def shape_of(points: NDArray[Any]) -> NDArray[np.float64]:
    """Without shift and size."""
    moved = np.asarray(points - points.mean(axis=0), np.float64)
    return np.asarray(moved / np.abs(moved).max())


@pytest.mark.parametrize("growth", [0.5, 1, 8])
def test_the_points_have_their_colours_and_places_in_small_and_large_sources(tmp_path: Path, growth: float) -> None:
    canvas = (round(130 * growth), round(110 * growth))
    source = sheet(tmp_path, face((POINTS + 0.5) * growth - 0.5, canvas))[:, :TILE]
    found = spots(source)
    assert np.abs(shape_of(found) - shape_of(POINTS)).max() < 0.04
    assert np.hypot(*(found[1] - found[0])) > 30


def test_a_face_that_is_small_in_its_source_is_shown_with_its_surroundings(tmp_path: Path) -> None:
    image = np.full((3000, 4000, 3), GREY, np.uint8)
    image[:, :2000] = 200
    points = POINTS + [3500, 100]
    shown = sheet(tmp_path, PreviewFace(image, points, None, CROP, ""))[:, :TILE]
    assert not (shown[: TILE - 24] == 200).all(axis=2).any()
    found = spots(shown)
    assert np.abs(shape_of(found) - shape_of(points)).max() < 0.04
    whole = sheet(tmp_path, PreviewFace(image, POINTS * [1, 40] + [3500, -1500], None, CROP, ""))[:, :TILE]
    assert (whole[: TILE - 24] == 200).all(axis=2).any()


def test_the_box_is_drawn_about_the_points(tmp_path: Path) -> None:
    plain = sheet(tmp_path, face())
    boxed = sheet(tmp_path, face(box=np.array([30.0, 30, 80, 105])))
    rows, columns = np.nonzero((boxed != plain).any(axis=2))
    found = spots(boxed[:, :TILE])
    assert columns.min() < found[:, 0].min() < found[:, 0].max() < columns.max() < TILE
    assert rows.min() < found[:, 1].min() < found[:, 1].max() < rows.max()


def test_template_points_are_drawn_on_the_crop_where_asked(tmp_path: Path) -> None:
    template = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])
    plain, crossed = (sheet(tmp_path, face(template=one))[:, TILE:] for one in (None, template))
    assert np.isnan(spots(plain)).all()
    found = spots(crossed)
    assert np.abs(shape_of(found) - shape_of(template)).max() < 0.04


@pytest.mark.parametrize("shape", [(112, 112), (60, 112), (224, 224), (1024, 1024), (1, 1)])
def test_crops_of_any_size_are_fitted(tmp_path: Path, shape: tuple[int, int]) -> None:
    crop = np.full((*shape, 3), (0, 120, 200), np.uint8)
    shown = sheet(tmp_path, face(crop=crop))[:, TILE:]
    rows, columns = np.nonzero((shown == (0, 120, 200)).all(axis=2))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(height, width) == 208
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.02)


@pytest.mark.parametrize("count", [25, 68, 98, 106])
def test_other_layouts_are_dots(tmp_path: Path, count: int) -> None:
    points = np.random.default_rng(1).uniform(20, 90, (count, 2))
    shown = sheet(tmp_path, face(points))[:, :TILE]
    assert not np.isnan(spot(shown, COLOURS[2])[0])


STRANGE = {
    "NaN": np.where(np.arange(10).reshape(5, 2) == 4, np.nan, POINTS),
    "all NaN": np.full((5, 2), np.nan),
    "far outside": POINTS + 1e9,
    "one far outside": POINTS + np.array([[0], [0], [0], [0], [1e300]]),
    "infinite": np.where(np.arange(10).reshape(5, 2) == 3, np.inf, POINTS),
    "all in one place": np.full((5, 2), 7.0),
    "none": np.empty((0, 2)),
    "32 bits": POINTS.astype(np.float32),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("box", [None, (-1e12, -1e12, 1e12, 1e12), (np.nan, 0, 0, 0), (50, 50, 40, 40)])
def test_strange_points_and_boxes_do_no_harm(tmp_path: Path, name: str, box: tuple[float, ...] | None) -> None:
    boxed = None if box is None else np.array(box, np.float64)
    assert sheet(tmp_path, face(STRANGE[name], box=boxed)).shape == (TILE, 2 * TILE, 3)


def test_a_source_of_one_pixel_and_a_very_long_one(tmp_path: Path) -> None:
    shown = sheet(tmp_path, face(canvas=(1, 1)), face(canvas=(1, 5000)), face(canvas=(5000, 1)))
    assert shown.shape[1] == 4 * TILE


@pytest.mark.parametrize(("count", "rows", "pairs"), [(1, 1, 1), (2, 1, 2), (5, 3, 2), (7, 3, 3), (24, 6, 4)])
def test_several_pairs_lie_in_a_row(tmp_path: Path, count: int, rows: int, pairs: int) -> None:
    assert sheet(tmp_path, *[face()] * count).shape == (rows * TILE, pairs * 2 * TILE, 3)


def test_labels_stand_beneath_and_keep_to_their_room(tmp_path: Path) -> None:
    plain = sheet(tmp_path, face(label=""))
    for label in ("b.jpg", "person/" * 40 + "0001.jpg", "日本語/é.png", "x" * 100_000):
        shown = sheet(tmp_path, face(label=label))
        rows, columns = np.nonzero((shown != plain).any(axis=2))
        assert rows.min() > TILE - 24
        assert columns.max() < TILE


def test_the_sources_are_held_one_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[Any]] = []

    def faces() -> Iterator[PreviewFace]:
        for _ in range(5):
            one = face()
            alive.append(weakref.ref(one.image))
            yield one
            del one
            assert sum(reference() is not None for reference in alive) <= 1

    write_preview(tmp_path / "preview.jpg", faces())


@pytest.mark.parametrize("side", [208, 500])
def test_source_and_crop_are_left_as_they_were(tmp_path: Path, side: int) -> None:
    one = face(canvas=(side, side), crop=np.full((208, 208, 3), 40, np.uint8), template=POINTS)
    write_preview(tmp_path / "preview.png", [one])
    assert (one.image == GREY).all()
    assert (one.crop == 40).all()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"at most {MOST_FACES} faces"):
        write_preview(tmp_path / "preview.png", [face()] * (MOST_FACES + 1))
    with pytest.raises(OptionError, match="at least one"):
        write_preview(tmp_path / "preview.png", [])
    with pytest.raises(OptionError, match=r"\.png"):
        write_preview(tmp_path / "preview.gif", [face()])
    write_preview(tmp_path / "preview.png", [face()])
    with pytest.raises(OutputExistsError):
        write_preview(tmp_path / "preview.png", [face()])
    write_preview(tmp_path / "preview.png", [face()], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
