"""Single images in random order, from each format: ``dataset[i]`` against the bare way to read the same bytes.

    python benchmarks/random_reads.py [--mxnet-python .venv-compat/bin/python] [--folder DIR] [--repeats 5]

The bare ways have their paths or keys in memory and check nothing: MXNet's ``read_idx`` and ``unpack`` for records, a
``get`` and a look-up of the fields with protobuf for LMDB, ``open`` and ``read`` for files, a ``pread`` at a known
offset for tars, and ``read_row_group`` for Parquet. Each line is an image a second, in one process.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

READS, PARQUET_READS = 20_000, 100
FORMATS = {"rec": "rec", "lmdb": "set.lmdb", "folder": "folder", "webdataset": "tars", "parquet": "parquet"}


def rate(read: Callable[[Any], object], places: list[Any]) -> float:
    """How many a second."""
    for place in places:  # the first time, whoever comes first waits for the file system
        read(place)
    begin = time.perf_counter()
    for place in places:
        read(place)
    return len(places) / (time.perf_counter() - begin)


def random_places(count: int, reads: int) -> list[int]:
    numbers = random.Random(0)
    return [numbers.randrange(count) for _ in range(reads)]


def mxnet_reader(folder: str) -> Callable[[int], object]:
    from mxnet import recordio

    reader = recordio.MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")
    return lambda place: recordio.unpack(reader.read_idx(place + 1))


def bare_readers(folder: Path, dataset: Any) -> Iterator[tuple[str, Callable[[int], object]]]:
    """The bare way for each format but the first."""
    import lmdb
    from build_lmdb import datum_class
    from pyarrow import parquet

    datum = datum_class()
    transaction = lmdb.open(str(folder / FORMATS["lmdb"]), readonly=True, lock=False).begin()
    keys = [line.rpartition(" ")[0].encode() for line in (folder / "kv.txt").read_text().splitlines()]

    def get(place: int) -> tuple[bytes, int]:
        value = datum.FromString(transaction.get(keys[place]))
        return value.data, value.label

    yield "lmdb", get
    paths = [str(folder / FORMATS["folder"] / key) for key in dataset["folder"].keys()]  # noqa: SIM118

    def read(place: int) -> bytes:
        with open(paths[place], "rb") as file:
            return file.read()

    yield "folder", read
    tars = dataset["webdataset"]
    descriptors = {path: os.open(path, os.O_RDONLY) for path in tars.paths}
    where = [(descriptors[path], offset) for path, offset in map(tars.locate, range(len(tars)))]
    sizes = tars.sizes().tolist()
    yield "webdataset", lambda place: os.pread(where[place][0], sizes[place], where[place][1])
    (path,) = dataset["parquet"].files
    file, ends = parquet.ParquetFile(path), dataset["parquet"].groups["end"]

    def read_group(place: int) -> object:
        group = int(ends.searchsorted(place, "right"))
        return file.read_row_group(group, use_threads=False)

    yield "parquet", read_group


def make_sets(folder: Path, identities: int) -> None:
    from sets import make_set

    from facedata.converters.convert import ConversionOptions, convert_dataset

    make_set(folder / "rec", identities)
    for name in list(FORMATS)[1:]:
        writing = {"kv": str(folder / "kv.txt")} if name == "lmdb" else {}
        convert_dataset([f"rec:{folder}/rec"], f"{name}:{folder / FORMATS[name]}", ConversionOptions(writing=writing))


def compare(folder: Path, mxnet_python: str | None, repeats: int, identities: int) -> None:
    import facedata

    make_sets(folder, identities)
    spec = {name: f"{name}:{folder / place}" for name, place in FORMATS.items()}
    spec["lmdb"] += f"@{folder}/kv.txt"
    dataset = {name: facedata.open_dataset(spec[name]) for name in FORMATS}
    bare = dict(bare_readers(folder, dataset))
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMATS}
    for _ in range(repeats):
        for name, source in dataset.items():
            places = random_places(len(source), PARQUET_READS if name == "parquet" else READS)
            ours = rate(source.__getitem__, places)
            if name != "rec":
                rates[name].append((ours, rate(bare[name], places)))
            elif mxnet_python:
                command = [mxnet_python, __file__, "mxnet", str(folder / "rec"), str(len(source))]
                theirs = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rates[name].append((ours, float(theirs)))
    for name, pairs in rates.items():
        if pairs:
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = [mine / other for mine, other in pairs]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{name:12s}{ours:10,.0f}/s   bare {theirs:10,.0f}/s   {statistics.median(ratios):.2f}  {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mxnet-python")
    parser.add_argument("--folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--identities", type=int, default=1500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.mxnet_python, options.repeats, options.identities)


if __name__ == "__main__":
    if sys.argv[1:2] == ["mxnet"]:
        print(rate(mxnet_reader(sys.argv[2]), random_places(int(sys.argv[3]), READS)))
    else:
        main()
