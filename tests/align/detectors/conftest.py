"""Small networks with the inputs and outputs of the real ones, which see a face wherever there is a white square.

Each looks at squares of `CELL` pixels of its input: a white one is a face with score 1, a grey one a doubtful face. The
landmarks lie around the cell's middle, or its corner, as the decoding of the network has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from facedata.align.detectors import DETECTORS, PreparedDetector
from facedata.align.detectors.networks import read_model, sha256_of

CELL = 8
GREY = 114  # uniface fills up what goes into the YOLO networks with it
LANDMARKS = np.array([[-10.0, -8.0], [10.0, -7.0], [1.0, 2.0], [-8.0, 12.0], [9.0, 13.0]])
BOX = np.array([-16.0, -20.0, 16.0, 20.0])
SIDES = BOX[2:] - BOX[:2]
_STRIDES = (8, 16, 32)
Model = Callable[..., Path]


class Graph:
    """Nodes of an ONNX graph, collected one by one."""

    def __init__(self, size: tuple[Any, Any]) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *size])]
        self.outputs: list[Any] = []

    def constant(self, values: Any) -> str:
        name = f"weight{len(self.weights)}"
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def mix(self, source: str, weights: Any, bias: Any) -> str:
        """Each of K channels a multiple of the single one of `source`, and a constant."""
        kernel = np.asarray(weights, np.float32).reshape(-1, 1, 1, 1)
        return self.add("Conv", source, self.constant(kernel), self.constant(np.asarray(bias, np.float32)))

    def head(self, logits: str, values: Any = None) -> str:
        """These values at every place, or else the scores."""
        return self.add("Sigmoid", logits) if values is None else self.mix(logits, np.zeros(len(values)), values)

    def spots(self, white: float, black: float, cell: int = CELL) -> str:
        """Logits of the cells: 10 where they are white in the input's own units, -10 where they are black."""
        factor = 20.0 / (white - black)
        kernel = self.constant(np.full((1, 3, 1, 1), factor / 3, np.float32))
        grey = self.add("Conv", "input", kernel, self.constant(np.array([-10.0 - black * factor], np.float32)))
        return self.add("AveragePool", grey, kernel_shape=[cell, cell], strides=[cell, cell])

    def rows(self, source: str, width: int, name: str = "", batch: bool = True) -> str:
        """(1, C, H, W) as (1, H * W * C / width, width)."""
        turned = self.add("Transpose", source, perm=[0, 2, 3, 1])
        shape = [1, -1, width] if batch else [-1, width]
        return self.add("Reshape", turned, self.constant(np.array(shape)), name=name)

    def levels(self, logits: str) -> list[str]:
        """The logits for each stride; for the larger ones there is never a face."""
        levels = [logits]
        for factor in (2, 4):
            pooled = self.add("AveragePool", logits, kernel_shape=[factor, factor], strides=[factor, factor])
            levels.append(self.mix(pooled, [0.0], [-50.0]))
        return levels

    def output(self, name: str, dimensions: int) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * dimensions))

    def save(self, path: Path) -> None:
        graph = helper.make_graph(self.nodes, "spots", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, path)


def scrfd(graph: Graph, size: int) -> None:
    levels = graph.levels(graph.spots(1.0, -1.0))
    for kind, values in (("score", None), ("bbox", np.abs(BOX)), ("kps", LANDMARKS.ravel())):
        for stride, level in zip(_STRIDES, levels, strict=True):
            if values is None:  # of the two anchors of a place, the first one
                source, width = graph.mix(graph.head(level), [1.0, 0.0], [0.0, 0.0]), 1
            else:
                source, width = graph.head(level, np.tile(values, 2) / stride), len(values)
            graph.output(graph.rows(source, width, f"{kind}_{stride}", batch=False), 2)


def retinaface(graph: Graph, size: int) -> None:
    landmarks = np.tile(LANDMARKS.ravel() / (0.1 * 16), 2)  # the first anchor of the first level is 16 pixels wide
    parts = [
        (
            graph.rows(graph.head(level, np.zeros(8)), 4),
            graph.rows(graph.mix(graph.head(level), [-1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]), 2),
            graph.rows(graph.head(level, landmarks), 10),
        )
        for level in graph.levels(graph.spots(255 - 344 / 3, -344 / 3))
    ]
    for name, tensors in zip(("boxes", "scores", "landmarks"), zip(*parts, strict=True), strict=True):
        graph.output(graph.add("Concat", *tensors, axis=1, name=name), 3)


