"""Unpacking a split .tar.gz: facedata, and ``cat parts* | tar -xzf -``, in turn, to the same file system.

    python benchmarks/extract.py [--folder /dev/shm] [--repeats 3] [--files]

The archive holds a record set of 450,000 JPEG images (2 GB) and is split into seven parts, as Glint360K is; with
``--files`` it holds 200,000 image files instead, and a zip archive of them is compared with ``unzip`` too. Everything
is unpacked into an empty folder, which is deleted between runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import in_turn, report
from sets import different_jpegs, make_set

PARTS = 7
OURS, SHELL, UNZIP = "facedata extract", "cat | tar -xzf -", "unzip"


def make_files(folder: Path, people: int = 4000, images: int = 50) -> None:
    """A folder for each person."""
    jpegs = different_jpegs()
    for label in range(people):
        person = folder / f"id_{label}"
        person.mkdir(parents=True)
        for image in range(images):
            (person / f"{image}.jpg").write_bytes(jpegs[(label * 7919 + image) % len(jpegs)])


def split(archive: Path) -> list[str]:
    """Cut it into parts; returns their names."""
    subprocess.run(["split", "-d", "-n", str(PARTS), archive, f"{archive.parent}/set_"], check=True)
    archive.unlink()
    return [f"{archive.parent}/set_{number:02d}" for number in range(PARTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", action="store_true", help="many small files instead of one record file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.repeats, options.files)


def compare(folder: Path, repeats: int, many_files: bool) -> None:
    content, output = folder / "set", folder / "out"
    if many_files:
        make_files(content)
        subprocess.run(["zip", "-qr", folder / "set.zip", "set"], cwd=folder, check=True)
    else:
        make_set(content, identities=11_250, images=40)
    subprocess.run(["tar", "-czf", folder / "set.tar.gz", "-C", folder, "set"], check=True)
    shutil.rmtree(content)
    parts = split(folder / "set.tar.gz")
    shell = f"cat {shlex.join(parts)} | tar -xzf - -C {shlex.quote(str(output))}"
    facedata = str(Path(sys.executable).with_name("facedata"))

    def before(_: str) -> None:
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        os.sync()

    ours = [facedata, "extract", "--quiet", "--output", str(output)]
    report(in_turn({OURS: [*ours, *parts], SHELL: ["sh", "-c", shell]}, repeats, before), OURS, memory=True)
    if many_files:
        archive = str(folder / "set.zip")
        commands: dict[str, Sequence[str]] = {
            OURS: [*ours, archive],
            UNZIP: ["unzip", "-q", archive, "-d", str(output)],
        }
        report(in_turn(commands, repeats, before), OURS, memory=True)


if __name__ == "__main__":
    main()
