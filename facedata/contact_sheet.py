"""Contact sheets: a picture with a row of small images for each identity, and the preview of aligned faces."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Source
from facedata.errors import EmptyDatasetError, FacedataError, OptionError, OutputExistsError, SampleError
from facedata.files import atomic_writer, output_errors
from facedata.images import import_opencv

__all__ = [
    "MOST_FACES",
    "PreviewFace",
    "contact_sheet",
    "sheet_extension",
    "write_contact_sheet",
    "write_dataset_sheet",
    "write_preview",
]

MOST_FACES = 24
"""The most faces of a preview."""

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

_BACKGROUND = 236
_EMPTY = 222
_INK = (64, 60, 58)
_LABEL_LENGTH = 24  # characters; longer labels would leave no room for the images
_EXTENSIONS = (".png", ".jpg", ".jpeg")


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    labels: Sequence[str] = (),
    cell: int = 112,
    margin: int = 6,
) -> NDArray[np.uint8]:
    """Arrange images in a grid.

    Parameters
    ----------
    rows : sequence of sequences of ndarray, uint8
        Images of shape (H, W, 3), BGR, or (H, W), grey. Rows may differ in length.
    labels : sequence of str
        A text for each row, written at its left, shortened to 24 characters. Those outside ASCII are drawn with a font
        of the system, by Pillow and fontconfig's ``fc-list``; without these they become ``?``.
    cell : int
        Side in pixels of the square that an image is scaled into; its aspect ratio is kept.
    margin : int
        Pixels around and between the cells.

    Returns a sheet of shape (H, W, 3), uint8, BGR. Raises an `OptionError` if there is no image.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise OptionError("contact sheet: expected at least one image, found none")
    texts = ["".join(c if c.isprintable() else "?" for c in label) for label in labels] or [""] * len(rows)
    texts = [text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 3]}..." for text in texts]
    scale = min(0.5, max(0.3, cell / 224.0))
    written = [_write(text, scale) for text in texts]
    widest = max(text.shape[1] for text in written)
    left = margin + (widest + max(margin, 4) if any(texts) else 0)
    height, width = margin + len(rows) * (cell + margin), left + columns * (cell + margin)
    sheet = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for index, (row, text) in enumerate(zip(rows, written, strict=True)):
        top = margin + index * (cell + margin)
        place = max(top + (cell - text.shape[0]) // 2, 0)
        space = sheet[place : place + text.shape[0], margin : margin + text.shape[1]]
        np.minimum(space, text[: len(space)], out=space)
        for column in range(columns):
            x = left + column * (cell + margin)
            space = sheet[top : top + cell, x : x + cell]
            space[:] = _EMPTY
            if column < len(row):
                _draw(row[column], space)
    return sheet


def _write(text: str, scale: float) -> Image:
    """A text in one line on the background of the sheet."""
    cv2 = import_opencv()
    if not re.fullmatch("[ -~]*", text):
        font = _font(frozenset(text), round(34 * scale))
        if font is not None:
            from PIL import Image, ImageDraw

            left, top, right, bottom = map(round, font.getbbox(text))
            canvas = Image.new("RGB", (max(right - left, 1), max(bottom - top, 1)), (_BACKGROUND,) * 3)
            ImageDraw.Draw(canvas).text((-left, -top), text, fill=_INK[::-1], font=font)
            return np.array(canvas)[..., ::-1]
        text = re.sub("[^ -~]", "?", text)
    style = (cv2.FONT_HERSHEY_SIMPLEX, scale)
    (width, height), below = cv2.getTextSize(text, *style, 1)
    picture: NDArray[np.uint8] = np.full((max(height + below, 1), max(width, 1), 3), _BACKGROUND, np.uint8)
    cv2.putText(picture, text, (0, height), *style, _INK, 1, cv2.LINE_AA)
    return picture


@cache
def _font(letters: frozenset[str], size: int) -> Any:
    """A font of the system that has these letters, opened by Pillow; None, with a warning, if there is none."""
    codes = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
    command = ["fc-list", "--format", "%{file}\n", f":charset={codes}"]
    try:
        from PIL import ImageFont

        found = subprocess.run(command, capture_output=True, timeout=20, check=True).stdout
    except (ImportError, OSError, subprocess.SubprocessError):
        _log.warning("letters outside ASCII are drawn as '?': the fonts of the system need Pillow and fontconfig")
        return None
    for path in sorted(found.splitlines(), key=lambda path: (b"Sans" not in path, b"Bold" in path, path)):
        with suppress(OSError, ValueError):  # a bitmap font, for example
            return ImageFont.truetype(os.fsdecode(path), size)
    _log.warning("no font of the system has all letters of a name; those outside ASCII are drawn as '?'")
    return None


def _draw(image: NDArray[Any], space: NDArray[np.uint8]) -> None:
    """Scale an image and draw it in the middle of `space`, a square part of the sheet."""
    side = space.shape[0]
    image = _fit(image, side)
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    space[top : top + height, left : left + width] = image if image.ndim == 3 else image[..., None]


def _fit(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Scale an image so that its longer side has `side` pixels."""
    factor = side / max(image.shape[:2])
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    if (height, width) != image.shape[:2]:
        cv2 = import_opencv()
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1.0 else cv2.INTER_CUBIC)
    return image


def write_contact_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    *,
    labels: Sequence[str] = (),
    cell: int = 112,
    margin: int = 6,
    overwrite: bool = False,
) -> None:
    """Write a contact sheet as PNG or JPEG, depending on its name; the file appears complete or not at all.

    `rows`, `labels`, `cell` and `margin` are as for `contact_sheet`; with `overwrite` an existing file is replaced.

    Raises
    ------
    OptionError
        As for `contact_sheet`, or if the name does not end in ``.png``, ``.jpg`` or ``.jpeg``.
    OutputExistsError
        If the file exists and `overwrite` is false.
    OutputError
        If it cannot be written.
    """
    name = os.fspath(path)
    extension = sheet_extension(name)
    _refuse_existing(name, overwrite=overwrite)
    sheet = contact_sheet(rows, labels=labels, cell=cell, margin=margin)
    _, encoded = import_opencv().imencode(extension, sheet)
    with output_errors(name), atomic_writer(name, tidy=True) as file:
        file.write(encoded.tobytes())


def write_dataset_sheet(
    path: str | os.PathLike[str],
    source: Source,
    decode: Callable[[bytes], Image],
    *,
    rows: int = 10,
    columns: int = 8,
    cell: int = 112,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write a contact sheet of a dataset: classes from all over it, one a row, or without labels just images.

    Returns how many images were drawn, and how many could not be read or decoded, which are logged. `decode` makes an
    image of shape (H, W, 3), uint8, BGR, of its bytes. Raises as `write_contact_sheet`.
    """
    name = os.fspath(path)
    _refuse_existing(name, overwrite=overwrite)
    if source.labelled:
        labels = source.labels()
        order = labels.argsort(kind="stable")
        known, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        chosen = np.unique(np.linspace(0, len(known) - 1, rows).round().astype(int))[: len(known)].tolist()
        groups = [order[starts[row] : starts[row] + min(counts[row], columns)] for row in chosen]
        names = source.class_names() or {}
        texts = [names.get(int(known[row]), str(known[row]) if known[row] >= 0 else "unlabelled") for row in chosen]
    else:
        spread = np.unique(np.linspace(0, len(source) - 1, rows * columns).round().astype(int))
        groups = [spread[start : start + columns] for start in range(0, len(spread), columns)] if len(source) else []
        texts = []
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *groups]))
    pictures: dict[int, Image] = {}
    for position, item in zip(wanted.tolist(), source.take(wanted).read(), strict=True):
        try:
            if isinstance(item, SampleError):
                raise item
            pictures[position] = _fit(decode(item.image), cell)
        except FacedataError as error:
            _log.warning("%s: not drawn: %s", item.key, item.reason if isinstance(item, SampleError) else error)
    if not pictures:
        raise EmptyDatasetError(f"{name}: not written: no image can be drawn")
    sheet_rows = [[pictures[place] for place in group.tolist() if place in pictures] for group in groups]
    write_contact_sheet(name, sheet_rows, labels=texts, cell=cell, overwrite=overwrite)
    return len(pictures), len(wanted) - len(pictures)


