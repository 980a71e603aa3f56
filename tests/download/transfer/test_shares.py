"""Share links of Google Drive, whose pages the real gdown reads, and of OneDrive."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from download.transfer.conftest import Site
from http_server import Served, Server
from support import write_tree

from facedata.download.transfer import Link
from facedata.errors import ChecksumError, TransferError, WebPageError

DATA = os.urandom(300_000)
ID = "16WD4orcF9dqjNPLzST2U3maDh2cpzxAY"
DRIVE = Link("google-drive", ID)
DRIVE_PAGE = f"https://drive.google.com/file/d/{ID}/view"
HTML = {"Content-Type": "text/html; charset=utf-8"}
CONFIRM = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get"><input type="submit"/>\
<input type="hidden" name="id" value="%s"><input type="hidden" name="confirm" value="t"></form></body></html>
""" % ID.encode()
QUOTA = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try later.</p>
</body></html>"""


@pytest.fixture
def drive(internet: Server) -> Served:
    """A large file on Google Drive, which asks for a confirmation first."""
    internet.add("/uc", CONFIRM, headers=HTML, ranges=False)
    return internet.add("/download", DATA, headers={"Content-Disposition": 'attachment; filename="faces.zip"'})


class TestDrive:
    def test_a_large_file_is_downloaded_after_its_confirmation_and_resumed(self, drive: Served, site: Site) -> None:
        drive.cut_at = [100_000, None]
        with pytest.raises(TransferError, match="to resume"):
            site.fetch(DRIVE, retries=0)
        fetched = site.fetch(DRIVE)
        assert drive.asked[-1].headers["Range"] == "bytes=100000-"
        assert fetched.path.read_bytes() == DATA
        assert os.listdir() == ["a.bin"]
        Path("any").touch()
        assert fetched.path.stat().st_mode == Path("any").stat().st_mode
        assert fetched.final_url == DRIVE_PAGE
        assert (drive.requests, drive.bytes_served) == (2, len(DATA))

    def test_cookies_of_gdown_are_sent(
        self, drive: Served, internet: Server, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cookies = "# Netscape HTTP Cookie File\n.google.com\tTRUE\t/\tTRUE\t0\tSID\tlogin\n"
        write_tree(tmp_path, {"home/.cache/gdown/cookies.txt": cookies})
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        site.fetch(DRIVE, check=DATA)
        assert "SID=login" in internet.served["/uc"].asked[0].headers["Cookie"]

    @pytest.mark.parametrize("path", ["/uc", "/download"])
    def test_an_exceeded_quota_is_reported(self, drive: Served, internet: Server, site: Site, path: str) -> None:
        internet.add(path, QUOTA, headers=HTML)
        with pytest.raises(TransferError, match="download quota for this file is exceeded") as caught:
            site.fetch(DRIVE)
        assert f"open {DRIVE_PAGE} in a browser" in str(caught.value)
        assert "--from-dir" in str(caught.value)
        assert os.listdir() == []
        site.add("/a.bin", DATA)
        assert site.fetch(DRIVE, "/a.bin", check=DATA).link.kind == "http"

    @pytest.mark.parametrize(
        ("page", "message"),
        [
            (None, "gives no public link"),
            (b"<html><title>Sign in</title></html>", "gives no public link"),
            (b'<p class="uc-error-subcaption">Virus found</p>', "Google Drive refuses it: .*Virus found"),
            (b'<form id="download-form"></form>', "a page that gdown does not understand"),
            (b'"downloadUrl":"https://drive.google.com/uc"', "one page after another"),
        ],
    )
    def test_pages_without_a_file(self, internet: Server, site: Site, page: bytes | None, message: str) -> None:
        if page is not None:
            internet.add("/uc", page, headers=HTML)
        with pytest.raises(TransferError, match=message):
            site.fetch(DRIVE)

    def test_a_wrong_checksum_and_a_web_page_name_the_link(self, drive: Served, site: Site) -> None:
        with pytest.raises(ChecksumError, match=f"{DRIVE_PAGE}: wrong checksum"):
            site.fetch(DRIVE, check=b"other")
        drive.data = CONFIRM
        with pytest.raises(WebPageError, match="Virus scan warning"):
            site.fetch(DRIVE)

    def test_an_invalid_id_is_not_requested(self, internet: Server, site: Site) -> None:
        for identity in ("", "../../etc", "x y", "short"):
            with pytest.raises(TransferError, match="is not the id of a file"):
                site.fetch(Link("google-drive", identity))


SHARE = "https://1drv.ms/u/c/49e18460ed20d89c/IQA0-4CgNI50R5?e=35jiOO"
SHARE_PATH = "/_api/v2.0/shares/u!" + base64.urlsafe_b64encode(SHARE.encode()).decode().rstrip("=") + "/driveitem"
ITEM = {"name": "a.bin", "file": {}, "@content.downloadUrl": "https://download.example.com/file?tempauth=secret"}


class TestOneDrive:
    @pytest.fixture(autouse=True)
    def person(self, internet: Server) -> None:
        """A file that a person shares."""
        internet.add("/v1.0/token", b'{"authScheme": "badger", "token": "t0ken"}')
        internet.add(SHARE_PATH, json.dumps(ITEM).encode())
        internet.add("/file", DATA)

    def test_the_link_of_an_organisation(self, internet: Server, site: Site) -> None:
        served = internet.add("/:u:/g/personal/x/EaBc", location="/personal/x/_layouts/15/download.aspx?x=1")
        internet.add("/personal/x/_layouts/15/download.aspx?x=1", DATA)
        site.fetch(Link("onedrive", "https://lab-my.sharepoint.com/:u:/g/personal/x/EaBc?e=1Fg&download=0"), check=DATA)
        assert served.asked[0].path.endswith("?e=1Fg&download=1")
        internet.add("/:u:/g/x", b"<!DOCTYPE html><html><head><title>Sign in to your account</title>", headers=HTML)
        with pytest.raises(WebPageError, match="Sign in to your account"):
            site.fetch(Link("onedrive", "https://lab-my.sharepoint.com/:u:/g/x"), name="b.bin")

    def test_the_link_of_a_person_is_redeemed_for_one_token(self, internet: Server, site: Site) -> None:
        internet.served["/file"].cut_at = [100_000, None]
        fetched = site.fetch(Link("onedrive", SHARE), check=DATA)
        (token,), (asked,) = internet.served["/v1.0/token"].asked, internet.served[SHARE_PATH].asked
        assert token.method == "POST"
        assert (asked.headers["Authorization"], asked.headers["Prefer"]) == ("Badger t0ken", "autoredeem")
        assert "Authorization" not in internet.served["/file"].asked[0].headers
        assert internet.served["/file"].bytes_served == len(DATA)
        assert fetched.final_url == "https://download.example.com/file"  # what opens it for an hour is not kept
        assert fetched.link.address == SHARE

    def test_a_link_that_was_opened_in_a_browser_works_too(self, internet: Server, site: Site) -> None:
        internet.add("/_api/v2.0/shares/u!aHR0cHM6/driveitem", json.dumps(ITEM).encode())
        site.fetch(Link("onedrive", "https://onedrive.live.com/?redeem=aHR0cHM6&cid=49"), check=DATA)

    @pytest.mark.parametrize(
        ("status", "answer", "message"),
        [
            (401, b"", f"OneDrive requires a login before it gives the file.*open {SHARE[:12]}.* in a browser"),
            (200, b'{"name": "faces", "folder": {"childCount": 3}}', "leads to a folder"),
            (200, b'{"name": "a.bin"}', "does not say where the file is"),
            (200, b'{"@content.downloadUrl": "http://download.example.com/"}', "does not say where the file is"),
            (200, b"[]", "sent an unknown answer"),
            (200, b"<html>", "sent an unknown answer"),
        ],
    )
    def test_answers_with_no_file(self, internet: Server, site: Site, status: int, answer: bytes, message: str) -> None:
        internet.add(SHARE_PATH, answer, status=status)
        with pytest.raises(TransferError, match=message):
            site.fetch(Link("onedrive", SHARE))
