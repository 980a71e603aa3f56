"""A record set of 60,000 images of about 4.4 KB as WebDataset tars: facedata, and a bare loop over `tarfile`.

    python benchmarks/rec_to_webdataset.py [--folder DIR] [--repeats 5] [--shard-size 16MB]

A tar is a shard, and a shard is the work of one worker: by default a tar has 1 GB, so that these 370 MB would be one
tar and leave a second worker idle. Here they are cut into two dozen, by both. The bare loop has labels and images in
memory, makes a TarInfo for each `.jpg` and `.cls`, adds them to the tar and does not wait for the disk; it is timed
without any start. facedata is timed as a whole command: start, reading the records, checksums, fsync.

(Its name is not that of the webdataset library, which would then be found here in the library's place.)
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ONE, TWO, BARE = "facedata, 1 worker", "facedata, 2 workers", "bare tarfile loop"


def bare_loop(records: str, output: str, shard_samples: int) -> None:
    """Put what is in memory already into tars."""
    from facedata.dataset import open_dataset

    samples = [(sample.label, sample.image) for sample in open_dataset(f"rec:{records}")]
    begin = time.perf_counter()
    os.mkdir(output)
    for shard, first in enumerate(range(0, len(samples), shard_samples)):
        with tarfile.open(f"{output}/{shard:06d}.tar", "w") as tar:
            for index, (label, image) in enumerate(samples[first : first + shard_samples], first):
                for name, data in ((f"{index:09d}.jpg", image), (f"{index:09d}.cls", b"%d" % label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    print(time.perf_counter() - begin)


def check(outputs: list[str]) -> None:
    """Stop where one output holds other members than another, or other bytes."""
    first, *others = [_members(output) for output in outputs]
    if any(other != first for other in others):
        sys.exit("they did not write the same members")


def _members(output: str) -> list[tuple[str, int]]:
    members = []
    for path in sorted(Path(output).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                members.append((member.name, hash(file.read() if file else b"")))
    return members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shard-size", default="16MB")
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
        ONE: lambda output: [*convert, "--workers", "1", f"rec:{records}", f"webdataset:{output}"],
        TWO: lambda output: [*convert, "--workers", "2", f"rec:{records}", f"webdataset:{output}"],
        BARE: lambda output: [sys.executable, __file__, "bare", records, output, "2500"],
    }
    measured = {name: Measured() for name in commands}
    for repeat in range(repeats):
        outputs = {name: str(folder / f"out-{repeat}-{number}") for number, name in enumerate(commands)}
        for name, command in commands.items():
            seconds, peak, printed = run(command(outputs[name]))
            measured[name].seconds.append(float(printed) if name == BARE else seconds)
            measured[name].peak_bytes.append(peak)
            os.sync()
        check(list(outputs.values()))
    for ours in (ONE, TWO):
        report({name: measured[name] for name in (ours, BARE)}, ours, memory=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare_loop(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
