"""Embedding 112 x 112 JPEG images: facedata, and a bare ONNX Runtime loop over arrays that are ready in memory.

    python benchmarks/extract_features.py [--folder DIR] [--repeats 5] [--images 1600] [--batch-size 32]

The network is laid out as MobileFaceNet is (Chen et al. 2018, "MobileFaceNets"): 0.44 billion operations an image, 1.2
million random weights, 512 values. The bare loop reads no file and decodes nothing: it is given batches as the network
takes them, and keeps the rows in memory; its clock starts when the session is there and warm. The clock of facedata
starts when the job does: it begins with starting the workers and loading the model, and ends with the set published.
Both use as many threads: one; and one for each core, which are ONNX Runtime's own in the bare loop, and one in each of
as many workers in facedata. The time on the processors is that of whole commands: where others use the machine too, it
tells more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Measured, report, run
from sets import make_set

_SIDE, _DIMENSIONS, _PER_PERSON = 112, 512, 40


class _Net:
    """Nodes and weights of an ONNX graph, collected one by one."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._generator = np.random.default_rng(0)

    def weight(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [f"value{len(self.nodes)}"], **attributes))
        return f"value{len(self.nodes) - 1}"

    def convolve(
        self, x: str, channels: tuple[int, int], kernel: int = 1, stride: int = 1, *, deep: bool = False, **more: Any
    ) -> str:
        """A convolution, one for each channel where `deep`; PReLU behind it unless `linear`."""
        before, after = channels
        shape = (after, 1 if deep else before, kernel, kernel)
        spread = np.sqrt(2.0 / np.prod(shape[1:]))
        inputs = (self.weight(self._generator.normal(0.0, spread, shape)), self.weight(np.full(after, 0.01)))
        pads = [more.get("padding", kernel // 2)] * 4
        y = self.add("Conv", x, *inputs, strides=[stride] * 2, pads=pads, group=before if deep else 1)
        return y if more.get("linear") else self.add("PRelu", y, self.weight(np.full((after, 1, 1), 0.25)))

    def bottleneck(self, x: str, channels: tuple[int, int], stride: int, wide: int) -> str:
        before, after = channels
        y = self.convolve(x, (before, wide))
        y = self.convolve(y, (wide, wide), 3, stride, deep=True)
        y = self.convolve(y, (wide, after), linear=True)
        return self.add("Add", x, y) if stride == 1 and before == after else y


def write_mobile_net(path: Path) -> None:
    """The network, as an ONNX file."""
    from onnx import TensorProto, helper

    net = _Net()
    x = net.convolve("input", (3, 64), 3, 2)
    x = net.convolve(x, (64, 64), 3, deep=True)
    for channels, stride, wide, times in (
        ((64, 64), 2, 128, 1),
        ((64, 64), 1, 128, 4),
        ((64, 128), 2, 256, 1),
        ((128, 128), 1, 256, 6),
        ((128, 128), 2, 512, 1),
        ((128, 128), 1, 256, 2),
    ):
        for _ in range(times):
            x = net.bottleneck(x, channels, stride, wide)
    x = net.convolve(x, (128, 512))
    x = net.convolve(x, (512, 512), 7, deep=True, padding=0, linear=True)
    net.add("Flatten", net.convolve(x, (512, _DIMENSIONS), linear=True))
    net.nodes[-1].output[0] = "embedding"
    graph = helper.make_graph(
        net.nodes,
        "mobile",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", _DIMENSIONS])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def write_arrays(folder: Path, images: int) -> None:
    """What the bare loop is given: the images as the network takes them."""
    from facedata.dataset import open_dataset
    from facedata.features.extraction.model import Preprocessing

    preprocessing = Preprocessing()
    arrays = np.lib.format.open_memmap(folder / "arrays.npy", "w+", np.float32, (images, 3, _SIDE, _SIDE))
    for into, sample in zip(arrays, open_dataset(f"rec:{folder / 'set'}"), strict=True):
        preprocessing.fill(preprocessing.decode(sample.image, _SIDE, _SIDE), "nchw", into)


def bare(folder: Path, threads: int, batch: int) -> float:
    """Seconds of the bare loop; its rows are compared with ours."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(folder / "net.onnx", options, providers=["CPUExecutionProvider"])
    arrays = np.load(folder / "arrays.npy")
    session.run(None, {"input": arrays[:batch]})
    begin = time.perf_counter()
    rows = [session.run(None, {"input": arrays[i : i + batch]})[0] for i in range(0, len(arrays), batch)]
    seconds = time.perf_counter() - begin
    np.concatenate(rows).tofile(folder / "bare.bin")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to work; a local disk or a tmpfs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(bare(Path(arguments.bare[0]), int(arguments.bare[1]), arguments.batch_size))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        people = -(-arguments.images // _PER_PERSON)
        make_set(folder / "set", people, _PER_PERSON)
        write_mobile_net(folder / "net.onnx")
        write_arrays(folder, people * _PER_PERSON)
        compare(folder, people * _PER_PERSON, arguments)


def compare(folder: Path, images: int, arguments: argparse.Namespace) -> None:
    """Run all in turn, with one thread and with one for each core."""
    cores = len(os.sched_getaffinity(0))
    for threads in sorted({1, cores}):
        theirs, ours = f"bare loop, {threads} thread{'s' * (threads > 1)}", f"facedata --workers {threads}"
        measured = {theirs: Measured(), ours: Measured()}
        processors = {theirs: Measured(), ours: Measured()}
        for repeat in range(arguments.repeats):
            for name in measured:
                command = _command(name == ours, folder, threads, repeat, arguments.batch_size)
                before = _processor_seconds()
                _, peak, text = run(command)
                processors[name].seconds.append(_processor_seconds() - before)
                seconds = json.loads(text)["seconds"] if name == ours else float(text)
                measured[name].seconds.append(seconds)
                measured[name].peak_bytes.append(peak)
            assert (folder / "bare.bin").read_bytes() == (folder / f"features/{threads}-{repeat}.bin").read_bytes()
        print(f"\n{images:,} images, {threads} of {cores} cores, batches of {arguments.batch_size}; the rows are equal")
        report(measured, ours, memory=True)
        for name, one in measured.items():
            print(f"{name:28s} {images / one.median:8,.1f} images/s")
        print("on the processors, whole commands:")
        report(processors, ours)


def _processor_seconds() -> float:
    """Of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _command(ours: bool, folder: Path, threads: int, repeat: int, batch: int) -> list[str]:
    if not ours:
        return [sys.executable, __file__, "--batch-size", str(batch), "--bare", str(folder), str(threads)]
    facedata = str(Path(sys.executable).with_name("facedata"))
    where = ["--model", str(folder / "net.onnx"), "--output", str(folder), "--name", f"{threads}-{repeat}"]
    how = ["--batch-size", str(batch), "--workers", str(threads), "--quiet", "--json"]
    return [facedata, "extract-features", f"rec:{folder / 'set'}", *where, *how]


if __name__ == "__main__":
    main()
