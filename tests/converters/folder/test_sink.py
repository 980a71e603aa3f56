"""`FolderSink`: where each image goes and under which name, the list beside it, and paths that are kept."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, jpeg, tree

from facedata.converters.convert import ConversionOptions, convert_dataset, plan_conversion, run_conversion
from facedata.converters.folder import IMAGEFOLDER, create_sink
from facedata.converters.folder.sink import FolderSink, path_of_key
from facedata.dataset import Sample
from facedata.errors import OptionError, OutputError, OutputExistsError, RefusedSampleError
from facedata.jobs.job import JobOptions, JobSummary

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


# The layout that keeps the paths of the source


def write_keys(root: Path, keys: Sequence[str], **source: object) -> JobSummary:
    samples = MemorySource([Sample(key, n, jpeg(key)) for n, key in enumerate(keys)], **source)  # type: ignore[arg-type]
    return run_conversion(plan_conversion("convert", samples, create_sink(str(root), layout="source")), JobOptions(1))


def test_paths_are_those_of_the_source(tmp_path: Path) -> None:
    keys = ["Ada/1.jpg", "Ada/two words.JPEG", "b/c/d/deep.jpg", "b/0.jpg", "plain/name"]
    summary = write_keys(tmp_path / "out", keys)
    assert (summary.good, summary.facts["identities"]) == (True, 3)
    written = {"plain/name.jpg": jpeg("plain/name"), **{key: jpeg(key) for key in keys[:4]}}
    assert {name: data for name, data in tree(tmp_path / "out").items() if not name.startswith(".")} == written


def test_a_folder_copied_with_its_paths_is_the_same_folder(tmp_path: Path) -> None:
    for name in ("Zoe/b 1.jpg", "Zoe/a.png", "Ada/7.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(name))
    options = ConversionOptions(writing={"layout": "source"})
    assert convert_dataset([str(tmp_path / "in")], f"folder:{tmp_path}/out", options).good
    copied = {name: data for name, data in tree(tmp_path / "out").items() if not name.startswith(".")}
    assert copied == tree(tmp_path / "in")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("../a/b.jpg", "the part '..'"),
        ("/etc/b.jpg", "the part ''"),
        ("a//b.jpg", "the part ''"),
        ("a/.facedata-plan.json", "the part '.facedata-plan.json'"),
        ("a/b\0.jpg", "the part"),
        (f"a/{'x' * 300}.jpg", "304 bytes; a file name may have 255"),
    ],
)
def test_a_key_that_is_no_path_below_the_output_fails_alone(tmp_path: Path, key: str, wrong: str) -> None:
    summary = write_keys(tmp_path / "out", ["a/good.jpg", key])
    assert (summary.samples, summary.failures) == (1, 1)
    assert wrong in (tmp_path / "out" / "failures.jsonl").read_text()
    assert not (tmp_path / "a").exists()


@settings(max_examples=100)
@given(st.text())
def test_no_key_leaves_the_root(key: str) -> None:
    try:
        folder, name = path_of_key(key, "jpg")
    except RefusedSampleError:
        return
    path = Path("/root") / folder / name
    assert path.resolve().is_relative_to("/root")


def test_keys_that_are_no_paths_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="keys of this source are like '17'"):
        write_keys(tmp_path / "out", ["17", "18"])
    with pytest.raises(OptionError, match=r"would be written as a/1\.jpg"):
        write_keys(tmp_path / "out", ["a/1.jpg", "a/2.jpg", "a/1.jpg"])
    assert not (tmp_path / "out").exists()


def test_overwrite_does_not_mix_with_what_an_earlier_job_kept_the_names_of(tmp_path: Path) -> None:
    write_keys(tmp_path / "out", ["Ada/1.jpg", "Bob/1.jpg"])
    samples = MemorySource([Sample("Ada/1.jpg", 0, jpeg("new"))])
    conversion = plan_conversion("convert", samples, create_sink(str(tmp_path / "out"), layout="source"))
    with pytest.raises(OutputExistsError, match="holds 'Bob', which --overwrite does not delete"):
        run_conversion(conversion, JobOptions(1, overwrite=True))
    assert (tmp_path / "out" / "Bob" / "1.jpg").exists()


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (root / "a").mkdir(parents=True)
    (root / "a" / "b").symlink_to(elsewhere)
    sink = FolderSink(str(root), "source")
    with pytest.raises(OSError, match="a/b"), sink.open_shard(0) as writer:
        writer.write(0, Sample("a/b/c.jpg", 0, jpeg("x")))
    assert not list(elsewhere.iterdir())


def test_names_of_classes_are_kept_where_the_folders_do_not_say_them(tmp_path: Path) -> None:
    write_keys(tmp_path / "out", ["id_0/1.jpg", "id_1/1.jpg"], names={0: "Ada", 1: "Bob"})
    assert (tmp_path / "out" / "classes.txt").read_text() == "0\tAda\n1\tBob\n"
    write_keys(tmp_path / "named", ["Ada/1.jpg", "Bob/1.jpg"], names={0: "Ada", 1: "Bob"})
    assert not (tmp_path / "named" / "classes.txt").exists()


def test_a_name_that_gets_an_extension_takes_no_place_of_another(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"would be written as a/1\.jpg"):
        write_keys(tmp_path / "out", ["a/1", "a/2", "a/1.jpg"])
    with pytest.raises(OptionError, match=r"would be written as a/2\.tif"):
        write_keys(tmp_path / "out", ["a/1", "a/2", "a/2.tif"])
    assert write_keys(tmp_path / "out", ["a/1", "a/2", "b/1.jpg", "a/3.tif"]).good


def test_an_extension_is_not_doubled() -> None:
    assert path_of_key("a/1.tif", "tif") == ("a", "1.tif")
    assert path_of_key("a/1.txt", "jpg") == ("a", "1.txt.jpg")
    assert path_of_key("a/1.PNG", "jpg") == ("a", "1.PNG")