def sheet_extension(name: str) -> str:
    """The file extension of a contact sheet, which decides its encoding; raises an `OptionError` at others."""
    extension = os.path.splitext(name)[1].lower()
    if extension not in _EXTENSIONS:
        raise OptionError(f"{name}: expected a name that ends in one of {', '.join(_EXTENSIONS)}")
    return extension


def _refuse_existing(name: str, *, overwrite: bool) -> None:
    if os.path.lexists(name) and not overwrite:
        raise OutputExistsError(f"{name}: already exists; choose another name, or --overwrite to replace it")


# The preview: where the points are in the sources, and the crops made from them

_SIDE = 208  # of a picture, in pixels
_CAPTION, _GAP, _BETWEEN = 24, 3, 12  # below a picture; between the two pictures of a face; between two faces
_TILE = _SIDE + _CAPTION
_AROUND_POINTS, _AROUND_BOX = 3.5, 2.0  # what is shown, as a multiple of their extent
_LEAST = 32  # pixels of the source
_FAINT = (130, 126, 124)
_BOX = (255, 255, 255)
# BGR: eye on the image's left, eye on its right, nose, mouth corner left, right. They show if the order is wrong.
_COLOURS = ((80, 220, 60), (255, 160, 40), (40, 220, 255), (220, 70, 255), (50, 90, 255))
_MANY = (40, 220, 255)  # for other layouts
_SUBPIXELS = 4  # bits


