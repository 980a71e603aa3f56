"""Google Drive, through the real gdown: confirmation, going on, quotas, and what is told of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_server import Served, Server

from facedata.download.links import Link
from facedata.errors import ChecksumError, DiskFullError, InterruptedJobError, TransferError, WebPageError
from facedata.jobs.signals import StopRequest

DATA = os.urandom(3_000_000)
ID = "16WD4orcF9dqjNPLzST2U3maDh2cpzxAY"
LINK = Link("google-drive", ID)
PAGE = {"Content-Type": "text/html; charset=utf-8"}
CONFIRM = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get"><input type="submit"/>\
<input type="hidden" name="id" value="%s"><input type="hidden" name="confirm" value="t"></form></body></html>
""" % ID.encode()
QUOTA = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try later.</p>
</body></html>"""
FILE = {"Content-Disposition": 'attachment; filename="faces.zip"'}


@pytest.fixture
def drive(internet: Server) -> Callable[..., Served]:
    """Google Drive with one large file, which asks for a confirmation first."""

    def make(data: bytes = DATA, **options: Any) -> Served:
        internet.add("/uc", CONFIRM, headers=PAGE, ranges=False)
        return internet.add("/download", data, headers=FILE, **options)

    return make


def test_a_large_file_is_fetched_behind_its_confirmation(drive: Any, fetch: Any, tmp_path: Path) -> None:
    drive()
    fetched = fetch(LINK, name="faces_webface_112x112.zip", check=DATA)
    assert (tmp_path / "faces_webface_112x112.zip").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["faces_webface_112x112.zip"]
    (tmp_path / "any").touch()
    assert (tmp_path / "faces_webface_112x112.zip").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert fetched.final_url == f"https://drive.google.com/file/d/{ID}/view"
    assert fetched.fetched_bytes == fetched.size == len(DATA)


def test_a_cut_connection_goes_on_in_the_same_run(drive: Any, fetch: Any, tmp_path: Path) -> None:
    served = drive(cut_at=[1_500_000, None])
    fetch(LINK, check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert any(one.range and not one.range.startswith("bytes=0-") for one in served.asked)


def test_a_second_run_goes_on_and_nobody_takes_the_half_for_a_file(drive: Any, fetch: Any, tmp_path: Path) -> None:
    served = drive(cut_at=[1_500_000, None])
    with pytest.raises(TransferError):
        fetch(LINK, retries=0, check=DATA)
    assert all(name.startswith(".facedata-drive-") for name in os.listdir(tmp_path))
    there = next(iter(tmp_path.glob(".facedata-drive-a.bin*.part"))).stat().st_size
    assert there > 500_000
    fetch(LINK, check=DATA)
    assert served.asked[-1].range == f"bytes={there}-"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("what", ["another size", "no record", "another boot"])
def test_a_half_of_something_else_is_not_gone_on_with(drive: Any, fetch: Any, tmp_path: Path, what: str) -> None:
    served = drive(cut_at=[1_500_000, None])
    with pytest.raises(TransferError):
        fetch(LINK, retries=0)
    record = tmp_path / ".facedata-drive-a.bin.json"
    if what == "another size":
        served.data = DATA[::-1] + b"more"
    elif what == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text().replace('"boot": "', '"boot": "x'))
        served.data = DATA[::-1]
    fetch(LINK)
    assert (tmp_path / "a.bin").read_bytes() == served.data
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_whole_file_that_was_not_renamed_is_taken(drive: Any, fetch: Any, tmp_path: Path) -> None:
    served = drive(cut_at=[1_500_000, None])
    with pytest.raises(TransferError):
        fetch(LINK, retries=0, check=DATA)
    next(iter(tmp_path.glob(".facedata-drive-a.bin*.part"))).write_bytes(DATA)
    before = served.requests
    fetch(LINK, check=DATA)
    assert served.requests == before
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_quota_is_told_in_plain_words_with_the_way_out(
    drive: Any, internet: Server, fetch: Any, tmp_path: Path
) -> None:
    internet.add("/uc", QUOTA, headers=PAGE)
    with pytest.raises(TransferError) as caught:
        fetch(LINK)
    assert "too many have fetched it" in str(caught.value)
    assert f"open https://drive.google.com/file/d/{ID}/view in a browser" in str(caught.value)
    assert "--from-dir" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_public_or_not_there(internet: Server, fetch: Any) -> None:
    for page in (b"<html><title>Sign in</title></html>", b"<html><title>Error 404 (Not Found)!!1</title></html>"):
        internet.add("/uc", page, headers=PAGE)
        with pytest.raises(TransferError, match="gives no public link"):
            fetch(LINK)
    internet.served.clear()
    with pytest.raises(TransferError, match="gives no public link"):
        fetch(LINK)


def test_a_mirror_is_asked_where_drive_refuses(internet: Server, server: Server, fetch: Any) -> None:
    internet.add("/uc", QUOTA, headers=PAGE)
    server.add("/a.bin", DATA)
    assert fetch(LINK, server.url("/a.bin"), check=DATA).link.kind == "http"


def test_a_wrong_checksum_counts_here_too(drive: Any, fetch: Any, tmp_path: Path) -> None:
    drive()
    with pytest.raises(ChecksumError, match=f"https://drive.google.com/file/d/{ID}/view: wrong checksum"):
        fetch(LINK, check=b"other")
    assert [name for name in os.listdir(tmp_path) if ".wrong-" not in name] == []


def test_a_wrong_size_and_a_web_page_too(drive: Any, fetch: Any, tmp_path: Path) -> None:
    drive()
    with pytest.raises(TransferError, match="has 3,000,000 bytes, not the 7"):
        fetch(LINK, size=7)
    drive(CONFIRM)
    with pytest.raises(WebPageError, match="Virus scan warning"):
        fetch(LINK)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_too(drive: Any, fetch: Any) -> None:
    drive()
    with pytest.raises(DiskFullError, match="still to be fetched"):
        fetch(LINK, reserve=1 << 60)


def test_a_slow_drip_does_not_hold_for_ever(drive: Any, fetch: Any) -> None:
    drive(rate=100_000)
    with pytest.raises(TransferError, match="bytes a second came"):
        fetch(LINK, timeout=0.3, retries=0, least_speed=10_000_000)


def test_a_stop_ends_it_soon(drive: Any, fetch: Any) -> None:
    served, stop = drive(rate=200_000), StopRequest()

    def look(done: int, total: int) -> None:
        if served.bytes_served > 100_000:
            stop.count = 1

    begin = time.monotonic()
    with pytest.raises(InterruptedJobError):
        fetch(LINK, stop=stop, observer=look)
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("identity", ["", "../../etc", "x y", "short"])
def test_what_is_no_id_is_not_asked_for(fetch: Any, identity: str) -> None:
    with pytest.raises(TransferError, match="is no id of a file"):
        fetch(Link("google-drive", identity))
