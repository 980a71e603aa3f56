"""ONNX model files, ONNX Runtime sessions, limits on time and memory, and images scaled for a network."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.errors import ChecksumError, ModelError, OptionError
from facedata.files import opened_regular, read_exactly
from facedata.images import import_opencv
from facedata.jobs.machine import available_memory, limited_memory

__all__ = [
    "LARGEST_MODEL",
    "MOST_MEMORY",
    "Device",
    "fit_image",
    "new_session",
    "one_line",
    "read_model",
    "sha256_of",
    "time_limit",
    "to_original",
    "within_limits",
]

Device = Literal["cpu", "cuda"]

LARGEST_MODEL = 1 << 30
"""The most bytes that a model file may have; those of the detectors have 0.2 to 30 MB."""

MOST_MEMORY = 16 << 30
"""The most bytes of address space that a network may take on the CPU."""

_LEAST_MEMORY = 1 << 30
_TIMES_THE_TRIAL, _LONGEST_LIMIT = 100.0, 3600.0  # a loaded machine may be ten times as slow
_TICK = 1.0

T = TypeVar("T")

_LOG_ERRORS, _LOG_FATAL = 3, 4  # errors are raised too; only those of starting CUDA say more in the log
_NOWHERE = "/dev/null"  # the folder of weights outside the model file: by default it is the current folder
_LONGEST_MESSAGE = 300
_CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # the default times the algorithms and may choose another one next time
    "use_tf32": "0",
}


def read_model(path: str | os.PathLike[str], sha256: str | None = None) -> bytes:
    """Read a model file, which must have the checksum `sha256` if one is given.

    Raises an `InputError` if it cannot be read or is not a regular file, a `ModelError` if it is empty or larger than
    `LARGEST_MODEL`, and a `ChecksumError` if it has another checksum.
    """
    name = os.fspath(path)
    with opened_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > LARGEST_MODEL:
            raise ModelError(f"{name}: expected an ONNX model of at most {LARGEST_MODEL:,} bytes, found {size:,} bytes")
        data = read_exactly(descriptor, size, 0)
    if not data:
        raise ModelError(f"{name}: expected an ONNX model, found an empty file")
    if sha256 is not None and sha256_of(data) != sha256:
        raise ChecksumError(f"{name}: the file has changed: expected sha256 {sha256}, found {sha256_of(data)}")
    return data


def sha256_of(data: bytes) -> str:
    """The SHA-256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def new_session(model: bytes, name: str, device: Device) -> Any:
    """Open an ONNX model in ONNX Runtime, with one thread, so that the results do not depend on their number.

    Takes the contents of an ONNX file, and its name for messages; returns an ``onnxruntime.InferenceSession``. Raises a
    `ModelError` if ONNX Runtime does not accept the model, and an `OptionError` if the device is not available.
    """
    import onnxruntime

    if device == "cuda" and _CUDA not in onnxruntime.get_available_providers():
        raise OptionError(
            f"device cuda: this ONNX Runtime, {onnxruntime.__version__}, is built without CUDA: "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu, or use the device cpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _LOG_FATAL if device == "cpu" else _LOG_ERRORS
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    providers: list[Any] = [(_CUDA, _CUDA_OPTIONS)] if device == "cuda" else []
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # the exceptions of ONNX Runtime have no common class of their own
        if "external" in str(error).lower():
            raise ModelError(
                f"{name}: expected a model in one file, found one whose weights are in other files; save it again with "
                "onnx.save(onnx.load(FILE), NEW_FILE)"
            ) from error
        raise ModelError(
            f"{name}: expected an ONNX model, found a file that ONNX Runtime does not accept: {one_line(error)}"
        ) from error
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise OptionError(
            "device cuda: ONNX Runtime could not start CUDA and fell back to the CPU: check the driver and the "
            "versions of CUDA and cuDNN that it needs, or use the device cpu"
        )
    return session


def time_limit(asked: float | None, trial: float, least: float) -> float:
    """The most seconds that a network may take: as many as were asked for, or many times as long as in its trial."""
    if asked is not None and not asked > 0:
        raise OptionError(f"--model-timeout {asked:g}: expected a number of seconds above 0")
    return asked if asked is not None else max(least, min(_TIMES_THE_TRIAL * trial, _LONGEST_LIMIT))


@lru_cache(maxsize=1)
def _memory_left(process: int) -> int:
    return max(min(available_memory(), MOST_MEMORY), _LEAST_MEMORY)


def within_limits(call: Callable[[], T], seconds: float, device: Device, what: str) -> T:
    """Run a network in a thread of its own, and give up when it has taken `seconds`.

    A model is a program: what it does with other images than those of its trial is not known. On the CPU it may not
    take more memory than the machine had left at first. Time in which the whole process is stopped does not count.

    Raises a `ModelError` that begins with `what` if the time is over. The thread then goes on until the process ends.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # for the caller
            future.set_exception(error)

    with limited_memory(_memory_left(os.getpid())) if device == "cpu" else nullcontext():
        threading.Thread(target=work, daemon=True).start()
        left = seconds
        while not wait([future], min(left, _TICK)).done:
            left -= _TICK
            if left <= 0.0:
                raise ModelError(
                    f"{what} takes longer than {seconds:g} seconds, far longer than in the trial; the model may never "
                    "end. If it is only slow, give it more time: --model-timeout SECONDS"
                )
    return future.result()


def one_line(error: Exception) -> str:
    """The message of a library's exception, shortened to a part of a message."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."


def fit_image(
    image: NDArray[np.uint8], side: int, *, enlarge: bool = False, multiple: int = 1, square: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Scale an image of shape (H, W, 3) so that its longer side is at most `side` pixels.

    With `enlarge`, the longer side is always `side`. Black rows and columns are added at the bottom and the right until
    both sides are multiples of `multiple`, or, with `square`, until both are `side`. Returns the image and the factors
    of x and y, which differ by less than a pixel of the scaled image's shorter side.
    """
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor >= 1.0 and not enlarge:
        factor = 1.0
    new_height, new_width = (max(1, round(length * factor)) for length in (height, width))
    if (new_height, new_width) != (height, width):
        cv2 = import_opencv()
        interpolation = cv2.INTER_AREA if new_height * new_width < height * width else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (new_width, new_height), interpolation=interpolation), np.uint8)
    bottom, right = ((side if square else -(-length // multiple) * multiple) for length in (new_height, new_width))
    if (bottom, right) != (new_height, new_width):
        padded = np.zeros((bottom, right, 3), np.uint8)
        padded[:new_height, :new_width] = image
        image = padded
    return image, np.array([new_width / width, new_height / height])


def to_original(points: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn pixel coordinates (x, y) of an image scaled by `fit_image` into those of the original one.

    As in ``cv2.resize``, the outer edges of the images coincide; in both, the centre of the top left pixel is (0, 0).
    """
    return (points + 0.5) / scale - 0.5
