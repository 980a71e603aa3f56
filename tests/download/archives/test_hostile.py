from __future__ import annotations

import gzip
import json
import logging
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from archive_support import Content, StopAfter, tar_bytes, write_tar, zip_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import peak_bytes, tree, write_tree

from facedata.download.archives import Extraction, extract, extract_archive, group_archives, reading
from facedata.download.archives.staging import safe_name
from facedata.errors import (
    ArchiveError,
    DiskFullError,
    FacedataError,
    InterruptedJobError,
    OutputExistsError,
    UnsafeArchiveError,
)
from facedata.names import Folding

Unpack = Callable[..., Extraction]
OUT = Path("out")


HOSTILE: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "absolute": ("/tmp/facedata-evil", {}, "an absolute name"),
    "parent": ("../evil", {}, r"leads out of the folder"),
    "parent inside": ("a/../../evil", {}, r"leads out of the folder"),
    "empty": ("", {}, "an empty name"),
    "own": (".facedata-extracted-0.json", {}, "reserved by facedata"),
    "long": ("x" * 256, {}, "too long"),
    "deep": ("x/" * 1700 + "x", {}, "too long"),
    "nested": ("x/" * 1200 + "x", {}, "in more than 199 nested folders"),
    "nested folder": ("x/" * 1200, {"type": tarfile.DIRTYPE}, "in more than 199 nested folders"),
    "hard link": ("link", {"type": tarfile.LNKTYPE, "linkname": "good"}, "a hard link"),
    "symbolic link": ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "a symbolic link"),
    "character device": ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a character device"),
    "block device": ("sda", {"type": tarfile.BLKTYPE}, "a block device"),
    "fifo": ("fifo", {"type": tarfile.FIFOTYPE}, "a FIFO"),
    "sparse": ("hole", {"type": b"S"}, "a sparse file"),
    "again": ("./good", {"data": b"later"}, "has this name before"),
    "folder with data": (
        "folder/",
        {"data": b"lost", "type": tarfile.REGTYPE},
        "name of a folder, but 4 bytes of data",
    ),
    "unknown": ("what", {"type": b"Z", "data": b"?" * 600}, "of the unknown type"),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_member_is_refused_by_name(unpack: Unpack, case: str, caplog: pytest.LogCaptureFixture) -> None:
    name, fields, reason = HOSTILE[case]
    path = write_tar(Path("a.tar"), [("good", b"good"), (name, fields), ("after", b"too")])
    with caplog.at_level(logging.WARNING, "facedata"):
        extraction = unpack(path)
    assert tree(Path()) == {path.name: path.read_bytes(), "out/good": b"good", "out/after": b"too"}
    assert extraction.refused_count == 1
    assert reason in extraction.refused[0][1]
    assert reason in caplog.text
    assert extraction.refused_list is not None
    listed = [json.loads(line) for line in Path(extraction.refused_list).read_text().splitlines()]
    assert listed == [{"name": extraction.refused[0][0], "reason": extraction.refused[0][1]}]
    again = unpack(path)
    assert (again.done_before, again.refused) == (True, extraction.refused)


def test_a_file_and_a_folder_of_one_name_do_not_replace_each_other(unpack: Unpack) -> None:
    files = [(name, b"file") for name in ("a", "a/b", "d/x", "d")]
    extraction = unpack(write_tar(Path("a.tgz"), [*files, ("a", {"type": tarfile.DIRTYPE})]))
    assert tree(OUT) == {"a": b"file", "d/x": b"file"}
    assert [name for name, _ in extraction.refused] == ["a/b", "d", "a/"]


def test_a_zip_member_with_the_name_of_a_folder_but_data_is_refused(unpack: Unpack) -> None:
    by_mode = zipfile.ZipInfo("by mode")
    by_mode.create_system, by_mode.external_attr = 3, 0o40755 << 16
    Path("a.zip").write_bytes(
        zip_bytes(("d/", b""), ("e/", b"lost"), (by_mode, b"kept"), ("d/x", b"x"), ("d//x", b"y"))
    )
    extraction = unpack("a.zip")
    assert tree(OUT) == {"by mode": b"kept", "d/x": b"x"}
    reasons = ("the name of a folder, but 4 bytes of data", "the archive has this name before")
    assert extraction.refused == tuple(zip(("e/", "d//x"), reasons, strict=True))