class PreviewFace(NamedTuple):
    """One face of a preview.

    `image` and `crop` are the source and the aligned face, of shape (H, W, 3), uint8, BGR. `landmarks`, of shape
    (P, 2), and `box`, of shape (4,), are in pixels of the source; points that are not finite or outside are not drawn.
    `label` is written below, shortened to the available space; `template`, of shape (5, 2), drawn as crosses on the
    crop.
    """

    image: Image
    landmarks: Floats
    box: Floats | None
    crop: Image
    label: str
    template: Floats | None = None


def write_preview(path: str | os.PathLike[str], faces: Iterable[PreviewFace], *, overwrite: bool = False) -> None:
    """Write a contact sheet: each face's source with its points and box, and the crop at its right.

    If a face is small in its source, only the part around it is shown. Five points have a colour each: green and blue
    the eyes, on the image's left and right, yellow the nose, pink and red the corners of the mouth.

    There may be 1 to `MOST_FACES` faces; only small pictures of each are kept, so that an iterator holds one source at
    a time. Raises an `OptionError` for another number of them, and otherwise as `write_contact_sheet`.
    """
    pairs = []
    for number, face in enumerate(faces, 1):
        source = _tile(_source_picture(face), f"{number}  {face.label}", _BETWEEN, _INK)
        height, width = face.crop.shape[:2]
        pairs.append((source, _tile(_crop_picture(face), f"{width} x {height}", _GAP, _FAINT)))
    if len(pairs) > MOST_FACES:
        raise OptionError(f"preview: expected at most {MOST_FACES} faces, found {len(pairs)}")
    blank = np.full((_TILE, _TILE, 3), _BACKGROUND, np.uint8)
    across = math.ceil(math.sqrt(len(pairs) / 1.5)) or 1  # about as wide as high
    rows = []
    for start in range(0, len(pairs), across):
        row = [tile for pair in pairs[start : start + across] for tile in pair]
        rows.append(row + [blank] * (2 * across - len(row)))
    write_contact_sheet(path, rows, cell=_TILE, margin=0, overwrite=overwrite)


def _tile(picture: Image, caption: str, left: int, colour: tuple[int, ...]) -> Image:
    """A tile with a picture in the middle of its square, and below it one line, shortened in the middle if too long."""
    cv2: Any = import_opencv()
    tile = np.full((_TILE, _TILE, 3), _BACKGROUND, np.uint8)
    height, width = picture.shape[:2]
    top, start = _BETWEEN // 2 + (_SIDE - height) // 2, left + (_SIDE - width) // 2
    tile[top : top + height, start : start + width] = picture
    style = (cv2.FONT_HERSHEY_SIMPLEX, 0.42)
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in caption)
    kept, shown = len(plain), plain
    while cv2.getTextSize(shown, *style, 1)[0][0] > _SIDE and kept > 8:
        kept = min(kept, 64) - 1
        shown = f"{plain[: kept // 3]}...{plain[-(kept - kept // 3) :]}"
    cv2.putText(tile, shown, (left, _TILE - 5), *style, colour, 1, cv2.LINE_AA)
    return tile


