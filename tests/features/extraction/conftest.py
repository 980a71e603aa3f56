"""Small convolutional networks of fixed random weights, images for them, and the plain loop that we must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from features.sets import Array, read_set
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from facedata.features.extraction import model as model_module
from facedata.features.extraction.job import ExtractionOptions, plan_extraction, run_extraction
from facedata.features.extraction.model import ModelOptions, Preprocessing
from facedata.features.feature_set import FeatureSet
from facedata.images import import_opencv
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part

cv2: Any = import_opencv()
HEIGHT, WIDTH, DIMENSIONS = 16, 12, 8


class Net:
    """A graph that grows node by node."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.generator = np.random.default_rng(seed)

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


def embedding_net(
    path: Path, shape: Sequence[Any] = ("N", 3, HEIGHT, WIDTH), *, half: bool = False, seed: int = 3, ending: Any = None
) -> Path:
    """Two convolutions and a matrix; `ending` may add nodes, given the net, its input and its embedding."""
    net, kind = Net(seed), TensorProto.FLOAT16 if half else TensorProto.FLOAT
    x = net.add("Cast", "input", to=TensorProto.FLOAT)
    start = x = x if shape[1] == 3 else net.add("Transpose", x, perm=[0, 3, 1, 2])
    for channels in (3, 8):
        x = net.add("Relu", net.add("Conv", x, net.random(8, channels, 3, 3), strides=[2, 2], pads=[1] * 4))
    places = 8 * (HEIGHT // 4) * (WIDTH // 4)
    x = net.add("MatMul", net.add("Flatten", x), net.constant(net.generator.normal(0.0, 0.1, (places, DIMENSIONS))))
    x = x if ending is None else ending(net, start, x)
    net.nodes.append(helper.make_node("Cast", [x], ["embedding"], to=kind))
    taken = helper.make_tensor_value_info("input", kind, list(shape))
    given = helper.make_tensor_value_info("embedding", kind, [shape[0], DIMENSIONS])
    graph = helper.make_graph(net.nodes, "net", [taken], [given], net.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def png(image: Array) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


class Images(NamedTuple):
    """A folder of class folders, and what its images look like."""

    folder: Path
    keys: list[str]
    labels: list[int]
    pixels: list[NDArray[np.uint8]]


def write_images(folder: Path, count: int, people: int = 5, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Images:
    """PNG files of noise, in the natural order of their names."""
    labels = [number * people // count for number in range(count)]
    keys = [f"person_{label}/{number}.png" for number, label in enumerate(labels)]
    pixels = list(np.random.default_rng(count).integers(0, 256, (count, *size, 3), np.uint8))
    for key, image in zip(keys, pixels, strict=True):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(png(image))
    return Images(folder, keys, labels, pixels)


@dataclass
class Work:
    """A folder of images and a network, from which sets are extracted into the folder `root`."""

    root: Path
    net: Path
    images: Images

    def extract(
        self, name: str = "a", *, workers: int = 1, part: Part = Part(), overwrite: bool = False, **options: Any
    ) -> JobSummary:
        """Run an extraction with options of the job, the model, the pixels or the extraction."""
        of_model = {key: options.pop(key) for key in list(options) if key in ModelOptions.__dataclass_fields__}
        of_pixels = {key: options.pop(key) for key in list(options) if key in Preprocessing.__dataclass_fields__}
        chosen = ExtractionOptions(ModelOptions(str(self.net), **of_model), Preprocessing(**of_pixels), **options)
        planned = plan_extraction(str(self.images.folder), self.root, name, chosen)
        return run_extraction(planned, JobOptions(workers, part, overwrite))

    def expected(self, batch: int = 32, output: str | None = None, prepare: Any = None) -> Array:
        """The rows by the obvious program: InsightFace's numbers, a batch at a time, ONNX Runtime with its defaults."""
        prepare = prepare or (lambda image: (image[..., ::-1].astype(np.float32) - 127.5) / 127.5)
        session = onnxruntime.InferenceSession(str(self.net), providers=["CPUExecutionProvider"])
        (taken,) = session.get_inputs()
        rows = []
        for begin in range(0, len(self.images.pixels), batch):
            x = np.stack([prepare(image) for image in self.images.pixels[begin : begin + batch]])
            count = len(x)
            if isinstance(taken.shape[0], int):
                x = np.concatenate([x, np.zeros((batch - count, *x.shape[1:]), np.float32)])
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if taken.shape[1] == 3 else x
            x = x.astype(np.float16 if taken.type == "tensor(float16)" else np.float32)
            (found,) = session.run(output and [output], {taken.name: x})
            rows.append(found[:count].astype(np.float32))
        return np.concatenate(rows)

    def read(self, name: str = "a") -> SimpleNamespace:
        keys = (self.root / "features" / f"{name}.keys.txt").read_text().splitlines()
        rows, labels = read_set(self.root, DIMENSIONS, name)
        assert len(keys) == len(rows)
        return SimpleNamespace(rows=rows, labels=labels, keys=keys)

    def bytes_of(self, name: str = "a") -> list[bytes]:
        files = FeatureSet(str(self.root), name)
        return [Path(path).read_bytes() for path in (files.features, files.keys, files.labels)]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path, embedding_net(tmp_path / "net.onnx"), write_images(tmp_path / "images", 30))


@pytest.fixture
def tried_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try models in this process, which is many times as fast."""
    monkeypatch.setattr(model_module, "run_isolated", lambda call, question, **_: call(question))
