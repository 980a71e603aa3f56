"""Packing a folder of 60,000 images of about 4.4 KB into a record set: facedata, and MXNet's im2rec.py --pass-through.

    python benchmarks/pack_rec.py --mxnet-python .venv-compat/bin/python [--folder DIR] [--repeats 5] [--workers 2]

im2rec needs a list before it can pack. Its time is taken with the list ready, and with the list made by im2rec too,
which is what a user runs; facedata goes over the folder itself. Both get as many processes that read, and have one more
that writes. What the two write is compared byte for byte.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Measured, report, run
from sets import make_set

OURS, IM2REC, BOTH = "facedata pack-rec", "im2rec, list ready", "im2rec, list and pack"
TOOL = "import mxnet, os; print(os.path.join(os.path.dirname(mxnet.__file__), 'tools', 'im2rec.py'))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mxnet-python", required=True)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed facedata is compiled, as MXNet is
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        compare(Path(name), options.mxnet_python, options.workers, options.repeats)


def compare(folder: Path, mxnet_python: str, workers: int, repeats: int) -> None:
    photos, facedata = str(folder / "photos"), str(Path(sys.executable).with_name("facedata"))
    make_set(folder / "set")
    unpacking = [facedata, "unpack-rec", "--include", str(folder / "set"), "--output", photos, "--quiet"]
    subprocess.run(unpacking, check=True, stdout=subprocess.DEVNULL)
    tool = subprocess.run([mxnet_python, "-c", TOOL], check=True, capture_output=True, text=True).stdout.strip()
    ours = [facedata, "pack-rec", photos, "--style", "plain", "--workers", str(workers), "--quiet", "--output"]
    im2rec = [mxnet_python, tool, "--pass-through", "--num-thread", str(workers)]
    listing = [mxnet_python, tool, "--list", "--recursive", "--no-shuffle"]
    subprocess.run([*ours, str(folder / "listed"), "--list"], check=True, stdout=subprocess.DEVNULL)
    measured = {name: Measured() for name in (OURS, IM2REC, BOTH)}
    for repeat in range(repeats):
        mine, theirs, lists = (folder / f"{name}-{repeat}" for name in ("ours", "theirs", "lists"))
        seconds, peak, _ = run([*ours, str(mine)])
        _note(measured[OURS], seconds, peak)
        theirs.mkdir()
        lists.mkdir()
        shutil.copy(folder / "listed" / "train.lst", theirs)  # the same order, so that the same bytes come out
        packing, peak, _ = run([*im2rec, str(theirs / "train"), photos])
        _note(measured[IM2REC], packing, peak)
        making_list, _, _ = run([*listing, str(lists / "train"), photos])
        _note(measured[BOTH], making_list + packing, peak)
        for name in ("train.rec", "train.idx"):
            subprocess.run(["cmp", mine / name, theirs / name], check=True)
        os.sync()
        (mine / "train.rec").unlink()
        (theirs / "train.rec").unlink()
    report(measured, OURS, memory=True)


def _note(measured: Measured, seconds: float, peak: int) -> None:
    measured.seconds.append(seconds)
    measured.peak_bytes.append(peak)


if __name__ == "__main__":
    main()
