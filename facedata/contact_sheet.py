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

__all__ = ["contact_sheet", "sheet_extension", "write_contact_sheet"]

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
        If there is no image.
    """
    cv2 = import_opencv()
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise OptionError("contact sheet: expected at least one image, found none")
    texts = [re.sub("[^ -~]", "?", label) for label in labels] or [""] * len(rows)
    texts = [text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 3]}..." for text in texts]
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, min(0.5, max(0.3, cell / 224.0))
    widths = [cv2.getTextSize(text, font, scale, 1)[0][0] for text in texts if text]
    left = margin + (max(widths) + max(margin, 4) if widths else 0)
    height, width = margin + len(rows) * (cell + margin), left + columns * (cell + margin)
    sheet = np.full((height, width, 3), _BACKGROUND, np.uint8)
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        top = margin + index * (cell + margin)
        baseline = top + round(0.5 * cell + 11.0 * scale)  # Hershey's capitals are 22 units high
        cv2.putText(sheet, text, (margin, baseline), font, scale, _INK, 1, cv2.LINE_AA)
        for column in range(columns):
            x = left + column * (cell + margin)
            space = sheet[top : top + cell, x : x + cell]
            space[:] = _EMPTY
            if column < len(row):
                _draw(row[column], space)
    return sheet


def _draw(image: NDArray[Any], space: NDArray[np.uint8]) -> None:
    """Scale an image and draw it in the middle of `space`, a square part of the sheet."""
    side = space.shape[0]
    factor = side / max(image.shape[:2])
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    if (height, width) != image.shape[:2]:
        cv2 = import_opencv()
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1.0 else cv2.INTER_CUBIC)
    top, left = (side - height) // 2, (side - width) // 2
    space[top : top + height, left : left + width] = image if image.ndim == 3 else image[..., None]


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
    """The file extension of a contact sheet, which decides its encoding; raises an `OptionError` at others."""
    extension = os.path.splitext(name)[1].lower()
    if extension not in _EXTENSIONS:
        raise OptionError(f"{name}: expected a name that ends in one of {', '.join(_EXTENSIONS)}")
    return extension
