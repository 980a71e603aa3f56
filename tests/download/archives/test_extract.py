from __future__ import annotations

import gzip
import hashlib
import os
import random
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_support import StopAfter, split, tar_bytes, visible, write_tar, zip_bytes, zip_with_raw_names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tree, write_tree

from facedata.download.archives import Extraction, extract_archive, group_archives
from facedata.errors import ArchiveError, InterruptedJobError, OutputExistsError, OutputLockedError
from facedata.files import open_locked

Unpack = Callable[..., Extraction]
OUT, TGZ = Path("out"), Path("a.tgz")


def noise(seed: int, size: int = 3000) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def folder(unpack: Unpack) -> Path:
    """A folder with what datasets have in them."""
    images = {f"set/id_0/{number}.jpg": noise(number, number * 100) for number in range(40)}
    texts = {"set/train.rec": noise(0, 3_000_000) + bytes(2_000_000), "set/bild äöü.txt": b"", "set/run.sh": b"#!"}
    folder = write_tree(Path("in"), images | texts)
    (folder / "set/empty").mkdir()
    (folder / "set/run.sh").chmod(0o755)
    os.utime(folder / "set/train.rec", (1_400_000_000, 1_400_000_000))
    return folder


def facts(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and bytes of each file."""
    status = {name: (folder / name).stat() for name in tree(folder)}
    return {name: (status[name].st_mode, int(status[name].st_mtime), data) for name, data in tree(folder).items()}


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("tar --format=gnu -czf a.tar.gz -C in set", 3),
        ("tar --format=pax -czf a.tar.gz -C in set", 1),
        ("tar --format=ustar -cf a.tar -C in set", 3),
        ("tar --format=oldgnu -cf a.tar -C in set", 1),
        ("tar --format=v7 -cf a.tar -C in set", 1),
        ("cd in && zip -qr ../a.zip set", 1),
        ("cd in && zip -qr -0 ../a.zip set", 3),
        ("cd in && zip -qr -fz ../a.zip set", 1),
        ("cd in && zip -qr -fd ../a.zip set", 3),
        ("cd in && zip -qr -s 1m ../a.zip set", 1),
    ],
)
def test_it_unpacks_what_tar_and_zip_packed(folder: Path, unpack: Unpack, command: str, parts: int) -> None:
    subprocess.run(command, shell=True, check=True)
    paths = list(Path().glob("a.*"))
    extraction = unpack(*(split(paths[0], parts, "{name}.{number:03d}") if parts > 1 else paths))
    assert facts(OUT) == facts(folder)
    assert (OUT / "set/empty").is_dir()
    assert (extraction.files, extraction.top_level, extraction.refused_count) == (43, ("set",), 0)
    assert extraction.bytes == sum(map(len, tree(OUT).values()))


def test_it_unpacks_what_python_zipped(unpack: Unpack) -> None:
    path = Path("a.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", b"text" * 1000)
        archive.writestr("ä.txt", b"")
        with archive.open("streamed.bin", "w", force_zip64=True) as file:
            file.write(bytes(100_000))
        archive.comment = b"PK\x05\x06 is not the end"
    unpack(path)
    assert tree(OUT) == {"a/b.txt": b"text" * 1000, "ä.txt": b"", "streamed.bin": bytes(100_000)}
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with pytest.raises(ArchiveError):  # a program before the archive hides its beginning
        group_archives([path])


NAMES = st.from_regex(r"[a-zé]{1,12}(/[a-z ]{1,60}){0,3}", fullmatch=True)


@given(
    data=st.lists(st.tuples(NAMES, st.binary(max_size=2000)), max_size=8),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    cuts=st.integers(1, 5),
    members=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_archives_of_any_members_come_out_as_python_has_them(
    tmp_path: Path, data: list[tuple[str, bytes]], form: int, cuts: int, members: int
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    whole = tar_bytes(data, form)
    step = -(-len(whole) // members)
    path = folder / "a.tgz"
    path.write_bytes(b"".join(gzip.compress(whole[at : at + step], 1) for at in range(0, len(whole), step)))
    (archive,) = group_archives(split(path, cuts))
    extraction = extract_archive(archive, folder / "out")
    expected: dict[str, bytes] = {}
    folders: set[str] = set()
    for name, content in data:  # the first of a file and a folder stays, and of two files
        parents = {name[:at] for at, letter in enumerate(name) if letter == "/"}
        if name in folders or {name, *parents} & expected.keys():
            continue
        expected[name] = content
        folders |= parents
    assert tree(folder / "out") == expected
    again = sum(expected.get(name) == content for name, content in data) - len(expected)  # the same bytes
    assert extraction.files + extraction.refused_count == len(data) - again


def test_members_are_hashed_while_they_are_written(folder: Path, unpack: Unpack) -> None:
    subprocess.run(["tar", "-czf", TGZ, "-C", folder, "set"], check=True)
    asked: list[str] = []

    def digests(name: str) -> str | None:
        asked.append(name)
        return "md5" if name.endswith(".rec") else None

    md5 = hashlib.md5((folder / "set/train.rec").read_bytes()).hexdigest()
    for _ in range(2):
        found = unpack(TGZ, digests=digests).digests
        assert {name: str(digest) for name, digest in found.items()} == {"set/train.rec": f"md5 {md5}"}
        assert len(asked) == 43


def test_a_second_run_does_nothing(unpack: Unpack) -> None:
    path = write_tar(TGZ, [("set/a", b"1"), ("b", b"2")])
    assert not unpack(path).done_before
    time = (OUT / "set").stat().st_mtime_ns
    again = unpack(path.rename("renamed.tgz"))
    assert (again.done_before, again.files, again.top_level) == (True, 2, ("set", "b"))
    assert (OUT / "set").stat().st_mtime_ns == time
    (OUT / "b").unlink()
    with pytest.raises(OutputExistsError, match="set/a: already exists"):
        unpack("renamed.tgz")
    assert not unpack("renamed.tgz", overwrite=True).done_before
    assert tree(OUT) == {"set/a": b"1", "b": b"2"}


def test_what_is_there_is_merged_but_not_replaced(unpack: Unpack) -> None:
    path = write_tar(TGZ, [("set/a", b"new"), ("set/sub/b", b"new"), ("top", b"new")])
    write_tree(OUT, {"set/mine": "mine", "set/sub/mine": "mine"})
    unpack(path)
    everything = {**dict.fromkeys(["set/a", "set/sub/b", "top"], b"new"), "set/mine": b"mine", "set/sub/mine": b"mine"}
    assert tree(OUT) == everything
    (OUT / "set/a").write_bytes(b"mine too")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        unpack(path)
    assert (OUT / "set/a").read_bytes() == b"mine too"
    unpack(path, overwrite=True)
    assert tree(OUT) == everything
    assert [path.name for path in OUT.glob(".facedata-extract-*")] == [".facedata-extract-lock"]


def test_files_and_folders_do_not_replace_each_other(unpack: Unpack) -> None:
    path = write_tar(TGZ, [("set/a", b"new")])
    (OUT / "set/a").mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="is a folder"):
        unpack(path, overwrite=True)
    (OUT / "set").rename(OUT / "moved")
    (OUT / "set").write_bytes(b"a file")
    with pytest.raises(OutputExistsError, match="is a file"):
        unpack(path, overwrite=True)
    assert (OUT / "set").read_bytes() == b"a file"


def test_a_file_that_appears_meanwhile_is_kept(unpack: Unpack) -> None:
    path = write_tar(TGZ, [("a", b"new"), ("b", b"new")])

    def appear(name: str) -> None:
        (OUT / "a").write_bytes(b"foreign")

    with pytest.raises(OutputExistsError, match="a: appeared while"):
        unpack(path, digests=appear)
    assert (OUT / "a").read_bytes() == b"foreign"
    (OUT / "a").unlink()
    unpack(path)
    assert tree(OUT) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize(("ending", "parts"), [("tar", 1), ("tar.gz", 4), ("zip", 1), ("zip", 4)])
def test_a_truncated_archive_is_named_by_file_and_byte(folder: Path, unpack: Unpack, parts: int, ending: str) -> None:
    command = "zip -qr" if ending == "zip" else "tar -caf"
    subprocess.run([*command.split(), f"../a.{ending}", "set"], cwd=folder, check=True)
    paths = split(Path(f"a.{ending}"), parts) if parts > 1 else [Path(f"a.{ending}")]
    size = paths[-1].stat().st_size - 10_300
    os.truncate(paths[-1], size)
    with pytest.raises(ArchiveError) as caught:
        unpack(*paths)
    assert f"{paths[-1]}: ends early, at byte {size}" in str(caught.value)
    assert ("a later part may be missing" in str(caught.value)) == (parts > 1)
    assert os.listdir(OUT) == [".facedata-extract-lock"]


def test_every_truncation_of_a_small_archive_is_an_error(unpack: Unpack) -> None:
    whole = gzip.compress(tar_bytes([("a", b"1" * 700), ("b", b"2")]))
    for length in range(30, len(whole), 3):
        TGZ.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            unpack(TGZ)
    assert tree(OUT) == {}


def test_damage_is_reported_by_part_and_byte(folder: Path, unpack: Unpack) -> None:
    subprocess.run(["tar", "-czf", TGZ, "-C", folder, "set/train.rec"], check=True)
    whole = TGZ.read_bytes()
    for at in random.Random(1).sample(range(1000, len(whole) - 8), 5):
        TGZ.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        parts = split(TGZ, 3)
        with pytest.raises(ArchiveError, match=r"byte \d+ of .*a\.tgz_0\d \(byte \d+ of all parts\)"):
            unpack(*parts)
    assert tree(OUT) == {}


def test_damage_in_an_uncompressed_archive_is_reported_by_its_byte_or_member(unpack: Unpack) -> None:
    data = bytearray(tar_bytes([("a", bytes(5000)), ("b", b"")]))
    data[512 + 5120 + 3] ^= 1
    Path("a.tar").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"byte 5632 of .*a.tar.*checksum is wrong"):
        unpack("a.tar")
    data = bytearray(zip_bytes(("good", b"good" * 100), ("bad", b"b" * 1000), form=zipfile.ZIP_STORED))
    data[data.index(b"bbbb") + 9] = 0
    Path("b.zip").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"byte \d+ of .*b\.zip\.000 .*the member 'bad' of b.zip.*CRC-32"):
        unpack(*split(Path("b.zip"), 2, "{name}.{number:03d}"))
    assert tree(OUT) == {}


def test_what_comes_after_the_end_is_ignored(unpack: Unpack, caplog: pytest.LogCaptureFixture) -> None:
    for name, more, message in [
        ("a.tgz", bytes(5000), ""),
        ("b.tgz", b"garbage" * 10, "ignored the data after the end of the gzip data"),
        ("c.tar", b"old tape", "ignored the data after the end mark"),
    ]:
        path = write_tar(Path(name), [(f"in {name}", b"1")])
        path.write_bytes(path.read_bytes() + more)
        unpack(path)
        assert message in caplog.text
        assert bool(message) == bool(caplog.text)


def test_what_follows_zeros_is_not_lost_silently(unpack: Unpack) -> None:
    data = tar_bytes([(f"{number}", noise(number)) for number in range(99)])
    hole = data[: 5 * 3584] + bytes(5000) + data[5 * 3584 + 5000 :]  # as a download leaves that makes the whole file
    beginning = bytes(4096)
    contents = {
        "joined.tar": data + data,
        "hole.tar": hole,
        "no-header.tar": data + b"x" * 90000,
        "joined.tgz": gzip.compress(data + data),
        "beginning.tgz": beginning + gzip.compress(data)[4096:],
        "beginning.zip": beginning + zip_bytes(("a", data))[4096:],
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
        place = {"joined.tgz": r"byte \d+ unpacked "}.get(name, "byte 0 of .*" if "beginning" in name else "")
        with pytest.raises(ArchiveError, match=f"{place}there are zeros, as at the end .* but more than zeros follows"):
            unpack(name)
    assert tree(OUT) == {}


@pytest.mark.parametrize("cut", [3584 * 2, 3584 * 2 + 700])
def test_a_damaged_header_of_a_second_gzip_member_is_no_end(unpack: Unpack, cut: int) -> None:
    data = tar_bytes([(f"{number}", noise(number)) for number in range(5)])
    first, second = gzip.compress(data[:cut]), bytearray(gzip.compress(data[cut:]))
    second[0] ^= 1
    TGZ.write_bytes(first + second)
    with pytest.raises(ArchiveError, match=f"byte {len(first)} of .*a.tgz: the gzip data ends here, but the tar "):
        unpack(TGZ)


def test_a_gzip_file_of_very_many_members_needs_time_for_each_only_once(unpack: Unpack) -> None:
    named = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 60000 + b"\0" + gzip.compress(b"")[10:]
    data = tar_bytes([("a", b"1")])
    TGZ.write_bytes(gzip.compress(data[:512]) + named * 400 + gzip.compress(data[512:]))
    unpack(TGZ)  # with the square of their number it would not end in the time that a test has
    assert tree(OUT) == {"a": b"1"}


def test_it_stops_soon_where_nothing_is_written(unpack: Unpack) -> None:
    strange = tarfile.TarInfo("strange")
    strange.type, strange.size = b"Z", 60 << 20  # passed over, as all before a resumed run's mark is
    TGZ.write_bytes(gzip.compress(strange.tobuf() + bytes(60 << 20) + bytes(1024), 1))
    with pytest.raises(InterruptedJobError):
        unpack(TGZ, stop=StopAfter(10))


def test_a_second_run_at_once_is_refused(unpack: Unpack) -> None:
    path = write_tar(TGZ, [("a", b"1")])
    OUT.mkdir()
    descriptor = open_locked(OUT / ".facedata-extract-lock")
    with pytest.raises(OutputLockedError, match="another run"):
        unpack(path)
    os.close(descriptor)
    unpack(path)


def test_a_tar_archive_that_was_repaired_is_not_taken_for_done(unpack: Unpack) -> None:
    """Nothing in it proves its data, so that the damaged one is unpacked, and looks like it at a glance."""
    content = noise(1, 4_000_000)
    path = write_tar(Path("a.tar"), [("a", bytes(1) + content[1:])])
    unpack(path)
    assert unpack(path).done_before
    path.unlink()
    write_tar(path, [("a", content)])
    with pytest.raises(OutputExistsError, match="--overwrite"):
        unpack(path)
    assert not unpack(path, overwrite=True).done_before
    assert (OUT / "a").read_bytes() == content


def test_unusual_members_and_headers(unpack: Unpack) -> None:
    long_name = "/".join(["folder-with-a-long-name"] * 8) + "/and-a-long-name.jpg"
    # the first of two members of one name stays; a file whose name ends in a slash is a folder without data
    members = [
        ("a", b"first, longer"),
        (long_name, b"2" * 5000),
        ("d/", b""),
        ("./a", b"last"),
        ("a", b"first"),
        ("a", b"first, longer"),
    ]
    body = gzip.compress(tar_bytes(members, tarfile.USTAR_FORMAT))
    header = body[:3] + b"\x1e" + body[4:10] + b"\x04\x00abcd" + b"name.tar\0" + b"comment\0"  # all its fields
    TGZ.write_bytes(header + (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") + body[10:])
    done = unpack(TGZ)
    assert (done.folders, done.files, done.refused_count) == (1, 2, 2)  # the same bytes again are no loss
    assert tree(OUT) == {"a": b"first, longer", long_name: b"2" * 5000}
    damaged = bytearray(TGZ.read_bytes())
    damaged[-8] ^= 1
    TGZ.write_bytes(damaged)
    with pytest.raises(ArchiveError, match=r"CRC-32 or number is not the one recorded.*verify-md5"):
        unpack(TGZ, output="other")


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("gbk", "张三/照片1.jpg 李四/照片2.jpg"),
        ("gbk", "人脸/王小明/0001.jpg 人脸/刘德华/0002.jpg"),
        ("big5", "人臉/王小明/0001.jpg 人臉/劉德華/0002.jpg"),
        ("cp932", "写真/田中さん.jpg 表/山田太郎.jpg"),
        ("cp932", "カメラ/1.jpg"),
        ("cp949", "사진/김철수.jpg 얼굴/이영희.jpg"),
        ("cp866", "Фото/Иванов.jpg"),
        ("cp1251", "Фото/Иванов.jpg"),
        ("cp437", "Müller/1.jpg"),
        ("cp1252", "José/Ångström.jpg"),
        ("utf-8", "张三/José.jpg"),
    ],
)
def test_the_encoding_of_names_in_a_zip_is_guessed_and_said(
    unpack: Unpack, caplog: pytest.LogCaptureFixture, encoding: str, names: str
) -> None:
    path = Path("a.zip")
    path.write_bytes(zip_with_raw_names(*(name.encode(encoding) for name in names.split())))
    unpack(path)
    assert sorted(visible(OUT)) == sorted(names.split())
    assert ("(a guess)" in caplog.text) == (encoding != "utf-8")


def test_the_copy_of_a_name_in_utf8_counts(unpack: Unpack, caplog: pytest.LogCaptureFixture) -> None:
    raw, name = "张三".encode("gbk"), "张三"
    copy = struct.pack("<HHBI", 0x7075, 5 + len(name.encode()), 1, zlib.crc32(raw)) + name.encode()
    member = zipfile.ZipInfo("AAAA")
    member.extra = copy
    path = Path("a.zip")
    path.write_bytes(zip_bytes((member, b"")).replace(b"AAAA", raw))
    assert (unpack(path, encoding="cp866").top_level, caplog.text) == ((name,), "")


def test_an_encoding_that_is_named_counts(unpack: Unpack, caplog: pytest.LogCaptureFixture) -> None:
    path = Path("a.zip")
    path.write_bytes(zip_with_raw_names("脸".encode("gbk"), "É".encode("latin-1"), "联想".encode("gbk")))
    unpack(path)
    assert "3 names are not in UTF-8; read as cp437 for want of a better guess, as in '" in caplog.text
    assert sorted(unpack(path, encoding="gbk", output="other").top_level) == ["╔", "联想", "脸"]
    assert "1 name is not in gbk" in caplog.text
