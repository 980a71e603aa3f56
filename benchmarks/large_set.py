"""A record set of the size of Glint360K, of tiny records: opening its index, and every image to its own label.

    python benchmarks/large_set.py --mxnet-python .venv-compat/bin/python [--folder DIR] [--repeats 3] [--workers 2]

Labels and identity ranges are float32, as MXNet writes them, so that the ranges above key 2**24 are wrong by one for
half of the keys. Each image carries its own key; a sink checks key, order and label of every sample that reaches it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facedata.dataset import Sample, Sink
from facedata.errors import RefusedSampleError

IMAGES, PEOPLE = 17_091_657, 360_232
RECORD = np.dtype(
    [("chunk", "<u4", 2), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("body", "<u4", 2)]
)
SIGNATURE = int.from_bytes(b"\xff\xd8\xff\xe0", "little")
BLOCK = 1 << 20


def label_of(index: np.ndarray) -> np.ndarray:
    return index * PEOPLE // IMAGES


def first_key_of(label: np.ndarray) -> np.ndarray:
    return -(-label * IMAGES // PEOPLE) + 1


def make_set(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    count = IMAGES + PEOPLE + 1
    with open(folder / "train.rec", "wb") as records, open(folder / "train.idx", "wb") as index:
        for begin in range(0, count, BLOCK):
            place = np.arange(begin, min(begin + BLOCK, count), dtype=np.int64)
            key = np.where(place == count - 1, 0, place + 1)
            records.write(_records(key).tobytes())
            lines = zip(key.tolist(), (place * RECORD.itemsize).tolist(), strict=True)
            index.write("".join([f"{k}\t{offset}\n" for k, offset in lines]).encode())
    (folder / "property").write_text(f"{PEOPLE},112,112\n")


def _records(key: np.ndarray) -> np.ndarray:
    records = np.zeros(len(key), RECORD)
    records["chunk"] = 0xCED7230A, RECORD.itemsize - 8
    records["id"] = key
    image = (key >= 1) & (key <= IMAGES)
    records["label"][image] = label_of(key[image] - 1)
    records["body"][image, 0] = SIGNATURE
    records["body"][image, 1] = key[image]
    records["flag"][~image] = 2
    ranges = np.stack([first_key_of(key - IMAGES - 1), first_key_of(key - IMAGES)], axis=1)
    ranges[key == 0] = IMAGES + 1, IMAGES + PEOPLE + 1
    records["body"][~image] = ranges[~image].astype("<f4").view("<u4")
    return records


@dataclass(frozen=True)
class CheckingSink(Sink):
    """Takes nothing but the right sample at the right place."""

    root: str

    def identity(self) -> dict[str, str]:
        return {"format": "check"}

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[CheckingSink]:
        yield self

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        key, inside = int(sample.key), int.from_bytes(sample.image[4:8], "little")
        if not (key == inside == index + 1 and sample.label == index * PEOPLE // IMAGES):
            raise RefusedSampleError(f"index {index}, label {sample.label}, key {inside} inside")


def open_ours(records: str) -> None:
    from facedata.converters.convert import plan_dataset

    begin = time.perf_counter()
    conversion = plan_dataset([f"rec:{records}"], f"folder:{records}-out")
    assert len(conversion.source) == IMAGES
    print(time.perf_counter() - begin)


def open_mxnet(records: str) -> None:
    import mxnet

    begin = time.perf_counter()
    reader = mxnet.recordio.MXIndexedRecordIO(f"{records}/train.idx", f"{records}/train.rec", "r")
    assert len(reader.keys) == IMAGES + PEOPLE + 1
    print(time.perf_counter() - begin)


def check_all(records: str, workers: str) -> None:
    from facedata.converters.convert import convert_dataset
    from facedata.jobs.job import JobOptions

    sink = CheckingSink(f"{records}-checked-by-{workers}")
    summary = convert_dataset([f"rec:{records}"], sink, job=JobOptions(int(workers)))
    print(f"{summary.samples:,} samples reached their label, {summary.failures} did not, digest {summary.digest}")
    assert summary.samples == IMAGES
    assert summary.failures == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mxnet-python", required=True)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", default="2,16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        records = str(Path(name) / "set")
        make_set(Path(records))
        compare_opening(records, options.mxnet_python, options.repeats)
        for workers in options.workers.split(","):
            check(records, workers)


def compare_opening(records: str, mxnet_python: str, repeats: int) -> None:
    from measure import Measured, report, run

    ours, theirs = "facedata, open and plan", "MXIndexedRecordIO, open"
    commands = {ours: [sys.executable, __file__, "ours", records], theirs: [mxnet_python, __file__, "mxnet", records]}
    measured = {name: Measured() for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            _, peak, printed = run(command)
            measured[name].seconds.append(float(printed))
            measured[name].peak_bytes.append(peak)
    report(measured, ours, memory=True)


def check(records: str, workers: str) -> None:
    from measure import run

    seconds, peak, printed = run([sys.executable, __file__, "check", records, workers])
    print(f"{workers} workers: {printed.strip()}; {seconds:.1f} s, peak {peak / 1e6:.0f} MB with all workers")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        open_ours(sys.argv[2])
    elif sys.argv[1:2] == ["mxnet"]:
        open_mxnet(sys.argv[2])
    elif sys.argv[1:2] == ["check"]:
        check_all(sys.argv[2], sys.argv[3])
    else:
        main()
