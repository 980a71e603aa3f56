"""Links that someone planted in a shared output, under every hidden name that a command writes, lead nowhere."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from archive_support import tar_bytes
from features.extraction.conftest import embedding_net, write_images
from features.sets import people, write_set
from http_server import Server
from support import Ran, write_tree

SPY = """if True:
    import os, sys
    log = os.open(os.environ["SPY_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def spy(event, arguments):
        if (event == "open" and arguments[2] & os.O_CREAT and not isinstance(arguments[0], int)) or event == "os.mkdir":
            os.write(log, os.fsencode(os.path.abspath(arguments[0])) + b"/" * (event == "os.mkdir") + b"\\n")
    sys.addaudithook(spy)
    from facedata.cli import main
    main()
"""
CONVERT = "convert set --workers 1 -o"
COMMANDS = {
    "unpack-rec": "unpack-rec set -o out --workers 1 --list out/list.txt",
    "folder": f"{CONVERT} folder:out",
    "rec": f"{CONVERT} rec:out",
    "lmdb": f"{CONVERT} lmdb:out",
    "webdataset": f"{CONVERT} webdataset:out",
    "parquet": f"{CONVERT} parquet:out",
    "overwrite": "unpack-rec set -o out --workers 1 --overwrite",
    "align": "align set -o out --landmarks set/landmarks.jsonl --write-landmarks l.txt --workers 1",
    "make-sample": "make-sample out --identities 2 --images 2 --size 32",
    "index-rec": "index-rec bare/train.rec",
    "pack-features": "pack-features rows.npy --unlabeled --name b -o data",
    "extract-features": "extract-features images --model net.onnx --name c -o data",
    "build-knn": "build-knn data --name a --k 3",
    "extract": "extract a.tgz -o out",
    "download": "download small --root out --overwrite",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the commands read, and nothing that they write."""
    folder = tmp_path_factory.mktemp("inputs")
    archive = gzip.compress(tar_bytes([("x/data/features/f.bin", bytes(1024)), ("x/data/labels/f.meta", b"0\n")]))
    write_set(folder / "data", *people(40, 8))
    write_images(folder / "images", 3)
    embedding_net(folder / "net.onnx")
    np.save(folder / "rows.npy", people(40, 8)[0])
    make = ["make-sample", "set", "--identities", "3", "--images", "2", "--size", "112"]
    subprocess.run(
        [sys.executable, "-P", "-c", SPY, *make], cwd=folder, env={**os.environ, "SPY_LOG": "/dev/null"}, check=True
    )
    with Server() as server:
        server.add("/small.tar.gz", archive)
        catalogue = (
            '[sets.small]\ntitle = "small"\nstatus = ["free"]\nlayout = "learn-to-cluster"\n[[sets.small.sources]]\n'
            f'kind = "http"\nurl = "{server.url("/")}"\n[[sets.small.downloads]]\nname = "small.tar.gz"\n'
        )
        bare = (folder / "set/train.rec").read_bytes()
        write_tree(folder, {"a.tgz": archive, "facedata/catalogue.toml": catalogue, "bare/train.rec": bare})
        yield folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_planted_link_leads_nowhere(
    tmp_path: Path, inputs: Path, inline_facedata: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    words = COMMANDS[command].split()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(inputs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "work"
    shutil.copytree(inputs, place)
    environment = {**os.environ, "SPY_LOG": str(tmp_path / "log")}
    subprocess.run(
        [sys.executable, "-P", "-c", SPY, *words], cwd=place, env=environment, check=True, capture_output=True
    )
    opened = {line.removeprefix(f"{place}/") for line in (tmp_path / "log").read_text().splitlines()}
    hidden = re.compile(r"(.*/)?(\.facedata-[^/]*|[^/]*\.facedata|[^/]*\.part)(/.*)?")
    names = sorted(name for name in opened if hidden.fullmatch(name) and ".facedata-temporary-" not in name)
    assert names or command in ("index-rec", "pack-features")
    for name in names:
        for kind in ("folder",) if name.endswith("/") else ("file", "hard link"):
            shutil.rmtree(place)
            shutil.copytree(inputs, place)
            victims = write_tree(tmp_path / "victims", {"file": "a file without a newline", "folder/file": "a file"})
            planted = place / name
            planted.parent.mkdir(parents=True, exist_ok=True)
            if kind == "hard link":
                planted.hardlink_to(victims / "file")
            else:
                planted.symlink_to(victims / kind)
            monkeypatch.chdir(place)
            ran = inline_facedata(*words)
            named = (f"{name.rstrip('/')}: is ", "facedata-building/matrix: this job wrote the file, but it")
            assert ran.status == 0 or any(text in ran.stderr for text in named), (name, kind, ran)
            left = {str(path.relative_to(victims)): path.read_text() for path in victims.rglob("*") if path.is_file()}
            assert left == {"file": "a file without a newline", "folder/file": "a file"}, (name, kind)