@pytest.mark.parametrize("ending", ["tar", "tgz", "zip"])
def test_names_that_the_file_system_takes_for_one_are_refused_after_the_first(
    unpack: Unpack, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(extract, "name_folding", lambda _: Folding(case=True))
    names = ["Al/1", "al/2", "Al/3", "AL/", "b/x/1", "b/X/2", "c", "C", "al/4", "b/x/5"]
    members = [(name, b"" if name.endswith("/") else name.encode()) for name in names]
    if ending == "zip":
        Path("a.zip").write_bytes(zip_bytes(*members))
    else:
        write_tar(Path(f"a.{ending}"), members)
    stops, extraction = 0, None
    while extraction is None:  # a resumed run knows the names that came before
        try:
            extraction = unpack(f"a.{ending}", stop=StopAfter(7))
        except InterruptedJobError:
            stops += 1
    assert stops
    assert list(tree(OUT)) == ["Al/1", "Al/3", "b/x/1", "b/x/5", "c"]
    assert [name for name, _ in extraction.refused] == ["al/2", "AL/", "b/X/2", "C", "al/4"]
    assert {reason for _, reason in extraction.refused} == {
        "the archive has this name before, and the file system of the output ignores case"
    }
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **how: lstat(str(path).replace("/AL", "/Al"), **how))
    path = write_tar(Path("other.tar"), [("Al/8", b""), ("AL/9", b"")])
    with pytest.raises(OutputExistsError, match="out/AL: exists in other letters, and this file system ignores case"):
        unpack(path)


def test_links_in_the_archive_or_the_output_are_not_followed(tmp_path: Path, unpack: Unpack) -> None:
    outside = write_tree(tmp_path / "outside", {"mine": "mine"})
    OUT.mkdir()
    (OUT / "link").symlink_to(outside)
    (OUT / "file").symlink_to(outside / "mine")
    archived_link = {"type": tarfile.SYMTYPE, "linkname": str(outside)}
    evil: list[tuple[str, Content]] = [("link/a", b"evil"), ("link/b/c", b"evil"), ("new", archived_link)]
    evil.append(("link", {"type": tarfile.DIRTYPE}))
    path = write_tar(Path("a.tgz"), [*evil, ("new/a", b"inside"), ("file", b"new"), ("d", b"")])
    extraction = unpack(path, overwrite=True)
    assert tree(outside) == {"mine": b"mine"}
    assert (OUT / "new/a").read_bytes() == b"inside"
    assert (OUT / "file").read_bytes() == b"new"
    assert [name for name, _ in extraction.refused] == ["link/a", "link/b/c", "new", "link/"]


def test_the_archive_itself_is_not_written_over(unpack: Unpack) -> None:
    path = write_tar(Path("a.tgz"), [("a.tgz", b"evil"), ("b", b"")])
    before = path.read_bytes()
    extraction = unpack(path, output=".", overwrite=True)
    assert path.read_bytes() == before
    assert extraction.refused == (("a.tgz", "the name of the archive that is being unpacked"),)


def test_many_refused_members_are_listed_and_few_are_logged(unpack: Unpack, caplog: pytest.LogCaptureFixture) -> None:
    extraction = unpack(write_tar(Path("a.tgz"), [(f"../{number}", b"") for number in range(300)]))
    assert (extraction.refused_count, len(extraction.refused)) == (300, 100)
    assert len(Path(extraction.refused_list or "").read_text().splitlines()) == 300
    assert len(caplog.records) < 10


def test_no_file_gets_rights_that_a_user_did_not_give(unpack: Unpack) -> None:
    members = [("run", {"mode": 0o6777, "data": b""}), ("secret", {"mode": 0, "data": b""})]
    unpack(write_tar(Path("a.tgz"), [*members, ("old", {"mtime": -5}), ("late", {"mtime": 1 << 60})]))
    mask = os.umask(0)
    os.umask(mask)
    assert (OUT / "run").stat().st_mode & 0o7777 == 0o777 & ~mask
    assert (OUT / "secret").stat().st_mode & 0o7777 == 0o666 & ~mask
    assert (OUT / "late").stat().st_mtime <= 1 << 32


def header_of_size(size: bytes, **fields: Any) -> bytes:
    """A tar header with another size field."""
    header = bytearray(tar_bytes([("large", fields)])[:512])
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_long_name_of_gigabytes_does_not_fill_the_memory(unpack: Unpack) -> None:
    path = Path("a.tgz")
    path.write_bytes(gzip.compress(header_of_size(b"77777777777\0", type=b"L") + bytes(50_000_000), 1))

    def call() -> None:
        with pytest.raises(ArchiveError, match="extended header of 8589934591 bytes"):
            unpack(path)

    assert peak_bytes(call) < 40_000_000  # what is inflated ahead takes 24 MiB at most


