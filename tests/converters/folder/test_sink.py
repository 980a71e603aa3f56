"""`FolderSink`: where each image goes and under which name, the list beside it, and paths that are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from format_support import HERE, convert
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, jpeg, tree

from facedata.converters.folder import GLINT360K, IMAGEFOLDER, SOURCE
from facedata.converters.folder import sink as folder_sink
from facedata.converters.folder.sink import FolderSink, path_of_key
from facedata.dataset import Sample, open_dataset
from facedata.errors import OptionError, OutputError, OutputExistsError, RefusedSampleError
from facedata.jobs.job import JobOptions, JobSummary
from facedata.names import Folding


def write(sink: FolderSink, samples: Sequence[tuple[int, bytes]], first: int = 0) -> None:
    sink.prepare()
    with sink.open_shard(0) as writer:
        for index, (label, image) in enumerate(samples, first):
            writer.write(index, Sample("a/b/c.jpg", label, image))


@pytest.mark.parametrize(
    ("layout", "paths"),
    [
        (GLINT360K, ["id_0/0_41.jpg", "id_10/10_42.png", "id_16777216/16777216_43.bin"]),
        (IMAGEFOLDER, ["00000000/0_41.jpg", "00000010/10_42.png", "16777216/16777216_43.bin"]),
    ],
)
def test_an_image_is_named_by_label_number_and_type(tmp_path: Path, layout: str, paths: list[str]) -> None:
    images = [jpeg("a"), b"\x89PNG\r\n\x1a\n", b"<html>"]
    samples = list(zip((0, 10, 1 << 24), images, strict=True))
    write(FolderSink(str(tmp_path), layout, keep_undecodable=True), samples, first=41)
    assert tree(tmp_path) == dict(zip(paths, images, strict=True))


def test_a_list_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    sink = FolderSink(str(tmp_path), list_file=str(tmp_path / "nowhere" / "list.txt"))
    assert sink.identity() != FolderSink(str(tmp_path)).identity()
    write(sink, [(0, jpeg("a"))])
    with pytest.raises(OutputError, match=r"nowhere/list\.txt: cannot be written"):
        sink.finish(1, os.replace)


@pytest.mark.parametrize(("layout", "name"), [(GLINT360K, "id_3"), (GLINT360K, "id_3/3_0.jpg"), (SOURCE, "a/b")])
def test_a_link_that_leads_elsewhere_is_not_followed(tmp_path: Path, layout: str, name: str) -> None:
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(elsewhere / "file" if name.endswith(".jpg") else elsewhere)
    with pytest.raises(OutputError, match=name):
        write(FolderSink(str(root), layout), [(3, jpeg("a"))])
    assert tree(elsewhere) == {"file": b"precious"}


def test_a_file_in_the_place_of_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "id_3").write_bytes(b"")
    with pytest.raises(OutputError, match=r"id_3: cannot be written: Not a directory"):
        write(FolderSink(str(tmp_path)), [(3, jpeg("a"))])


# The layout that keeps the paths of the source


def write_keys(root: Path, keys: Sequence[str], job: JobOptions = HERE, **source: object) -> JobSummary:
    samples = MemorySource([Sample(key, n, jpeg(key)) for n, key in enumerate(keys)], **source)  # type: ignore[arg-type]
    return convert(samples, f"folder:{root}", job, layout=SOURCE)


def test_paths_are_those_of_the_source(tmp_path: Path) -> None:
    keys = ["Ada/1.jpg", "Ada/two words.JPEG", "b/c/d/deep.jpg", "b/0.jpg", "plain/name"]
    summary = write_keys(tmp_path / "out", keys)
    assert (summary.good, summary.facts["identities"]) == (True, 3)
    written = {"plain/name.jpg": jpeg("plain/name"), **{key: jpeg(key) for key in keys[:4]}}
    assert tree(tmp_path / "out") == written
    assert convert(open_dataset(f"folder:{tmp_path}/out"), f"folder:{tmp_path}/copy", layout=SOURCE).good
    assert tree(tmp_path / "copy") == written


def test_a_list_with_tabs_holds_paths_with_spaces(tmp_path: Path) -> None:
    source, target = MemorySource([Sample("Ada L/1 2.jpg", 3, jpeg(1))]), f"list:{tmp_path}/l.txt@{tmp_path}/out"
    with pytest.raises(OptionError, match=r"'Ada L/1 2.jpg' has a space, .* Choose --list-separator tab"):
        convert(source, target, layout=SOURCE)
    convert(source, target, layout=SOURCE, list_separator="tab")
    assert (tmp_path / "l.txt").read_bytes() == b"Ada L/1 2.jpg\t3\n"
    assert list(open_dataset(target)) == list(source)


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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["failures.jsonl/1.jpg"], "folders with names of files that are written there: 'failures.jsonl'"),
        (["17", "18"], "keys of this source are like '17'"),
        (["a/1.jpg", "a/2.jpg", "a/1.jpg"], r"would be written as a/1\.jpg"),
        (["a/1", "a/2", "a/1.jpg"], r"would be written as a/1\.jpg"),
        (["a/1", "a/2", "a/2.tif"], r"would be written as a/2\.tif"),
    ],
)
def test_keys_that_give_no_path_of_their_own_are_refused_first(tmp_path: Path, keys: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        write_keys(tmp_path / "out", keys)
    assert not (tmp_path / "out").exists()
    assert write_keys(tmp_path / "out", ["a/1", "a/2", "b/1.jpg", "a/3.tif"]).good


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["Al/1.jpg", "al/2.jpg"], "ignores case, and takes 'Al', 'al' for one"),
        (["Al/1.jpg", "Al/x.jpg", "Al/X.JPG"], r"would be written as Al/x\.jpg, Al/X\.JPG: .* or in case, which this"),
        (["a/x", "a/X.jpg"], r"would be written as a/X\.jpg"),
        (["Failures.jsonl/1.jpg"], "folders with names of files that are written there: 'Failures.jsonl'"),
    ],
)
def test_names_that_are_the_same_to_the_file_system_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str], message: str
) -> None:
    assert write_keys(tmp_path / "fine", keys).good
    monkeypatch.setattr(folder_sink, "name_folding", lambda _: Folding(case=True))
    with pytest.raises(OptionError, match=message):
        write_keys(tmp_path / "out", keys)
    assert not (tmp_path / "out").exists()


def test_overwrite_does_not_mix_with_what_an_earlier_job_kept_the_names_of(tmp_path: Path) -> None:
    write_keys(tmp_path / "out", ["Ada/1.jpg", "Bob/1.jpg"])
    with pytest.raises(OutputExistsError, match="holds 'Bob', which --overwrite does not delete"):
        write_keys(tmp_path / "out", ["Ada/1.jpg"], replace(HERE, overwrite=True))
    assert (tmp_path / "out" / "Bob" / "1.jpg").exists()


def test_names_of_classes_are_kept_where_the_folders_do_not_say_them(tmp_path: Path) -> None:
    write_keys(tmp_path / "out", ["id_0/1.jpg", "id_1/1.jpg"], names={0: "Ada", 1: "Bob"})
    assert (tmp_path / "out" / "classes.txt").read_text() == "0\tAda\n1\tBob\n"
    write_keys(tmp_path / "named", ["Ada/1.jpg", "Bob/1.jpg"], names={0: "Ada", 1: "Bob"})
    assert not (tmp_path / "named" / "classes.txt").exists()


@pytest.mark.parametrize(
    ("keys", "warned"),
    [(["a/1.jpg", "a/2.jpg"], True), (["x/a/1.jpg", "x/b/1.jpg"], True), (["a/1.jpg", "b/x/1.jpg"], False)],
)  # fmt: skip
def test_paths_whose_folders_are_not_the_labels_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: list[str], warned: bool
) -> None:
    write_keys(tmp_path / "out", keys)
    assert ("the labels are not in the output" in caplog.text) == warned


def test_an_extension_is_not_doubled() -> None:
    assert path_of_key("a/1.tif", "tif") == ("a", "1.tif")
    assert path_of_key("a/1.txt", "jpg") == ("a", "1.txt.jpg")
    assert path_of_key("a/1.PNG", "jpg") == ("a", "1.PNG")
