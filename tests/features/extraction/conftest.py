"""Small convolutional networks of fixed random weights, images for them, and the plain loop that we must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from facedata.align.detectors.networks import read_model, sha256_of
from facedata.features.extraction import job as job_module
from facedata.features.extraction.job import ExtractionOptions, plan_extraction, run_extraction
from facedata.features.extraction.model import NCHW, EmbeddingModel, InputShape, ModelOptions, Preprocessing, try_model
from facedata.images import import_opencv
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part
from facedata.jobs.signals import StopRequest

cv2: Any = import_opencv()
HEIGHT, WIDTH, DIMENSIONS = 16, 12, 8
Floats = NDArray[np.float32]
WriteNet = Callable[..., Path]


class Net:
    """A graph that grows node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.generator = np.random.default_rng(3)

    def constant(self, values: Any) -> str:
        array = np.asarray(values)
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32 if array.dtype.kind == "f" else int), name))
        return name

    def random(self, *shape: int) -> str:
        return self.constant(self.generator.normal(0.0, np.sqrt(2.0 / np.prod(shape[1:])), shape))

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"value{len(self.nodes)}"], **attributes))
        return f"value{len(self.nodes) - 1}"

    def save(self, path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> Path:
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        return path


def embedding_net(
    path: Path,
    *,
    batch: int | str = "N",
    layout: str = NCHW,
    half: bool = False,
    seed: int = 3,
    ending: Callable[[Net, str, str], str] | None = None,
    sides: tuple[Any, Any] = (HEIGHT, WIDTH),
) -> Path:
    """Two convolutions and a matrix; `ending` may add nodes, given the net, its input and its embedding."""
    net = Net()
    net.generator = np.random.default_rng(seed)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    shape = [batch, 3, *sides] if layout == NCHW else [batch, *sides, 3]
    x = net.add("Cast", "input", to=TensorProto.FLOAT) if half else "input"
    start = x = x if layout == NCHW else net.add("Transpose", x, perm=[0, 3, 1, 2])
    x = net.add("Relu", net.add("Conv", x, net.random(8, 3, 3, 3), strides=[2, 2], pads=[1] * 4))
    x = net.add("Relu", net.add("Conv", x, net.random(8, 8, 3, 3), strides=[2, 2], pads=[1] * 4))
    places = 8 * (HEIGHT // 4) * (WIDTH // 4)
    x = net.add("MatMul", net.add("Flatten", x), net.constant(net.generator.normal(0.0, 0.1, (places, DIMENSIONS))))
    if ending is not None:
        x = ending(net, start, x)
    net.add("Cast", x, to=kind)
    net.nodes[-1].output[0] = "embedding"
    return net.save(
        path,
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("embedding", kind, [batch, DIMENSIONS])],
    )


@dataclass(frozen=True)
class Images:
    """A folder of class folders, and what its images look like."""

    folder: Path
    keys: list[str]
    labels: list[int]
    pixels: list[NDArray[np.uint8]]


def write_images(folder: Path, count: int, people: int = 5, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Images:
    """PNG files of noise, in the natural order of their names."""
    generator = np.random.default_rng(count)
    keys, labels, pixels = [], [], []
    for number in range(count):
        label = number * people // count
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        path = folder / f"person_{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        keys.append(f"person_{label}/{number}.png")
        labels.append(label)
        pixels.append(image)
    return Images(folder, keys, labels, pixels)


def plain_loop(
    model: Path,
    images: Sequence[NDArray[np.uint8]],
    batch: int,
    *,
    fixed: bool = False,
    layout: str = NCHW,
    half: bool = False,
    output: str | None = None,
    prepare: Callable[[NDArray[np.uint8]], Any] | None = None,
) -> Floats:
    """The obvious program: InsightFace's numbers, a batch at a time, ONNX Runtime with its defaults."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    given = prepare or (lambda image: (image[..., ::-1].astype(np.float32) - 127.5) / 127.5)
    rows = []
    for begin in range(0, len(images), batch):
        x = np.stack([np.asarray(given(image), np.float32) for image in images[begin : begin + batch]])
        count = len(x)
        if fixed and count < batch:
            x = np.concatenate([x, np.zeros((batch - count, *x.shape[1:]), np.float32)])
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == NCHW else x
        (found,) = session.run(
            output and [output], {session.get_inputs()[0].name: x.astype(np.float16 if half else x.dtype)}
        )
        rows.append(found[:count].astype(np.float32))
    return np.concatenate(rows)


@dataclass(frozen=True)
class Read:
    """A set as the clustering code reads it: the lines of the ``.meta`` say how many rows there are."""

    rows: Floats
    labels: list[int]
    keys: list[str]


def read_set(root: Path, name: str = "a", dimensions: int = DIMENSIONS) -> Read:
    labels = [int(line) for line in (root / "labels" / f"{name}.meta").read_text().splitlines()]
    rows = np.fromfile(root / "features" / f"{name}.bin", np.float32, count=len(labels) * dimensions)
    assert (root / "features" / f"{name}.bin").stat().st_size == rows.nbytes
    keys = (root / "features" / f"{name}.keys.txt").read_text().splitlines()
    assert len(keys) == len(labels)
    return Read(rows.reshape(len(labels), dimensions), labels, keys)


def set_bytes(root: Path, name: str = "a") -> list[bytes]:
    return [
        (root / part).read_bytes()
        for part in (f"features/{name}.bin", f"features/{name}.keys.txt", f"labels/{name}.meta")
    ]


def here(options: ModelOptions, stop: StopRequest | None = None) -> EmbeddingModel:
    """What `prepare_model` does, without a subprocess: many times as fast."""
    data = read_model(options.path)
    sha256 = sha256_of(data)
    found = try_model({**vars(options), "sha256": sha256})
    return EmbeddingModel(
        options.path,
        sha256,
        len(data),
        options.device,
        InputShape(**found["input"]),
        found["output"],
        found["dimensions"],
        tuple(sorted(found["versions"].items())),
    )


@pytest.fixture
def tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try models in this process."""
    monkeypatch.setattr(job_module, "prepare_model", here)


def extract(
    source: object,
    root: Path,
    model: Path,
    name: str = "a",
    *,
    workers: int = 1,
    part: Part | None = None,
    overwrite: bool = False,
    **options: Any,
) -> JobSummary:
    """Run an extraction with options of the job, the model, the pixels or the extraction."""
    of_model = {key: options.pop(key) for key in list(options) if key in ModelOptions.__dataclass_fields__}
    of_pixels = {key: options.pop(key) for key in list(options) if key in Preprocessing.__dataclass_fields__}
    chosen = ExtractionOptions(ModelOptions(str(model), **of_model), Preprocessing(**of_pixels), **options)
    planned = plan_extraction(str(source), root, name, chosen)
    return run_extraction(planned, JobOptions(workers, part or Part(), overwrite))
