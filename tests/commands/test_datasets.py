from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from support import Ran

from facedata import cli
from facedata.download.catalogue import load_catalogue

Facedata = Callable[..., Ran]


def test_the_table_has_a_line_for_each_set(inline_facedata: Facedata) -> None:
    ran = inline_facedata("datasets")
    lines = ran.stdout.splitlines()
    assert (ran.status, lines[0].split()) == (0, ["name", "what", "people", "images", "size", "status", "how"])
    glint = next(line for line in lines if line.startswith("glint360k"))
    for said in ("360,232", "17,091,657", "~128.6 GB", "non-commercial       by hand"):
        assert said in glint


def test_all_that_is_known_of_one(inline_facedata: Facedata) -> None:
    out = inline_facedata("datasets", "glint360k", "--root", "my data").stdout
    for said in (
        "glint360k: Glint360K",
        "non-commercial research only",
        "Baidu: https://pan.baidu.com/s/1GsYqTTt7_Dn8BfxxsLFN0w  code: o3az",
        "glint360k_03  md5 cd7f008579dbed9c5af4d1275915d95e",
        "glint360k/train.rec  md5 8483be5af6f9906e19f85dee49132f8e",
        "facedata unpack-rec --include 'my data'/glint360k",
    ):
        assert said in out


def test_a_set_without_a_link_says_who_published_it_and_what_to_search_for(inline_facedata: Facedata) -> None:
    for entry in load_catalogue():
        assert entry.homepage or (entry.publisher and entry.search), entry.name
    for command in ("datasets", "download"):
        ran = inline_facedata(command, "ijb-c", *(["--accept-terms"] if command == "download" else []))
        assert "published by NIST; search the web for 'IJB-C NIST face challenges'" in ran.stdout + ran.stderr


def test_the_shell_completes_names_of_datasets() -> None:
    for command, begun, names in (
        ("download", "ms1mv", ["ms1mv2", "ms1mv3"]),
        ("verify-md5", "gli", ["glint360k"]),
        ("datasets", "ijb", ["ijb-b", "ijb-c"]),
        ("verify-md5", "./", ["./"]),  # of files the shell knows
    ):
        completion = ShellComplete(cli.facedata, {}, "facedata", "_FACEDATA_COMPLETE")
        assert [item.value for item in completion.get_completions([command], begun)] == names


def test_as_json(inline_facedata: Facedata) -> None:
    listed = json.loads(inline_facedata("datasets", "--json").stdout)["datasets"]
    assert {"name", "people", "images", "bytes", "status", "access"} <= listed[0].keys()
    one = json.loads(inline_facedata("datasets", "faces_emore", "--json").stdout)
    assert (one["name"], one["sources"][0]["kind"]) == ("ms1mv2", "google-drive")


def test_an_unknown_name_and_a_file_that_does_not_exist(inline_facedata: Facedata) -> None:
    ran = inline_facedata("datasets", "glint360")
    assert ran.status == 2
    assert "there is no dataset named 'glint360'; similar names are glint360k" in ran.stderr
    assert "nowhere.toml: no such file" in inline_facedata("datasets", "--catalogue", "nowhere.toml").stderr


def test_own_catalogues(inline_facedata: Facedata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "configuration/facedata"
    own.mkdir(parents=True)
    (own / "catalogue.toml").write_text('[sets.ours]\ntitle = "Ours"\nnotes = ["hello"]\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    (tmp_path / "a.toml").write_text('[sets.mine]\ntitle = "Mine"\n')
    out = inline_facedata("datasets", "--catalogue", "a.toml").stdout
    assert {"mine", "ours", "glint360k"} <= {line.split()[0] for line in out.splitlines()}
    (tmp_path / "b.toml").write_text('[[sets.glint360k.sources]]\nkind = "http"\nurl = "http://mirror.lab/glint/"\n')
    assert "\n  http://mirror.lab/glint/\n" in inline_facedata("datasets", "glint360k", "--catalogue", "b.toml").stdout
    assert "hello" in inline_facedata("datasets", "ours").stdout
