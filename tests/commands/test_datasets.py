from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from archive_support import tar_bytes
from click.shell_completion import ShellComplete
from http_server import Server
from support import Ran, tree, write_tree

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


@pytest.fixture
def own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return tmp_path / "configuration/facedata/catalogue.toml"


LAB = {"lab/train.rec": "records", "lab/train.idx": "1", "lab/more/train.idx": "2", "lab/more/ä #.txt": "3"}


@pytest.mark.parametrize("way", ["by hand from above", "by hand", "from a server"])
def test_a_folder_becomes_a_set_that_can_be_checked_and_downloaded(
    inline_facedata: Facedata, server: Server, own_catalogue: Path, tmp_path: Path, way: str
) -> None:
    data = write_tree(tmp_path / "data", LAB)
    write_tree(data, {"lab/.DS_Store": ""})
    for name, content in LAB.items():
        server.add(f"/{quote(name)}", content.encode())
    write_tree(own_catalogue.parent, {"catalogue.toml": '# mine\n[sets.other]\ntitle = "Other"\nstatus = ["free"]'})
    url = ["--url", server.url("/lab/")] if way == "from a server" else []
    ran = inline_facedata("datasets", "--add", "data/lab", *url)
    assert (ran.status, "data/lab/.DS_Store: hidden; left out" in ran.stderr) == (0, True)
    assert f"lab: added to {own_catalogue}: 4 downloads\nnext:\n  facedata verify-md5 lab --root data\n" in ran.stdout
    assert own_catalogue.read_text().startswith("# mine\n[sets.other]\n")
    (data / "lab/.DS_Store").unlink()
    assert inline_facedata("verify-md5", "lab", "--root", "data", "--strict").status == 0
    how = {"by hand": ["--from-dir", "data/lab"], "by hand from above": ["--from-dir", "data"]}.get(way, [])
    assert inline_facedata("download", "lab", "--root", "new", *how).status == 0
    assert tree(tmp_path / "new/lab") == tree(data / "lab")
    assert "lab  whole         4 files\n" in inline_facedata("datasets", "--root", "new").stdout
    again = inline_facedata("datasets", "--add", "data/lab")
    assert (again.status, "the catalogue knows the files of 'lab' already" in again.stderr) == (1, True)


def test_a_set_without_files_gets_those_of_a_folder(inline_facedata: Facedata, tmp_path: Path) -> None:
    write_tree(tmp_path, LAB)
    assert inline_facedata("datasets", "LFW", "--add", "lab", "--catalogue", "own.toml").status == 0
    out = inline_facedata("datasets", "lfw", "--catalogue", "own.toml").stdout
    assert out.startswith("lfw: Labeled Faces in the Wild\n")
    assert "sets.lfw" in (tmp_path / "own.toml").read_text()


def test_a_list_of_urls_becomes_a_set(
    inline_facedata: Facedata, server: Server, own_catalogue: Path, tmp_path: Path
) -> None:
    archive = gzip.compress(tar_bytes([("x/train.rec", b"records")]))
    for name, data in {"/x.tar.gz": archive, "/mirror/x.tar.gz": archive, "/a/labels.txt": b"0 1"}.items():
        server.add(name, data)
    sums = [hashlib.md5(archive).hexdigest(), hashlib.sha256(b"0 1").hexdigest().upper()]
    lines = [
        "\ufeffurl,checksum",
        f"{server.url('/gone.tar.gz')},{sums[0]},x.tar.gz",
        f"MD5: {sums[0]} {server.url('/mirror/x.tar.gz')}",
        "# the labels",
        f"{server.url('/a/labels.txt')}#sha256={sums[1]}",
    ]
    write_tree(tmp_path, {"lab.csv": "\r\n".join(lines), "SUMS": f"{sums[0]}  x.tar.gz\n{sums[1]} *a/labels.txt\n"})
    for words in (["--add", "lab.csv"], ["sums", "--add", "SUMS", "--url", server.url("")]):
        ran = inline_facedata("datasets", *words, "--json")
        assert (ran.status, json.loads(ran.stdout)["downloads"]) == (0, 2), ran.stderr
        name = json.loads(ran.stdout)["name"]
        assert inline_facedata("download", name, "--root", name).status == 0
        assert tree(tmp_path / name / name) == {"labels.txt": b"0 1", "train.rec": b"records"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no link", "line 1: has no URL; expected a URL and its checksum on each line"),
        ("https://drive.google.com/file/d/16WD4orcF9dqjNPLzST2U3maDh2cpzxAY/view", "has no file name: write it after"),
        ("http://a/x.zip " + "0" * 32 + "\nhttp://b/x.zip " + "1" * 32, "'x.zip' is listed twice, with different"),
        (
            "http://a/%2e%2e",
            "list: as an entry: sets.list.sources[0].file: expected the name of a download",
        ),
        ("http://a/b%0a", "expected the name of a download, found 'b"),
    ],
)
def test_a_list_that_is_no_set(
    inline_facedata: Facedata, own_catalogue: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "list").write_text(line)
    ran = inline_facedata("datasets", "--add", "list")
    assert (ran.status, message in ran.stderr) == (1, True), ran.stderr
    assert not own_catalogue.exists()


def test_what_a_folder_has(inline_facedata: Facedata, own_catalogue: Path, tmp_path: Path) -> None:
    assert inline_facedata("datasets", "--root", "nowhere").status == 1
    folder = write_tree(tmp_path / "data", {**LAB, "glint360k_03": "a part", "ms1mv2": ""})
    inline_facedata("datasets", "--add", "data/lab")
    (folder / "lab/train.rec").write_text("cut")
    (folder / "lab/train.idx").unlink()
    ran = inline_facedata("datasets", "--root", "data")
    assert ran.stdout.splitlines() == [
        "glint360k  incomplete    1 file; 6 files missing: 'glint360k_00', 'glint360k_01', 'glint360k_02' and 3 more",
        "lab        incomplete    3 files; lab/train.rec: expected 7 bytes, found 3; 1 file missing: 'lab/train.idx'",
    ]
    assert "to check all: facedata verify-md5 NAME --root data" in ran.stderr
    states = json.loads(inline_facedata("datasets", "--root", "data", "--json").stdout)["sets"]
    assert [state["state"] for state in states] == ["incomplete", "incomplete"]
    assert (
        "no dataset of the catalogue is in configuration"
        in inline_facedata("datasets", "--root", "configuration").stdout
    )