def _source_picture(face: PreviewFace) -> Image:
    """The source or the part around the face, scaled and then drawn on."""
    cv2 = import_opencv()
    left, top, right, bottom = _window(face)
    picture, scale = _fitted(face.image[top:bottom, left:right])
    corner = np.array([left, top], np.float64)
    if face.box is not None and np.isfinite(face.box).all():
        corners = _to_picture(face.box.reshape(2, 2) - corner, scale)
        limit = 4.0 * _SIDE  # a side outside the picture stays outside
        first, last = np.rint(np.clip(corners, -limit, limit)).astype(int).tolist()
        cv2.rectangle(picture, first, last, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.rectangle(picture, first, last, _BOX, 1, cv2.LINE_AA)
    points = _to_picture(face.landmarks - corner, scale)
    colours, radius = (_COLOURS, 3.0) if len(points) == len(_COLOURS) else ((_MANY,) * len(points), 1.6)
    for point, colour in zip(points, colours, strict=True):
        if _is_in(picture, point):
            for size, ink in ((radius + 1, (0, 0, 0)), (radius, colour)):
                x, y, fine = (round(value * (1 << _SUBPIXELS)) for value in (*point.tolist(), size))
                cv2.circle(picture, (x, y), fine, ink, cv2.FILLED, cv2.LINE_AA, _SUBPIXELS)
    return picture


def _window(face: PreviewFace) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is shown: the whole source if the face is large in it."""
    height, width = face.image.shape[:2]
    side, seen = 0.0, []
    for points, factor in ((face.landmarks, _AROUND_POINTS), (face.box, _AROUND_BOX)):
        if points is not None:
            points = points.reshape(-1, 2)
            inside = np.clip(points[np.isfinite(points).all(axis=1)], 0, [width - 1, height - 1])
            side = max(side, float(np.ptp(inside, axis=0).max()) * factor if len(inside) else 0.0)
            seen.append(inside)
    places = np.vstack(seen)
    side = max(math.ceil(side), _LEAST)
    if not len(places) or side >= max(width, height):
        return 0, 0, width, height
    across, down = min(side, width), min(side, height)
    centre = ((places.min(axis=0) + places.max(axis=0)) / 2).tolist()
    left = min(max(round(centre[0] - across / 2), 0), width - across)
    top = min(max(round(centre[1] - down / 2), 0), height - down)
    return left, top, left + across, top + down


def _crop_picture(face: PreviewFace) -> Image:
    cv2 = import_opencv()
    picture, scale = _fitted(face.crop)
    template = np.empty((0, 2)) if face.template is None else face.template
    for point, colour in zip(_to_picture(template, scale), _COLOURS, strict=False):
        if _is_in(picture, point):
            place = tuple(np.rint(point).astype(int).tolist())
            cv2.drawMarker(picture, place, (0, 0, 0), cv2.MARKER_CROSS, 13, 3, cv2.LINE_AA)
            cv2.drawMarker(picture, place, colour, cv2.MARKER_CROSS, 11, 1, cv2.LINE_AA)
    return picture


def _fitted(part: Image) -> tuple[Image, float]:
    """A copy of the part with `_SIDE` pixels on its longer side, and its scale."""
    cv2 = import_opencv()
    scale = _SIDE / max(part.shape[:2])
    height, width = (max(1, round(length * scale)) for length in part.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture: Image = cv2.resize(part, (width, height), interpolation=method)
    return picture.copy() if np.shares_memory(picture, part) else picture, scale


def _to_picture(points: Floats, scale: float) -> Floats:
    """Points of a part in its picture; outer pixel edges map to outer pixel edges, as in ``cv2.resize``."""
    return (points + 0.5) * scale - 0.5


def _is_in(picture: Image, point: Floats) -> bool:
    height, width = picture.shape[:2]
    return bool(np.isfinite(point).all() and -1 <= point[0] <= width and -1 <= point[1] <= height)
