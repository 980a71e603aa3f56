"""Models freed from the size that is written down in them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from align.detectors.conftest import Model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from facedata.align.detectors.onnx_shapes import free_size, input_names


def small_model(ir_version: int = 3) -> bytes:
    """A convolution whose weight is an input too, as of old, with a size that means nothing."""
    weight = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "weight")
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [10, 3, 32, 32]),
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, [2, 3, 3, 3]),
    ]
    outputs = [helper.make_tensor_value_info("sums", TensorProto.FLOAT, [10, 2, 32, 32])]
    nodes = [helper.make_node("Conv", ["images", "weight"], ["sums"], pads=[1, 1, 1, 1])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, [weight])
    graph.value_info.append(helper.make_tensor_value_info("between", TensorProto.FLOAT, [10, 2, 32, 32]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=ir_version)
    return bytes(model.SerializeToString())


def test_any_size_goes_in_and_the_numbers_stay() -> None:
    import onnxruntime

    freed = free_size(small_model())
    onnx.checker.check_model(freed)
    session = onnxruntime.InferenceSession(freed, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    images = np.random.default_rng(1).random((1, 3, 17, 40), np.float32)
    (sums,) = session.run(None, {"images": images})
    padded = np.pad(images.sum(axis=1)[0], 1)
    expected = sum(padded[y : y + 17, x : x + 40] for y in range(3) for x in range(3))
    np.testing.assert_allclose(sums[0, 1], expected, rtol=1e-5)


def test_nothing_else_changes() -> None:
    before, after = onnx.load_from_string(small_model()), onnx.load_from_string(free_size(small_model()))
    assert after.graph.node == before.graph.node
    assert after.graph.initializer == before.graph.initializer
    assert (after.ir_version, after.opset_import) == (4, before.opset_import)
    channels = [one.type.tensor_type.shape.dim[1].dim_value for one in (*after.graph.input, *after.graph.output)]
    assert channels == [3, 2]
    sizes = [
        dim.dim_param for one in (*after.graph.input, *after.graph.output) for dim in one.type.tensor_type.shape.dim
    ]
    assert len(set(filter(None, sizes))) == 6  # none is said to equal another
    assert onnx.load_from_string(free_size(small_model(ir_version=8))).ir_version == 8


def test_inputs_are_those_that_are_no_weights(model: Model) -> None:
    assert input_names(small_model()) == ["images"]
    assert input_names(model("yunet").read_bytes()) == ["input"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1000), st.integers(0, 1000), st.booleans())
def test_damage_is_told_or_does_no_harm(noise: bytes, first: int, cut: int, replaced: bool) -> None:
    model = small_model()
    first = min(first, len(model))
    damaged = model[:first] + noise + model[first + (len(noise) if replaced else 0) :][:cut]
    for call in (free_size, input_names):
        try:
            call(damaged)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "data", [b"", b"\x08\x08", b"\xff" * 12, b"<html>", b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x01"]
)
def test_what_is_no_model_has_no_inputs(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"graph|cut off|wire type|bytes"):
        input_names(data)
