"""What all commands have in common: short options, ``--quiet``, errors as JSON, the command that resumes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran, RecordSetMaker

from facedata.commands.options import command_line

Facedata = Callable[..., Ran]
MakeSet = Callable[[str], RecordSetMaker]


def test_short_options_outputs_and_sources_in_either_place(
    record_set: MakeSet, inline_facedata: Facedata, tmp_path: Path
) -> None:
    record_set("a").insightface([2, 1])
    before = sorted(tmp_path.iterdir())
    for line in ("convert a null:", "align a --assume-aligned -o null:", "convert a -nqo folder:out"):
        assert inline_facedata(*line.split()).status in (0, 1)
        assert sorted(tmp_path.iterdir()) == before, line
    for line in ("unpack-rec a -qj1 -o x", "unpack-rec --include a -qo y", "convert a -qo z -j 1", "convert a -qfo z"):
        assert inline_facedata(*line.split()) == Ran(0, "", ""), line
    assert len(list(tmp_path.glob("[xyz]/id_*/*.jpg"))) == 9
    for line in ("convert a", "convert -o x", "unpack-rec -o x", "make-sample", "make-sample b -o c"):
        ran = inline_facedata(*line.split())
        assert ran.status == 2, line
        assert "expected" in ran.stderr or "Missing argument" in ran.stderr


def test_quiet_shows_the_summary_of_a_failure(record_set: MakeSet, inline_facedata: Facedata) -> None:
    maker = record_set("a")
    maker.add(0, 0, b"no image")
    maker.write()
    ran = inline_facedata("unpack-rec", "a", "-qo", "x")
    assert ran.status == 1
    assert ran.stdout.startswith("x: 0 images")
    assert "error: 1 of 1 image failed: 1 not an image; see x/failures.jsonl" in ran.stderr


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("convert nowhere null: --json", 1, "nowhere: no such file or folder"),
        ("convert --json", 2, "Missing argument 'SOURCE... [FORMAT:TARGET]'."),
        ("status . --json --no-such-option", 2, "No such option '--no-such-option'."),
    ],
)
def test_an_error_is_one_json_object_too(facedata: Facedata, line: str, status: int, said: str) -> None:
    ran = facedata(*line.split())
    assert ran.status == status
    assert json.loads(ran.stdout) == {"error": said, "exit": status}
    assert said in ran.stderr


def test_verbose_shows_where_an_error_arose(inline_facedata: Facedata) -> None:
    assert "Traceback" not in inline_facedata("convert", "nowhere", "null:").stderr
    assert "Traceback" in inline_facedata("convert", "nowhere", "null:", "-v").stderr
    assert ", fingerprint " in inline_facedata("make-sample", "a", "--identities", 1, "-v").stderr


@pytest.mark.parametrize(
    ("typed", "resumes"),
    [
        ("convert a rec:b --overwrite --shard 1/2", "convert a rec:b"),
        ("convert a -f -o rec:b --shard=1/2", "convert a -o rec:b"),
        ("convert a -qfj8 -fo rec:f", "convert a -qj8 -o rec:f"),
        ("align - -o -f", "align - -o -f"),
        ("convert -vf a rec:-f -- -f", "convert -v a rec:-f -- -f"),
    ],
)
def test_the_command_that_resumes(monkeypatch: pytest.MonkeyPatch, typed: str, resumes: str) -> None:
    monkeypatch.setattr(sys, "argv", ["facedata", *typed.split()])
    assert command_line() == f"facedata {resumes}"
