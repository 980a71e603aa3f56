"""Killed anywhere, a build goes on and ends in the same bytes as one that was left alone."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from lmdb_support import build, built, samples
from support import forked, tree

from facedata.converters.lmdb import open_source
from facedata.converters.lmdb.writer import BuildFiles, LmdbWriter
from facedata.errors import OutputMismatchError
from facedata.jobs.journal import Journal, JournalWriter

COUNT = 90
PHASES = {
    "write": (LmdbWriter, "write"),
    "pending": (BuildFiles, "write_pending"),
    "half committed": (LmdbWriter, "commit"),
    "committed": (LmdbWriter, "commit"),
    "journal": (JournalWriter, "append"),
    "kv": (BuildFiles, "publish_kv"),
    "data": (BuildFiles, "publish_data"),
    "summary": (Journal, "write_summary"),
    "clean": (BuildFiles, "remove"),
}
"""Where a build is killed: after the n-th call of each."""


def killed_build(path: Path, phase: str, number: int = 1, **options: Any) -> None:
    """Build in a process that is killed on its way."""
    owner, name = PHASES[phase]
    original, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        halved = Path(arguments[0].files.data) if calls == number and phase == "half committed" else None
        before = b"" if halved is None else halved.read_bytes()
        result = original(*arguments, **named)
        if halved is not None:  # as a kill in the middle leaves it: some pages written, the meta page not
            after = bytearray(halved.read_bytes())
            after[:8192] = before[:8192]
            for place in range(8192, len(before), 3 * 4096):
                after[place : place + 4096] = before[place : place + 4096]
            halved.write_bytes(after)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def doomed() -> None:
        setattr(owner, name, wrapped)
        build(path, samples(COUNT), **options)

    assert forked(doomed) == -signal.SIGKILL, f"it was not killed: {phase} was called fewer than {number} times"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    path = tmp_path_factory.mktemp("undisturbed") / "a.lmdb"
    build(path, samples(COUNT))
    return built(path)


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_step_it_goes_on(tmp_path: Path, undisturbed: tuple[bytes, str], phase: str) -> None:
    path = tmp_path / "a.lmdb"
    killed_build(path, phase, 2 if phase == "clean" else 1)
    if phase not in ("data", "summary", "clean"):
        assert not (path / "data.mdb").exists()  # what is there is complete
    summary = build(path, samples(COUNT), workers=2)
    assert (summary.finished, summary.good, summary.samples) == (True, True, COUNT)
    assert built(path) == undisturbed
    assert set(tree(tmp_path)) == {"a.lmdb/data.mdb", "a_kv.txt"}
    assert ".facedata-building" not in os.listdir(path)


@pytest.mark.parametrize(
    "options",
    [{"keys": "path", "map_size": 1 << 16}, {"single_file": True}, {"build_dir": "scratch"}],
    ids=["growing, keys in no order", "single file", "built elsewhere"],
)
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (tmp_path / name / "a.lmdb" for name in ("one", "two"))
    for path in (one, two):
        path.parent.mkdir()
    build(one, samples(COUNT), **options)
    for phase, number in [("pending", 1), ("half committed", 2), ("committed", 1), ("data", 1)]:
        killed_build(two, phase, number, **options)
    build(two, samples(COUNT), workers=2, **options)
    assert built(two) == built(one)


def test_what_was_committed_is_not_read_again(tmp_path: Path) -> None:
    killed_build(tmp_path / "a.lmdb", "committed", 3)
    begins: list[int] = []
    build(tmp_path / "a.lmdb", samples(COUNT), job={"observer": lambda progress: begins.append(progress.before)})
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
    path, scratch = tmp_path / "a.lmdb", str(tmp_path / "scratch")
    killed_build(path, "committed", build_dir=scratch)
    other = samples(COUNT)[10:70]
    build(path, other, build_dir=scratch, job={"overwrite": True})
    assert [sample.image for sample in open_source(str(path))] == [sample.image for sample in other]


def test_a_damaged_note_of_the_last_commit_is_no_note(tmp_path: Path, undisturbed: tuple[bytes, str]) -> None:
    path = tmp_path / "a.lmdb"
    for text in ("", '{"shard": "0", "end": {}}', '{"shard": 0, "end": {"transaction": "x", "kv": 0}}'):
        killed_build(path, "pending")
        (path / ".facedata-building" / "pending.json").write_text(text)
        assert build(path, samples(COUNT)).finished
        assert built(path) == undisturbed
        shutil.rmtree(path)
        (tmp_path / "a_kv.txt").unlink()
