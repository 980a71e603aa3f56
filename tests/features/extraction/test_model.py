"""Models that cannot be used are refused, each for what is wrong with it; and a real one."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from features.extraction.conftest import (
    DIMENSIONS,
    HEIGHT,
    WIDTH,
    Net,
    embedding_net,
    extract,
    here,
    plain_loop,
    read_set,
    write_images,
)
from onnx import TensorProto, helper

from facedata.errors import FacedataError, InterruptedJobError, MissingExtraError, ModelError, OptionError
from facedata.features.extraction.inputs import ModelOptions
from facedata.features.extraction.model import prepare_model
from facedata.jobs.signals import StopRequest


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
