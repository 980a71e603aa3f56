"""The commands against MXNet: what the scripts that people used before would have written, byte for byte."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from facedata.converters.rec.source import import_mxnet_recordio
from facedata.dataset import Sample
from facedata.errors import MissingExtraError

try:
    recordio = import_mxnet_recordio()
except MissingExtraError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.compat, pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")]

FACEDATA = Path(sys.executable).with_name("facedata")
RecordSet = tuple[Path, list[Sample]]
Tree = dict[str, bytes]


def facedata(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """Run a command with ``--json``; its summary."""
    command = [FACEDATA, *arguments, "--json", "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == status, run.stderr
    summary: dict[str, Any] = json.loads(run.stdout)
    return summary


def unpack(folder: Path, output: Path, *options: str, status: int = 0) -> Tree:
    """What ``facedata unpack-rec`` writes."""
    facedata("unpack-rec", "--include", folder, "--output", output, "--workers", "2", *options, status=status)
    return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("*/*")}


def original_script(*folders: Path) -> Tree:
    """What the script of Glint360K's authors writes; sets without identity records it would walk in key order."""
    images = [image for folder in folders for image in _walk(folder)]
    return {f"id_{label}/{label}_{count}.jpg": image for count, (label, image) in enumerate(images)}


def _walk(folder: Path) -> Iterator[tuple[int, bytes]]:
    reader = recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    keys = sorted(reader.keys)
    meta, image = recordio.unpack(reader.read_idx(keys[0]))
    if not image:
        ranges = [recordio.unpack(reader.read_idx(key))[0].label for key in range(*map(int, meta.label))]
        keys = [key for bounds in ranges for key in range(*map(int, bounds))]
    for key in keys:
        header, image = recordio.unpack(reader.read_idx(key))
        yield int(header.label if header.flag == 0 else header.label[0]), image
    reader.close()


@pytest.mark.parametrize("backend", ["native", "mxnet"])
def test_unpacks_every_dialect_as_the_original_script(record_set: RecordSet, tmp_path: Path, backend: str) -> None:
    folder, samples = record_set

    tree = unpack(folder, tmp_path / "out", "--backend", backend)

    assert tree == original_script(folder)
    assert len(tree) == len(samples)


@pytest.mark.parametrize("record_set", ["dataset_merge"], indirect=True)
def test_several_sets_are_merged_as_the_original_script_merges_them(record_set: RecordSet, tmp_path: Path) -> None:
    folder, _ = record_set
    both = Path(f"{folder},{folder}")

    kept = unpack(both, tmp_path / "kept", "--labels", "keep")
    shifted = unpack(both, tmp_path / "shifted")

    assert kept == original_script(folder, folder)
    assert sorted(shifted.values()) == sorted(kept.values())
    assert len({Path(name).parent for name in shifted}) == 2 * len({Path(name).parent for name in kept})


def _damage(records: Path, offset: int, kind: int) -> None:
    """Overwrite a few bytes of the record at `offset`, in one of six ways."""
    with open(records, "r+b") as file:
        file.seek(offset + 8)
        labels = int.from_bytes(file.read(4), "little")
        label = 32 if labels else 12
        place, new = [
            (0, b"\x00\x00\x00\x00"),  # no magic
            (4, struct.pack("<I", 0x1FFFFFFF)),  # a length that reaches beyond the end
            (8, struct.pack("<I", 1 << 20)),  # more labels than there are bytes
            (label, struct.pack("<f", float("nan"))),  # a label that is no number
            (label, struct.pack("<f", 0.5)),  # nor a whole one
            (32 + 4 * labels, b"<html>"),  # not an image
        ][kind]
        file.seek(offset + place)
        file.write(new)


def _offset(index: Path, key: str) -> int:
    return next(int(line.split("\t")[1]) for line in index.read_text().splitlines() if line.startswith(f"{key}\t"))


def test_each_damaged_record_costs_one_image(record_set: RecordSet, tmp_path: Path) -> None:
    folder, samples = record_set
    expected, damaged = original_script(folder), [2, 4, 6, 8, 10, 12]
    for kind, number in enumerate(damaged):
        key, label, *_ = samples[number]
        _damage(folder / "train.rec", _offset(folder / "train.idx", key), kind)
        del expected[f"id_{label}/{label}_{number}.jpg"]

    for backend in ("native", "mxnet"):
        output = tmp_path / backend

        assert unpack(folder, output, "--backend", backend, status=1) == expected
        failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
        assert [(one["key"], one["index"]) for one in failures] == [(samples[n].key, n) for n in damaged]


@pytest.mark.parametrize("record_set", ["im2rec"], indirect=True)
def test_mxnet_backend_says_what_is_wrong(record_set: RecordSet, tmp_path: Path) -> None:
    folder, _ = record_set
    _damage(folder / "train.rec", _offset(folder / "train.idx", "7"), 0)

    unpack(folder, tmp_path / "out", "--backend", "mxnet", status=1)

    assert "Invalid RecordIO" in json.loads((tmp_path / "out" / "failures.jsonl").read_text())["reason"]


def test_salvage_without_an_index_loses_nothing_else(record_set: RecordSet, tmp_path: Path) -> None:
    folder, samples = record_set
    damaged = samples[9]
    _damage(folder / "train.rec", _offset(folder / "train.idx", damaged.key), 0)
    (folder / "train.idx").unlink()

    tree = unpack(folder, tmp_path / "out", "--salvage", status=1)

    assert sorted(tree.values()) == sorted(sample.image for sample in samples if sample != damaged)
    assert {Path(name).parent.name for name in tree} == {f"id_{one.label}" for one in samples if one != damaged}


def test_deleted_index_is_written_again(unindexed: RecordSet) -> None:
    folder, _ = unindexed
    index, original = folder / "train.idx", (folder / "original.idx").read_bytes()

    summary = facedata("index-rec", folder)

    assert index.read_bytes() == original
    assert summary["records"] == original.count(b"\n")


@pytest.mark.parametrize("options", [[], ["--no-shuffle"], ["--pack-label", "--num-thread=2"]], ids=" ".join)
def test_unpacks_what_im2rec_itself_packed(tmp_path: Path, options: list[str]) -> None:
    photos, packed = tmp_path / "photos", tmp_path / "packed"
    packed.mkdir()
    _draw(photos)
    _im2rec(packed / "train", photos, "--list", "--recursive", *options)
    lines = [line.split("\t") for line in (packed / "train.lst").read_text().splitlines()]
    listed = sorted((int(key), int(float(label)), path) for key, label, path in lines)
    more = "0.5\t-1\t" if "--pack-label" in options else ""
    (packed / "train.lst").write_text("".join(f"{key}\t{label}\t{more}{path}\n" for key, label, path in lines))
    _im2rec(packed / "train", photos, "--pass-through", *options)

    tree = unpack(packed, tmp_path / "out")

    assert len(tree) == 12
    assert tree == {f"id_{label}/{label}_{key}.jpg": (photos / path).read_bytes() for key, label, path in listed}
    assert tree == original_script(packed)


def _im2rec(prefix: Path, root: Path, *options: str) -> None:
    tool = Path(recordio.__file__).parent / "tools" / "im2rec.py"
    subprocess.run([sys.executable, tool, *options, prefix, root], check=True, capture_output=True, timeout=60)


def _draw(folder: Path) -> None:
    """Three people with four small JPEGs each."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    for person in ("ann", "bo", "cy"):
        (folder / person).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (24, 24, 3), np.uint8)
            assert cv2.imwrite(str(folder / person / f"{number}.jpg"), pixels)
