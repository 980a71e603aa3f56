from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.download.archives import group_archives
from facedata.download.archives.parts import parse_part_name
from facedata.errors import ArchiveError, InputError, InputNotFoundError, OptionError

TAR = bytes(1024)  # an empty archive
BEGIN = gzip.compress(TAR, mtime=0)
MORE = b"any bytes"


def lay(folder: Path, *names: str) -> list[Path]:
    """Files of these names: the first begins an archive, the others go on."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.write_bytes(MORE if number else BEGIN)
    return paths


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["glint360k_00", "glint360k_01", "glint360k_02"], "glint360k"),
        (["glint360k00", "glint360k01", "glint360k02"], "glint360k"),
        ([f"g_{number:02d}" for number in range(12)], "g"),
        (["x.tar.gz.000", "x.tar.gz.001", "x.tar.gz.002"], "x.tar.gz"),
        (["x.001", "x.002", "x.003"], "x"),
        (["x.part1", "x.part2", "x.part3"], "x"),
        (["xaa", "xab", "xac"], "x"),
        (["data.tar.gz.00", "data.tar.gz.01", "data.tar.gz.02"], "data.tar.gz"),
        (["x.part1.tar.gz", "x.part2.tar.gz", "x.part3.tar.gz"], "x.tar.gz"),
        (["x.tar.gz.part1", "x.tar.gz.part2", "x.tar.gz.part3"], "x.tar.gz"),
        ([f"x{number}" for number in range(1, 12)], "x"),
    ],
)
def test_parts_are_found_in_any_order_and_a_missing_one_is_named(tmp_path: Path, names: list[str], name: str) -> None:
    paths = lay(tmp_path, *names)
    (archive,) = group_archives(random.Random(0).sample(paths, len(paths)))
    assert archive.parts == tuple(paths)
    assert (archive.name, archive.kind) == (name, "tar.gz")
    assert archive.size == sum(path.stat().st_size for path in paths)
    for gone in paths[:-1]:
        gone.rename(tmp_path / "elsewhere")
        with pytest.raises(InputNotFoundError, match=f": {gone.name} is missing.*nothing was unpacked"):
            group_archives([path for path in paths if path != gone])
        (tmp_path / "elsewhere").rename(gone)


def test_parts_that_are_missing_not_given_or_given_twice(tmp_path: Path) -> None:
    paths = lay(tmp_path, "g_00", "g_01", "g_02", "g_04")
    for given_ones in (paths[:1], paths[1:2], paths[:2]):
        with pytest.raises(OptionError, match=r"is one of 3 parts.*give all parts"):
            group_archives(given_ones)
    assert group_archives(paths[:3])[0].parts == tuple(paths[:3])
    with pytest.raises(InputNotFoundError, match="g_03 is missing"):
        group_archives(paths[:3], expected=["other.zip", "g_00", "g_01", "g_02", "g_03"])
    with pytest.raises(InputNotFoundError, match="h_10 is missing"):
        group_archives(lay(tmp_path, "h_08", "h_09", "h_11"))
    with pytest.raises(OptionError, match="g_01: is given twice"):
        group_archives([*paths[:3], tmp_path / "." / "g_01"])


def test_parts_in_two_folders(tmp_path: Path) -> None:
    first, second = lay(tmp_path, "g_00", "g_01")
    (tmp_path / "b").mkdir()
    (copy,) = lay(tmp_path / "b", "g_01")
    assert len(group_archives([first, second, copy])) == 2  # it begins an archive of its own
    moved = second.replace(copy)
    assert group_archives([moved, first])[0].parts == (first, moved)


def test_whole_archives_are_apart(tmp_path: Path) -> None:
    names = ["set1.tar", "set2.tar", "b.tgz", "photos_1.zip", "run_1", "run_2", "xaa"]
    contents = [TAR, TAR, BEGIN, b"PK\x05\x06" + bytes(18), TAR, TAR, BEGIN]
    paths = [tmp_path / name for name in names]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    archives = group_archives(paths)
    assert [archive.parts for archive in archives] == [(path,) for path in paths]
    assert [archive.kind for archive in archives] == ["tar", "tar", "tar.gz", "zip", "tar", "tar", "tar.gz"]


def test_a_part_that_begins_with_a_header_by_chance_is_a_part(tmp_path: Path) -> None:
    header = bytearray(512)
    header[0:1], header[148:156] = b"x", b"000730\0 "
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    (tmp_path / "d_00").write_bytes(bytes(header) + b"abc".ljust(512))
    (tmp_path / "d_01").write_bytes(bytes(header))
    assert len(group_archives([tmp_path / "d_00", tmp_path / "d_01"])) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html><title>Quota exceeded</title>", "found a web page .'Quota exceeded'"),
        (b"", "found an empty file"),
        (b"\xfd7zXZ\x00....", "xz -dc"),
        (b"7z\xbc\xaf\x27\x1c...", "7z x"),
        (gzip.compress(b"one file" * 100, mtime=0), "found a gzip file; .*gzip -dc"),
        (b"\x0a\x23\xd7\xce" + bytes(600), "record file"),
        (b"nothing known" * 100, "is not a tar, gzip or zip file"),
    ],
)
@pytest.mark.parametrize("name", ["faces.zip", "faces_112x112.tar.gz", "glint_00"])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes, words: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=words):
        group_archives([path])


def test_files_that_cannot_be_parts_are_named(tmp_path: Path) -> None:
    paths = lay(tmp_path, "g_00", "g_01", "g_02")
    paths[1].write_text("<html>Sign in</html>")
    with pytest.raises(ArchiveError, match=r"g_01: .* found a web page"):
        group_archives(paths)
    os.mkfifo(tmp_path / "a.tar")
    cases = {"a.tar": "is a named pipe", ".": "is a folder; give the files of an archive", "none.zip": "no such file"}
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            group_archives([tmp_path / name])


@given(st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1, max_size=12))
def test_the_place_of_a_name_gives_the_name_back(name: str) -> None:
    place = parse_part_name(name)
    if place is not None and place.style != "zip":
        assert place.with_number(place.number) == name
