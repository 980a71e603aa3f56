"""Killed anywhere, a build goes on and ends in the same bytes as one that was left alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from lmdb_support import COUNT, PHASES, build, built, killed_build, planned, samples

from facedata.converters.convert import run_conversion
from facedata.converters.lmdb import create_sink, open_source
from facedata.errors import OutputMismatchError
from facedata.jobs.job import JobOptions


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    path = tmp_path_factory.mktemp("undisturbed") / "a.lmdb"
    build(path, samples(COUNT))
    return built(path)


@pytest.mark.parametrize(("phase", "number"), [(phase, 2 if phase == "clean" else 1) for phase in PHASES])
def test_killed_at_any_step_it_goes_on(tmp_path: Path, undisturbed: tuple[bytes, str], phase: str, number: int) -> None:
    path = tmp_path / "a.lmdb"
    killed_build(path, phase, number)
    if phase not in ("data", "summary", "clean"):
        assert not (path / "data.mdb").exists()  # what is there is complete
    summary = build(path, samples(COUNT), workers=2)
    assert (summary.finished, summary.good, summary.samples) == (True, True, COUNT)
    assert built(path) == undisturbed
    assert sorted(os.listdir(tmp_path)) == ["a.lmdb", "a_kv.txt"]
    left = [name for name in os.listdir(path) if not name.startswith(".facedata-")]
    assert left == ["data.mdb"]
    assert ".facedata-building" not in os.listdir(path)


@pytest.mark.parametrize(
    "options",
    [{"keys": "path", "map_size": 1 << 16}, {"single_file": True}, {"build_dir": "scratch"}],
    ids=["growing, keys in no order", "single file", "built elsewhere"],
)
def test_killed_again_and_again_it_ends_in_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {**options, **({"build_dir": str(tmp_path / "scratch")} if "build_dir" in options else {})}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    build(tmp_path / "one" / "a.lmdb", samples(COUNT), **options)
    for phase, number in [("pending", 1), ("commit", 2), ("committed", 1), ("data", 1)]:
        killed_build(tmp_path / "two" / "a.lmdb", phase, number, **options)
    build(tmp_path / "two" / "a.lmdb", samples(COUNT), workers=2, **options)
    assert built(tmp_path / "two" / "a.lmdb") == built(tmp_path / "one" / "a.lmdb")


def test_what_was_committed_is_not_read_again(tmp_path: Path) -> None:
    killed_build(tmp_path / "a.lmdb", "committed", 3)
    begins = []
    conversion = planned(samples(COUNT), create_sink(str(tmp_path / "a.lmdb")), 5)
    run_conversion(conversion, JobOptions(workers=1, observer=lambda progress: begins.append(progress.before)))
    assert begins[0] == COUNT * 3 // 5


def test_a_build_file_that_was_taken_away_or_cut_is_reported_and_nothing_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    killed_build(path, "journal", 4)
    data = path / ".facedata-building" / "data.mdb"
    whole = data.read_bytes()
    for kept in (20_000, 8192, 4096, 100, 0, None):
        data.unlink() if kept is None else data.write_bytes(whole[:kept])
        with pytest.raises(OutputMismatchError, match=r"do not agree .* --overwrite starts again"):
            build(path, samples(COUNT))
        assert (data.parent / "kv.txt").stat().st_size > 0
    data.write_bytes(whole)
    build(path, samples(COUNT))
    assert len(open_source(str(path))) == COUNT


def test_starting_afresh_takes_nothing_from_the_build_before(tmp_path: Path) -> None:
    """Though that left a database elsewhere, and a shard that is not in the journal."""
    scratch = str(tmp_path / "scratch")
    path = tmp_path / "a.lmdb"
    killed_build(path, "committed", 1, build_dir=scratch)
    other = samples(COUNT)[10:70]
    build(path, other, build_dir=scratch, job={"overwrite": True})
    assert [sample.image for sample in open_source(str(path))] == [sample.image for sample in other]


def test_a_damaged_note_of_the_last_commit_is_no_note(tmp_path: Path, undisturbed: tuple[bytes, str]) -> None:
    path = tmp_path / "a.lmdb"
    for text in ("", '{"shard": "0", "end": {}}', '{"shard": 0, "end": {"transaction": "x", "kv": 0}}'):
        killed_build(path, "pending", 1)
        (path / ".facedata-building" / "pending.json").write_text(text)
        assert build(path, samples(COUNT)).finished
        assert built(path) == undisturbed
        shutil.rmtree(path)
        (tmp_path / "a_kv.txt").unlink()
