from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from archive_support import split, write_tar
from support import Ran, tree

Facedata = Callable[..., Ran]
MEMBERS: list[tuple[str, bytes]] = [("set/train.rec", b"records" * 1000), ("set/property", b"2,112,112\n")]


@pytest.fixture
def extract(inline_facedata: Facedata) -> Facedata:
    return lambda *arguments, to="out": inline_facedata("extract", *arguments, "--output", to)


def test_parts_are_unpacked_as_the_shell_gives_them(tmp_path: Path, extract: Facedata) -> None:
    parts = split(write_tar(tmp_path / "set.tgz", MEMBERS), 3)
    ran = extract(*parts, "--dry-run")
    assert (ran.status, ran.stdout.startswith("set.tgz: tar.gz, 3 parts, ")) == (0, True)
    (archive,) = json.loads(extract(*parts, "--dry-run", "--json").stdout)["archives"]
    assert (archive["parts"], archive["done_before"]) == ([str(part) for part in parts], False)
    assert not (tmp_path / "out").exists()
    ran = extract(*reversed(parts))
    assert (ran.status, ran.stdout) == (0, "set.tgz: unpacked (2 files, 7.0 kB) in out\n")
    assert tree(tmp_path / "out") == dict(MEMBERS)
    ran = extract(*parts)
    assert (ran.status, ran.stdout) == (0, "set.tgz: already unpacked; nothing to do (2 files, 7.0 kB) in out\n")
    assert "already unpacked" in extract(*parts, "--dry-run").stdout


def test_several_archives_go_into_one_folder(tmp_path: Path, extract: Facedata) -> None:
    write_tar(tmp_path / "a.tar", [("a", b"1")])
    write_tar(tmp_path / "b.tgz", [("b", b"2")])
    ran = extract("a.tar", "b.tgz", "--json")
    assert ran.status == 0
    assert [archive["files"] for archive in json.loads(ran.stdout)["archives"]] == [1, 1]
    assert tree(tmp_path / "out") == {"a": b"1", "b": b"2"}


def test_refused_members_make_the_status_1_each_time(tmp_path: Path, extract: Facedata) -> None:
    write_tar(tmp_path / "a.tgz", [("../evil\n\x1b[2J", b""), ("good", b"1")])
    for _ in range(2):
        ran = extract("a.tgz")
        assert ran.status == 1
        assert "  1 member not unpacked; see out/.facedata-extracted-" in ran.stdout
        assert "\x1b" not in ran.stdout + ran.stderr
    assert tree(tmp_path / "out") == {"good": b"1"}


def test_wrong_use_is_reported_before_anything_is_written(tmp_path: Path, extract: Facedata) -> None:
    parts = split(write_tar(tmp_path / "set.tgz", MEMBERS), 3)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    known = [tmp_path / f"glint360k_{number:02d}" for number in range(6)]  # a set whose parts the catalogue knows
    for path in known:
        path.write_bytes(b"\x1f\x8b\x08" + bytes(100))
    cases: list[tuple[Sequence[str | Path], str, int, str]] = [
        (parts[:1], "out", 2, "give all parts in one command"),
        ([*parts, parts[1]], "out", 2, "is given twice"),
        (known, "out", 1, "glint360k_06"),
        (["fifo"], "out", 1, "is a named pipe"),
        (parts, "file/below", 1, "Not a directory"),
        (parts, "file", 2, "is a file"),
        *(
            (["a.zip", "--encoding", code], "out", 2, f"'{code}' is not an encoding")
            for code in ("x", "rot13", "utf-16")
        ),
    ]
    for files, output, status, message in cases:
        ran = extract(*files, to=output)
        assert (ran.status, message in ran.stderr) == (status, True), ran.stderr
    assert not (tmp_path / "out").exists()


def test_settings_that_may_not_be_read_are_ignored(extract: Facedata, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(Path("a.tgz"), MEMBERS)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/" + "x" * 300)
    assert extract("a.tgz").status == 0


def test_a_part_in_the_middle_that_was_cut_is_named_by_its_size(tmp_path: Path, extract: Facedata) -> None:
    parts = split(write_tar(tmp_path / "whole.tgz", [("a", Random(0).randbytes(300_000))]), 3, "x_{number}")
    size = parts[0].stat().st_size
    os.truncate(parts[1], 90_000)
    ran = extract(*parts)
    assert ran.status == 1
    assert f"x_1 has 90,000 bytes, others have {size:,}: it seems to be cut short" in ran.stderr
