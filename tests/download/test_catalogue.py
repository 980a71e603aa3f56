from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from facedata.cli import facedata as group
from facedata.download.catalogue import Catalogue, load_catalogue
from facedata.download.checksums import Digest
from facedata.download.schema import STATUSES
from facedata.errors import CatalogueError, OptionError

OWN = """
schema = 1
[sets.lab-faces]
title = "Faces of our lab"
status = ["free"]
[[sets.lab-faces.sources]]
kind = "http"
url = "http://mirror.lab/faces/"
[[sets.lab-faces.downloads]]
name = "faces.tar"
md5 = "00112233445566778899aabbccddeeff"
[[sets.lab-faces.downloads]]
name = "labels.txt"
"""


def load(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    return load_catalogue([path])


# The catalogue that facedata brings, against the facts it was written from


def test_glint360k_is_seven_parts_with_the_checksums_of_the_current_release() -> None:
    glint = load_catalogue().find("glint360k")
    assert [download.name for download in glint.downloads] == [f"glint360k_{part:02d}" for part in range(7)]
    assert glint.downloads[6].digest == Digest("md5", "c3ae1dcbecea360d2ec2a43a7b6f1d94")
    assert all(download.superseded for download in glint.downloads)
    assert all("first release" in what for download in glint.downloads for what in download.superseded.values())


@pytest.mark.parametrize(
    ("name", "lines"),
    [("ms1mv2", 5908396), ("ms1mv3", 5272942), ("casia-webface", 501196), ("glint360k", 17451890)],
)
def test_an_index_has_a_line_for_each_image_each_person_and_the_meta_record(name: str, lines: int) -> None:
    entry = load_catalogue().find(name)
    assert isinstance(entry.images, int)
    assert isinstance(entry.people, int)
    counted = [file.lines for file in entry.files if file.path.endswith("train.idx")]
    assert counted == [lines] == [entry.images + entry.people + 1]


def test_what_holds_for_every_set() -> None:
    names = [download.name for entry in load_catalogue() for download in entry.downloads]
    assert len(set(names)) == len(names)
    for entry in load_catalogue():
        assert entry.status, entry.name
        assert set(entry.status) <= STATUSES.keys()
        assert entry.asks == (entry.status != ("synthetic",)), entry.name  # real people
        if "agreement" in entry.status:
            assert [source.kind for source in entry.sources] == ["agreement"]
            assert entry.access == "by agreement"
        for line in entry.next_commands("my data"):
            words = shlex.split(line)
            assert words[0] == "facedata"
            command = group.get_command(click.Context(group), words[1])
            assert command is not None, line
            command.make_context(words[1], words[2:])
            assert "my data" in line


def test_case_and_aliases_do_not_matter_and_a_name_that_is_near_is_proposed(tmp_path: Path) -> None:
    known = load_catalogue()
    assert known.find("MS1M-ArcFace") is known.find("ms1mv2") is known.find("FACES_EMORE")
    with pytest.raises(OptionError, match=r"there is no dataset named 'glint36k'; similar names are glint360k"):
        known.find("glint36k")
    with pytest.raises(CatalogueError, match=r"'cub': cub-200-2011 \(.*\) and lab-faces \(.*own.toml\)"):
        load(tmp_path, OWN.replace('["free"]', '["free"]\naliases = ["CUB"]'))


def test_a_set_of_ones_own(tmp_path: Path) -> None:
    entry = load(tmp_path, OWN.replace("labels.txt", "a #1?.txt")).find("lab-faces")
    assert entry.access == "download"
    assert not entry.asks
    assert [link.address for d in entry.downloads for link in entry.links(d)] == [
        "http://mirror.lab/faces/faces.tar",
        "http://mirror.lab/faces/a%20%231%3F.txt",
    ]


def test_a_mirror_of_a_known_set_comes_first_and_keeps_the_checksums(tmp_path: Path) -> None:
    text = '[[sets.glint360k.sources]]\nkind = "http"\nurl = "http://mirror.lab/glint/"\n'
    text += '[[sets.glint360k.downloads]]\nname = "glint360k_03"\nbytes = 12345\n'
    entry = load(tmp_path, text).find("glint360k")
    assert entry.access == "download"
    assert entry.downloads[3].size == 12345
    assert [source.kind for source in entry.sources] == ["http", "baidu", "magnet"]
    assert entry.links(entry.downloads[3])[0].address == "http://mirror.lab/glint/glint360k_03"
    assert entry.downloads[3].digest == Digest("md5", "cd7f008579dbed9c5af4d1275915d95e")


CHANGES = [
    ('md5 = "0011', 'mb5 = "0011', r"sets\.lab-faces\.downloads\[0\]\.mb5: unknown key; did you mean 'md5'"),
    ("ddeeff", "ddeexx", r"sets\.lab-faces\.downloads\[0\]\.md5: expected 32 hexadecimal digits, found '0011"),
    ('["free"]', '["fre"]', r"sets\.lab-faces\.status: expected a list of free, "),
    ('["free"]', '"free"', r"sets\.lab-faces\.status: expected a list of free, "),
    ('["free"]', '[["free"]]', r"sets\.lab-faces\.status: expected a list of free, "),
    ('"http"', '"ftp"', r"sets\.lab-faces\.sources\[0\]\.kind: expected one of http"),
    ('"http"', '["http"]', r"sets\.lab-faces\.sources\[0\]\.kind: expected one of http"),
    ('kind = "http"', "", r"sets\.lab-faces\.sources\[0\]: has no 'kind'"),
    ('"labels.txt"', '"../labels.txt"', r"sets\.lab-faces\.downloads\[1\]\.name: expected the name of a file"),
    ('"labels.txt"', '"faces.tar"', r"sets\.lab-faces: downloads: 'faces\.tar' is listed twice"),
    ("faces/", "faces", r"sets\.lab-faces: .*one address for 2 downloads: say with 'file'"),
    ('faces/"', 'faces/"\nfile = "x"', r"sets\.lab-faces: a source has the file 'x', but"),
    ('title = "F', 'titel = "F', r"sets\.lab-faces\.titel: unknown key; did you mean 'title'"),
    ('title = "F', '"\\u001b[31m" = 1\ntitle = "F', r"sets\.lab-faces\..*\[31m: unknown key"),
    ('title = "Faces of our lab"', "", r"sets\.lab-faces: has no 'title'"),
    ('"Faces of our lab"', f'["{"x" * 100_000}"]', r"sets\.lab-faces\.title: expected a line of text, found \['xxx"),
    ('status = ["free"]', "sources = 3", r"sets\.lab-faces\.sources: expected an array of tables|is not TOML"),
    ("schema = 1", "schema = 2", r"schema: is 2, but this facedata reads 1"),
    ("\n[sets.lab", "\n[set.lab", r"set: unknown key; did you mean 'sets'"),
    ("sets.lab-faces]", 'sets."lab faces"]', r"sets\.lab faces: a name may only have letters|unknown"),
    ('url = "http://', 'url = "file://', r"sets\.lab-faces\.sources\[0\]\.url: expected a URL"),
    ('url = "http://mirror.lab/', 'url = "magnet:?', r"sources\[0\]\.url: .*'http' needs an http"),
    ('url = "', 'id = "', r"sets\.lab-faces\.sources\[0\]\.id: expected an id of Google Drive"),
    ('url = "http://mirror.lab/faces/"', "", r"sources\[0\]: a source of the kind 'http' has no 'url'"),
    ('["free"]', "[", r"is not TOML: .*line"),
    ("[sets", "\udcff[sets", "expected UTF-8"),
    ('["free"]', '["free"]\nlayout = "folder"', "needs the key 'folder'"),
    ("labels.txt", "provenance.json", "is the name of facedata's own record"),
    ('labels.txt"', 'b"\nplace = "faces.tar/b"', "'faces.tar' would be both a file and a folder"),
    ('labels.txt"', 'b"\nplace = "faces.tar"', "two of them would be 'faces.tar'"),
    ("schema = 1", "a = " + "[" * 100_000, "is not a catalogue"),
    ("schema = 1", "a = " + "9" * 5000, "is not a catalogue"),
    ("schema = 1", "a." * 50_000 + "a = 1", r"line \d has more than 1,000 dots"),  # gigabytes
]


@pytest.mark.parametrize(("old", "new", "said"), CHANGES, ids=[said for *_, said in CHANGES])
def test_what_is_wrong_in_a_file_is_said_on_one_short_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in OWN
    with pytest.raises(CatalogueError) as caught:
        load(tmp_path, OWN.replace(old, new, 1))
    message = str(caught.value)
    assert re.search(said, message), message
    assert "own.toml: " in message
    assert message.isprintable()
    assert len(message) < 1000
