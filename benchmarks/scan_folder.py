"""How long opening a flat folder of images takes, beside ``find``; and the memory that it takes.

python benchmarks/scan_folder.py --folder /dev/shm --files 2000000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure import in_turn, report

OPEN = "import sys; from facedata.converters.folder.source import open_source; open_source(sys.argv[1])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--files", type=int, default=300_000)
    args = parser.parse_args()
    flat = args.folder / f"facedata-flat-{args.files}"
    if not flat.exists():
        flat.mkdir()
        for number in range(args.files):
            (flat / f"IMG_{number}.jpg").touch()
    find, scan = "find -type f", "facedata opens it"
    find_command = ["find", str(flat), "-type", "f", "-fprint", "/dev/null"]
    report(in_turn({find: find_command, scan: [sys.executable, "-c", OPEN, str(flat)]}, 5), scan, memory=True)


if __name__ == "__main__":
    main()
