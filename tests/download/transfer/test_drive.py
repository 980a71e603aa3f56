"""Google Drive, whose pages the real gdown reads: confirmation, resuming, quotas and their messages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_server import Served, Server

from facedata.download.transfer import Link
from facedata.errors import ChecksumError, InterruptedJobError, TransferError, WebPageError
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


def test_a_large_file_is_downloaded_after_its_confirmation(drive: Any, fetch: Any, tmp_path: Path) -> None:
    drive()
    fetched = fetch(LINK, name="faces_webface_112x112.zip", check=DATA)
    assert (tmp_path / "faces_webface_112x112.zip").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["faces_webface_112x112.zip"]
    (tmp_path / "any").touch()
    assert (tmp_path / "faces_webface_112x112.zip").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert fetched.final_url == f"https://drive.google.com/file/d/{ID}/view"
    assert fetched.fetched_bytes == fetched.size == len(DATA)


def test_a_cut_connection_is_resumed_in_the_same_run(drive: Any, fetch: Any, tmp_path: Path) -> None:
    served = drive(cut_at=[1_500_000, None])
    fetch(LINK, check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert (served.requests, served.bytes_served) == (2, len(DATA))


def test_a_second_run_resumes(drive: Any, internet: Server, fetch: Any, tmp_path: Path) -> None:
    served = drive(cut_at=[1_500_000, None])
    with pytest.raises(TransferError, match="to resume"):
        fetch(LINK, retries=0)
    assert sorted(os.listdir(tmp_path)) == ["a.bin.part", "a.bin.part.json"]
    there = (tmp_path / "a.bin.part").stat().st_size
    assert there == 1_500_000
    fetch(LINK)
    assert (served.asked[-1].range, served.asked[-1].if_range) == (f"bytes={there}-", '"first"')
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_that_changed_is_not_joined_to_the_old_one(drive: Any, fetch: Any, tmp_path: Path) -> None:
    served = drive(cut_at=[1_500_000, None])
    with pytest.raises(TransferError):
        fetch(LINK, retries=0)
    served.data, served.etag = DATA[::-1], '"second"'
    fetch(LINK)
    assert (tmp_path / "a.bin").read_bytes() == served.data


def test_cookies_of_gdown_are_sent(
    drive: Any, internet: Server, fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive()
    cookies = tmp_path / "home/.cache/gdown/cookies.txt"
    cookies.parent.mkdir(parents=True)
    cookies.write_text("# Netscape HTTP Cookie File\n.google.com\tTRUE\t/\tTRUE\t0\tSID\tlogin\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fetch(LINK, check=DATA)
    assert "SID=login" in internet.served["/uc"].asked[0].headers["Cookie"]


def test_an_exceeded_quota_is_reported_with_what_to_do(
    drive: Any, internet: Server, fetch: Any, tmp_path: Path
) -> None:
    internet.add("/uc", QUOTA, headers=PAGE)
    with pytest.raises(TransferError) as caught:
        fetch(LINK)
    assert "download quota for this file is exceeded" in str(caught.value)
    assert f"open https://drive.google.com/file/d/{ID}/view in a browser" in str(caught.value)
    assert "--from-dir" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_quota_page_in_place_of_the_file(drive: Any, fetch: Any) -> None:
    drive(QUOTA)
    with pytest.raises(TransferError, match="download quota for this file is exceeded"):
        fetch(LINK)


def test_a_file_that_is_not_public_or_does_not_exist(internet: Server, fetch: Any) -> None:
    for page in (b"<html><title>Sign in</title></html>", b"<html><title>Error 404 (Not Found)!!1</title></html>"):
        internet.add("/uc", page, headers=PAGE)
        with pytest.raises(TransferError, match="gives no public link"):
            fetch(LINK)
    internet.served.clear()
    with pytest.raises(TransferError, match="gives no public link"):
        fetch(LINK)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b'<p class="uc-error-subcaption">Virus found</p>', "Google Drive refuses it: .*Virus found"),
        (b'<form id="download-form"></form>', "a page that gdown does not understand"),
        (b'"downloadUrl":"https://drive.google.com/uc"', "one page after another"),
    ],
)
def test_other_pages(internet: Server, fetch: Any, page: bytes, message: str) -> None:
    internet.add("/uc", page, headers=PAGE)
    with pytest.raises(TransferError, match=message):
        fetch(LINK)


def test_a_mirror_is_asked_if_drive_refuses(internet: Server, server: Server, fetch: Any) -> None:
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


def test_a_slow_body_is_given_up(drive: Any, fetch: Any) -> None:
    drive(rate=100_000)
    with pytest.raises(TransferError, match="bytes arrived in"):
        fetch(LINK, timeout=0.3, retries=0, least_speed=10_000_000)


def test_a_stop_ends_the_download_soon(drive: Any, fetch: Any) -> None:
    served, stop = drive(rate=200_000), StopRequest()

    def look(done: int, total: int) -> None:
        if served.bytes_served > 100_000:
            stop.count = 1

    begin = time.monotonic()
    with pytest.raises(InterruptedJobError):
        fetch(LINK, stop=stop, observer=look)
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("identity", ["", "../../etc", "x y", "short"])
def test_an_invalid_id_is_not_requested(fetch: Any, identity: str) -> None:
    with pytest.raises(TransferError, match="is not the id of a file"):
        fetch(Link("google-drive", identity))
