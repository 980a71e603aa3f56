"""Unpacking record sets, as the library does it: what ends up where, from which set, under which label."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import RecordSetMaker, file_of, jpeg, tree

from facedata.converters.rec import record_set as record_set_module
from facedata.converters.rec.record_set import OpenOptions
from facedata.converters.rec.source import RecSource
from facedata.converters.unpack import UnpackOptions, plan_unpacking, unpack_record_sets
from facedata.dataset import Sample
from facedata.errors import (
    DiskFullError,
    EmptyDatasetError,
    FormatError,
    InputNotFoundError,
    InputUnfinishedError,
    OptionError,
    OutputError,
    OutputExistsError,
    OutputMismatchError,
)
from facedata.jobs import plan as plan_module
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part

MakeSet = Callable[..., RecordSetMaker]
HERE = JobOptions(workers=1, executor_factory=ThreadPoolExecutor)
"""Without processes of their own: most tests do not need them."""


def unpack(sets: Path | Sequence[Path], output: Path, job: JobOptions = HERE, **options: Any) -> JobSummary:
    names = [str(path) for path in ([sets] if isinstance(sets, Path) else sets)]
    return unpack_record_sets(names, output, UnpackOptions(**options), job)


def failures(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_SAMPLES_PER_SHARD", 3)


# What is written


def test_n_counts_the_images_in_the_order_of_the_keys(record_set: MakeSet, out: Path) -> None:
    summary = unpack(record_set().insightface([2, 1]), out)
    assert tree(out) == {
        "id_0/0_0.jpg": jpeg("label 0 key 1"),
        "id_0/0_1.jpg": jpeg("label 0 key 2"),
        "id_1/1_2.jpg": jpeg("label 1 key 3"),
    }
    assert (summary.samples, summary.failures, summary.finished, summary.good) == (3, 0, True, True)
    assert summary.bytes == sum(map(len, tree(out).values()))
    assert summary.facts["identities"] == 2


def test_keys_in_any_order_of_the_file_are_counted_in_their_own(record_set: MakeSet, out: Path) -> None:
    maker = record_set()
    for key in (4, 1, 9):
        maker.add(key, float(key % 2), jpeg(key))
    unpack(maker.write(), out)
    assert tree(out) == {"id_1/1_0.jpg": jpeg(1), "id_0/0_1.jpg": jpeg(4), "id_1/1_2.jpg": jpeg(9)}


def test_imagefolder_and_its_list(record_set: MakeSet, out: Path, tmp_path: Path) -> None:
    unpack(record_set().plain([10, 2, 10]), out, layout="imagefolder", list_file=str(tmp_path / "list.txt"))
    assert list(tree(out)) == ["00000002/2_1.jpg", "00000010/10_0.jpg", "00000010/10_2.jpg"]
    assert (tmp_path / "list.txt").read_text() == "00000010/10_0.jpg 10\n00000002/2_1.jpg 2\n00000010/10_2.jpg 10\n"


def test_each_image_type_gets_its_extension_and_what_is_none_fails_by_name(record_set: MakeSet, out: Path) -> None:
    maker, images = record_set(), [jpeg(0), b"\x89PNG\r\n\x1a\n", b"<html>", b"GIF89a", b"II*\0", b"BM" + bytes(24)]
    for key, image in enumerate(images):
        maker.add(key, 7.0, image)
    summary = unpack(maker.write(), out, list_file=str(out / "list"))
    names = ["7_0.jpg", "7_1.png", "7_3.gif", "7_4.tif", "7_5.bmp"]
    assert sorted(path.name for path in (out / "id_7").iterdir()) == names
    assert (out / "list").read_text() == "".join(f"id_7/{name} 7\n" for name in names)
    assert (summary.samples, summary.failures, summary.good) == (5, 1, False)
    assert failures(out) == [
        {
            "set": str(maker.folder / "train.rec"),
            "key": "2",
            "index": 2,
            "offset": maker.offsets[2],
            "reason": "not an image: its bytes begin 3c 68 74 6d 6c 3e",
        }
    ]


def test_what_is_no_image_is_kept_on_request(record_set: MakeSet, out: Path) -> None:
    maker = record_set()
    maker.add(0, 0.0, b"<html>")
    assert unpack(maker.write(), out, keep_undecodable=True).good
    assert tree(out) == {"id_0/0_0.bin": b"<html>"}


def test_a_record_that_cannot_be_read_fails_alone_and_keeps_its_number(record_set: MakeSet, out: Path) -> None:
    maker = record_set()
    for key in range(5):
        maker.add(key, -1.0 if key == 2 else 0.0, jpeg(key))
    maker.data[maker.offsets[3]] ^= 1
    summary = unpack(maker.write(), out)
    assert list(tree(out)) == ["failures.jsonl", "id_0/0_0.jpg", "id_0/0_1.jpg", "id_0/0_4.jpg"]
    assert (summary.samples, summary.failures, summary.finished) == (3, 2, True)
    named = [(failure["key"], failure["index"], failure["offset"]) for failure in failures(out)]
    assert named == [("2", 2, maker.offsets[2]), ("3", 3, maker.offsets[3])]
    assert [failure["reason"][:8] for failure in failures(out)] == ["label -1", "no recor"]


@pytest.mark.usefixtures("small_shards")
def test_limit_takes_the_first_images_alone(record_set: MakeSet, out: Path) -> None:
    sets = [record_set("a").plain([0] * 4), record_set("b").plain([0] * 4)]
    summary = unpack(sets, out, limit=5)
    assert list(tree(out)) == ["id_0/0_0.jpg", "id_0/0_1.jpg", "id_0/0_2.jpg", "id_0/0_3.jpg", "id_1/1_4.jpg"]
    assert (summary.samples, summary.finished) == (5, True)


# Several sets


@pytest.mark.usefixtures("small_shards")
def test_labels_are_shifted_past_those_of_the_sets_before_and_n_counts_on(record_set: MakeSet, out: Path) -> None:
    sets = [
        record_set("a").insightface([2, 2]),
        record_set("b").plain([2, 0], num_classes=5),
        record_set("c").plain([0, 3]),
    ]
    summary = unpack(sets, out)
    assert tree(out) == {
        "id_0/0_0.jpg": jpeg("label 0 key 1"),
        "id_0/0_1.jpg": jpeg("label 0 key 2"),
        "id_1/1_2.jpg": jpeg("label 1 key 3"),
        "id_1/1_3.jpg": jpeg("label 1 key 4"),
        "id_4/4_4.jpg": jpeg("label 2 key 0"),
        "id_2/2_5.jpg": jpeg("label 0 key 1"),
        "id_7/7_6.jpg": jpeg("label 0 key 0"),
        "id_10/10_7.jpg": jpeg("label 3 key 1"),
    }
    told = [(one["set"], one["classes"], one["first_label"], one["last_label"]) for one in summary.facts["sets"]]
    paths = [str(path / "train.rec") for path in sets]
    assert told == [(paths[0], 2, 0, 1), (paths[1], 5, 2, 6), (paths[2], None, 7, 10)]
    recorded = json.loads((out / ".facedata-summary.json").read_text())["facts"]["sets"]
    assert recorded == list(summary.facts["sets"])


def test_labels_are_kept_on_request_so_that_people_share_folders(record_set: MakeSet, out: Path) -> None:
    summary = unpack([record_set("a").plain([0, 1], num_classes=2), record_set("b").plain([1])], out, labels="keep")
    assert tree(out) == {
        "id_0/0_0.jpg": jpeg("label 0 key 0"),
        "id_1/1_1.jpg": jpeg("label 1 key 1"),
        "id_1/1_2.jpg": jpeg("label 1 key 0"),
    }
    assert [one["first_label"] for one in summary.facts["sets"]] == [0, 0]


def test_where_nothing_declares_the_classes_the_labels_are_counted(
    record_set: MakeSet, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maker = record_set("a")
    for key, label in enumerate([4.0, 0.0, -1.0, 6.5, 0.0]):
        maker.add(key, label, jpeg(key))
    with caplog.at_level(logging.INFO, logger="facedata"):
        summary = unpack([maker.write(), record_set("b").plain([0])], out)
    assert [(one["classes"], one["first_label"]) for one in summary.facts["sets"]] == [(5, 0), (None, 5)]
    assert "id_5/5_5.jpg" in tree(out)
    assert f"{maker.folder}/train.rec: declares no number of classes; reading its labels to count them" in caplog.text


def test_the_last_set_and_a_lone_set_are_not_read_for_their_labels(
    record_set: MakeSet, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecSource, "labels", lambda source: pytest.fail(f"counted {source.path}"))
    plan_unpacking([str(record_set("a").plain([0]))], out)
    plan_unpacking([str(record_set("b").insightface([1])), str(record_set("c").plain([0]))], out)


def test_a_label_above_the_declared_classes_fails_by_name_where_another_set_follows(
    record_set: MakeSet, out: Path
) -> None:
    maker = record_set("a")
    folder = maker.plain([0, 3, 1, 2], num_classes=2)
    summary = unpack([folder, record_set("b").plain([0])], out)
    assert [path for path in tree(out) if path != "failures.jsonl"] == ["id_0/0_0.jpg", "id_1/1_2.jpg", "id_2/2_4.jpg"]
    assert summary.failures == 2
    assert [(one["set"], one["key"], one["offset"]) for one in failures(out)] == [
        (f"{folder}/train.rec", key, maker.offsets[int(key)]) for key in ("1", "3")
    ]
    assert failures(out)[0]["reason"].startswith("label 3, but the set declares 2 classes")


@pytest.mark.parametrize("labels", ["shift", "keep"])
def test_a_label_above_the_declared_classes_is_no_failure_where_none_can_collide(
    record_set: MakeSet, out: Path, labels: str
) -> None:
    beyond = record_set("a").plain([0, 3], num_classes=2)
    last = record_set("b").plain([0, 4], num_classes=1)
    assert unpack([beyond, last] if labels == "keep" else last, out, labels=labels).good


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=2, max_size=4))
def test_people_of_different_sets_never_share_a_label(sets: list[list[int]]) -> None:
    with file_of(b"") as file:
        folders = []
        for number, labels in enumerate(sets):
            folders.append(str(RecordSetMaker(file.parent / f"set{number}").plain(labels)))
        samples = list(plan_unpacking(folders, file.parent / "out").source)
    assert all(isinstance(sample, Sample) for sample in samples)
    people = [(number, label) for number, labels in enumerate(sets) for label in labels]
    assert len({*zip(people, [sample.label for sample in samples], strict=True)}) == len({*people})
    assert len({sample.label for sample in samples}) == len({*people})


# The same bytes however it is run


def test_the_result_does_not_depend_on_workers_shards_or_parts(
    record_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [record_set("a").insightface([5, 3, 4]), record_set("b").plain([2, 0, 1, 1, 2, 0, 7])]

    def run(name: str, *jobs: JobOptions, shard_size: int) -> tuple[dict[str, bytes], str | None]:
        monkeypatch.setattr(plan_module, "_SAMPLES_PER_SHARD", shard_size)
        output = tmp_path / name
        summaries = [unpack(sets, output, job, list_file=str(output / "list.txt")) for job in jobs]
        assert [summary.finished for summary in summaries] == [False] * (len(jobs) - 1) + [True]
        return tree(output), summaries[-1].digest

    files, digest = run("one worker", JobOptions(workers=1), shard_size=2)
    assert len(files) == 20
    assert run("two workers", JobOptions(workers=2), shard_size=2) == (files, digest)
    assert run("one shard", HERE, shard_size=99)[0] == files
    assert run("one image a shard", HERE, shard_size=1)[0] == files
    parts = [JobOptions(workers=1, part=Part(number, 3), executor_factory=ThreadPoolExecutor) for number in (3, 1, 2)]
    assert run("three parts", *parts, shard_size=2) == (files, digest)


def test_overwrite_for_one_part_of_several_is_refused() -> None:
    with pytest.raises(OptionError, match="--overwrite and --shard together"):
        JobOptions(part=Part(1, 2), overwrite=True)


@pytest.mark.usefixtures("small_shards")
def test_a_finished_job_does_nothing_again_and_another_is_refused(record_set: MakeSet, out: Path) -> None:
    folder = record_set().plain([0] * 7)
    first = unpack(folder, out)
    again = unpack(folder, out)
    assert (again.nothing_to_do, again.digest, again.samples) == (True, first.digest, 7)
    with pytest.raises(OutputMismatchError, match=r"belongs to a job that differs.*layout.*--overwrite"):
        unpack(folder, out, layout="imagefolder")
    overwriting = JobOptions(workers=1, overwrite=True, executor_factory=ThreadPoolExecutor)
    unpack(folder, out, overwriting, layout="imagefolder")
    assert {path.split("/")[0] for path in tree(out)} == {"00000000"}


def test_planning_writes_nothing(record_set: MakeSet, out: Path) -> None:
    folder = record_set().plain([0, 1], index=False)
    unpacking = plan_unpacking([str(folder)], out)
    assert (unpacking.plan.samples, len(unpacking.source)) == (2, 2)
    assert not out.exists()
    assert [path.name for path in folder.iterdir()] == ["train.rec"]


# Where it may write, and what it may read


@pytest.mark.parametrize("output", ["set", "set/out", "set/a/b", ".", "set/../set/out"])
def test_an_output_inside_an_input_or_around_it_is_refused(record_set: MakeSet, tmp_path: Path, output: str) -> None:
    folder = record_set("set").plain([0])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"the output lies in the input|lies in the output; choose another output"):
        unpack(folder, tmp_path / output)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_inside_an_input_through_a_link_is_refused(record_set: MakeSet, tmp_path: Path) -> None:
    folder = record_set("set").plain([0])
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OutputError, match="the output lies in the input"):
        unpack(folder, tmp_path / "link" / "out")
    with pytest.raises(OutputError, match="the output lies in the input"):
        unpack(tmp_path / "link", folder / "out")


def test_an_output_inside_the_second_input_is_refused_too(record_set: MakeSet) -> None:
    one, two = record_set("a").plain([0]), record_set("b").plain([0])
    with pytest.raises(OutputError, match=f"the output lies in the input {two}"):
        unpack([one, two], two / "out")


def test_the_folder_of_a_rec_file_is_no_output(record_set: MakeSet) -> None:
    folder = record_set().plain([0])
    with pytest.raises(OutputError, match="the output lies in the input"):
        unpack(folder / "train.rec", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["train.idx", "train.rec"]


def test_an_output_that_holds_something_else_is_refused(record_set: MakeSet, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        unpack(record_set().plain([0]), out)
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        unpack(record_set().plain([0]), out, JobOptions(workers=1, overwrite=True))
    assert tree(out) == {"thesis.tex": b"precious"}


@pytest.mark.parametrize("place", [".", "train.rec", "deeper"])
def test_the_output_of_an_unfinished_job_is_no_input(record_set: MakeSet, tmp_path: Path, place: str) -> None:
    unfinished = tmp_path / "unfinished"
    part = JobOptions(workers=1, part=Part(1, 2), executor_factory=ThreadPoolExecutor)
    summary = unpack(record_set("a").plain([0] * 4), unfinished, part, command_line="facedata unpack-rec --and so on")
    assert not summary.finished or summary.shards == 1
    (unfinished / ".facedata-summary.json").unlink(missing_ok=True)
    RecordSetMaker(unfinished / ("deeper" if place == "deeper" else ".")).plain([0])
    with pytest.raises(InputUnfinishedError, match="has not finished; finish it with: facedata unpack-rec --and so on"):
        unpack(unfinished / place, tmp_path / "out")


def test_a_set_that_is_not_there_or_bad_leaves_no_output(record_set: MakeSet, tmp_path: Path, out: Path) -> None:
    good, bad = record_set("good").plain([0]), record_set("bad").plain([0, 1])
    with pytest.raises(InputNotFoundError, match="nowhere: no such file or folder"):
        unpack([good, tmp_path / "nowhere"], out)
    os.truncate(bad / "train.rec", 60)
    with pytest.raises(FormatError, match=r"bad/train\.rec: its last record"):
        unpack([good, bad], out)
    with pytest.raises(EmptyDatasetError, match=r"train\.rec: is empty"):
        unpack(record_set("empty").write(), out)
    assert not out.exists()


def test_an_unknown_backend_is_a_wrong_option(record_set: MakeSet, out: Path) -> None:
    with pytest.raises(OptionError, match="backend gpu: there are 'native' and 'mxnet'"):
        unpack(record_set().plain([0]), out, backend="gpu")


# A rebuilt index


def test_a_rebuilt_index_is_kept_beside_the_job_and_used_again(
    record_set: MakeSet, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record_set().insightface([3, 2], index=False)
    summary = unpack(folder, out)
    assert summary.facts["sets"][0]["index"] == "rebuilt"
    assert [path.name for path in folder.iterdir()] == ["train.rec"]
    assert len(list(out.glob(".facedata-index-*.npz"))) == 1
    monkeypatch.setattr(record_set_module, "walk_records", lambda *_, **__: pytest.fail("walked again"))
    assert unpack(folder, out).nothing_to_do


def test_a_disk_that_is_full_when_the_index_is_kept_is_said(
    record_set: MakeSet, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_set_module, "atomic_writer", full)
    with pytest.raises(DiskFullError, match="free some space and run the same command again"):
        unpack(record_set().plain([0], index=False), out)


def test_with_and_without_an_index_the_result_is_the_same(record_set: MakeSet, tmp_path: Path) -> None:
    maker = record_set()
    folder = maker.insightface([3, 2])
    summary = unpack(folder, tmp_path / "with")
    again = unpack(folder, tmp_path / "rebuilt", opening=OpenOptions(rebuild_index=True))
    maker.folder = folder.with_name("without")
    third = unpack(maker.write(index=False), tmp_path / "without_index")
    assert tree(tmp_path / "with") == tree(tmp_path / "rebuilt") == tree(tmp_path / "without_index")
    assert summary.digest == again.digest == third.digest


def test_with_salvage_what_can_be_read_is_unpacked_and_the_rest_named(record_set: MakeSet, out: Path) -> None:
    maker = record_set()
    folder = maker.plain([0, 0, 1, 1], index=False)
    maker.data[maker.offsets[1]] ^= 1
    (folder / "train.rec").write_bytes(maker.data[:-9])
    with pytest.raises(FormatError, match="give --salvage to take what can be read"):
        unpack(folder, out)
    summary = unpack(folder, out, opening=OpenOptions(salvage=True))
    assert [path for path in tree(out) if path != "failures.jsonl"] == ["id_0/0_0.jpg", "id_1/1_2.jpg"]
    assert (summary.samples, summary.failures) == (2, 2)
    assert [failure["offset"] for failure in failures(out)] == [maker.offsets[1], maker.offsets[3]]


# The list


def test_a_list_that_is_there_already_is_not_replaced(record_set: MakeSet, out: Path, tmp_path: Path) -> None:
    folder, precious = record_set().plain([0]), tmp_path / "list.txt"
    precious.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"list\.txt: already exists"):
        unpack(folder, out, list_file=str(precious))
    assert precious.read_text() == "precious"
    assert not out.exists()


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "list.txt"])
def test_a_list_in_the_folder_of_a_set_is_refused(record_set: MakeSet, out: Path, name: str) -> None:
    folder = record_set().plain([0])
    before = tree(folder)
    with pytest.raises(OptionError, match="lies in the folder of the set"):
        unpack(folder, out, list_file=str(folder / name))
    assert tree(folder) == before


def test_a_list_in_a_folder_that_is_not_there_is_refused_before_the_work(
    record_set: MakeSet, out: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"the folder .*nowhere does not exist"):
        unpack(record_set().plain([0]), out, list_file=str(tmp_path / "nowhere" / "list.txt"))
    assert not out.exists()
