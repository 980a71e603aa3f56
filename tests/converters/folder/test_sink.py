"""`FolderSink`: where each image goes, under which name, and the list beside it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import jpeg, tree

from facedata.converters.folder import IMAGEFOLDER, create_sink
from facedata.converters.folder.sink import FolderSink
from facedata.dataset import Sample, create_dataset
from facedata.errors import OutputError, RefusedSampleError

SIGNATURES = {
    "jpg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "bmp": b"BM" + bytes(24),
    "gif": b"GIF89a",
    "tif": b"II*\0",
}


def write(sink: FolderSink, samples: Sequence[tuple[int, bytes]], first: int = 0, shard: int = 0) -> None:
    sink.prepare()
    with sink.open_shard(shard) as writer:
        for index, (label, image) in enumerate(samples, first):
            writer.write(index, Sample(f"key {index}", label, image))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_glint360k_names_folders_and_files_as_its_own_script_does(root: Path) -> None:
    write(FolderSink(str(root)), [(0, jpeg("a")), (10, jpeg("b")), (2, jpeg("c"))], first=41)
    assert tree(root) == {"id_0/0_41.jpg": jpeg("a"), "id_10/10_42.jpg": jpeg("b"), "id_2/2_43.jpg": jpeg("c")}


def test_imagefolder_pads_the_label_in_the_folder_alone(root: Path) -> None:
    write(FolderSink(str(root), IMAGEFOLDER), [(2, jpeg("a")), (10, jpeg("b")), (1 << 24, jpeg("c"))])
    assert list(tree(root)) == ["00000002/2_0.jpg", "00000010/10_1.jpg", "16777216/16777216_2.jpg"]


@pytest.mark.parametrize(("extension", "image"), SIGNATURES.items())
def test_each_type_of_image_gets_its_own_extension_and_its_own_bytes(root: Path, extension: str, image: bytes) -> None:
    write(FolderSink(str(root)), [(0, image + b"rest")])
    assert tree(root) == {f"id_0/0_0.{extension}": image + b"rest"}


@pytest.mark.parametrize("image", [b"<html>", b"\xff\xd8", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_image_is_refused_with_its_first_bytes_or_kept_as_bin(root: Path, image: bytes) -> None:
    with pytest.raises(RefusedSampleError, match=f"not an image: its bytes begin {image[:8].hex(' ')}"):
        write(FolderSink(str(root)), [(0, image)])
    assert tree(root) == {}
    write(FolderSink(str(root), keep_undecodable=True), [(0, image), (0, jpeg("b"))])
    assert tree(root) == {"id_0/0_0.bin": image, "id_0/0_1.jpg": jpeg("b")}


def test_a_refused_image_does_not_end_its_shard(root: Path) -> None:
    with FolderSink(str(root)).open_shard(0) as writer:
        for index, image in enumerate([jpeg("a"), b"none", jpeg("c")]):
            if index == 1:
                with pytest.raises(RefusedSampleError):
                    writer.write(index, Sample("1", 0, image))
            else:
                writer.write(index, Sample(str(index), 0, image))
    assert list(tree(root)) == ["id_0/0_0.jpg", "id_0/0_2.jpg"]


def test_the_list_has_one_line_an_image_in_order_whatever_the_order_of_the_shards(root: Path) -> None:
    sink = FolderSink(str(root), list_file=str(root / "list.txt"))
    write(sink, [(1, jpeg("c")), (0, jpeg("d"))], first=2, shard=1)
    write(sink, [(1, jpeg("a")), (1, jpeg("b"))], first=0, shard=0)
    facts = sink.finish(2)
    sink.clean_up()
    lines = ["id_1/1_0.jpg 1", "id_1/1_1.jpg 1", "id_1/1_2.jpg 1", "id_0/0_3.jpg 0"]
    assert (root / "list.txt").read_text().splitlines() == lines
    assert facts == {"identities": 2, "list": str(root / "list.txt")}
    assert sorted(os.listdir(root)) == ["id_0", "id_1", "list.txt"]


def test_a_shard_written_again_leaves_no_line_twice(root: Path) -> None:
    sink = FolderSink(str(root), list_file=str(root / "list.txt"))
    write(sink, [(1, jpeg("a")), (1, jpeg("longer than what comes later"))])
    write(sink, [(1, jpeg("a")), (1, jpeg("b"))])
    sink.finish(1)
    assert (root / "list.txt").read_text() == "id_1/1_0.jpg 1\nid_1/1_1.jpg 1\n"
    assert tree(root / "id_1") == {"1_0.jpg": jpeg("a"), "1_1.jpg": jpeg("b")}


def test_a_list_that_cannot_be_written_is_an_output_error(root: Path) -> None:
    sink = FolderSink(str(root), list_file=str(root / "nowhere" / "list.txt"))
    write(sink, [(0, jpeg("a"))])
    with pytest.raises(OutputError, match=r"nowhere/list\.txt: cannot be written"):
        sink.finish(1)


@pytest.mark.parametrize("name", ["id_3", "id_3/3_0.jpg"])
def test_a_link_that_leads_elsewhere_is_not_followed(root: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).symlink_to(elsewhere if name == "id_3" else elsewhere / "file")
    with pytest.raises(OutputError, match=name):
        write(FolderSink(str(root)), [(3, jpeg("a"))])
    assert tree(elsewhere) == {"file": b"precious"}


def test_a_file_in_the_place_of_a_folder_is_an_output_error(root: Path) -> None:
    (root / "id_3").write_bytes(b"")
    with pytest.raises(OutputError, match=r"out/id_3: cannot be written: Not a directory"):
        write(FolderSink(str(root)), [(3, jpeg("a"))])


def test_it_owns_what_any_of_its_layouts_writes_and_nothing_else() -> None:
    sink = FolderSink("out", list_file="out/list.txt")
    own = ("id_0", "id_16777216", "00000007", "123456789", ".facedata-list")
    assert [name for name in own if not sink.owns(name)] == []
    foreign = ("id_", "id_x", "id_0.jpg", "0000007", "photos", "id_0\n", "ID_0", "2024-01-01", ".git")
    assert [name for name in foreign if sink.owns(name)] == []


def test_options_that_decide_what_is_written_tell_sinks_apart() -> None:
    sinks = [
        FolderSink("out"),
        FolderSink("out", IMAGEFOLDER),
        FolderSink("out", list_file="list.txt"),
        FolderSink("out", keep_undecodable=True),
    ]
    identities = [sink.identity() for sink in sinks]
    assert all(identities.count(identity) == 1 for identity in identities)
    assert FolderSink("elsewhere").identity() == identities[0]
    assert [pickle.loads(pickle.dumps(sink)) for sink in sinks] == sinks  # noqa: S301, our own bytes


def test_it_is_created_by_its_name(tmp_path: Path) -> None:
    assert create_dataset(f"folder:{tmp_path}") == create_sink(str(tmp_path)) == FolderSink(str(tmp_path))
