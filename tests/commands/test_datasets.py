from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Ran

Run = Callable[..., Ran]


@pytest.fixture
def facedata(inline_facedata: Run) -> Run:
    return inline_facedata


def test_the_table_has_a_line_for_each_set(facedata: Run) -> None:
    ran = facedata("datasets")
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["name", "what", "people", "images", "size", "status", "how"]
    glint = next(line for line in lines if line.startswith("glint360k"))
    assert "360,232" in glint
    assert "17,091,657" in glint
    assert "~128.6 GB" in glint
    assert glint.endswith("non-commercial       by hand")
    assert ran.status == 0


def test_all_that_is_known_of_one(facedata: Run) -> None:
    out = facedata("datasets", "glint360k", "--root", "my data").stdout
    for said in (
        "glint360k: Glint360K",
        "non-commercial research only",
        "Baidu: https://pan.baidu.com/s/1GsYqTTt7_Dn8BfxxsLFN0w  code: o3az",
        "glint360k_03  md5 cd7f008579dbed9c5af4d1275915d95e",
        "glint360k/train.rec  md5 8483be5af6f9906e19f85dee49132f8e",
        "facedata unpack-rec --include 'my data'/glint360k",
    ):
        assert said in out


def test_as_json(facedata: Run) -> None:
    listed = json.loads(facedata("datasets", "--json").stdout)["datasets"]
    assert {"name", "people", "images", "bytes", "status", "access"} <= listed[0].keys()
    one = json.loads(facedata("datasets", "faces_emore", "--json").stdout)
    assert one["name"] == "ms1mv2"
    assert one["sources"][0]["kind"] == "google-drive"


def test_an_unknown_name_and_a_file_that_does_not_exist(facedata: Run) -> None:
    ran = facedata("datasets", "glint360")
    assert ran.status == 2
    assert "there is no dataset named 'glint360'; similar names are glint360k" in ran.stderr
    assert "nowhere.toml: no such file" in facedata("datasets", "--catalogue", "nowhere.toml").stderr


def test_own_catalogues_on_the_command_line_and_in_the_configuration_folder(
    facedata: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text('[sets.mine]\ntitle = "Mine"\n')
    own = tmp_path / "configuration/facedata"
    own.mkdir(parents=True)
    (own / "catalogue.toml").write_text('[sets.ours]\ntitle = "Ours"\nnotes = ["hello"]\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    out = facedata("datasets", "--catalogue", "a.toml").stdout
    (tmp_path / "b.toml").write_text('[[sets.glint360k.sources]]\nkind = "http"\nurl = "http://mirror.lab/glint/"\n')
    assert "\n  http://mirror.lab/glint/\n" in facedata("datasets", "glint360k", "--catalogue", "b.toml").stdout
    assert {"mine", "ours", "glint360k"} <= {line.split()[0] for line in out.splitlines()}
    assert "hello" in facedata("datasets", "ours").stdout
