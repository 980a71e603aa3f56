"""Trying a detector in a process of its own.

The parent goes on to fork workers, so it must not start the threads of ONNX Runtime and OpenCV; and a model made to do
harm, or merely broken, can end the process that runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from facedata.align.detectors.loading import PreparedDetector, check_detector, load_detector
from facedata.errors import MissingExtraError
from facedata.jobs.apart import Limits, answer, ask
from facedata.jobs.signals import StopRequest

__all__ = ["check_apart"]

_SECONDS = 300.0  # CUDA takes half a minute to start, a network file system as long to give the libraries
_MOST_MEMORY = 16 << 30  # bytes of address space, on the CPU
_PROGRAM = "from facedata.align.detectors.checking import main; main()"


def check_apart(prepared: PreparedDetector, size: int | None, stop: StopRequest) -> PreparedDetector:
    """The detector with the size and the versions that were found when it was tried.

    Parameters
    ----------
    prepared : PreparedDetector
    size : int, optional
        What was asked for.
    stop : StopRequest
        Ends the trial.

    Raises
    ------
    ModelError
        Where the model cannot be used.
    OptionError
        Where the size or the device cannot.
    MissingExtraError
        Where a library cannot be loaded.
    InterruptedJobError
        Where it was asked to stop.
    """
    path = prepared.files[0]
    question = {"prepared": asdict(prepared), "size": size, "path": path}
    try:
        found = ask(_PROGRAM, question, path=path, seconds=_SECONDS, stop=stop)
    except ImportError as error:
        raise MissingExtraError(f"the detector '{prepared.name}'", "detect", str(error)) from error
    return replace(prepared, size=int(found["size"]), versions=tuple(sorted(found["versions"].items())))


def main() -> None:
    """What the process does."""
    answer(_try, _limits)


def _limits(question: Mapping[str, Any]) -> Limits:
    on_cpu = question["prepared"]["device"] == "cpu"  # CUDA reserves addresses without end
    return Limits(_SECONDS, _MOST_MEMORY if on_cpu else None)


def _try(question: Mapping[str, Any]) -> dict[str, Any]:
    fields = question["prepared"]
    prepared = PreparedDetector(**{**fields, "files": tuple(fields["files"]), "sha256": tuple(fields["sha256"])})
    chosen, versions = check_detector(prepared, question["size"])
    detector = load_detector(replace(prepared, size=chosen))
    for height, width in ((chosen, chosen), (1, 1), (chosen // 2, 2 * chosen)):
        detector.detect(np.full((height, width, 3), 127, np.uint8))
    return {"size": chosen, "versions": versions}
