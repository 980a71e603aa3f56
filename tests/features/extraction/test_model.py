"""What a network takes, how images become it, and models that cannot be used, refused for what is wrong with each."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from features.extraction.conftest import (
    DIMENSIONS,
    HEIGHT,
    WIDTH,
    Net,
    cv2,
    embedding_net,
    extract,
    here,
    plain_loop,
    read_set,
    write_images,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from facedata.errors import (
    FacedataError,
    InterruptedJobError,
    MissingExtraError,
    ModelError,
    OptionError,
    RefusedSampleError,
)
from facedata.features.extraction.model import Layout, ModelOptions, Preprocessing, input_shape, prepare_model
from facedata.jobs.signals import StopRequest

NUMBERS = st.floats(-300, 300, width=32).filter(lambda number: abs(number) > 0.01)
THREE = st.tuples(NUMBERS) | st.tuples(NUMBERS, NUMBERS, NUMBERS)


@settings(max_examples=25)
@given(THREE, THREE, st.sampled_from(["rgb", "bgr"]), st.sampled_from(["nchw", "nhwc"]), st.integers(0, 99))
def test_pixels_are_what_the_formula_says(
    mean: tuple[float, ...], scale: tuple[float, ...], color: str, layout: Layout, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    into = np.empty((3, 5, 4) if layout == "nchw" else (5, 4, 3), np.float32)
    Preprocessing(mean, scale, color).fill(image, layout, into)
    channels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if color == "rgb" else image
    expected = (channels.astype(np.float32) - np.array(mean, np.float32)) / np.array(scale, np.float32)
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
    with pytest.raises(OptionError, match=said):
        make(**options, **({"path": "m.onnx"} if make is ModelOptions else {}))


def test_enlarging_is_bilinear_and_shrinking_takes_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    scaling = Preprocessing(resize=True)
    np.testing.assert_array_equal(scaling.decode(data, 10, 5), cv2.resize(image, (5, 10), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(scaling.decode(data, 10, 30), cv2.resize(image, (30, 10)))
    with pytest.raises(RefusedSampleError, match="expected 5 x 10 pixels, found 10 x 20"):
        Preprocessing().decode(data, 10, 5)


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
    with pytest.raises(FacedataError, match=said):
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


def test_what_is_found_of_a_good_model(tmp_path: Path) -> None:
    net = embedding_net(tmp_path / "net.onnx", layout="nhwc", batch=4)
    model = prepare_model(ModelOptions(str(net)))
    shape = model.input
    assert (shape.layout, shape.height, shape.width, shape.batch, shape.fixed) == ("nhwc", HEIGHT, WIDTH, 4, True)
    assert (model.dimensions, model.output) == (DIMENSIONS, "embedding")
    assert [name for name, _ in model.versions] == ["ONNX Runtime"]
    assert model == here(ModelOptions(str(net)))


def _rank_four(net: Net, start: str, embedding: str) -> str:
    return net.add("Conv", start, net.random(8, 3, 3, 3))


def _training_mode(net: Net, start: str, embedding: str) -> str:
    return net.add("Sub", embedding, net.add("ReduceMean", embedding, axes=[0], keepdims=1))


def _one_at_a_time(net: Net, start: str, embedding: str) -> str:
    return net.add("Reshape", embedding, net.constant([1, DIMENSIONS]))


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (_rank_four, r"expected 'embedding' to have the shape \(2, D\) for 2 images, found \(2, 8, 14, 10\)"),
        (_training_mode, "depends on its place in the batch or on the other images; was the model exported in train"),
        (_one_at_a_time, "fails on a batch of 2 x 3 x 16 x 12.*one image at a time works: --batch-size 1"),
    ],
)
def test_outputs_that_are_not_embeddings(tmp_path: Path, ending: Any, said: str) -> None:
    net = embedding_net(tmp_path / "net.onnx", ending=ending)
    with pytest.raises(FacedataError, match=said):
        here(ModelOptions(str(net)))
    if ending is _one_at_a_time:
        assert here(ModelOptions(str(net), batch_size=1)).dimensions == DIMENSIONS


def test_whole_numbers_and_other_files_are_refused(tmp_path: Path) -> None:
    net = tmp_path / "net.onnx"
    model = onnx.load(embedding_net(net))
    model.graph.node[-1].attribute[0].i = TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, net)
    with pytest.raises(ModelError, match="expected 'embedding' to be floats, found int64"):
        here(ModelOptions(str(net)))
    net.write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"net\.onnx: expected an ONNX model, found a file that ONNX Runtime does not"):
        here(ModelOptions(str(net)))


@pytest.mark.usefixtures("tried_here")
def test_of_several_outputs_one_is_chosen(tmp_path: Path) -> None:
    net, images = embedding_net(tmp_path / "net.onnx"), write_images(tmp_path / "images", 5)
    model = onnx.load(net)
    model.graph.node.append(helper.make_node("Neg", ["embedding"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", DIMENSIONS]))
    onnx.save(model, net)
    with pytest.raises(OptionError, match=r"several outputs, 2: 'embedding' of float, .*'other'.*give --output-name"):
        here(ModelOptions(str(net)))
    with pytest.raises(OptionError, match=r"--output-name third: .* has 2: 'embedding'"):
        here(ModelOptions(str(net), output_name="third"))
    extract(images.folder, tmp_path, net, output_name="other")
    expected = plain_loop(net, images.pixels, 32, output="other")
    np.testing.assert_array_equal(read_set(tmp_path).rows, expected)
    np.testing.assert_array_equal(expected, -plain_loop(net, images.pixels, 32, output="embedding"))


def test_a_device_that_is_not_there_is_no_reason_to_take_another(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is CUDA here")
    net = embedding_net(tmp_path / "net.onnx")
    with pytest.raises(OptionError, match=r"device cuda: this ONNX Runtime, .*, is built without CUDA"):
        prepare_model(ModelOptions(str(net), device="cuda"))


def test_a_stop_ends_the_trial(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.signal_name = "SIGTERM"
    threading.Timer(0.05, lambda: setattr(stop, "count", 1)).start()
    with pytest.raises(InterruptedJobError, match="stopped by SIGTERM; run the same command again"):
        prepare_model(ModelOptions(str(embedding_net(tmp_path / "net.onnx"))), stop)


def test_without_onnx_runtime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = embedding_net(tmp_path / "net.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'facedata\[features\]'"):
        prepare_model(ModelOptions(str(net)))
