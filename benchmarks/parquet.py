"""A record set of 60,000 images of about 4.4 KB as Parquet: facedata with one and two workers, and a bare pyarrow loop.

    python benchmarks/parquet.py [--folder DIR] [--repeats 5] [--shard-size 34MB]

A file is a shard, and a shard is the work of one worker: by default a file has 500 MB, so these 264 MB would be one
file and leave a second worker idle. Here they are cut into eight. The bare loop has the same keys, labels and images in
memory, makes one table of them and writes it as one file, not compressed, and does not wait for the disk; it is timed
without any start. facedata is timed as a whole command: start, reading the records, checksums, fsync.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ONE, TWO, BARE = "facedata, 1 worker", "facedata, 2 workers", "bare pyarrow loop"


def bare_loop(records: str, output: str) -> None:
    """Make a table of what is in memory already, and write it."""
    import pyarrow
    import pyarrow.parquet

    from facedata.dataset import open_dataset

    keys, labels, images, _ = zip(*open_dataset(f"rec:{records}"), strict=True)
    pyarrow.array([b""])  # loads pandas, which is no part of it
    begin = time.perf_counter()
    members = [pyarrow.array(images, pyarrow.binary()), pyarrow.array(keys, pyarrow.string())]
    image = pyarrow.StructArray.from_arrays(members, ["bytes", "path"])
    table = pyarrow.table([image, pyarrow.array(labels, pyarrow.int64())], ["image", "label"])
    pyarrow.parquet.write_table(table, output, compression="none", use_dictionary=False, write_statistics=False)
    print(time.perf_counter() - begin)


def digest(path: str) -> str:
    """Of keys, labels and images, in their order."""
    from facedata.dataset import open_dataset

    value = hashlib.sha256()
    for sample in open_dataset(f"parquet:{path}"):
        value.update(f"{sample.key} {sample.label} {len(sample.image)}\n".encode() + sample.image)
    return value.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shard-size", default="34MB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.shard_size, options.repeats)


def compare(folder: Path, shard_size: str, repeats: int) -> None:
    from measure import Measured, report, run
    from sets import make_set

    records = str(folder / "set")
    make_set(folder / "set")
    convert = [str(Path(sys.executable).with_name("facedata")), "convert", "--quiet", "--shard-size", shard_size]
    commands: dict[str, Callable[[str], list[str]]] = {
        ONE: lambda output: [*convert, "--workers", "1", f"rec:{records}", f"parquet:{output}"],
        TWO: lambda output: [*convert, "--workers", "2", f"rec:{records}", f"parquet:{output}"],
        BARE: lambda output: [sys.executable, __file__, "bare", records, output],
    }
    measured = {name: Measured() for name in commands}
    for repeat in range(repeats):
        outputs = {name: str(folder / f"out-{repeat}-{number}") for number, name in enumerate(commands)}
        for name, command in commands.items():
            seconds, peak, printed = run(command(outputs[name]))
            measured[name].seconds.append(float(printed) if name == BARE else seconds)
            measured[name].peak_bytes.append(peak)
            os.sync()
        if len({digest(output) for output in outputs.values()}) != 1:
            sys.exit("they did not write the same samples")
    for ours in (ONE, TWO):
        report({name: measured[name] for name in (ours, BARE)}, ours, memory=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare_loop(sys.argv[2], sys.argv[3])
    else:
        main()
