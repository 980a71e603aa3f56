"""An ONNX model that turns faces into embeddings: checked once, then loaded in each process that runs it."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.align.detectors.sessions import new_session, one_line, read_model, sha256_of
from facedata.errors import MissingExtraError, ModelError, OptionError
from facedata.features.extraction.preprocessing import NCHW
from facedata.features.extraction.shapes import InputShape, ModelOptions, input_shape, output_name
from facedata.jobs.isolated import run_isolated
from facedata.jobs.signals import StopRequest

__all__ = ["Embedder", "EmbeddingModel", "prepare_model"]

_USUAL_BATCH = {"cpu": 32, "cuda": 128}  # on a CPU core, 16 to 64 are about the same, and 8 or 128 a fifth slower
_SECONDS = 600.0  # to load and try it: CUDA takes half a minute to start, a network file system as long for the library
_MOST_MEMORY = 16 << 30  # bytes of address space, on the CPU
_MOST_DIMENSIONS = 1 << 20
_SAME = 0.05  # of the largest value: what a batch's other images may change at most; rounding is far below

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingModel:
    """A model that was checked; small, and can be sent to other processes.

    Attributes
    ----------
    path : str
    sha256 : str
    size : int
        Of the file, in bytes.
    device : {'cpu', 'cuda'}
    input : InputShape
    output : str
        The name of the output.
    dimensions : int
        Values in an embedding.
    versions : tuple of (str, str)
        Of the libraries that decide the numbers.
    """

    path: str
    sha256: str
    size: int
    device: str
    input: InputShape
    output: str
    dimensions: int
    versions: tuple[tuple[str, str], ...] = field(default=())

    def identity(self) -> dict[str, Any]:
        """What decides the embeddings, as JSON values; not where the file lies."""
        return {
            "sha256": self.sha256,
            "device": self.device,
            "input": asdict(self.input),
            "output": self.output,
            "dimensions": self.dimensions,
            **dict(self.versions),
        }

    def load(self) -> Embedder:
        """The network itself, made once in each process that asks; on the CPU it has one thread.

        Not for a process that forks workers later.

        Raises
        ------
        InputError
            Where the file is not there any more, or is not the one that was checked.
        """
        key = (os.getpid(), self)
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = Embedder(self, read_model(self.path, self.sha256))
        return _loaded[key]


_loaded: dict[tuple[int, EmbeddingModel], Embedder] = {}


class Embedder:
    """A network in memory.

    Parameters
    ----------
    model : EmbeddingModel
    data : bytes
        Its file.
    """

    def __init__(self, model: EmbeddingModel, data: bytes) -> None:
        self._model = model
        device: Any = model.device
        self._session = new_session(data, model.path, device)

    def embed(self, images: Floats) -> Floats:
        """The embeddings of a batch.

        Parameters
        ----------
        images : ndarray of shape (M, 3, H, W) or (M, H, W, 3), float32
            M at most the model's batch. Where it must be as many each time, zeros are added.

        Returns
        -------
        ndarray of shape (M, D), float32

        Raises
        ------
        ModelError
            Where the model fails, or gives something else.
        """
        shape, count = self._model.input, len(images)
        if shape.fixed and count < shape.batch:
            images = np.concatenate([images, np.zeros(shape.shape(shape.batch - count), np.float32)])
        rows = run_network(self._session, self._model, images)
        if rows.shape[1] != self._model.dimensions:
            raise ModelError(
                f"{self._model.path}: expected {self._model.dimensions:,} values for each image, as when it was tried; "
                f"found {rows.shape[1]:,}"
            )
        return rows[:count]

    def embed_mirrored(self, images: Floats) -> Floats:
        """The embeddings of the mirror images."""
        axis = 3 if self._model.input.layout == NCHW else 2
        return self.embed(np.ascontiguousarray(np.flip(images, axis)))


def run_network(session: Any, model: EmbeddingModel, images: Floats) -> Floats:
    """What the network gives for a batch, as float32 of shape (N, D)."""
    given = images.astype(np.float16) if model.input.half else images
    try:
        (found,) = session.run([model.output], {model.input.name: given})
    except Exception as error:  # what it raises has no common class of its own
        given_shape = " x ".join(map(str, images.shape))
        raise ModelError(f"{model.path}: fails on a batch of {given_shape}: {one_line(error)}") from error
    shape: tuple[int, ...] = getattr(found, "shape", ())
    wanted = len(images)
    if getattr(found, "dtype", np.dtype(object)).kind != "f":
        raise ModelError(f"{model.path}: expected '{model.output}' to be of floats, found {_kind(found)}")
    if len(shape) < 2 or shape[0] != wanted or not 1 <= shape[1] <= _MOST_DIMENSIONS or math.prod(shape[2:]) != 1:
        raise ModelError(
            f"{model.path}: expected '{model.output}' to have the shape ({wanted}, D) for {wanted} images, "
            f"found ({', '.join(map(str, shape))})"
        )
    rows: Floats = np.ascontiguousarray(found.reshape(wanted, -1), np.float32)
    return rows


def _kind(found: Any) -> str:
    return str(getattr(found, "dtype", type(found).__name__))


def prepare_model(options: ModelOptions, stop: StopRequest | None = None) -> EmbeddingModel:
    """Have a model ready for any process to load: read, and tried once in a process of its own.

    Parameters
    ----------
    options : ModelOptions
    stop : StopRequest, optional
        Ends the trial.

    Raises
    ------
    InputError
        Where the file cannot be read.
    ModelError
        Where it is no ONNX model, or none that turns images into embeddings.
    OptionError
        Where it does not fit the options, or there is no such device.
    MissingExtraError
        Where ONNX Runtime is missing.
    InterruptedJobError
        Where it was asked to stop.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("extract-features", "features", "onnxruntime is not installed")
    data = read_model(options.path)
    question = {**asdict(options), "sha256": sha256_of(data)}
    memory = _MOST_MEMORY if options.device == "cpu" else None  # CUDA reserves any amount of addresses
    stop = StopRequest() if stop is None else stop  # without a request it is false
    try:
        found = run_isolated(_reply, question, path=options.path, seconds=_SECONDS, memory=memory, stop=stop)
    except ImportError as error:
        raise MissingExtraError("extract-features", "features", str(error)) from error
    return EmbeddingModel(
        path=os.path.abspath(options.path),
        sha256=question["sha256"],
        size=len(data),
        device=options.device,
        input=InputShape(**found["input"]),
        output=found["output"],
        dimensions=found["dimensions"],
        versions=tuple(sorted(found["versions"].items())),
    )


