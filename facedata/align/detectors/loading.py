"""From checked model files to a detector, in the process that runs it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.families import DETECTORS, Family
from facedata.align.detectors.models import read_model
from facedata.align.detectors.protocol import Detector, Device
from facedata.align.detectors.sessions import new_session, one_line
from facedata.align.faces import Face
from facedata.errors import FacedataError, ModelError
from facedata.images import import_opencv

__all__ = ["PreparedDetector", "check_detector", "load_detector"]

_MODULES = {"onnxruntime": "onnxruntime", "uniface": "uniface", "opencv": "cv2"}


@dataclass(frozen=True)
class PreparedDetector:
    """A detector whose model files are there and checked; small, and can be sent to other processes.

    Attributes
    ----------
    name : str
        A key of `DETECTORS`.
    files : tuple of str
        Paths of the model files.
    sha256 : tuple of str
        Their checksums, in hexadecimal digits.
    size : int
        The longer side, in pixels, that images have when the network sees them.
    min_score : float
        Faces with a lower score are to be refused.
    device : {'cpu', 'cuda'}
    versions : tuple of (str, str)
        Of the libraries that decide the numbers.
    """

    name: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    size: int
    min_score: float
    device: Device
    versions: tuple[tuple[str, str], ...]

    @property
    def floor(self) -> float:
        """The lowest score that the detector itself lets pass: half of `min_score`."""
        return self.min_score / 2

    def identity(self) -> dict[str, Any]:
        """What decides the landmarks, as JSON values."""
        names = map(os.path.basename, self.files)
        return {
            "detector": self.name,
            "models": dict(zip(names, self.sha256, strict=True)),
            "size": self.size,
            "min_score": self.min_score,
            "device": self.device,
            "versions": dict(self.versions),
        }

    def load(self) -> Detector:
        """The detector itself, made once in each process that asks; on the CPU of one thread, and OpenCV too then.

        Not for a process that forks workers later: ONNX Runtime and OpenCV start threads.

        Raises
        ------
        InputError
            Where a model file is not there any more, or is not the one that was checked.
        """
        key = (os.getpid(), self)
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load_detector(self)
        return _loaded[key]


_loaded: dict[tuple[int, PreparedDetector], Detector] = {}


class _Guarded:
    """Any detector, with its faces in order, and its failures named."""

    def __init__(self, detector: Detector, file: str) -> None:
        self._detector, self._file = detector, file

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Faces in an image; see `Detector`."""
        try:
            faces = self._detector.detect(image)
        except FacedataError:
            raise
        except Exception as error:  # whatever the libraries raise about a model that gives something odd
            height, width = image.shape[:2]
            raise ModelError(
                f"{self._file}: fails on an image of {height} x {width} pixels: {one_line(error)}"
            ) from error
        return sorted(filter(_is_finite, faces), key=lambda face: -(face.score or 0.0))


def _is_finite(face: Face) -> bool:
    numbers: tuple[Any, ...] = (face.landmarks, [] if face.box is None else face.box, face.score or 0.0)
    return all(bool(np.isfinite(number).all()) for number in numbers)


def load_detector(prepared: PreparedDetector) -> Detector:
    """The detector, made anew; see `PreparedDetector.load`."""
    if prepared.device == "cpu":
        import_opencv().setNumThreads(1)
    family, models = DETECTORS[prepared.name], _read(prepared)
    if family.runs_on == "yunet":
        from facedata.align.detectors.yunet import load_yunet

        detector: Detector = load_yunet(models[0], prepared.files[0], prepared.size, prepared.floor)
    elif family.runs_on == "mtcnn":
        from facedata.align.detectors.mtcnn import load_mtcnn

        detector = load_mtcnn(_sessions(prepared, models), prepared.size, prepared.floor)
    else:
        from facedata.align.detectors.uniface_detectors import load_uniface, open_model

        session = open_model(models[0], prepared.files[0], family, prepared.device)
        detector = load_uniface(session, family, prepared.size, prepared.floor)
    return _Guarded(detector, prepared.files[0])


def check_detector(prepared: PreparedDetector, size: int | None) -> tuple[int, dict[str, str]]:
    """Load and run a detector once, in a process that nobody will miss.

    Parameters
    ----------
    prepared : PreparedDetector
    size : int, optional
        What was asked for; `prepared` has the detector's own where it is None.

    Returns
    -------
    (int, dict of str to str)
        The size that fits the model, and the versions of the libraries.
    """
    family, models = DETECTORS[prepared.name], _read(prepared)
    chosen = prepared.size
    if family.runs_on == "yunet":
        from facedata.align.detectors.yunet import check_yunet

        check_yunet(models[0], prepared.files[0], family, chosen)
    elif family.runs_on == "mtcnn":
        from facedata.align.detectors.mtcnn import check_mtcnn

        check_mtcnn(_sessions(prepared, models), prepared.files)
    else:
        from facedata.align.detectors.uniface_detectors import check_model, open_model

        session = open_model(models[0], prepared.files[0], family, prepared.device)
        chosen = check_model(session, prepared.files[0], family, size)
    return chosen, _versions(family)


def _read(prepared: PreparedDetector) -> list[bytes]:
    return [read_model(path, sha256) for path, sha256 in zip(prepared.files, prepared.sha256, strict=True)]


def _sessions(prepared: PreparedDetector, models: list[bytes]) -> list[Any]:
    return [new_session(model, name, prepared.device) for model, name in zip(models, prepared.files, strict=True)]


def _versions(family: Family) -> dict[str, str]:
    names = ("opencv", *(library for library in family.libraries if library in _MODULES))
    return {name: str(importlib.import_module(_MODULES[name]).__version__) for name in names}
