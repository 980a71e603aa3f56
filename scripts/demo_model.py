"""A small convolutional network for the demo, with fixed random weights: it embeds colours and edges, no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CHANNELS, _DIMENSIONS = (3, 24, 48), 128


def write_model(path: Path) -> None:
    """Write it as ONNX: (N, 3, 112, 112) in, (N, 128) out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(7)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        values: NDArray[np.float32] = generator.normal(0.0, scale, shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    first, middle, last = _CHANNELS
    constants = [
        weights("w1", middle, first, 5, 5),
        weights("w2", last, middle, 3, 3),
        weights("w3", _DIMENSIONS, last * 7 * 7),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "w1"], ["c1"], strides=[4, 4], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("AveragePool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p2"], ["f2"]),
        helper.make_node("Gemm", ["f2", "w3"], ["embeddings"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "demo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", first, 112, 112])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", _DIMENSIONS])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8  # what older releases of ONNX Runtime read too
    path.write_bytes(model.SerializeToString())