def centerface(graph: Graph, size: int) -> None:
    logits = graph.spots(255.0, 0.0, 4)
    shares = (LANDMARKS - BOX[:2]) / SIDES
    heads = {"heat": None, "scale": np.log(SIDES[::-1] / 4), "offset": np.zeros(2), "points": shares[:, ::-1].ravel()}
    for name, values in heads.items():
        graph.output(graph.add("Identity", graph.head(logits, values), name=name), 4)


def yolov5face(graph: Graph, size: int) -> None:
    score = graph.rows(graph.head(graph.spots(1.0, GREY / 255)), 1)
    cells = size // CELL
    rest = sum(3 * (size // stride) ** 2 for stride in _STRIDES) - cells**2
    middles = (np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), axis=-1).reshape(-1, 2) + 0.5) * CELL
    middles = np.concatenate([middles, np.zeros((rest, 2))])
    ones = np.ones((len(middles), 1))
    points = np.tile(middles, 5) + LANDMARKS.ravel()
    scores = graph.add("Concat", score, graph.constant(np.zeros((1, rest, 1))), axis=1)
    before = graph.constant(np.concatenate([middles, ones * SIDES], axis=1)[None])
    after = graph.constant(np.concatenate([points, ones], axis=1)[None])
    graph.output(graph.add("Concat", before, scores, after, axis=2, name="output"), 3)


def yolov8face(graph: Graph, size: int) -> None:
    distances = np.full((4, 16), -50.0)
    for side, distance in enumerate(np.abs(BOX) / CELL):
        share = distance % 1.0
        distances[side, int(distance) :][:2] = np.log(np.maximum([1.0 - share, share], 1e-9))
    points = np.concatenate([LANDMARKS / (2 * CELL), np.ones((5, 1))], axis=1).ravel()
    values = np.concatenate([distances.ravel(), [0.0], points])
    for stride, level in zip(_STRIDES, graph.levels(graph.spots(1.0, GREY / 255)), strict=True):
        graph.output(graph.add("Identity", graph.mix(level, np.eye(80)[64], values), name=f"level{stride}"), 4)


def yunet(graph: Graph, size: int) -> None:
    heads = {"cls": None, "obj": None, "bbox": np.array([0, 0, *np.log(SIDES / CELL)]), "kps": LANDMARKS.ravel() / CELL}
    for stride, level in zip(_STRIDES, graph.levels(graph.spots(255.0, 0.0)), strict=True):
        for kind, values in heads.items():
            width = 1 if values is None else len(values)
            graph.output(graph.rows(graph.head(level, values), width, f"{kind}_{stride}"), 3)


@dataclass(frozen=True)
class Spotter:
    """A network, and where its landmarks lie for a white cell."""

    build: Callable[[Graph, int], None]
    origin: float = 0.0  # pixels from the outer edge of the cell; 0.5 less if (0, 0) is not the centre of a pixel
    size: int = 640
    cell: int = CELL
    black: int = 0  # the brightness that counts as black


SPOTTERS = {
    "scrfd": Spotter(scrfd),
    "retinaface": Spotter(retinaface, origin=4.0),
    "yolov5face": Spotter(yolov5face, origin=4.0, black=GREY),
    "yolov8face": Spotter(yolov8face, black=GREY),
    "centerface": Spotter(centerface, origin=2.0 - 0.5, cell=4),
    "yunet": Spotter(yunet, size=320),
}


def expected_landmarks(name: str, column: int, row: int) -> NDArray[np.float64]:
    """Where the network's landmarks are, in its input, for a white cell."""
    corner = np.array([column, row]) * float(SPOTTERS[name].cell)
    return np.asarray(corner + SPOTTERS[name].origin + LANDMARKS)


def untried(name: str, path: Path, size: int = 0, device: Any = "cpu") -> PreparedDetector:
    """A detector with this model, as `prepare_detector` gives it, but without the trial in a subprocess."""
    digest = sha256_of(read_model(path))
    return PreparedDetector(name, (str(path),), (digest,), size, DETECTORS[name].min_score, device)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The file of a small network of that kind."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, declared: tuple[Any, Any] | None = None, edit: Callable[[Graph], None] | None = None) -> Path:
        size = SPOTTERS[name].size
        path = folder / f"{name}-{declared}-{edit and edit.__name__}.onnx"
        if not path.exists():
            graph = Graph(declared or (size, size))
            SPOTTERS[name].build(graph, size)
            if edit is not None:
                edit(graph)
            graph.save(path)
        return path

    return make
