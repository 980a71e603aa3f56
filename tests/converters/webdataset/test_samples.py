"""Tars of every make are walked as `tarfile` reads them, and broken or hostile ones are refused by place."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from archive_support import tar_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from support import file_of, peak_bytes

from facedata.converters.webdataset.samples import TarReader, walk_members
from facedata.errors import FormatError, InputError, InputNotFoundError
from facedata.tar_format import end_of_archive, member_header, padding

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
ONE = tar_bytes({"a.jpg": b"data"})


def walk(data: bytes) -> list[tuple[str, bytes]]:
    """Name and data of every member of a tar."""
    with file_of(data, "x.tar") as path, TarReader(str(path)) as reader:
        return [(os.fsdecode(one.name), reader.take(one.offset, one.size)) for one in walk_members(reader)]


def refused(data: bytes) -> str:
    """The message with which the walk through a tar ends."""
    with pytest.raises(FormatError, match=r"^/.+/x\.tar: ") as caught:
        walk(data)
    return str(caught.value).partition("/x.tar: ")[2]


def with_header(data: bytes, at: int, place: int, field: bytes) -> bytes:
    """The tar with a field of the header at `at` replaced, and its checksum made to fit."""
    header = bytearray(data[at : at + 512])
    header[place : place + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/.\0"), min_size=1, max_size=60),
    min_size=1,
    max_size=6,
).map("/".join)


@settings(max_examples=30)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5), st.sampled_from(sorted(FORMATS)))
def test_what_tarfile_writes_is_read_alike(members: list[tuple[str, bytes]], make: str) -> None:
    if make == "ustar":
        members = [(name.encode().hex()[:90], data) for name, data in members]
    assert walk(tar_bytes(members, FORMATS[make])) == members


@pytest.mark.parametrize("make", FORMATS)
def test_long_names_are_read_in_every_format(make: str) -> None:
    for length in (99, 100, 101, 155, 200, 255):
        members = [(("folder/" * 40)[: length - 7] + "/a.jpg", b"data"), ("b.cls", b"1")]
        assert walk(tar_bytes(members, FORMATS[make])) == members


def test_unusual_headers_are_read() -> None:
    tars = [with_header(ONE, 0, 345, b"14000000000\0")]  # GNU numbers in the place of a prefix
    for size in (b"\x80" + bytes(10) + b"\x04", b"00000000004 ", b"          4\0", b"4\0" + bytes(10)):
        tars.append(with_header(ONE, 0, 124, size))
    version_7 = tar_bytes({"folder/": b"", "a.jpg": b"data"})
    for at in (0, 512):
        version_7 = with_header(with_header(version_7, at, 156, b"\0"), at, 257, bytes(255))
    pax = tar_bytes({"a.jpg": {"pax_headers": {"size": "4", "comment": "x" * 2000}}}, tarfile.PAX_FORMAT)
    begin = pax.index(b"a.jpg\0", 512) + 512
    for data in (*tars, version_7, pax[:begin] + b"data".ljust(512, b"\0") + pax[begin:]):
        assert walk(data) == [("a.jpg", b"data")]
    signed = bytearray(tar_bytes({"a\xe9.jpg": b"data"}))
    signed[148:156] = b" " * 8
    signed[148:156] = b"%06o\0 " % sum(struct.unpack("512b", signed[:512]))
    assert walk(bytes(signed)) == [("a\xe9.jpg", b"data")]


def test_global_headers_and_folders_are_skipped() -> None:
    skipped = {"g": {"type": b"g", "data": b"15 comment=all\n"}, "folder": {"type": tarfile.DIRTYPE}}
    assert walk(tar_bytes({**skipped, "folder/a.jpg": b"data"})) == [("folder/a.jpg", b"data")]


def test_members_larger_than_what_is_read_at_once() -> None:
    sizes = [5_000_000, 3, 100_000, 2_097_152, 1, 40_000, 600_000, 0, 7]
    members = [(f"{number}.jpg", random.Random(number).randbytes(size)) for number, size in enumerate(sizes)]
    assert walk(tar_bytes(members)) == members


# Cut, damaged


def test_a_cut_tar_is_refused_by_place_or_ends_after_a_whole_member(caplog: pytest.LogCaptureFixture) -> None:
    members = [(f"{number}.jpg", bytes([number]) * 700 * number) for number in range(4)]
    data = tar_bytes(members)
    whole = {512: 1, 512 + 1536: 2, 512 + 1536 + 2048: 3, 512 + 1536 + 2048 + 3072: 4}
    for cut in (513, 1023, 2049, *range(512, max(whole) + 1, 512)):
        if cut not in whole:
            message = refused(data[:cut])
            assert message.startswith(f"byte {max(start for start in whole if start < cut)}: ")
            assert "the file ends" in message
            assert message.endswith("it is truncated; fetch it again")
            continue
        caplog.clear()
        assert walk(data[:cut]) == members[: whole[cut]]
        assert "ends without the blocks of zeros that end an archive" in caplog.text


@settings(max_examples=40)
@given(st.integers(0, 512 * 8 - 1).filter(lambda bit: not 148 <= bit // 8 < 156))
def test_a_bit_that_flips_in_a_header_is_noticed(bit: int) -> None:
    data = bytearray(tar_bytes({"a.jpg": b"data", "b.jpg": b"data"}))
    data[1024 + bit // 8] ^= 1 << bit % 8
    assert refused(bytes(data)) == (
        "byte 1024: expected a member's header, but its checksum is wrong: bytes are damaged or lost; fetch it again"
    )


def test_other_files_and_compressed_tars_are_refused_with_what_to_do() -> None:
    assert refused(b"").startswith("is empty (0 bytes)")
    assert refused(b"\xff\xd8\xff\xe0" * 400).endswith("bytes are damaged or lost; this is not a tar")
    assert "this is not a tar" in refused(b"short")
    tar = tar_bytes({"a.jpg": random.Random(0).randbytes(9999)})
    compressed = {"gzip": gzip.compress(tar), "bzip2": bz2.compress(tar), "xz": lzma.compress(tar)}
    for method, data in {**compressed, "zstd": b"\x28\xb5\x2f\xfd" + bytes(600)}.items():
        message = refused(data)
        assert f"it is compressed ({method})" in message
        assert message.endswith("decompress it to a plain .tar first")


def test_data_after_the_end_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert walk(ONE + tar_bytes({"b.jpg": b"data"})) == [("a.jpg", b"data")]
    assert "the archive ends at byte 1024; the data from byte 10240 on is not read" in caplog.text


# Hostile


def test_members_that_are_not_files_are_refused_by_name_and_place() -> None:
    kinds = {
        tarfile.LNKTYPE: "a hard link",
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.CHRTYPE: "a character device",
        tarfile.BLKTYPE: "a block device",
        tarfile.FIFOTYPE: "a FIFO",
        tarfile.GNUTYPE_SPARSE: "a sparse file",
        b"M": "of the type b'M'",
    }
    for kind, what in kinds.items():
        message = refused(tar_bytes({"a.jpg": b"data", "evil.jpg": {"type": kind}}))
        assert message.startswith(f"byte 1024: the member 'evil.jpg' is {what}; only regular files are read")
        assert "--dereference" in message
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg"}
    assert "'a.jpg' is a sparse file" in refused(tar_bytes({"a.jpg": {"pax_headers": sparse}}, tarfile.PAX_FORMAT))


@pytest.mark.parametrize("make", ["gnu", "pax"])
def test_names_that_lead_out_of_their_folder_are_refused(make: str) -> None:
    for name in ("/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "..", "a/" * 60 + "../b.jpg"):
        message = refused(tar_bytes({"a.jpg": b"data", name: b""}, FORMATS[make]))
        assert message.startswith("byte 1024: the member ")
        assert "leads out of its folder; write the tar again with relative paths" in message
    members = [("./a.jpg", b""), ("b..c/d...jpg", b""), ("..e.jpg", b"")]
    assert walk(tar_bytes(members, FORMATS[make])) == members


def test_a_size_beyond_the_file_costs_no_memory() -> None:
    sizes = (b"\x80" + b"\xff" * 11, b"\x80\0\0\0\xff" + bytes(7), b"77777777777\0", b"777777777777")
    for kind, size in product((b"0", b"L", b"x", b"g", b"K"), sizes):
        data = with_header(with_header(ONE, 0, 124, size), 0, 156, kind)
        assert peak_bytes(lambda: refused(data)) < 1 << 20  # noqa: B023, called at once


def test_wrong_sizes_and_extended_headers_are_refused() -> None:
    for size in (b"\xff" * 12, b"-1\0", b"9\0", b"x\0", b"\x81" + bytes(11)):
        assert "the header's size is " in refused(with_header(ONE, 0, 124, size))
    pax = (b"x", b"8 path=a\n", b"11 path=aaa", b"0 path=a\n", b"5 a\n\n", b"99999999 path=a\n", b"10 size=x\n")
    for records in (*pax, b"-1 a=b\n"):
        assert "extended header" in refused(tar_bytes({"a.jpg": {"type": b"x", "data": records}, "b.jpg": b""}))
    assert "magic is b'xstar" in refused(with_header(ONE, 0, 257, b"x"))
    alone = tar_bytes({"a.jpg": {"type": b"x", "data": b"9 path=a\n"}})
    assert "an extended header without a member after it" in refused(alone)
    long_names = with_header(member_header(b"x", 512), 0, 156, b"L") + bytes(512)
    assert "extended headers of more than" in refused(long_names * 33_000)
    large = with_header(member_header(b"x", 2 << 20), 0, 156, b"x") + bytes(3 << 20)
    assert "an extended header of 2097152 bytes; at most 1048576 are read" in refused(large)


@settings(max_examples=50)
@given(st.binary(max_size=3000), st.integers(0, 2000), st.binary(max_size=40))
def test_any_bytes_are_read_or_a_format_error(data: bytes, at: int, patch: bytes) -> None:
    whole = tar_bytes({"a.jpg": b"x" * 600, "folder/b.cls": b"1"}, tarfile.PAX_FORMAT)
    for hostile in (data, whole[:at] + patch + whole[at + len(patch) :]):
        with suppress(FormatError):
            walk(hostile)


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such file"):
        TarReader(str(tmp_path / "x.tar"))
    os.mkfifo(tmp_path / "x.tar")
    for path, kind in ((tmp_path / "x.tar", "a named pipe"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"is {kind}, not a file"):
            TarReader(str(path))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text("0123456789.abc", min_size=1, max_size=100), st.binary(max_size=1100)), max_size=6))
def test_headers_written_are_those_of_tarfile(members: list[tuple[str, bytes]]) -> None:
    mine = b"".join(member_header(name.encode(), len(data)) + data + padding(len(data)) for name, data in members)
    mine += end_of_archive(len(mine))
    assert len(mine) % 10240 == 0
    theirs = tar_bytes([(name, {"data": data, "mtime": 0}) for name, data in members], tarfile.USTAR_FORMAT)
    for at in range(0, len(mine), 512):  # tarfile of some Python versions writes zeros for the numbers of a device
        assert mine[at : at + 148] == theirs[at : at + 148]
    with tarfile.open(fileobj=io.BytesIO(mine)) as tar:
        read = [(one.name, one.mode, one.uid, one.gid, one.mtime, one.uname, one.gname, one.size) for one in tar]
    assert read == [(name.rstrip("/"), 0o644, 0, 0, 0, "", "", len(data)) for name, data in members]
    assert len(theirs) == len(mine)
