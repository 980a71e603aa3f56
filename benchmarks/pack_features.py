"""Packing a .npy: facedata, and NumPy's memory maps copied in blocks, in turn, in one folder.

    python benchmarks/pack_features.py [--folder /dev/shm] [--size 2000] [--dim 512] [--repeats 5] [--float64]

The old way maps the array, maps the output, copies 8,192 rows at a time and checks nothing; it is measured with the
flush at its end, after which the bytes are on the disk as ours are, and without. The source is read once before, so
that it is in the page cache for all, as far as there is memory. Each file that was written is deleted before the next
run. By default all of it lies in memory: a disk's own spells are larger than what there is to see.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measure import in_turn, report

OURS, FLUSHED, LEFT = "facedata pack-features", "memory maps, flushed", "memory maps, not flushed"
BLOCK = 8192
OLD_WAY = f"""
import sys
import numpy as np
source = np.load(sys.argv[1], mmap_mode="r")
output = np.memmap(sys.argv[2], np.float32, "w+", shape=source.shape)
for first in range(0, len(source), {BLOCK}):
    output[first : first + {BLOCK}] = source[first : first + {BLOCK}]
if sys.argv[3] == "flush":
    output.flush()
"""


def make_array(path: Path, megabytes: int, dimensions: int, dtype: str) -> None:
    rows = megabytes * 1_000_000 // (dimensions * np.dtype(dtype).itemsize)
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (rows, dimensions))
    random = np.random.default_rng(0)
    for first in range(0, rows, BLOCK):
        array[first : first + BLOCK] = random.standard_normal(array[first : first + BLOCK].shape, dtype=np.float32)
    array.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--size", type=int, default=2000, help="of the array, in MB")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--float64", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 3_000_000 * options.size:
            sys.exit(f"{folder}: has no room for three times {options.size} MB; give another --folder or --size")
        make_array(folder / "a.npy", options.size, options.dim, "float64" if options.float64 else "float32")
        compare(folder, options.repeats)


def compare(folder: Path, repeats: int) -> None:
    source, output = str(folder / "a.npy"), folder / "set"
    new, old = output / "features" / "a.bin", output / "features" / "old.bin"
    new.parent.mkdir(parents=True)  # one folder for all: ext4 puts the files of each new one elsewhere on the disk

    def before(_: str) -> None:
        new.unlink(missing_ok=True)
        old.unlink(missing_ok=True)
        os.sync()
        time.sleep(0.5)  # a disk frees in the background what was deleted

    facedata = str(Path(sys.executable).with_name("facedata"))
    copy = [sys.executable, "-c", OLD_WAY, source, str(old)]
    commands: dict[str, Sequence[str]] = {
        OURS: [facedata, "pack-features", source, "--no-meta", "--quiet", "--output", str(output), "--name", "a"],
        FLUSHED: [*copy, "flush"],
        LEFT: [*copy, "leave"],
    }
    for name in commands:  # once unmeasured; and the three files are the same
        before(name)
        in_turn({name: commands[name]}, 1, memory=False)
        check(source, new if name == OURS else old)
    report(in_turn(commands, repeats, before, memory=False), OURS)


def check(source: str, path: Path) -> None:
    array = np.load(source, mmap_mode="r")
    written = np.memmap(path, np.float32, "r", shape=array.shape)
    for first in range(0, len(array), BLOCK):
        if not np.array_equal(array[first : first + BLOCK].astype(np.float32), written[first : first + BLOCK]):
            sys.exit(f"{path}: differs from {source}")


if __name__ == "__main__":
    main()
