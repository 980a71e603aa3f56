"""Checking files against a list of checksums: facedata verify-md5, and md5sum -c.

    python benchmarks/verify_md5.py [--folder DIR] [--repeats 5] [--workers 2] [--large 2000]

Eight files of 256 MB, one of 256 MB, and one of `--large` MB. All lie in the page cache, which is the hard case: what
comes from a slower disk hides the rest. facedata reads every file again (--no-cache); the last row is a second call
that may remember.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import in_turn, report

_MB = 1_000_000
_BLOCK = 4 * _MB


def make_file(path: Path, size: int, seed: int) -> str:
    """A file of that many bytes; its MD5."""
    block, digest = random.Random(seed).randbytes(_BLOCK), hashlib.md5(usedforsecurity=False)
    with open(path, "wb") as file:
        for begin in range(0, size, _BLOCK):
            part = block[: size - begin]
            file.write(part)
            digest.update(part)
    os.utime(path, (1e9, 1e9))
    return digest.hexdigest()


def compare(folder: Path, title: str, files: int, size: int, workers: int, repeats: int) -> None:
    root = folder / title.replace(" ", "-")
    root.mkdir()
    lines = [f"{make_file(root / f'file-{number}', size, number)}  file-{number}\n" for number in range(files)]
    (root / "MD5SUMS").write_text("".join(lines))
    os.sync()
    facedata = str(Path(sys.executable).with_name("facedata"))
    ours = [
        facedata,
        "verify-md5",
        "--manifest",
        str(root / "MD5SUMS"),
        "--workers",
        str(workers),
        "--quiet",
        "--only-wrong",
    ]
    commands: dict[str, Sequence[str]] = {
        "md5sum -c": ["sh", "-c", f"cd '{root}' && exec md5sum -c --quiet MD5SUMS"],
        "verify-md5": [*ours, "--no-cache"],
        "verify-md5, remembered": ours,
    }
    print(title)
    measured = in_turn(commands, repeats, memory=False)
    report(measured, "verify-md5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--large", type=int, default=2000, help="MB")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        folder = Path(name)
        compare(folder, "eight files of 256 MB", 8, 256 * _MB, options.workers, options.repeats)
        compare(folder, "one file of 256 MB", 1, 256 * _MB, options.workers, options.repeats)
        compare(folder, f"one file of {options.large} MB", 1, options.large * _MB, options.workers, options.repeats)


if __name__ == "__main__":
    main()
