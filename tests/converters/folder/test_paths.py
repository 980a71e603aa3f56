"""The layout that keeps the paths of the source: names stay, nothing collides, no key leaves the output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import MemorySource, jpeg, tree

from facedata.converters.convert import ConversionOptions, convert_dataset, plan_conversion, run_conversion
from facedata.converters.folder import create_sink
from facedata.converters.folder.sink import FolderSink, path_of_key
from facedata.dataset import Sample
from facedata.errors import OptionError, OutputExistsError, RefusedSampleError
from facedata.jobs.job import JobOptions, JobSummary


def write(root: Path, keys: Sequence[str], **source: object) -> JobSummary:
    samples = MemorySource([Sample(key, n, jpeg(key)) for n, key in enumerate(keys)], **source)  # type: ignore[arg-type]
    return run_conversion(plan_conversion("convert", samples, create_sink(str(root), layout="source")), JobOptions(1))


def test_paths_are_those_of_the_source(tmp_path: Path) -> None:
    keys = ["Ada/1.jpg", "Ada/two words.JPEG", "b/c/d/deep.jpg", "b/0.jpg", "plain/name"]
    summary = write(tmp_path / "out", keys)
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
        ("alone.jpg", "names no folder"),
        (f"a/{'x' * 300}.jpg", "304 bytes; a file name may have 255"),
    ],
)
def test_a_key_that_is_no_path_below_the_output_fails_alone(tmp_path: Path, key: str, wrong: str) -> None:
    summary = write(tmp_path / "out", ["a/good.jpg", key])
    assert (summary.samples, summary.failures) == (1, 1)
    assert wrong in (tmp_path / "out" / "failures.jsonl").read_text()
    assert not (tmp_path / "a").exists()


@given(st.text())
def test_no_key_leaves_the_root(key: str) -> None:
    try:
        folder, name = path_of_key(key, "jpg")
    except RefusedSampleError:
        return
    path = Path("/root") / folder / name
    assert path.resolve().is_relative_to("/root")
    assert path.parent != Path("/root")


def test_keys_that_are_no_paths_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="keys of this source are like '17'"):
        write(tmp_path / "out", ["17", "18"])
    with pytest.raises(OptionError, match=r"would be written as a/1\.jpg"):
        write(tmp_path / "out", ["a/1.jpg", "a/2.jpg", "a/1.jpg"])
    assert not (tmp_path / "out").exists()


def test_overwrite_does_not_mix_with_what_an_earlier_job_kept_the_names_of(tmp_path: Path) -> None:
    write(tmp_path / "out", ["Ada/1.jpg", "Bob/1.jpg"])
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
    write(tmp_path / "out", ["id_0/1.jpg", "id_1/1.jpg"], names={0: "Ada", 1: "Bob"})
    assert (tmp_path / "out" / "classes.txt").read_text() == "0\tAda\n1\tBob\n"
    write(tmp_path / "named", ["Ada/1.jpg", "Bob/1.jpg"], names={0: "Ada", 1: "Bob"})
    assert not (tmp_path / "named" / "classes.txt").exists()


def test_a_name_that_gets_an_extension_takes_no_place_of_another(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"would be written as a/1\.jpg"):
        write(tmp_path / "out", ["a/1", "a/2", "a/1.jpg"])
    with pytest.raises(OptionError, match=r"would be written as a/2\.tif"):
        write(tmp_path / "out", ["a/1", "a/2", "a/2.tif"])
    assert write(tmp_path / "out", ["a/1", "a/2", "b/1.jpg", "a/3.tif"]).good


def test_an_extension_is_not_doubled() -> None:
    assert path_of_key("a/1.tif", "tif") == ("a", "1.tif")
    assert path_of_key("a/1.tif", "jpg") == ("a", "1.tif.jpg")
    assert path_of_key("a/1.PNG", "jpg") == ("a", "1.PNG")
