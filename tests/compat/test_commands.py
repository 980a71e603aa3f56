"""The commands against MXNet: what the scripts that people used before would have written, byte for byte."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Ran

from facedata.dataset import Sample
from facedata.synthetic.sample_set import SampleOptions, make_sample

recordio = pytest.importorskip("mxnet.recordio")

pytestmark = [pytest.mark.compat, pytest.mark.filterwarnings("ignore:tostring:DeprecationWarning")]

RecordSet = tuple[Path, list[Sample]]
Tree = dict[str, bytes]
Unpack = Callable[..., Tree]


@pytest.fixture
def unpack(facedata: Callable[..., Ran]) -> Unpack:
    """What ``facedata unpack-rec`` writes."""

    def run(include: str | Path, output: Path, *options: str, status: int = 0) -> Tree:
        ran = facedata("unpack-rec", "--include", include, "--output", output, "--workers", 2, *options)
        assert ran.status == status, ran.stderr
        return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("*/*")}

    return run


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
def test_every_dialect_is_unpacked_as_by_the_original_script(
    record_set: RecordSet, unpack: Unpack, tmp_path: Path, backend: str
) -> None:
    folder, samples = record_set
    tree = unpack(folder, tmp_path / "out", "--backend", backend)
    assert tree == original_script(folder)
    assert len(tree) == len(samples)


@pytest.mark.parametrize("record_set", ["dataset_merge"], indirect=True)
def test_sets_are_merged_as_by_the_original_script(record_set: RecordSet, unpack: Unpack, tmp_path: Path) -> None:
    folder, _ = record_set
    kept = unpack(f"{folder},{folder}", tmp_path / "kept", "--labels", "keep")
    shifted = unpack(f"{folder},{folder}", tmp_path / "shifted")
    assert kept == original_script(folder, folder)
    assert sorted(shifted.values()) == sorted(kept.values())
    assert len({Path(name).parent for name in shifted}) == 2 * len({Path(name).parent for name in kept})


def damage(folder: Path, key: str, kind: int = 0) -> None:
    """Overwrite a few bytes of a record, in one of six ways."""
    offset = int(dict(line.split("\t") for line in (folder / "train.idx").read_text().splitlines())[key])
    with open(folder / "train.rec", "r+b") as file:
        file.seek(offset + 8)
        labels = int.from_bytes(file.read(4), "little")
        label = 32 if labels else 12
        place, new = [
            (0, b"\x00\x00\x00\x00"),  # no magic
            (4, struct.pack("<I", 0x1FFFFFFF)),  # a length that reaches beyond the end
            (8, struct.pack("<I", 1 << 20)),  # more labels than there are bytes
            (label, struct.pack("<f", float("nan"))),
            (label, struct.pack("<f", 0.5)),
            (32 + 4 * labels, b"<html>"),
        ][kind]
        file.seek(offset + place)
        file.write(new)


def test_each_damaged_record_costs_one_image(record_set: RecordSet, unpack: Unpack, tmp_path: Path) -> None:
    folder, samples = record_set
    expected, damaged = original_script(folder), [2, 4, 6, 8, 10, 12]
    for kind, number in enumerate(damaged):
        key, label, *_ = samples[number]
        damage(folder, key, kind)
        del expected[f"id_{label}/{label}_{number}.jpg"]
    for backend in ("native", "mxnet"):
        output = tmp_path / backend
        assert unpack(folder, output, "--backend", backend, status=1) == expected
        failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
        assert [(one["key"], one["index"]) for one in failures] == [(samples[n].key, n) for n in damaged]
        assert ("Invalid RecordIO" in failures[0]["reason"]) == (backend == "mxnet")


def test_salvage_without_an_index_loses_nothing_else(record_set: RecordSet, unpack: Unpack, tmp_path: Path) -> None:
    folder, samples = record_set
    left = [*samples[:9], *samples[10:]]
    damage(folder, samples[9].key)
    (folder / "train.idx").unlink()
    tree = unpack(folder, tmp_path / "out", "--salvage", status=1)
    assert sorted(tree.values()) == sorted(sample.image for sample in left)
    assert {Path(name).parent.name for name in tree} == {f"id_{sample.label}" for sample in left}


@pytest.mark.parametrize("options", [[], ["--no-shuffle"], ["--pack-label", "--num-thread=2"]], ids=" ".join)
def test_what_im2rec_itself_packed_is_unpacked(tmp_path: Path, unpack: Unpack, options: list[str]) -> None:
    photos, packed = tmp_path / "photos", tmp_path / "packed"
    packed.mkdir()
    make_sample(tmp_path / "drawn", SampleOptions(identities=3, images=4))
    unpack(tmp_path / "drawn", photos)
    im2rec(packed / "train", photos, "--list", "--recursive", *options)
    lines = [line.split("\t") for line in (packed / "train.lst").read_text().splitlines()]
    listed = sorted((int(key), int(float(label)), path) for key, label, path in lines)
    more = "0.5\t-1\t" if "--pack-label" in options else ""
    (packed / "train.lst").write_text("".join(f"{key}\t{label}\t{more}{path}\n" for key, label, path in lines))
    im2rec(packed / "train", photos, "--pass-through", *options)
    tree = unpack(packed, tmp_path / "out")
    assert len(tree) == 12
    assert tree == {f"id_{label}/{label}_{key}.jpg": (photos / path).read_bytes() for key, label, path in listed}
    assert tree == original_script(packed)


def im2rec(prefix: Path, root: Path, *options: str) -> None:
    tool = Path(recordio.__file__).parent / "tools" / "im2rec.py"
    subprocess.run([sys.executable, tool, *options, prefix, root], check=True, capture_output=True, timeout=60)
