"""An ONNX model that turns images into embeddings: what it takes, how pixels become that, its trial and its use."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facedata.align.codec import decode_image
from facedata.align.detectors.networks import (
    MOST_MEMORY,
    Device,
    new_session,
    one_line,
    read_model,
    sha256_of,
    time_limit,
    within_limits,
)
from facedata.errors import MissingExtraError, ModelError, OptionError, RefusedSampleError
from facedata.features.feature_set import Floats
from facedata.identify import explained
from facedata.images import import_opencv, opencv_identity
from facedata.jobs.isolated import run_isolated
from facedata.jobs.machine import cpu_features
from facedata.jobs.signals import StopRequest

__all__ = [
    "NCHW",
    "EmbeddingModel",
    "InputShape",
    "Layout",
    "ModelOptions",
    "Preprocessing",
    "input_shape",
    "output_name",
    "prepare_model",
    "try_model",
]

Layout = Literal["nchw", "nhwc"]
NCHW: Layout = "nchw"
NHWC: Layout = "nhwc"

_USUAL_BATCH = {"cpu": 32, "cuda": 128}  # on a CPU core, 16 to 64 are about equal, and 8 or 128 a fifth slower
_CHANNELS = 3
_LARGEST_SIDE = 4096  # pixels
_LARGEST_BATCH = 4096
_LARGEST_INPUT = 1 << 30  # bytes of one batch
_FLOATS = {"tensor(float)": False, "tensor(float16)": True}
_HALF_RANGE = 127.5


@dataclass(frozen=True)
class ModelOptions:
    """An ONNX file, and what the user says about it."""

    path: str
    device: Device = "cpu"
    batch_size: int | None = None
    """Images at once; by default as many as the model fixes, or 32 (128 on a GPU)."""
    input_size: tuple[int, int] | None = None
    """Height and width, if the model takes any size."""
    layout: str | None = None
    """``"nchw"`` or ``"nhwc"``, if the model does not fix where the channels are."""
    output_name: str | None = None
    """Which output is the embedding, if there are several."""
    timeout: float | None = None
    """Seconds that a batch may take; by default many times as long as in the trial of the model."""

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise OptionError(f"--device {self.device}: expected cpu or cuda")
        if self.batch_size is not None and not 1 <= self.batch_size <= _LARGEST_BATCH:
            raise OptionError(f"--batch-size {self.batch_size}: expected 1 to {_LARGEST_BATCH:,}")
        if self.layout not in (None, NCHW, NHWC):
            raise OptionError(f"--input-layout {self.layout}: expected nchw or nhwc")
        if self.input_size is not None and not all(1 <= side <= _LARGEST_SIDE for side in self.input_size):
            raise OptionError(f"--input-size {_shown(self.input_size)}: expected 1 to {_LARGEST_SIDE:,} pixels a side")


@dataclass(frozen=True)
class InputShape:
    """What the input of a model takes."""

    name: str
    layout: Layout
    height: int
    width: int
    batch: int
    fixed: bool
    """Whether each batch must have exactly so many images."""
    half: bool
    """Whether it takes float16."""

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """The shape of an input of so many images."""
        if self.layout == NCHW:
            return images, _CHANNELS, self.height, self.width
        return images, self.height, self.width, _CHANNELS


def input_shape(inputs: Sequence[Any], options: ModelOptions) -> InputShape:
    """What the model takes, from its inputs as ONNX Runtime lists them and from the options.

    Raises `ModelError` if it does not take images; says what it takes; `OptionError` if an option contradicts the
    model, or is needed and missing.
    """
    path = options.path
    if len(inputs) != 1:
        raise ModelError(f"{path}: expected one input, the images; found {_listed(inputs) or 'none'}")
    found = inputs[0]
    if found.type not in _FLOATS:
        raise ModelError(f"{path}: expected an input of float32 or float16, found {_described(found)}")
    if len(found.shape) != 4:
        raise ModelError(f"{path}: expected an input of shape (N, 3, H, W) or (N, H, W, 3), found {_described(found)}")
    layout = _layout(found, options)

    sides = found.shape[2:4] if layout == NCHW else found.shape[1:3]
    asked: Sequence[int | None] = options.input_size or (None, None)
    for side, wanted in zip(sides, asked, strict=True):
        if not _is_fixed(side) and wanted is None:
            raise OptionError(f"{path}: takes images of any size; give --input-size, as 112 or 112x96 (H x W)")
        if _is_fixed(side) and wanted not in (None, side):
            raise OptionError(f"--input-size {_shown(asked)}: {path} takes {_shown(sides)}")
    height, width = (side if wanted is None else wanted for side, wanted in zip(sides, asked, strict=True))
    if max(height, width) > _LARGEST_SIDE:
        raise ModelError(f"{path}: expected at most {_LARGEST_SIDE:,} pixels a side, found {_shown(sides)}")

    batch, fixed = found.shape[0], _is_fixed(found.shape[0])
    if not fixed:
        batch = options.batch_size or _USUAL_BATCH[options.device]
    elif options.batch_size not in (None, batch):
        raise OptionError(f"--batch-size {options.batch_size}: {path} takes exactly {batch} images at once")
    elif batch > _LARGEST_BATCH:
        raise ModelError(f"{path}: expected at most {_LARGEST_BATCH:,} images at once, found {batch:,}")
    if 4 * _CHANNELS * batch * height * width > _LARGEST_INPUT:
        raise OptionError(f"{batch} images of {width} x {height} at once are too many; give a smaller --batch-size")
    return InputShape(found.name, layout, height, width, int(batch), fixed, _FLOATS[found.type])


def _layout(found: Any, options: ModelOptions) -> Layout:
    """Which dimension of the input is that of the three channels."""
    places: dict[Layout, Any] = {NCHW: found.shape[1], NHWC: found.shape[3]}
    sure = [layout for layout, side in places.items() if side == _CHANNELS]
    possible = [layout for layout, side in places.items() if not _is_fixed(side)]
    fitting = [layout for layout in (*sure, *possible) if layout == options.layout] if options.layout else sure
    if len(fitting) == 1:
        return fitting[0]
    shown = _described(found)
    if not sure and not possible:
        raise ModelError(f"{options.path}: expected three channels, (N, 3, H, W) or (N, H, W, 3); found {shown}")
    if options.layout is not None:
        raise OptionError(f"--input-layout {options.layout}: does not fit {options.path}, whose input is {shown}")
    raise OptionError(
        f"{options.path}: the input {shown} does not say where the channels are; give --input-layout nchw or nhwc"
    )


def output_name(outputs: Sequence[Any], options: ModelOptions) -> str:
    """The name of the output with the embeddings.

    Raises `ModelError` if the model has no output; `OptionError` if it has several and none of them was chosen.
    """
    names = [str(output.name) for output in outputs]
    if not names:
        raise ModelError(f"{options.path}: has no output")
    if options.output_name in names:
        return str(options.output_name)
    if options.output_name is not None:
        raise OptionError(f"--output-name {options.output_name}: {options.path} has {_listed(outputs)}")
    if len(names) > 1:
        raise OptionError(f"{options.path}: has several outputs, {_listed(outputs)}; give --output-name")
    return names[0]


def _is_fixed(side: Any) -> bool:
    """Whether a dimension is a number; others have a name, or nothing."""
    return isinstance(side, int) and side > 0


def _listed(found: Sequence[Any]) -> str:
    shown = ", ".join(map(_described, found[:8]))
    return f"{len(found)}: {shown}" if len(found) > 1 else shown


def _described(found: Any) -> str:
    kind = str(found.type).removeprefix("tensor(").removesuffix(")")
    shape = ", ".join("?" if side is None else str(side) for side in found.shape)
    return f"'{str(found.name)[:80]}' of {kind}, shape ({shape})"


def _shown(sides: Sequence[Any]) -> str:
    return "x".join("?" if side is None else str(side) for side in sides)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the network's input: ``(x - mean) / scale``, with x from 0 to 255.

    The defaults are those of InsightFace, which most published ONNX models expect.
    """

    mean: tuple[float, ...] = (_HALF_RANGE,)
    scale: tuple[float, ...] = (_HALF_RANGE,)
    """One number, or one for each channel in the order that the network takes them."""
    color: str = "rgb"
    """That order: ``"rgb"`` or ``"bgr"``."""
    resize: bool = False
    """Whether images of another size are scaled (by area if both sides shrink, bilinearly otherwise) or refused."""

    def __post_init__(self) -> None:
        for option, values in (("mean", self.mean), ("scale", self.scale)):
            typed = ",".join(f"{value:g}" for value in values)
            if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
                raise OptionError(f"--{option} {typed}: expected a number, or three with commas between them")
            if option == "scale" and not all(values):
                raise OptionError(f"--scale {typed}: pixels are divided by it, so it cannot be 0")
        if self.color not in ("rgb", "bgr"):
            raise OptionError(f"--color {self.color}: expected rgb or bgr")

    def identity(self) -> dict[str, Any]:
        """What decides the pixels, OpenCV and the processor included, as JSON values."""
        return {
            "mean": list(self.mean),
            "scale": list(self.scale),
            "color": self.color,
            "resize": "area or bilinear" if self.resize else None,
            **opencv_identity(),
        }

    def decode(self, data: bytes, height: int, width: int) -> NDArray[np.uint8]:
        """Decode an image to its pixels, shape (height, width, 3), BGR.

        Raises `RefusedSampleError` if it cannot be decoded, or has another size and may not be scaled.
        """
        image = decode_image(data)
        if image.shape[:2] == (height, width):
            return image
        if not self.resize:
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise RefusedSampleError(
                f"wrong size: expected {width} x {height} pixels, found {found}; --resize scales images"
            )
        cv2 = import_opencv()
        shrinks = image.shape[0] >= height and image.shape[1] >= width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        scaled: NDArray[np.uint8] = cv2.resize(image, (width, height), interpolation=how)
        return scaled

    def fill(self, image: NDArray[np.uint8], layout: Layout, into: Floats) -> None:
        """Write the network's input for `image` (BGR, shape (H, W, 3)) into an array of its shape."""
        pixels = image if self.color == "bgr" else image[..., ::-1]
        shape: tuple[int, ...] = (-1,)
        if layout == NCHW:
            pixels, shape = pixels.transpose(2, 0, 1), (-1, 1, 1)
        np.subtract(pixels, np.array(self.mean, np.float32).reshape(shape), out=into, dtype=np.float32)
        np.divide(into, np.array(self.scale, np.float32).reshape(shape), out=into)


