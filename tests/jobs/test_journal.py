from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_tasks import SUMMARY, result

from facedata.errors import FormatError, InputUnfinishedError
from facedata.jobs.journal import Journal, JournalWriter, ShardResult, done_entry, refuse_unfinished
from facedata.jobs.plan import Part, Plan

PLAN = Plan("test", {}, {}, 100, 10, {"command_line": "facedata test --output out"})


def failing(*keys: str) -> ShardResult:
    failures = tuple({"set": "s", "key": key, "index": 0, "offset": None, "reason": "bad"} for key in keys)
    return ShardResult(9, 90, "00000000", (3, 8), failures, 0.1)


def test_what_one_run_records_the_next_one_reads(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with JournalWriter(journal, PLAN, Part()) as writer:
        writer.append(done_entry(3, result(10)))
        writer.append({"shard": 4, "failed": "killed"})
        writer.append(done_entry(5, failing("a", "b")))
    state = journal.load(PLAN)
    assert [shard for shard, done in enumerate(state.done) if done] == [3, 5]
    assert (state.samples, state.bytes, state.failures, state.largest_label) == (19, 190, 2, 8)
    assert state.failed_shards == {4: "killed"}
    assert sum(journal.load(Plan("test", {}, {"other": 1}, 100, 10)).done) == 0  # another job


def test_a_line_that_was_cut_does_not_count_and_the_next_run_appends_after_the_last_whole_one(tmp_path: Path) -> None:
    journal, path = Journal(tmp_path), tmp_path / ".facedata-journal.jsonl"
    with JournalWriter(journal, PLAN, Part()) as writer:
        writer.append(done_entry(1, result()))
        writer.append(done_entry(2, result()))
    whole = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(whole[:-cut])
        assert list(journal.load(PLAN).done) == [0, 1, *[0] * 8]
        with JournalWriter(journal, PLAN, Part()) as writer:
            writer.append(done_entry(7, result()))
        assert [shard for shard, done in enumerate(journal.load(PLAN).done) if done] == [1, 7]
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_failures_are_in_the_order_of_the_samples_and_a_shard_done_later_is_not_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "failures.jsonl").write_text("{}\n")
    journal.write_failures(PLAN)
    assert not (tmp_path / "failures.jsonl").exists()
    with JournalWriter(journal, PLAN, Part()) as writer:
        writer.append(done_entry(9, failing("late")))
        writer.append({"shard": 2, "failed": "killed"})
        writer.append({"shard": 4, "failed": "killed"})
        writer.append(done_entry(0, failing("early")))
        writer.append(done_entry(2, result()))
    journal.write_failures(PLAN)
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [line.get("key") or line["samples"] for line in lines] == ["early", [40, 50], "late"]


def test_the_first_plan_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write_plan(PLAN)
    journal.write_plan(Plan("other", {}, {}, 1, 1))
    assert journal.read_plan() == PLAN
    assert sorted(path.name for path in tmp_path.iterdir()) == [".facedata-plan.json"]


def test_an_unfinished_output_is_refused_as_an_input_with_the_command_that_finishes_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    refuse_unfinished(tmp_path)
    journal.write_plan(PLAN)
    for path in (tmp_path, tmp_path / "train.rec"):
        with pytest.raises(InputUnfinishedError, match="facedata test --output out"):
            refuse_unfinished(path)
    journal.write_summary(SUMMARY)
    refuse_unfinished(tmp_path)


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[]", b'{"command": 3}', b"\xff\xfe"):
        (tmp_path / ".facedata-plan.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"\.facedata-plan\.json"):
            Journal(tmp_path).require_plan()
