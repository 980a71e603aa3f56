"""An ONNX model that turns images into embeddings: tried once in a subprocess, then loaded in each worker."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from facedata.align.detectors.networks import Device, new_session, one_line, read_model, sha256_of
from facedata.errors import MissingExtraError, ModelError, OptionError
from facedata.features.extraction.inputs import NCHW, InputShape, ModelOptions, input_shape, output_name
from facedata.features.feature_set import Floats
from facedata.jobs.isolated import run_isolated
from facedata.jobs.signals import StopRequest

__all__ = ["EmbeddingModel", "prepare_model", "try_model"]

_SECONDS = 600.0  # CUDA takes half a minute to start, and a network file system as long to read the library
_MOST_MEMORY = 16 << 30  # bytes of address space, on the CPU
_MOST_DIMENSIONS = 1 << 20
_SAME = 0.05  # the most that other images of a batch may change an embedding, relative to its largest value


@dataclass(frozen=True)
class EmbeddingModel:
    """A model that was tried; small, and can be sent to other processes."""

    path: str
    sha256: str
    size: int
    """Bytes of the file."""
    device: Device
    input: InputShape
    output: str
    """The name of the output."""
    dimensions: int
    """Values in an embedding."""
    versions: tuple[tuple[str, str], ...] = ()
    """The libraries that decide the numbers, and their versions."""

    def identity(self) -> dict[str, Any]:
        """What decides the embeddings, as JSON values; independent of where the file lies."""
        return {
            "sha256": self.sha256,
            "device": self.device,
            "input": asdict(self.input),
            "output": self.output,
            "dimensions": self.dimensions,
            **dict(self.versions),
        }

    def embed(self, images: Floats, *, mirrored: bool = False) -> Floats:
        """The embeddings of a batch; the first call in a process loads the network.

        On the CPU the network uses one thread. Not for a process that forks workers later.

        `images`, float32, have the shape (M, 3, H, W) or (M, H, W, 3), where M is at most the model's batch; if the
        batch is fixed, zeros are added. The embeddings, float32, have the shape (M, D); `mirrored`: of mirror images.

        Raises `InputError` if the file no longer exists, or is not the one that was tried; `ModelError` if the model
        fails or returns something else than when it was tried.
        """
        shape, count = self.input, len(images)
        if mirrored:
            images = np.ascontiguousarray(np.flip(images, 3 if shape.layout == NCHW else 2))
        if shape.fixed and count < shape.batch:
            images = np.concatenate([images, np.zeros(shape.shape(shape.batch - count), np.float32)])
        rows = _run_network(_load(self, os.getpid()), self, images)
        if rows.shape[1] != self.dimensions:
            raise ModelError(
                f"{self.path}: expected {self.dimensions:,} values for each image, as when it was tried; "
                f"found {rows.shape[1]:,}"
            )
        return rows[:count]


@lru_cache(maxsize=1)
def _load(model: EmbeddingModel, process: int) -> Any:
    """The ONNX Runtime session of a process, which must not be that of the process it was forked from."""
    return new_session(read_model(model.path, model.sha256), model.path, model.device)


def _run_network(session: Any, model: EmbeddingModel, images: Floats) -> Floats:
    """What the network returns for a batch, as float32 of shape (N, D)."""
    given, wanted = images.astype(np.float16) if model.input.half else images, len(images)
    try:
        (found,) = session.run([model.output], {model.input.name: given})
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        given_shape = " x ".join(map(str, images.shape))
        raise ModelError(f"{model.path}: fails on a batch of {given_shape}: {one_line(error)}") from error
    if getattr(found, "dtype", np.dtype(object)).kind != "f":
        kind = getattr(found, "dtype", type(found).__name__)
        raise ModelError(f"{model.path}: expected '{model.output}' to be floats, found {kind}")
    shape = found.shape
    if len(shape) < 2 or shape[0] != wanted or not 1 <= shape[1] <= _MOST_DIMENSIONS or math.prod(shape[2:]) != 1:
        raise ModelError(
            f"{model.path}: expected '{model.output}' to have the shape ({wanted}, D) for {wanted} images, "
            f"found ({', '.join(map(str, shape))})"
        )
    rows: Floats = np.ascontiguousarray(found.reshape(wanted, -1), np.float32)
    return rows


def prepare_model(options: ModelOptions, stop: StopRequest | None = None) -> EmbeddingModel:
    """Read a model and try it once in a subprocess, so that any process can load it; `stop` ends the trial.

    Raises `InputError` if the file cannot be read; `ModelError` if it is not an ONNX model, or not one that turns
    images into embeddings; `OptionError` if it does not fit the options, or there is no such device;
    `MissingExtraError` if ONNX Runtime is not installed; `InterruptedJobError` if a stop was requested.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("extract-features", "features", "onnxruntime is not installed")
    data = read_model(options.path)
    question = {**asdict(options), "sha256": sha256_of(data)}
    memory = _MOST_MEMORY if options.device == "cpu" else None  # CUDA reserves any amount of addresses
    try:
        found = run_isolated(
            try_model,
            question,
            path=options.path,
            seconds=_SECONDS,
            memory=memory,
            stop=StopRequest() if stop is None else stop,
        )
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


def try_model(question: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model and run it on noise; called in a subprocess.

    `question` has the fields of a `ModelOptions`, and ``sha256``; the answer has ``input``, ``output``, ``dimensions``
    and ``versions`` of an `EmbeddingModel`; both are JSON values.
    """
    import onnxruntime

    fields = {name: value for name, value in question.items() if name != "sha256"}
    size = fields["input_size"]
    options = ModelOptions(**{**fields, "input_size": None if size is None else tuple(size)})
    data = read_model(options.path, question["sha256"])
    session = new_session(data, options.path, options.device)
    shape = input_shape(session.get_inputs(), options)
    output = output_name(session.get_outputs(), options)
    model = EmbeddingModel(options.path, question["sha256"], len(data), options.device, shape, output, 0)

    # An image must have the same embedding at another place of a batch, among other images.
    count = shape.batch if shape.fixed or model.device == "cuda" else min(shape.batch, 2)
    generator = np.random.default_rng(0)
    images, others = (generator.uniform(-1.0, 1.0, shape.shape(count)).astype(np.float32) for _ in range(2))
    others[-1] = images[0]
    try:
        row = _run_network(session, model, images)[0]
    except ModelError as error:
        if not shape.fixed and count > 1:
            with suppress(ModelError):
                _run_network(session, model, images[:1])
                raise OptionError(f"{error}; one image at a time works: --batch-size 1") from error
        raise
    again = _run_network(session, model, others)[-1]
    largest = float(np.abs(row).max())
    if math.isfinite(largest) and not float(np.abs(row - again).max()) <= _SAME * largest:
        raise ModelError(
            f"{model.path}: the embedding of an image depends on its place in the batch or on the other images; was "
            "the model exported in training mode?"
        )
    versions = {"ONNX Runtime": onnxruntime.__version__}
    return {"input": asdict(shape), "output": output, "dimensions": len(row), "versions": versions}