_SECONDS = 600.0  # CUDA takes half a minute to start, and a network file system as long to read the library
_LEAST_TIMEOUT = {"cpu": 30.0, "cuda": 300.0}  # seconds for a batch; on a GPU the first one loads libraries
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
    timeout: float = math.inf
    """Seconds that a batch may take."""

    def identity(self) -> dict[str, Any]:
        """What decides the embeddings, as JSON values; independent of where the file lies."""
        return {
            "sha256": self.sha256,
            "device": self.device,
            "input": asdict(self.input),
            "output": self.output,
            "dimensions": self.dimensions,
            **dict(self.versions),
            **({"processor": cpu_features()} if self.device == "cpu" else {}),
        }

    def embed(self, images: Floats, *, mirrored: bool = False) -> Floats:
        """The embeddings of a batch; the first call in a process loads the network.

        On the CPU the network uses one thread. Not for a process that forks workers later.

        `images`, float32, have the shape (M, 3, H, W) or (M, H, W, 3), where M is at most the model's batch; if the
        batch is fixed, zeros are added. The embeddings, float32, have the shape (M, D); `mirrored`: of mirror images.

        Raises `InputError` if the file no longer exists, or is not the one that was tried; `ModelError` if the model
        fails, takes too long or returns something else than when it was tried.
        """
        shape, count = self.input, len(images)
        if mirrored:
            images = np.ascontiguousarray(np.flip(images, 3 if shape.layout == NCHW else 2))
        if shape.fixed and count < shape.batch:
            images = np.concatenate([images, np.zeros(shape.shape(shape.batch - count), np.float32)])
        session, what = _load(self, os.getpid()), f"{self.path}: a batch of {len(images)} images"
        rows = within_limits(lambda: _run_network(session, self, images), self.timeout, self.device, what)
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
        if "Failed to allocate" in str(error) or "bad_alloc" in str(error):
            raise ModelError(
                f"{model.path}: takes more memory for a batch of {given_shape} than there is; give a smaller "
                "--batch-size, or fewer --workers"
            ) from error
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
    memory = MOST_MEMORY if options.device == "cpu" else None  # CUDA reserves any amount of addresses
    try:
        with explained(options.path, "model", "an ONNX model"):
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
        timeout=time_limit(options.timeout, found["seconds"], _LEAST_TIMEOUT[options.device]),
    )


def try_model(question: Mapping[str, Any]) -> dict[str, Any]:
    """Load a model and run it on noise; called in a subprocess.

    `question` has the fields of a `ModelOptions`, and ``sha256``; the answer has ``input``, ``output``, ``dimensions``
    and ``versions`` of an `EmbeddingModel`, and the ``seconds`` of a batch; both are JSON values.
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
    begin = time.monotonic()
    again = _run_network(session, model, others)[-1]
    seconds = (time.monotonic() - begin) * shape.batch / count
    largest = float(np.abs(row).max())
    if math.isfinite(largest) and not float(np.abs(row - again).max()) <= _SAME * largest:
        raise ModelError(
            f"{model.path}: the embedding of an image depends on its place in the batch or on the other images; was "
            "the model exported in training mode?"
        )
    versions = {"ONNX Runtime": onnxruntime.__version__}
    found = {"input": asdict(shape), "output": output, "dimensions": len(row), "versions": versions}
    return {**found, "seconds": seconds}
