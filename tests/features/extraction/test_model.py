"""What a network takes, how images become it, and models that cannot be used, refused for what is wrong with each."""

from __future__ import annotations

import importlib.util
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from features.extraction.conftest import DIMENSIONS, Work, cv2, embedding_net, png
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from facedata import errors
from facedata.features.extraction.model import Layout, ModelOptions, Preprocessing, input_shape, prepare_model
from facedata.jobs.signals import StopRequest

NUMBERS = st.floats(-300, 300, width=32).filter(lambda number: abs(number) > 0.01)
THREE = st.tuples(NUMBERS) | st.tuples(NUMBERS, NUMBERS, NUMBERS)
COLORS = st.sampled_from(["rgb", "bgr"])


@settings(max_examples=25)
@given(st.builds(Preprocessing, THREE, THREE, COLORS), st.sampled_from(["nchw", "nhwc"]), st.integers(0, 99))
def test_pixels_are_what_the_formula_says(how: Preprocessing, layout: Layout, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    into = np.empty((3, 5, 4) if layout == "nchw" else (5, 4, 3), np.float32)
    how.fill(image, layout, into)
    channels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if how.color == "rgb" else image
    expected = (channels.astype(np.float32) - np.array(how.mean, np.float32)) / np.array(how.scale, np.float32)
    np.testing.assert_array_equal(into, expected.transpose(2, 0, 1) if layout == "nchw" else expected)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (Preprocessing, {"mean": (1.0, 2.0)}, "--mean 1,2: expected a number, or three"),
        (Preprocessing, {"mean": (float("nan"),)}, "--mean nan"),
        (Preprocessing, {"scale": (1.0, 0.0, 1.0)}, "cannot be 0"),
        (Preprocessing, {"color": "grb"}, "--color grb: expected rgb or bgr"),
        (ModelOptions, {"batch_size": 0}, "--batch-size 0: expected 1 to 4,096"),
        (ModelOptions, {"layout": "chwn"}, "--input-layout chwn: expected nchw or nhwc"),
        (ModelOptions, {"input_size": (0, 5)}, "--input-size 0x5: expected 1 to 4,096"),
        (ModelOptions, {"device": "tpu"}, "--device tpu: expected cpu or cuda"),
    ],
)
def test_invalid_options_are_refused(make: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.OptionError, match=said):
        make(**options, **({"path": "m.onnx"} if make is ModelOptions else {}))


def test_enlarging_one_side_is_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    found = Preprocessing(resize=True).decode(png(image), 10, 30)
    np.testing.assert_array_equal(found, cv2.resize(image, (30, 10)))


