"""Share links of OneDrive, of organisations and of persons."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from facedata.download.transfer import Link
from facedata.errors import TransferError, WebPageError

DATA = os.urandom(300_000)
SHARE = "https://1drv.ms/u/c/49e18460ed20d89c/IQA0-4CgNI50R5?e=35jiOO"
SHARE_PATH = "/_api/v2.0/shares/u!" + base64.urlsafe_b64encode(SHARE.encode()).decode().rstrip("=") + "/driveitem"
ITEM = {"name": "a.bin", "file": {}, "@content.downloadUrl": "https://download.example.com/file?tempauth=secret"}


def person(internet: Server, item: dict[str, Any] = ITEM, path: str = SHARE_PATH, **options: Any) -> None:
    internet.add("/v1.0/token", b'{"authScheme": "badger", "token": "t0ken"}')
    internet.add(path, json.dumps(item).encode(), **options)
    internet.add("/file", DATA)


def test_the_link_of_an_organisation_gives_the_file(internet: Server, fetch: Any, tmp_path: Path) -> None:
    served = internet.add("/:u:/g/personal/someone/EaBc", location="/personal/someone/_layouts/15/download.aspx?x=1")
    internet.add("/personal/someone/_layouts/15/download.aspx?x=1", DATA)
    fetch(Link("onedrive", "https://lab-my.sharepoint.com/:u:/g/personal/someone/EaBc?e=1Fg&download=0"), check=DATA)
    assert served.asked[0].path.endswith("?e=1Fg&download=1")


def test_the_login_page_of_an_organisation_is_not_a_file(internet: Server, fetch: Any, tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><html><head><title>Sign in to your account</title>"
    internet.add("/:u:/g/x", page, headers={"Content-Type": "text/html"})
    with pytest.raises(WebPageError, match="Sign in to your account"):
        fetch(Link("onedrive", "https://lab-my.sharepoint.com/:u:/g/x"))


def test_the_link_of_a_person_is_redeemed_for_a_token(internet: Server, fetch: Any) -> None:
    person(internet)
    fetched = fetch(Link("onedrive", SHARE), check=DATA)
    assert internet.served["/v1.0/token"].asked[0].method == "POST"
    asked = internet.served[SHARE_PATH].asked[0]
    assert (asked.headers["Authorization"], asked.headers["Prefer"]) == ("Badger t0ken", "autoredeem")
    assert "Authorization" not in internet.served["/file"].asked[0].headers
    assert fetched.final_url == "https://download.example.com/file"  # what opens it for an hour is not kept
    assert fetched.link.address == SHARE


def test_a_link_that_was_opened_in_a_browser_works_too(internet: Server, fetch: Any) -> None:
    person(internet, path="/_api/v2.0/shares/u!aHR0cHM6/driveitem")
    fetch(Link("onedrive", "https://onedrive.live.com/?redeem=aHR0cHM6&cid=49"), check=DATA)


def test_a_cut_connection_is_resumed_with_one_token(internet: Server, fetch: Any) -> None:
    person(internet)
    internet.served["/file"].cut_at = [100_000, None]
    fetch(Link("onedrive", SHARE), check=DATA)
    assert internet.served["/v1.0/token"].requests == 1
    assert internet.served["/file"].bytes_served == len(DATA)


@pytest.mark.parametrize("status", [401, 403])
def test_a_required_login_is_reported_with_what_to_do(internet: Server, fetch: Any, status: int) -> None:
    person(internet, status=status)
    with pytest.raises(TransferError) as caught:
        fetch(Link("onedrive", SHARE))
    assert "OneDrive requires a login before it gives the file" in str(caught.value)
    assert f"open {SHARE} in a browser" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"name": "faces", "folder": {"childCount": 3}}', "leads to a folder"),
        (b'{"name": "a.bin"}', "does not say where the file is"),
        (b'{"@content.downloadUrl": "http://download.example.com/"}', "does not say where the file is"),
        (b"[]", "sent an unknown answer"),
        (b"<html>", "sent an unknown answer"),
    ],
)
def test_answers_without_a_file(internet: Server, fetch: Any, answer: bytes, message: str) -> None:
    person(internet)
    internet.served[SHARE_PATH].data = answer
    with pytest.raises(TransferError, match=message):
        fetch(Link("onedrive", SHARE))
