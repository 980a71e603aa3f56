"""Trying a detector in a process of its own.

The parent goes on to fork workers, so it must not start the threads of ONNX Runtime and OpenCV; and a model made to do
harm, or merely broken, can end the process that runs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from facedata.align.detectors.loading import PreparedDetector, check_detector, load_detector
from facedata.errors import (
    FacedataError,
    InputError,
    InterruptedJobError,
    MissingExtraError,
    ModelError,
    OptionError,
)
from facedata.jobs.signals import StopRequest

__all__ = ["check_apart"]

_SECONDS = 300.0  # CUDA takes half a minute to start, a network file system as long to give the libraries
_TICK = 0.1
_PR_SET_PDEATHSIG = 1
_MOST_MEMORY = 16 << 30  # bytes of address space, on the CPU
_PROGRAM = "from facedata.align.detectors.checking import main; main()"
_ERRORS: Mapping[str, type[FacedataError]] = {kind.__name__: kind for kind in (ModelError, OptionError, InputError)}
_SHOWN = 500  # characters of a library's own message


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
    answer = _ask(prepared, size, stop)
    if "missing" in answer:
        raise MissingExtraError(f"the detector '{prepared.name}'", "detect", str(answer["missing"])[:_SHOWN])
    if "error" in answer:
        raise _ERRORS[answer["error"]](str(answer["message"]))
    return replace(prepared, size=int(answer["size"]), versions=tuple(sorted(answer["versions"].items())))


def _ask(prepared: PreparedDetector, size: int | None, stop: StopRequest) -> dict[str, Any]:
    question = json.dumps({"prepared": asdict(prepared), "size": size})
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for us
        )
    except OSError as error:
        raise InputError(f"{prepared.files[0]}: cannot be tried: {error.strerror}") from error
    with process:
        try:
            stdout, stderr = _conversation(process, question.encode(), prepared.files[0], stop)
        finally:
            process.kill()
    lines = stdout.splitlines()
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(lines[-1])
        if process.returncode == 0 and isinstance(answer, dict):
            return answer
    end = _ending(process.returncode) + _last_words(stderr)
    raise ModelError(f"{prepared.files[0]}: cannot be used: the process that tried it ended with {end}")


def _conversation(
    process: subprocess.Popen[bytes], question: bytes, name: str, stop: StopRequest
) -> tuple[bytes, bytes]:
    """What the process says in the end, if it is not given up before."""
    deadline = time.monotonic() + _SECONDS
    told: bytes | None = question
    while True:
        try:
            return process.communicate(told, timeout=_TICK)
        except subprocess.TimeoutExpired:
            told = None  # what was not taken yet is still sent
            if stop:
                raise InterruptedJobError(
                    f"stopped by {stop.signal_name or 'request'}: run the same command again to go on"
                ) from None
            if time.monotonic() > deadline:
                raise ModelError(f"{name}: not ready after {_SECONDS:.0f} seconds: it was given up") from None


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"the signal {signal.Signals(-status).name}"
    return f"the signal {-status}"


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f" ({lines[-1][:_SHOWN]})" if lines else ""


def _environment() -> dict[str, str]:
    """The same modules from the same places, and no threads that are not needed."""
    paths = [path or os.getcwd() for path in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """What the process does: a question on its stdin, the answer as the last line of its stdout."""
    question = json.load(sys.stdin)
    fields = question["prepared"]
    prepared = PreparedDetector(**{**fields, "files": tuple(fields["files"]), "sha256": tuple(fields["sha256"])})
    _limit(prepared)
    sys.stdout.write(f"\n{json.dumps(_answer(prepared, question['size']))}\n")


def _limit(prepared: PreparedDetector) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not to go on where the parent is killed
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = math.ceil(_SECONDS) + 1  # should nobody be left to give it up
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if prepared.device == "cpu":  # CUDA reserves addresses without end
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, most))


def _answer(prepared: PreparedDetector, size: int | None) -> dict[str, Any]:
    try:
        chosen, versions = check_detector(prepared, size)
        detector = load_detector(replace(prepared, size=chosen))
        for height, width in ((chosen, chosen), (1, 1), (chosen // 2, 2 * chosen)):
            detector.detect(np.full((height, width, 3), 127, np.uint8))
    except ImportError as error:
        return {"missing": str(error)}
    except FacedataError as error:
        kind = next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), InputError.__name__)
        return {"error": kind, "message": str(error)}
    except MemoryError:
        return {"error": ModelError.__name__, "message": f"{prepared.files[0]}: needs more memory than there is"}
    return {"size": chosen, "versions": versions}
