"""Nearest neighbours, exact: bare faiss, the steps of learn-to-cluster, and facedata build-knn, in turn.

    python benchmarks/build_knn.py [--rows 60000] [--dim 256] [--k 80] [--repeats 3] [--folder DIR]

First the search alone, in one process: IndexFlatIP.search in one call, and ours. Then whole commands. The steps of
learn-to-cluster are: read, normalise, build an IndexFlatIP, search, make a list of a pair of arrays for each row, save
that with savez_compressed. The memory is the largest proportional set size, without the features themselves.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measure import in_turn, report

from facedata.features.feature_set import Matrix
from facedata.features.neighbours.files import with_itself_first
from facedata.features.neighbours.job import SearchThreads
from facedata.features.neighbours.search import UnitRows, cut_search, exact_nearest
from facedata.jobs.machine import available_cpus

LTC, OURS = "learn-to-cluster's steps", "facedata build-knn"


def make_set(root: Path, rows: int, dimensions: int) -> None:
    """Rows around centres, twenty to each."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(max(rows // 20, 1), dimensions)).astype(np.float32)
    labels = random.integers(0, len(centres), rows)
    for name in ("features", "labels"):
        (root / name).mkdir()
    (centres[labels] + 0.7 * random.normal(size=(rows, dimensions)).astype(np.float32)).tofile(root / "features/a.bin")
    (root / "labels/a.meta").write_text("".join(f"{label}\n" for label in labels))


def as_learn_to_cluster(features: str, rows: int, dimensions: int, k: int, output: str) -> None:
    """The whole of the old way."""
    import faiss

    values = np.fromfile(features, np.float32, rows * dimensions).reshape(rows, dimensions)
    values /= np.linalg.norm(values, axis=1).reshape(-1, 1)
    index = faiss.IndexFlatIP(dimensions)
    index.add(values.astype("float32"))
    similarities, neighbours = index.search(values, k)
    pairs = [
        (np.array(ids, np.int32), 1 - np.array(some, np.float32))
        for ids, some in zip(neighbours, similarities, strict=True)
    ]
    np.savez_compressed(output, data=pairs)


def search_alone(root: Path, rows: int, dimensions: int, k: int, repeats: int) -> None:
    """Time both searches in turn, the rows in memory."""
    subprocess.run(
        [sys.executable, __file__, "--search", str(root), *map(str, ("--rows", rows, "--dim", dimensions, "--k", k))]
        + ["--repeats", str(repeats)],
        check=True,
    )


def compare_searches(root: str, rows: int, dimensions: int, k: int, repeats: int) -> None:
    import faiss

    cut = cut_search(rows, dimensions, k)
    base = UnitRows(Matrix(f"{root}/features/a.bin", rows, dimensions), cut.chunk, resident=True)
    base.load()
    values = base.rows(0, rows)
    index = faiss.IndexFlatIP(dimensions)
    index.add(values)
    stopped = threading.Event()
    bounds = [(rows * shard // cut.shards, rows * (shard + 1) // cut.shards) for shard in range(cut.shards)]

    def one_shard(bound: tuple[int, int]) -> None:
        with_itself_first(*exact_nearest(base.rows(*bound), base, k, cut.at_once, stopped), np.arange(*bound))

    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        index.search(values, k)
        middle = time.perf_counter()
        with SearchThreads(available_cpus(), stopped) as threads:
            list(threads.map(one_shard, bounds))
        times.append((middle - begin, time.perf_counter() - middle))
    for name, seconds in zip(("bare faiss, search", "ours, search"), zip(*times, strict=True), strict=True):
        print(f"{name:28s} {statistics.median(seconds):8.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    ratios = [ours / theirs for theirs, ours in times]
    print(f"ours / bare faiss: {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def compare_commands(root: Path, rows: int, dimensions: int, k: int, repeats: int) -> None:
    facedata = str(Path(sys.executable).with_name("facedata"))
    old = root / "old.npz"
    shape = [str(rows), str(dimensions), str(k)]
    commands: dict[str, Sequence[str]] = {
        LTC: [sys.executable, __file__, "--old-way", str(root / "features/a.bin"), *shape, str(old)],
        OURS: [facedata, "build-knn", str(root), "--name", "a", "--k", str(k), "--overwrite", "--quiet"],
    }
    measured = in_turn(commands, repeats)
    report(measured, OURS, memory=True)
    ours, theirs = (statistics.median(measured[name].seconds) for name in (OURS, LTC))
    pairs = [a / b for a, b in zip(measured[OURS].seconds, measured[LTC].seconds, strict=True)]
    features = rows * dimensions * 4
    beyond = {name: max(one.peak_bytes) - features for name, one in measured.items()}
    print(f"time, ours / theirs: {ours / theirs:.2f}  ({min(pairs):.2f} to {max(pairs):.2f})")
    print(f"memory beyond the features: {beyond[LTC] / 1e6:.0f} MB, ours {beyond[OURS] / 1e6:.0f} MB", end=", ")
    print(f"ours / theirs: {beyond[OURS] / beyond[LTC]:.2f}")
    new = root / f"knns/a/faiss_k_{k}.npz"
    print(f"size: {old.stat().st_size / 1e6:.1f} MB, ours {new.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    parser.add_argument("--old-way", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.old_way:
        features, rows, dimensions, k, output = given.old_way
        as_learn_to_cluster(features, int(rows), int(dimensions), int(k), output)
    elif given.search:
        compare_searches(given.search, given.rows, given.dim, given.k, given.repeats)
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            make_set(Path(name), given.rows, given.dim)
            search_alone(Path(name), given.rows, given.dim, given.k, given.repeats)
            compare_commands(Path(name), given.rows, given.dim, given.k, given.repeats)


if __name__ == "__main__":
    main()
