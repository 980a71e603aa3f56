"""Any format to any format: what every pair of a source and a sink must keep."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import Ran, RecordSetMaker, tree, write_tree

from facedata.converters.class_names import read_class_names
from facedata.converters.convert import ConversionOptions, LabelOptions, convert_dataset
from facedata.converters.lmdb.sink import LmdbSink
from facedata.converters.selection import Selection
from facedata.dataset import open_dataset
from facedata.errors import (
    DiskFullError,
    EmptyDatasetError,
    FormatError,
    InputUnfinishedError,
    OptionError,
    OutputError,
    OutputExistsError,
)
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part

HERE = JobOptions(workers=1, executor_factory=ThreadPoolExecutor)
"""Without processes: most tests do not need them."""
OVERWRITE = replace(HERE, overwrite=True)
TARGETS = ["lmdb:{}/a.lmdb", "rec:{}/packed", "webdataset:{}/tars", "parquet:{}/parquet", "folder:{}/folder"]

# a JPEG whose header says 2 x 3 pixels and three channels, and that holds the magic word of record files
HEADER = b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x02\x00\x03\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"
MAGIC = b"\x0a\x23\xd7\xce"


def sized_jpeg(content: str | int) -> bytes:
    """Bytes whose header has a size, as the LMDB sink wants it; the rest is text."""
    return HEADER + str(content).encode()


def write_set(folder: Path, labels: Sequence[int], images: Sequence[bytes] | None = None) -> Path:
    maker = RecordSetMaker(folder)
    for key, label in enumerate(labels):
        maker.add(key, float(label), images[key] if images else sized_jpeg(f"label {label} key {key}"))
    return maker.write()


def write_folder(root: Path, *people: str, images: int = 3) -> Path:
    for person in people:
        (root / person).mkdir(parents=True)
        for number in range(images):
            (root / person / f"{number}.jpg").write_bytes(sized_jpeg(f"{person} {number}"))
    return root


def pairs(spec: str) -> list[tuple[int, bytes]]:
    return [(sample.label, sample.image) for sample in open_dataset(spec)]


def run(sources: Sequence[object], target: str, job: JobOptions = HERE, **options: Any) -> JobSummary:
    selection = {name: options.pop(name) for name in list(options) if name in Selection.__dataclass_fields__}
    chosen = ConversionOptions(selection=Selection(**selection), **options)
    return convert_dataset([str(source) for source in sources], target, chosen, job)


IMAGES = st.binary(max_size=40) | st.binary(max_size=9).map(lambda some: b"xyz" + MAGIC + some)


@settings(max_examples=5)
@example([(label, str(number).encode()) for label in range(12) for number in range(label % 3 + 1)])
@given(st.lists(st.tuples(st.integers(0, 3), IMAGES), min_size=1, max_size=8))
def test_going_round_all_formats_changes_nothing(samples: list[tuple[int, bytes]]) -> None:
    samples = sorted(((label, HEADER + rest) for label, rest in samples), key=lambda pair: pair[0])  # as folders do
    labels, images = zip(*samples, strict=True)
    with TemporaryDirectory() as folder:
        specs = [
            f"rec:{write_set(Path(folder, 'set'), labels, images)}",
            f"folder:{folder}/images",
            f"lmdb:{folder}/a.lmdb",
            f"webdataset:{folder}/tars/a-%04d.tar",
            f"parquet:{folder}/parquet",
            f"list:{folder}/list.txt@{folder}/listed",
            f"rec:{folder}/packed",
        ]
        for source, target in pairwise(specs):
            assert run([source], target, writing={"style": "plain"} if target.startswith("rec:") else {}).good
            assert pairs(target) == samples, target
        digests = {run([spec], f"null:{folder}/null-{number}").digest for number, spec in enumerate(specs)}
        assert len(digests) == 1


def test_labels_of_several_sets_are_shifted(tmp_path: Path) -> None:
    one, two = write_set(tmp_path / "one", [0, 0, 4]), write_set(tmp_path / "two", [0, 1])
    summary = run([one, f"rec:{two}"], f"folder:{tmp_path}/out")
    assert [label for label, _ in pairs(f"{tmp_path}/out")] == [0, 0, 4, 5, 6]
    facts = [(fact["format"], fact["first_label"], fact["last_label"]) for fact in summary.facts["sets"]]
    assert facts == [("rec", 0, 4), ("rec", 5, 6)]
    run([one, two], f"folder:{tmp_path}/kept", labels=LabelOptions("keep"))
    assert sorted(label for label, _ in pairs(f"{tmp_path}/kept")) == [0, 0, 0, 1, 4]
    summary = run([one, two], f"folder:{tmp_path}/kept", labels=LabelOptions("keep"))
    assert [(fact["first_label"], fact["last_label"]) for fact in summary.facts["sets"]] == [(0, None)] * 2


def test_classes_are_chosen_by_size_and_numbered_anew(tmp_path: Path) -> None:
    start = write_set(tmp_path / "set", [7, 7, 7, 3, 9, 9])
    run([start], f"webdataset:{tmp_path}/out/%d.tar", min_images=2, max_images=2, relabel=True)
    assert [label for label, _ in pairs(f"{tmp_path}/out")] == [0, 0, 1, 1]
    assert read_class_names(tmp_path / "out" / "classes.txt") == {0: "7", 1: "9"}


def test_the_names_of_class_folders_are_kept_beside_the_output(tmp_path: Path) -> None:
    people = write_folder(tmp_path / "people", "Bob", "alice")
    for target in TARGETS:
        output = run([people], target.format(tmp_path)).output
        names = tmp_path / "a_classes.txt" if output.endswith(".lmdb") else Path(output, "classes.txt")
        assert read_class_names(names) == {0: "Bob", 1: "alice"}
    run([tmp_path / "folder"], f"webdataset:{tmp_path}/again")
    assert read_class_names(tmp_path / "again" / "classes.txt") == {0: "Bob", 1: "alice"}
    for spec in (f"rec:{tmp_path}/set", f"lmdb:{tmp_path}/set.lmdb"):
        run([people], spec)
        assert open_dataset(spec).class_names() == {0: "Bob", 1: "alice"}


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_image_is_kept_out_and_named_or_kept_on_request(tmp_path: Path, target: str) -> None:
    start = write_set(tmp_path / "set", [0, 0, 1], [sized_jpeg(0), b"no image at all", sized_jpeg(1)])
    root = target.format(tmp_path)
    summary = run([start], root)
    assert (summary.finished, summary.samples, summary.failures) == (True, 2, 1)
    (line,) = map(json.loads, (Path(summary.output) / "failures.jsonl").read_text().splitlines())
    assert (line["key"], line["index"]) == ("1", 1)
    found = "6e 6f 20 69 6d 61 67 65: a text file that begins 'no image at all'"
    assert line["reason"] == f"not an image: its bytes begin {found}"
    assert pairs(root) == [(0, sized_jpeg(0)), (1, sized_jpeg(1))]
    kept = root.replace("/a.lmdb", "/b.lmdb") if "lmdb" in root else f"{root}-2"
    assert run([start], kept, writing={"keep_undecodable": True}).good
    if not root.startswith("folder"):  # a file called .bin is no image to a reader of folders
        assert [image for _, image in pairs(kept)][1] == b"no image at all"


@pytest.mark.parametrize("target", TARGETS)
def test_the_output_is_the_same_whatever_the_workers_and_the_parts(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facedata.jobs.plan._SAMPLES_PER_SHARD", 7)
    start = write_set(tmp_path / "set", sorted(n % 9 for n in range(60)))
    writing = {"shard_samples": 13} if target[0] in "wp" else {}
    whole, parts = (target.format(tmp_path / name) for name in ("whole", "parts"))
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert run([start], whole, JobOptions(workers=3), writing=writing).good
    if target.startswith(("lmdb", "rec")):  # one process writes them
        assert run([start], parts, writing=writing).good
    else:
        jobs = [replace(HERE, part=Part(number, 3)) for number in (2, 3, 1)]
        assert [run([start], parts, job, writing=writing).finished for job in jobs] == [False, False, True]
    assert tree(tmp_path / "whole") == tree(tmp_path / "parts")


@pytest.mark.parametrize("output", ["set", "set/out", "set/a/b", ".", "set/../set/out", "link/out"])
def test_an_output_inside_an_input_or_around_it_is_refused(tmp_path: Path, output: str) -> None:
    start = write_set(tmp_path / "set", [0])
    (tmp_path / "link").symlink_to(start)
    before = sorted(tmp_path.rglob("*"))
    for source in (start, tmp_path / "link"):
        with pytest.raises(OutputError, match=r"the output lies in the input|lies in the output; choose another"):
            run([source], f"folder:{tmp_path}/{output}")
    assert sorted(tmp_path.rglob("*")) == before
    other = write_set(tmp_path / "other", [0])
    with pytest.raises(OutputError, match=f"the output lies in the input {other}"):
        run([start, other], f"folder:{other}/out")
    with pytest.raises(OutputError, match="the output lies in the input"):
        run([start / "train.rec"], f"folder:{start}")
    assert run([start], f"folder:{start}s").good


def test_an_input_that_is_bad_leaves_no_output(tmp_path: Path) -> None:
    good, bad = write_set(tmp_path / "good", [0]), write_set(tmp_path / "bad", [0, 1])
    os.truncate(bad / "train.rec", 60)
    with pytest.raises(FormatError, match=r"bad/train\.idx: 1 of 2 entries point past the end"):
        run([good, bad], f"folder:{tmp_path}/out")
    with pytest.raises(OptionError, match="backend caffe: expected"):
        run([good], f"folder:{tmp_path}/out", opening={"backend": "caffe"})
    assert not (tmp_path / "out").exists()


def test_a_rebuilt_index_is_kept_in_the_output_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, out = write_set(tmp_path / "set", [0, 1]), tmp_path / "out"
    indexed = run([start], f"folder:{tmp_path}/indexed")
    (start / "train.idx").unlink()
    opening = {"cache_folder": str(out)}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("facedata.converters.rec.source.atomic_writer", full)
        with pytest.raises(DiskFullError, match="free some space and run the same command again"):
            run([start], f"folder:{out}", opening=opening)
    summary = run([start], f"folder:{out}", opening=opening)
    assert (summary.digest, summary.facts["sets"][0]["index"]) == (indexed.digest, "rebuilt")
    assert tree(out) == tree(tmp_path / "indexed")
    assert [path.name for path in start.iterdir()] == ["train.rec"]
    assert len(list(out.glob(".facedata-index-*.npz"))) == 1
    monkeypatch.setattr("facedata.converters.rec.walk.walk_records", lambda *_, **__: pytest.fail("walked again"))
    assert run([start], f"folder:{out}", opening=opening).nothing_to_do


def test_the_first_samples_of_what_is_selected(tmp_path: Path) -> None:
    start = write_set(tmp_path / "set", [2, 0, 1, 0])
    run([start], f"rec:{tmp_path}/grouped", limit=3)
    assert [label for label, _ in pairs(f"rec:{tmp_path}/grouped")] == [0, 0, 1]
    run([start], f"rec:{tmp_path}/shuffled", limit=3, shuffle=True, seed=3, writing={"style": "plain"})
    assert len(pairs(f"rec:{tmp_path}/shuffled")) == 3


def test_a_shuffled_set_of_several_sources_is_a_permutation(tmp_path: Path) -> None:
    one, two = write_set(tmp_path / "one", range(40)), write_set(tmp_path / "two", range(30))
    outputs = []
    for name in ("a", "b"):
        run([one, two], f"rec:{tmp_path}/{name}", shuffle=True, seed=1, writing={"style": "plain"})
        outputs.append(tree(tmp_path / name))
    shuffled = pairs(f"rec:{tmp_path}/a")
    assert outputs[0] == outputs[1]
    assert [label for label, _ in shuffled] != list(range(70))
    assert sorted(label for label, _ in shuffled) == list(range(70))


def test_parquet_that_would_have_to_be_read_out_of_order_is_refused(tmp_path: Path) -> None:
    run([write_set(tmp_path / "set", [0, 1, 0])], f"parquet:{tmp_path}/p")
    with pytest.raises(OptionError, match=r"order.*(lmdb|webdataset)"):
        run([f"parquet:{tmp_path}/p"], f"rec:{tmp_path}/out", shuffle=True, writing={"style": "plain"})
    run([f"parquet:{tmp_path}/p"], f"null:{tmp_path}/null", max_images=1)  # leaving some out is no other order


@pytest.mark.parametrize(
    ("made", "source", "target"),
    [
        ("parquet:p1", "parquet:p*/train-*.parquet", "parquet:p1"),
        ("webdataset:w1", "webdataset:w{1,1}/shard-000000.tar", "webdataset:w1"),
        ("lmdb:x.lmdb", "lmdb:./x.lmdb", "lmdb:x.lmdb"),
        ("list:in.txt@imgs", "list:in.txt@imgs", "list:in.txt@other"),
        ("list:in.txt@imgs", "list:in.txt@imgs", "rec:imgs"),
        ("rec:packed", "packed", "list:packed/train.idx@other"),
        ("rec:packed", "packed", "list:packed/new.txt@packed"),
    ],
)
def test_an_input_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, source: str, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run([write_folder(tmp_path / "people", "a", "b")], made)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"lies in the input|lies in the output|would be written over"):
        run([source], target, OVERWRITE)
    assert tree(tmp_path) == before


def test_an_output_beside_the_images_of_a_list_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run([write_folder(tmp_path / "people", "a", "b")], "list:in.txt@imgs")
    Path("all.txt").write_text("".join(f"imgs/{line}\n" for line in Path("in.txt").read_text().split("\n")[:-1]))
    assert run(["list:all.txt@."], "webdataset:below/here").good
    assert run(["list:in.txt@imgs"], "webdataset:imgs/below").good


@pytest.mark.parametrize("spec", ["parquet:hub", "parquet:h*/da*/*.parquet", "webdataset:ta?s/*.tar", "tars"])
def test_an_unfinished_output_is_found_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    people = write_folder(tmp_path / "people", "a", "b")
    target = "parquet:hub/data" if "parquet" in spec else "webdataset:tars"
    run([people], target, replace(HERE, part=Part(1, 2)), writing={"shard_samples": 1})
    with pytest.raises(InputUnfinishedError, match="has not finished"):
        run([spec], "null:null")


@pytest.mark.parametrize(
    "words",
    [
        ("verify-md5", "--create", "out"),
        ("verify-md5", "--create", "."),
        ("verify-md5", "--create", "out/a/b"),
        ("index-rec", "out/train.rec"),
        ("pack-features", "x.npy", "--labels", "out/labels.txt", "--output", "set", "--name", "x"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_the_files_of_an_unfinished_job(
    tmp_path: Path, inline_facedata: Callable[..., Ran], words: tuple[str, ...]
) -> None:
    run([write_folder(tmp_path / "people", "a", "b")], "webdataset:out", replace(HERE, part=Part(1, 2)))
    write_tree(tmp_path / "out", {"train.rec": "", "labels.txt": "0\n", "a/b/c": ""})
    np.save("x.npy", np.ones((1, 4), np.float32))
    ran = inline_facedata(*words)
    assert (ran.status, ran.stdout) == (1, "")
    assert "out: is the output of a job that has not finished" in ran.stderr


def test_overwrite_leaves_nothing_of_a_job_of_another_kind(tmp_path: Path) -> None:
    people = write_folder(tmp_path / "people", "a", "b")
    run([people], f"webdataset:{tmp_path}/out")
    for target in (f"webdataset:{tmp_path}/out/x-%06d.tar", f"parquet:{tmp_path}/out"):
        with pytest.raises(OutputExistsError, match=r"holds 'shard-000000\.tar', which --overwrite does not delete"):
            run([people], target, OVERWRITE)
    assert run([people], f"webdataset:{tmp_path}/out", OVERWRITE, limit=2).good


def test_labels_that_no_reader_takes_are_refused(tmp_path: Path) -> None:
    big, small = write_folder(tmp_path / "big", "id_2147483647"), write_folder(tmp_path / "small", "a")
    selections: list[dict[str, Any]] = [{}, {"max_images": 2}]
    for selection in selections:
        with pytest.raises(OptionError, match=r"the largest label would be 2147483648.*--relabel"):
            run([big, small], f"null:{tmp_path}/null", **selection)
    assert run([big, small], f"null:{tmp_path}/null", labels=LabelOptions("keep")).good
    assert run([big], f"null:{tmp_path}/other", relabel=True).good


def test_a_selection_that_leaves_nothing_of_a_source(tmp_path: Path) -> None:
    big, small = write_folder(tmp_path / "big", "a", "b"), write_folder(tmp_path / "small", "c", images=1)
    assert run([big, small], f"webdataset:{tmp_path}/out", min_images=2).samples == 6


def test_without_a_single_label_there_is_nothing_to_number_or_choose(tmp_path: Path) -> None:
    maker = RecordSetMaker(tmp_path / "set")
    maker.add(0, -1.0, sized_jpeg(0))
    maker.write()
    assert run([tmp_path / "set"], f"webdataset:{tmp_path}/out", relabel=True).failures == 1
    with pytest.raises(EmptyDatasetError, match="no sample has a label"):
        run([tmp_path / "set"], f"null:{tmp_path}/null", max_images=1)


@pytest.mark.parametrize("target", TARGETS[:-1])
def test_a_finished_output_that_lost_a_file_is_not_taken_for_whole(tmp_path: Path, target: str) -> None:
    people = write_folder(tmp_path / "people", "a", "b")
    summary = run([people], target.format(tmp_path))
    lost = next(
        path for path in sorted(Path(summary.output).iterdir()) if path.suffix in (".mdb", ".rec", ".tar", ".parquet")
    )
    lost.unlink()
    with pytest.raises(OutputError, match=f"{lost}: this finished job wrote it, but the file is gone"):
        run([people], target.format(tmp_path))


def test_overwrite_takes_away_what_the_job_before_left_beside_the_output(tmp_path: Path) -> None:
    run([write_folder(tmp_path / "people", "a", "b")], f"lmdb:{tmp_path}/k.lmdb")
    assert (tmp_path / "k_classes.txt").exists()
    (tmp_path / "k2_classes.txt").write_text("mine")
    run([write_set(tmp_path / "set", [0, 1])], f"lmdb:{tmp_path}/k.lmdb", OVERWRITE)
    assert not (tmp_path / "k_classes.txt").exists()
    assert (tmp_path / "k2_classes.txt").read_text() == "mine"


def test_a_forged_plan_has_nothing_deleted_elsewhere(tmp_path: Path) -> None:
    start = write_set(tmp_path / "set", [0, 1])
    run([start], f"lmdb:{tmp_path}/k.lmdb")
    precious = [tmp_path / "precious.txt", tmp_path / "set" / "k_precious"]
    for path in precious:
        path.write_text("precious")
    plan = tmp_path / "k.lmdb" / ".facedata-plan.json"
    forged = json.loads(plan.read_text())
    forged["facts"]["named_files"] = [str(path) for path in precious]
    plan.write_text(json.dumps(forged))
    run([start], f"lmdb:{tmp_path}/k.lmdb", OVERWRITE)
    assert all(path.exists() for path in precious)


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    start, finish = write_set(tmp_path / "set", [0, 1]), LmdbSink.finish

    def late(sink: LmdbSink, shards: int, publish: Any) -> Any:
        (tmp_path / "k_kv.txt").write_text("of somebody else")
        return finish(sink, shards, publish)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LmdbSink, "finish", late)
        with pytest.raises(OutputExistsError, match=r"k_kv\.txt: appeared"):
            run([start], f"lmdb:{tmp_path}/k.lmdb")
    assert (tmp_path / "k_kv.txt").read_text() == "of somebody else"
    (tmp_path / "k_kv.txt").unlink()
    assert run([start], f"lmdb:{tmp_path}/k.lmdb").good


def test_a_key_label_file_that_was_cut_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run([write_set(tmp_path / "set", [0, 1, 2])], f"lmdb:{tmp_path}/k.lmdb")
    kv = tmp_path / "k_kv.txt"
    kv.write_bytes(kv.read_bytes()[:-1])
    assert len(open_dataset(f"lmdb:{tmp_path}/k.lmdb")) == 3
    assert "does not end in a newline" in caplog.text
    kv.write_text(kv.read_text().splitlines()[0] + "\n")
    open_dataset(f"lmdb:{tmp_path}/k.lmdb")
    assert "names 1 images, but" in caplog.text


@pytest.mark.parametrize("target", ["lmdb:{}/a.lmdb", "rec:{}/packed"])
def test_a_second_run_while_the_first_publishes_waits_and_changes_nothing(tmp_path: Path, target: str) -> None:
    start = write_set(tmp_path / "set", sorted(n % 5 for n in range(30)))
    (tmp_path / "whole").mkdir()
    (tmp_path / "twice").mkdir()
    run([start], target.format(tmp_path / "whole"))
    spec = target.format(tmp_path / "twice")
    program = (
        "import sys, time; from facedata.converters.convert import *; from facedata.jobs.job import JobOptions\n"
        "c = plan_dataset([sys.argv[1]], sys.argv[2]); finish = type(c.sink).finish\n"
        "def slow(sink, *rest):\n"
        "    facts = finish(sink, *rest); open(sys.argv[3], 'w').close(); time.sleep(0.7); return facts\n"
        "type(c.sink).finish = slow\n"
        "convert_dataset([sys.argv[1]], sys.argv[2], None, JobOptions(workers=1))"
    )
    mark = tmp_path / "publishing"
    first = subprocess.Popen([sys.executable, "-c", program, str(start), spec, str(mark)])
    while not mark.exists() and first.poll() is None:
        time.sleep(0.01)
    assert run([start], spec).finished
    assert first.wait() == 0
    assert tree(tmp_path / "twice") == tree(tmp_path / "whole")
