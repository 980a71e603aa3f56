"""Lists: make-list beside find, ids beside grep, find-overlap beside a bare matrix product.

    python benchmarks/lists.py [--folder DIR] [--repeats 3] [--files 2000000] [--lines 5800000] [--centres 85742 93431]

The folder has 2,000 class folders of empty files, which are listed, not read. The list of 5.8 million lines has 85,742
people, of whom a tenth is dropped; grep -v -F -f gets their folders with the slash behind. The matrix product is that
of NumPy alone, in the same blocks, on the same centres.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measure import Measured, in_turn, report

FOLDERS, PEOPLE, DIMENSIONS = 2000, 85_742, 512


def facedata(*words: object) -> list[str]:
    return [str(Path(sys.executable).with_name("facedata")), *map(str, words), "--quiet", "--overwrite"]


def compare_scan(folder: Path, files: int, repeats: int) -> None:
    root = folder / "images"
    for person in range(FOLDERS):
        place = root / f"id_{person}"
        place.mkdir(parents=True)
        for number in range(files // FOLDERS):
            os.close(os.open(place / f"{number}.jpg", os.O_CREAT | os.O_WRONLY))
    print(f"\nmake-list: {files:,} files in {FOLDERS:,} folders")
    commands: dict[str, Sequence[str]] = {
        "find -type f": ["sh", "-c", f"find {root} -type f > {folder}/found.txt"],
        "facedata make-list": facedata("make-list", root, "-o", folder / "list.txt"),
    }
    report(in_turn(commands, repeats), "find -type f", memory=True)


def compare_ids(folder: Path, lines: int, repeats: int) -> None:
    (folder / "big").mkdir()
    (folder / "big" / "0.jpg").touch()
    each = lines // PEOPLE
    with open(folder / "big.txt", "w") as file:
        for person in range(PEOPLE):
            file.writelines(f"m.{person:06x}/{number:04d}.jpg {person}\n" for number in range(each + 1))
    (folder / "big" / "m.000000").mkdir()
    (folder / "big" / "m.000000" / "0000.jpg").touch()
    dropped = range(0, PEOPLE, 10)
    (folder / "ids.txt").write_text("".join(f"m.{person:06x}\n" for person in dropped))
    (folder / "patterns.txt").write_text("".join(f"m.{person:06x}/\n" for person in dropped))
    print(f"\nids: {PEOPLE * (each + 1):,} lines, {len(dropped):,} people dropped")
    listed = f"list:{folder}/big.txt@{folder}/big"
    commands: dict[str, Sequence[str]] = {
        "grep -v -F -f": ["sh", "-c", f"grep -v -F -f {folder}/patterns.txt {folder}/big.txt > {folder}/left.txt"],
        "make-list --drop-ids": facedata(
            "make-list", listed, "--drop-ids", folder / "ids.txt", "-o", folder / "kept.txt"
        ),
    }
    report(in_turn(commands, repeats), "grep -v -F -f", memory=True)


def compare_overlap(rows: int, columns: int, repeats: int) -> None:
    from facedata.lists.overlap import Centres, find_overlap

    random = np.random.default_rng(0)
    sets = []
    for count in (rows, columns):
        vectors = random.standard_normal((count, DIMENSIONS), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sets.append(Centres("made", np.arange(count), [*map(str, range(count))], vectors))
    print(f"\nfind-overlap: {rows:,} by {columns:,} centres of {DIMENSIONS} values")
    measured = {"bare product": Measured(), "find_overlap": Measured()}
    for _ in range(repeats):
        begin = time.perf_counter()
        for row in range(0, rows, 1024):
            for column in range(0, columns, 16384):
                sets[0].vectors[row : row + 1024] @ sets[1].vectors[column : column + 16384].T
        measured["bare product"].seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        find_overlap(sets[0], sets[1], 0.7)
        measured["find_overlap"].seconds.append(time.perf_counter() - begin)
    report(measured, "find_overlap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", type=int, default=2_000_000)
    parser.add_argument("--lines", type=int, default=5_800_000)
    parser.add_argument("--centres", type=int, nargs=2, default=[85_742, 93_431])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare_ids(Path(folder), options.lines, options.repeats)
        compare_scan(Path(folder), options.files, options.repeats)
    compare_overlap(options.centres[0], options.centres[1], options.repeats)


if __name__ == "__main__":
    main()
