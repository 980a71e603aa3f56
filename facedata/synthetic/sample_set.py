"""A small record set of drawn faces, with their landmarks: the work behind ``facedata make-sample``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.rec.writer import InsightFaceWriter
from facedata.errors import OptionError, OutputExistsError, output_error
from facedata.files import atomic_writer
from facedata.images import import_opencv
from facedata.synthetic.faces import DrawnFace, draw_face, identity_from_seed, view_from_seed

__all__ = ["SampleOptions", "SampleSummary", "make_sample"]

FILES = ("landmarks.jsonl", "train.rec", "train.idx", "property")
_JPEG_QUALITY = 95
_PREVIEW_ROWS, _PREVIEW_COLUMNS = 8, 8
_SMALLEST, _LARGEST = 16, 1024


@dataclass(frozen=True)
class SampleOptions:
    """What to draw.

    Attributes
    ----------
    identities : int
    images : int
        Of each identity.
    size : int
        Side of the square images, in pixels, 16 to 1024.
    seed : int
        The same seed gives the same files, with the same versions of NumPy and OpenCV.
    """

    identities: int = 36
    images: int = 8
    size: int = 112
    seed: int = 0

    def __post_init__(self) -> None:
        if not _SMALLEST <= self.size <= _LARGEST:
            raise OptionError(f"size {self.size}: expected {_SMALLEST} to {_LARGEST} pixels")
        if self.identities < 1 or self.images < 1 or self.seed < 0:
            raise OptionError("identities and images are counted from 1, seeds from 0")


@dataclass(frozen=True)
class SampleSummary:
    """What was written."""

    output: str
    identities: int
    images: int
    bytes: int
    preview: str | None


def make_sample(
    folder: str | os.PathLike[str],
    options: SampleOptions | None = None,
    *,
    overwrite: bool = False,
    preview: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Draw a small dataset and write it as a record set of the InsightFace dialect.

    Beside ``train.rec``, ``train.idx`` and ``property`` stands ``landmarks.jsonl``: for each image one object with its
    record ``key``, its ``label``, and ``landmarks5`` and ``landmarks68``, lists of [x, y] in pixels, the centre of the
    top left pixel being (0, 0).

    Parameters
    ----------
    folder : str or path
    options : SampleOptions, optional
    overwrite : bool
        Replace these files where they are there already.
    preview : str or path, optional
        Also write a contact sheet of the first identities there (``.png`` or ``.jpg``).
    progress : callable, optional
        Called with images done and images in all.

    Raises
    ------
    OutputExistsError
        Where one of the files is there and `overwrite` is not given.
    OutputError
        Where they cannot be written.
    """
    options = options or SampleOptions()
    target = Path(folder)
    check_sample_output(target, preview, overwrite=overwrite)
    try:
        target.mkdir(parents=True, exist_ok=True)
        rows, size = _write_set(target, options, progress)
        if preview is not None:
            _write_preview(preview, rows, overwrite=overwrite)
    except OSError as error:
        raise output_error(error, target) from error
    return SampleSummary(
        os.fspath(folder),
        options.identities,
        options.identities * options.images,
        size,
        None if preview is None else os.fspath(preview),
    )


def check_sample_output(target: Path, preview: str | os.PathLike[str] | None, *, overwrite: bool) -> None:
    """Raise `OutputExistsError` where a file to be written is there and `overwrite` is not given."""
    paths = [target / name for name in FILES] + ([Path(preview)] if preview is not None else [])
    there = [path for path in paths if os.path.lexists(path)]
    if there and not overwrite:
        raise OutputExistsError(f"{there[0]}: is there already; choose another folder, or --overwrite to replace it")


def _write_set(
    target: Path, options: SampleOptions, progress: Callable[[int, int], None] | None
) -> tuple[list[list[NDArray[np.uint8]]], int]:
    rows: list[list[NDArray[np.uint8]]] = []
    done = size = 0
    with (
        atomic_writer(target / FILES[0]) as landmarks,
        InsightFaceWriter(target, (options.size, options.size)) as writer,
    ):
        for label, image, face in _faces(options):
            encoded = _encode(face.image)
            key = writer.write(label, encoded)
            landmarks.write(_landmark_line(key, label, face))
            if label < _PREVIEW_ROWS and image < _PREVIEW_COLUMNS:
                rows.extend([[]] if image == 0 else [])
                rows[-1].append(face.image)
            done, size = done + 1, size + len(encoded)
            if progress:
                progress(done, options.identities * options.images)
    return rows, size


def _faces(options: SampleOptions) -> Iterator[tuple[int, int, DrawnFace]]:
    for label in range(options.identities):
        identity = identity_from_seed(options.seed, label)
        for image in range(options.images):
            yield label, image, draw_face(identity, view_from_seed(options.seed, label, image), options.size)


def _encode(image: NDArray[np.uint8]) -> bytes:
    cv2 = import_opencv()
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise OSError("OpenCV did not encode the image")
    return bytes(encoded)


def _landmark_line(key: int, label: int, face: DrawnFace) -> bytes:
    value: dict[str, Any] = {"key": str(key), "label": label}
    for name, points in (("landmarks5", face.landmarks5), ("landmarks68", face.landmarks68)):
        value[name] = [[round(float(x), 3), round(float(y), 3)] for x, y in points]
    return json.dumps(value).encode() + b"\n"


def _write_preview(path: str | os.PathLike[str], rows: list[list[NDArray[np.uint8]]], *, overwrite: bool) -> None:
    from facedata.inspection.contact_sheet import write_contact_sheet

    write_contact_sheet(path, rows, labels=[f"id_{label}" for label in range(len(rows))], overwrite=overwrite)
