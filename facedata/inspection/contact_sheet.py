"""Contact sheets: a picture with a row of small images for each identity."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.errors import OptionError, OutputExistsError, output_error
from facedata.files import atomic_writer
from facedata.images import import_opencv

__all__ = ["MAX_CELLS", "contact_sheet", "sheet_extension", "write_contact_sheet"]

Image = NDArray[np.uint8]

MAX_CELLS = 4096
"""The most cells that a sheet may have, empty ones included."""

_MAX_PIXELS = 1 << 26  # 200 MB in memory
_BACKGROUND = 236
_EMPTY = 222
_INK = (64, 60, 58)
_LABEL_LENGTH = 24  # characters; longer labels would leave no room for the images
_EXTENSIONS = (".png", ".jpg", ".jpeg")


def contact_sheet(
    rows: Sequence[Sequence[NDArray[Any]]],
    *,
    labels: Sequence[str] | None = None,
    cell: int = 112,
    margin: int = 6,
) -> Image:
    """Arrange images in a grid.

    Parameters
    ----------
    rows : sequence of sequences of ndarray, uint8
        Images of shape (H, W, 3), BGR, or (H, W), grey. Rows may differ in length.
    labels : sequence of str, optional
        A text for each row, written at its left, shortened to 24 characters; characters outside ASCII become ``?``.
    cell : int
        Side in pixels of the square that an image is scaled into; its aspect ratio is kept.
    margin : int
        Pixels around and between the cells.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        BGR.

    Raises
    ------
    OptionError
        If there is no image, an image is not as described, the labels are not as many as the rows, or the sheet would
        have more than `MAX_CELLS` cells or 67 million pixels.
    """
    cv2 = import_opencv()

    columns = max((len(row) for row in rows), default=0)
    texts = [""] * len(rows) if labels is None else [re.sub("[^ -~]", "?", label) for label in labels]
    texts = [text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 3]}..." for text in texts]
    if not columns:
        raise OptionError("contact sheet: expected at least one image, found none")
    if len(rows) * columns > MAX_CELLS:
        raise OptionError(f"contact sheet: expected at most {MAX_CELLS} cells, found {len(rows)} x {columns}")
    if len(texts) != len(rows):
        raise OptionError(f"contact sheet: expected {len(rows)} labels, one for each row, found {len(texts)}")
    if cell < 1 or margin < 0:
        raise OptionError(
            f"contact sheet: expected a cell of at least 1 and a margin of at least 0, found {cell} and {margin}"
        )
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, min(0.5, max(0.3, cell / 224.0))
    widths = [cv2.getTextSize(text, font, scale, 1)[0][0] for text in texts if text]
    left = margin + (max(widths) + max(margin, 4) if widths else 0)
    height, width = margin + len(rows) * (cell + margin), left + columns * (cell + margin)
    if height * width > _MAX_PIXELS:
        raise OptionError(f"contact sheet: {height} x {width} pixels are too many; choose a smaller cell")
    sheet = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        top = margin + index * (cell + margin)
        if text:
            baseline = top + round(0.5 * cell + 11.0 * scale)  # Hershey's capitals are 22 units high
            cv2.putText(sheet, text, (margin, baseline), font, scale, _INK, 1, cv2.LINE_AA)
        for column in range(columns):
            x = left + column * (cell + margin)
            space = sheet[top : top + cell, x : x + cell]
            space[:] = _EMPTY
            if column < len(row):
                _place(space, row[column], f"row {index}, column {column}")
    return sheet


def _place(space: Image, image: NDArray[Any], place: str) -> None:
    """Scale an image and draw it in the middle of `space`, a square part of the sheet."""
    cv2 = import_opencv()

    shaped = image.ndim == 2 or image.shape[2:] == (3,)
    if image.dtype != np.uint8 or not shaped or not image.size:
        raise OptionError(
            f"contact sheet, {place}: expected uint8 of shape (H, W, 3) or (H, W), "
            f"found {image.dtype} of shape {image.shape}"
        )
    side = space.shape[0]
    factor = side / max(image.shape[:2])
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    if (height, width) != image.shape[:2]:
        method = cv2.INTER_AREA if factor < 1.0 else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=method)
    top, left = (side - height) // 2, (side - width) // 2
    space[top : top + height, left : left + width] = image if image.ndim == 3 else image[..., None]


def write_contact_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[NDArray[Any]]],
    *,
    labels: Sequence[str] | None = None,
    cell: int = 112,
    margin: int = 6,
    overwrite: bool = False,
) -> None:
    """Write a contact sheet as PNG or JPEG, depending on its name; the file appears complete or not at all.

    Parameters
    ----------
    path : path
        A name that ends in ``.png``, ``.jpg`` or ``.jpeg``.
    rows, labels, cell, margin
        As for `contact_sheet`.
    overwrite : bool
        Whether a file of this name may be replaced.

    Raises
    ------
    OptionError
        As for `contact_sheet`, or if the name has another extension.
    OutputExistsError
        If the file exists and `overwrite` is false.
    OutputError
        If it cannot be written.
    """
    name = os.fspath(path)
    extension = sheet_extension(name)
    if os.path.lexists(name) and not overwrite:
        raise OutputExistsError(f"{name}: exists already; choose another name, or overwrite it")
    sheet = contact_sheet(rows, labels=labels, cell=cell, margin=margin)
    _, encoded = import_opencv().imencode(extension, sheet)
    try:
        with atomic_writer(name) as file:
            file.write(encoded.tobytes())
    except OSError as error:
        raise output_error(error, name) from error


def sheet_extension(name: str) -> str:
    """The file extension of a contact sheet, which decides its encoding.

    Raises
    ------
    OptionError
        If the name has another extension.
    """
    extension = os.path.splitext(name)[1].lower()
    if extension not in _EXTENSIONS:
        raise OptionError(f"{name}: expected a name that ends in one of {', '.join(_EXTENSIONS)}")
    return extension