def listed(*shape: Any, kind: str = "tensor(float)") -> SimpleNamespace:
    return SimpleNamespace(name="data", shape=list(shape), type=kind)


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        ([], {}, "expected one input, the images; found none"),
        ([listed(1, 3, 8, 8), listed(2)], {}, r"found 2: 'data' of float, shape \(1, 3, 8, 8\), 'data' of float"),
        ([listed(1, 3, 8, 8, kind="tensor(uint8)")], {}, "float32 or float16, found 'data' of uint8"),
        ([listed(1, 3, 64)], {}, r"\(N, 3, H, W\) or \(N, H, W, 3\), found 'data' of float, shape \(1, 3, 64\)"),
        ([listed(1, 1, 8, 8)], {}, r"three channels.*shape \(1, 1, 8, 8\)"),
        ([listed("N", None, 8, "W")], {}, "give --input-layout"),
        ([listed(1, 3, 8, 3)], {}, "give --input-layout"),
        ([listed(1, 3, 8, 8)], {"layout": "nhwc"}, "--input-layout nhwc: does not fit"),
        ([listed(1, 3, "H", "W")], {}, "give --input-size"),
        ([listed(1, 3, 112, 96)], {"input_size": (96, 112)}, "--input-size 96x112: m.onnx takes 112x96"),
        ([listed(1, 3, 9000, 9000)], {}, "at most 4,096 pixels a side, found 9000x9000"),
        ([listed(8, 3, 8, 8)], {"batch_size": 4}, "--batch-size 4: m.onnx takes exactly 8 images at once"),
        ([listed(100000, 3, 8, 8)], {}, "at most 4,096 images at once"),
        ([listed("N", 3, 2000, 2000)], {"batch_size": 64}, "give a smaller --batch-size"),
    ],
)
def test_inputs_that_do_not_take_images(inputs: list[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.FacedataError, match=said):
        input_shape(inputs, ModelOptions("m.onnx", **options))


@pytest.mark.parametrize(
    ("described", "options", "found"),
    [
        (listed("N", 3, 112, 112), {}, ("nchw", 112, 112, 32, False)),
        (listed(None, 112, 96, 3), {"batch_size": 5}, ("nhwc", 112, 96, 5, False)),
        (listed(16, 3, -1, 0), {"input_size": (112, 96)}, ("nchw", 112, 96, 16, True)),
        (listed("N", "C", "H", 3), {"layout": "nchw", "input_size": (7, 3)}, ("nchw", 7, 3, 32, False)),
        (listed(1, 3, 3, 3), {"layout": "nhwc"}, ("nhwc", 3, 3, 1, True)),
    ],
)
def test_inputs_that_take_images(described: Any, options: dict[str, Any], found: tuple[Any, ...]) -> None:
    shape = input_shape([described], ModelOptions("m.onnx", **options))
    assert (shape.layout, shape.height, shape.width, shape.batch, shape.fixed) == found


ENDINGS: dict[str, Any] = {
    "rank four": lambda net, start, _: net.add("Conv", start, net.random(8, 3, 3, 3)),
    "training mode": lambda net, _, x: net.add("Sub", x, net.add("ReduceMean", x, axes=[0], keepdims=1)),
    "one at a time": lambda net, _, x: net.add("Reshape", x, net.constant([1, DIMENSIONS])),
}


@pytest.mark.usefixtures("tried_here")
@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("rank four", r"expected 'embedding' to have the shape \(2, D\) for 2 images, found \(2, 8, 14, 10\)"),
        ("training mode", "depends on its place in the batch or on the other images; was the model exported in train"),
        ("one at a time", "fails on a batch of 2 x 3 x 16 x 12.*one image at a time works: --batch-size 1"),
    ],
)
def test_outputs_that_are_not_embeddings(work: Work, ending: str, said: str) -> None:
    embedding_net(work.net, ending=ENDINGS[ending])
    with pytest.raises(errors.FacedataError, match=said):
        work.extract()
    if ending == "one at a time":
        assert prepare_model(ModelOptions(str(work.net), batch_size=1)).dimensions == DIMENSIONS


@pytest.mark.usefixtures("tried_here")
def test_whole_numbers_and_other_files_are_refused(work: Work) -> None:
    model = onnx.load(work.net)
    model.graph.node[-1].attribute[0].i = TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, work.net)
    with pytest.raises(errors.ModelError, match="expected 'embedding' to be floats, found int64"):
        work.extract()
    work.net.write_bytes(b"no model at all")
    with pytest.raises(errors.ModelError, match=r"net\.onnx: expected an ONNX model, found a file that ONNX Runtime"):
        work.extract()


@pytest.mark.usefixtures("tried_here")
def test_of_several_outputs_one_is_chosen(work: Work) -> None:
    model = onnx.load(work.net)
    model.graph.node.append(helper.make_node("Neg", ["embedding"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", DIMENSIONS]))
    onnx.save(model, work.net)
    with pytest.raises(errors.OptionError, match=r"several outputs, 2: 'embedding' of float, .*give --output-name"):
        work.extract()
    with pytest.raises(errors.OptionError, match=r"--output-name third: .* has 2: 'embedding'"):
        work.extract(output_name="third")
    work.extract(output_name="other")
    np.testing.assert_array_equal(work.read().rows, work.expected(output="other"))
    np.testing.assert_array_equal(work.read().rows, -work.expected(output="embedding"))


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA here")
def test_a_device_that_is_not_there_is_no_reason_to_take_another(work: Work) -> None:
    with pytest.raises(errors.OptionError, match=r"device cuda: this ONNX Runtime, .*, is built without CUDA"):
        work.extract(device="cuda")


def test_a_stop_ends_the_trial(work: Work) -> None:
    stop = StopRequest()
    stop.signal_name = "SIGTERM"
    threading.Timer(0.05, lambda: setattr(stop, "count", 1)).start()
    with pytest.raises(errors.InterruptedJobError, match="stopped by SIGTERM; run the same command again"):
        prepare_model(ModelOptions(str(work.net)), stop)


def test_without_onnx_runtime_the_extra_is_named(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install -e '\.\[features\]'"):
        work.extract()