# In the subprocess


def _reply(question: Mapping[str, Any]) -> dict[str, Any]:
    import onnxruntime

    fields = {name: value for name, value in question.items() if name != "sha256"}
    size = fields["input_size"]
    options = ModelOptions(**{**fields, "input_size": None if size is None else tuple(size)})
    data = read_model(options.path, question["sha256"])
    device: Any = options.device
    session = new_session(data, options.path, device)
    shape = input_shape(session.get_inputs(), options, _USUAL_BATCH[options.device])
    output = output_name(session.get_outputs(), options)
    model = EmbeddingModel(options.path, question["sha256"], len(data), options.device, shape, output, 0)
    return {
        "input": asdict(shape),
        "output": output,
        "dimensions": _try(session, model),
        "versions": {"ONNX Runtime": onnxruntime.__version__},
    }


def _try(session: Any, model: EmbeddingModel) -> int:
    """How many values it gives for an image; which must be the same in another place among other images."""
    shape = model.input
    count = shape.batch if shape.fixed or model.device == "cuda" else min(shape.batch, 2)
    generator = np.random.default_rng(0)
    images, others = (generator.uniform(-1.0, 1.0, shape.shape(count)).astype(np.float32) for _ in range(2))
    others[-1] = images[0]
    try:
        one = run_network(session, model, images)[0]
    except ModelError as error:
        raise _with_way_out(error, session, model, images[:1]) from error
    same = run_network(session, model, others)[-1]
    largest = float(np.abs(one).max())
    if math.isfinite(largest) and not float(np.abs(one - same).max()) <= _SAME * largest:
        raise ModelError(
            f"{model.path}: the embedding of an image depends on its place in the batch, or on the others there: was "
            "the model exported in training mode?"
        )
    return len(one)


def _with_way_out(error: ModelError, session: Any, model: EmbeddingModel, image: Floats) -> ModelError | OptionError:
    """The error, or where a single image works, what to do."""
    if model.input.fixed or model.input.batch == 1:
        return error
    try:
        run_network(session, model, image)
    except ModelError:
        return error
    return OptionError(f"{error}; one image at a time works: --batch-size 1")
