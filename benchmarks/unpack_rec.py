"""Unpacking 60,000 images of about 4.4 KB: facedata, the plain loop over MXNet, and a bare loop that only writes.

    python benchmarks/unpack_rec.py --mxnet-python .venv-compat/bin/python [--folder DIR] [--repeats 5]

The files lie in DIR, which should be on the disk that matters; each run writes into a fresh folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from sets import write_set

IDENTITIES, IMAGES = 1500, 40
OURS, MXNET, BARE = "facedata unpack-rec", "MXNet loop", "bare loop"


def make_set(folder: Path) -> None:
    import numpy as np

    def make(place: int) -> tuple[int, bytes]:
        generator = np.random.default_rng(place)
        return place // IMAGES, b"\xff\xd8\xff\xe0" + generator.bytes(int(generator.integers(3396, 5396)))

    write_set(folder, IDENTITIES * IMAGES, make)


def mxnet_loop(records: str, output: str) -> None:
    """Walk the identity ranges, read each image with read_idx, write its file: the way it is done today."""
    import mxnet

    reader = mxnet.recordio.MXIndexedRecordIO(f"{records}/train.idx", f"{records}/train.rec", "r")
    meta, _ = mxnet.recordio.unpack(reader.read_idx(0))
    count = 0
    for identity in range(int(meta.label[0]), int(meta.label[1])):
        header, _ = mxnet.recordio.unpack(reader.read_idx(identity))
        for key in range(int(header.label[0]), int(header.label[1])):
            image_header, image = mxnet.recordio.unpack(reader.read_idx(key))
            label = int(image_header.label)
            folder = os.path.join(output, f"id_{label}")
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, f"{label}_{count}.jpg"), "wb") as file:
                file.write(image)
            count += 1


def bare_loop(records: str, output: str, workers: int) -> None:
    """Create and write the same files, with as many processes, each of which has its images in memory already."""
    os.makedirs(output)
    ready, go = multiprocessing.Barrier(workers + 1), multiprocessing.Barrier(workers + 1)
    processes = [
        multiprocessing.Process(target=_write, args=(records, part, workers, output, ready, go))
        for part in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    begin = time.perf_counter()
    go.wait()
    for process in processes:
        process.join()
    print(time.perf_counter() - begin)


def _write(records: str, part: int, parts: int, output: str, ready: Barrier, go: Barrier) -> None:
    from facedata.converters.rec.record_set import open_record_set

    source = open_record_set(records)
    first, end = len(source) * part // parts, len(source) * (part + 1) // parts
    images = [(sample.label, sample.image) for sample in source[first:end]]
    ready.wait()
    go.wait()
    last = -1
    for count, (label, image) in enumerate(images, first):
        if label != last:
            os.makedirs(f"{output}/id_{label}", exist_ok=True)
            last = label
        file = os.open(f"{output}/id_{label}/{label}_{count}.jpg", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(file, image)
        os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mxnet-python", required=True)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.mxnet_python, options.workers, options.repeats)


def compare(folder: Path, mxnet_python: str, workers: int, repeats: int) -> None:
    from measure import Measured, report, run

    records, facedata = str(folder / "set"), str(Path(sys.executable).with_name("facedata"))
    make_set(folder / "set")
    commands = {
        OURS: [facedata, "unpack-rec", "--include", records, "--workers", str(workers), "--quiet", "--output"],
        MXNET: [mxnet_python, __file__, "mxnet", records],
        BARE: [sys.executable, __file__, "bare", records, str(workers)],
    }
    measured = {name: Measured() for name in commands}
    for repeat in range(repeats):
        outputs = {name: str(folder / f"out-{repeat}-{number}") for number, name in enumerate(commands)}
        for name, command in commands.items():
            seconds, peak, printed = run([*command, outputs[name]])
            # the bare loop is timed inside: reading the images into memory is not part of it
            measured[name].seconds.append(float(printed) if name == BARE else seconds)
            measured[name].peak_bytes.append(peak)
        subprocess.run(["diff", "-rq", "--exclude=.facedata-*", outputs[OURS], outputs[MXNET]], check=True)
        os.sync()  # nothing is deleted in between: ext4 is slow to give out inodes that were freed seconds ago
    report(measured, OURS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["mxnet"]:
        mxnet_loop(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["bare"]:
        bare_loop(sys.argv[2], sys.argv[4], int(sys.argv[3]))
    else:
        main()
