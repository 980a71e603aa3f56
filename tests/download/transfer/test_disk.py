"""Full disks, locked and odd files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from facedata.download.links import Link
from facedata.download.transfer import FileRequest, TransferOptions, fetch_files
from facedata.download.transfer.partial import PartFile
from facedata.errors import DiskFullError, OutputError, OutputExistsError, OutputLockedError

DATA = os.urandom(300_000)


def request(server: Server, path: Path, **about: Any) -> FileRequest:
    return FileRequest(path, (Link("http", server.url("/a.bin")),), **about)


def test_what_does_not_fit_is_not_begun(server: Server, small_disk: Path) -> None:
    served = server.add("/a.bin", DATA)
    requests = [request(server, small_disk / name, size=5 << 20) for name in ("a", "b")]
    with pytest.raises(DiskFullError, match="has 8,388,608 bytes free, and 10,485,760 are still to be fetched"):
        fetch_files(requests)
    assert served.requests == 0
    assert os.listdir(small_disk) == []


def test_what_should_stay_free_counts(server: Server, small_disk: Path) -> None:
    server.add("/a.bin", DATA)
    with pytest.raises(DiskFullError, match="8,000,000 to be left free"):
        fetch_files([request(server, small_disk / "a", size=1 << 20)], TransferOptions(reserve=8_000_000))


def test_a_size_that_only_the_server_knows_is_looked_at_before_it_is_fetched(server: Server, small_disk: Path) -> None:
    served = server.add("/a.bin", bytes(9 << 20), rate=1_000_000)
    with pytest.raises(DiskFullError, match="9,437,184 are still to be fetched"):
        fetch_files([request(server, small_disk / "a")])
    assert served.bytes_served < 2 << 20
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_keeps_the_half_and_the_same_call_goes_on(server: Server, small_disk: Path) -> None:
    data = os.urandom(6 << 20)
    served = server.add("/a.bin", data, rate=20 << 20)
    filler = small_disk / "filler"
    wanted = request(server, small_disk / "a", size=len(data))
    filler.write_bytes(b"")

    def fill(done: int, total: int) -> None:
        if done and not filler.stat().st_size:
            with suppress(OSError):
                filler.write_bytes(bytes(3 << 20))

    with pytest.raises(DiskFullError, match="what is finished is kept"):
        fetch_files([wanted], observer=fill)
    there = (small_disk / "a.part").stat().st_size
    assert there > 1 << 20
    filler.unlink()
    server.wait_until_idle()
    served.bytes_served = 0
    fetch_files([wanted])
    assert (small_disk / "a").read_bytes() == data
    assert served.bytes_served == len(data) - there


def test_a_file_without_a_known_size_fills_no_disk_silently(server: Server, small_disk: Path) -> None:
    server.add("/a.bin", bytes(9 << 20), chunked=True)
    with pytest.raises(DiskFullError):
        fetch_files([request(server, small_disk / "a")])


def test_two_at_once_fetch_a_file_only_once(server: Server, tmp_path: Path) -> None:
    served = server.add("/a.bin", DATA)
    other = PartFile(tmp_path / "a", overwrite=False)
    with pytest.raises(OutputLockedError, match="another run is fetching this file"):
        fetch_files([request(server, tmp_path / "a")])
    other.close()
    assert served.requests == 0
    assert os.listdir(tmp_path) == []
    fetch_files([request(server, tmp_path / "a")])


def test_a_file_that_appears_while_another_run_has_it_is_not_replaced(server: Server, tmp_path: Path) -> None:
    served = server.add("/a.bin", DATA)
    served.on_request = lambda _: (tmp_path / "a").write_bytes(b"of another run")
    with pytest.raises(OutputExistsError, match="has appeared meanwhile"):
        fetch_files([request(server, tmp_path / "a")])
    assert (tmp_path / "a").read_bytes() == b"of another run"


def test_a_pipe_or_link_in_the_place_of_the_half_is_not_written(server: Server, tmp_path: Path) -> None:
    server.add("/a.bin", DATA)
    os.mkfifo(tmp_path / "a.part")
    with pytest.raises(OutputError, match="not a regular file"):
        fetch_files([request(server, tmp_path / "a")])
    (tmp_path / "a.part").unlink()
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "a.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError):
        fetch_files([request(server, tmp_path / "a")])
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    server.add("/a.bin", DATA)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch_files([request(server, tmp_path / "file" / "a")])


def test_odd_names(server: Server, tmp_path: Path) -> None:
    server.add("/a.bin", DATA)
    for name in ("[a]*?", "ü 漢", "-n", "a'b\"c", "a.part"):
        fetch_files([request(server, tmp_path / name)])
        assert (tmp_path / name).read_bytes() == DATA
    assert len(os.listdir(tmp_path)) == 5