def test_a_bomb_is_stopped_by_its_ratio(unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RATIO_FROM", 1 << 22)
    path = write_tar(Path("a.tgz"), [("small", b"1"), ("zeros", bytes(100_000_000))])
    Path("a.zip").write_bytes(zip_bytes(("zeros2", bytes(20_000_000))))
    for bomb in (path, Path("a.zip")):
        with pytest.raises(UnsafeArchiveError, match=rf"{bomb.name}: \d+ bytes unpack to \d+ bytes.*--max-ratio"):
            unpack(bomb)
        assert os.listdir(OUT) == [".facedata-extract-lock"]
    assert peak_bytes(lambda: unpack(path, max_ratio=2000)) < 40_000_000
    assert (OUT / "zeros").stat().st_size == 100_000_000


def test_more_than_the_disk_has_is_refused_before_it_is_written(unpack: Unpack) -> None:
    header = header_of_size(b"\x80" + (1 << 50).to_bytes(11, "big"))
    Path("a.tgz").write_bytes(gzip.compress(header + bytes(10_000)))
    with pytest.raises(DiskFullError, match=f"'large' needs {1 << 50:,} bytes, but .* are free"):
        unpack("a.tgz")


def unix_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def changed(data: bytes, *changes: tuple[bytes, int, bytes]) -> bytes:
    """The bytes with some replaced, at an offset from the last place of a magic."""
    content = bytearray(data)
    for magic, place, value in changes:
        at = content.rindex(magic) + place
        content[at : at + len(value)] = value
    return bytes(content)


LOCAL, ENTRY, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
Changes = list[tuple[bytes, int, bytes]]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("../evil", [], "leads out of the folder"),
        ("/evil", [], "an absolute name"),
        (unix_info("link", 0o120777), [], "a symbolic link"),
        ("..\\evil", [(ENTRY, 5, b"\0")], "leads out of the folder"),  # made on MS-DOS, where \\ separates folders
        ("secret", [(LOCAL, 6, b"\1"), (ENTRY, 8, b"\1")], "encrypted"),
        ("packed", [(ENTRY, 10, b"\x0c")], r"method 12 (bzip2)"),
    ],
)
def test_hostile_encrypted_and_strangely_packed_members_of_a_zip_are_refused(
    unpack: Unpack, name: str | zipfile.ZipInfo, changes: Changes, reason: str
) -> None:
    Path("a.zip").write_bytes(changed(zip_bytes(("good", b"good"), (name, b"evil")), *changes))
    extraction = unpack("a.zip")
    assert tree(OUT) == {"good": b"good"}
    assert reason in extraction.refused[0][1]


def test_a_member_with_the_mode_of_a_folder_and_data_is_a_file(unpack: Unpack) -> None:
    members = [(unix_info("file", 0o040755), b"data"), (unix_info("folder", 0o040755), b"")]
    Path("a.zip").write_bytes(zip_bytes(*members))
    assert unpack("a.zip").folders == 1
    assert tree(OUT) == {"file": b"data"}


def test_a_name_in_the_code_page_of_old_programs(unpack: Unpack) -> None:
    data = zip_bytes(("name", b"data"))
    Path("a.zip").write_bytes(changed(data, (LOCAL, 30, b"\x84"), (ENTRY, 46, b"\x84")))
    unpack("a.zip")
    assert tree(OUT) == {"äame": b"data"}


def test_members_over_each_other_are_a_bomb(unpack: Unpack) -> None:
    data = zip_bytes(("a", b"a" * 1000), ("b", b"b" * 1000))
    Path("a.zip").write_bytes(changed(data, (ENTRY, 42, bytes(4))))  # both entries point to the first member
    with pytest.raises(UnsafeArchiveError, match="overlap"):
        unpack("a.zip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(ENTRY, 0, b"XX")], "the zip directory is damaged"),
        ([(ENTRY, 28, b"\xff\xff")], "the zip directory is damaged"),
        ([(ENTRY, 20, b"\xff\xff")], "would end at byte .* in the directory"),
        ([(END, 10, b"\x07\x00")], "has 1 entries but declares 7"),
        ([(END, 16, b"\xff\xff")], "so many bytes are missing"),
        ([(LOCAL, 8, b"\x00\x00")], "its header contradicts the directory"),
        ([(LOCAL, 0, b"PK\x03\x05")], "is not a tar, gzip or zip file"),
        ([(LOCAL, 30, b"bbbb")], "its header is missing or has another name"),
        ([(ENTRY, 24, b"\x0a\0"), (ENTRY, 16, zlib.crc32(bytes(10)).to_bytes(4, "little"))], "expected 10 bytes"),
    ],
)
def test_a_zip_that_contradicts_itself_is_an_error(unpack: Unpack, changes: Changes, message: str) -> None:
    Path("a.zip").write_bytes(changed(zip_bytes(("aaaa", bytes(1000))), *changes))
    with pytest.raises(ArchiveError, match=message):
        unpack("a.zip")


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_changed_is_an_error_of_ours_or_none(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["tar", "tgz", "zip"]))
    members = [("a/b.jpg", b"jpeg" * 50), ("ü" * 60, b"long"), ("c", b"")]
    if kind == "zip":
        content = bytearray(zip_bytes(*members))
    else:
        content = bytearray(tar_bytes(members, data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = folder / f"a.{kind}"
    path.write_bytes(gzip.compress(bytes(content)) if kind == "tgz" else bytes(content))
    with suppress(FacedataError):
        extract_archive(group_archives([path])[0], folder / "out")
    assert {entry.name for entry in folder.iterdir()} <= {path.name, "out"}


@given(st.text(max_size=40))
def test_a_safe_name_stays_below_its_folder(name: str) -> None:
    path, reason = safe_name(name)
    if not reason:
        joined = os.path.normpath(os.path.join("/out", path))
        assert joined == "/out" or joined.startswith("/out/")
        assert not path.startswith("/")
        assert "\0" not in path
