"""Servers that fail, lie, are slow, hang, or send something else."""

from __future__ import annotations

import email.utils
import gzip
import logging
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from archive_support import tar_bytes
from download.transfer.conftest import Site
from http_server import Server

from facedata.errors import ChecksumError, InterruptedJobError, TransferError, WebPageError
from facedata.jobs.signals import StopRequest

DATA = os.urandom(300_000)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails_is_asked_again(site: Site, status: int) -> None:
    served = site.add("/a.bin", DATA, status=[status, status, 200, status])
    site.fetch(check=DATA)
    assert served.requests == 3
    with pytest.raises(TransferError, match=f"answers {status} .*\\(after 4 attempts\\)"):
        site.fetch(name="b.bin", retries=3)
    assert served.requests == 7


@pytest.mark.parametrize(
    ("header", "wait"),
    [("100", "100"), ("9" * 400, "3600"), (100, "9[0-9]|100"), (9e6, "3600"), (-60, "0"), ("-5", "0"), ("soon", "0")],
)
def test_the_server_may_ask_for_an_hour(site: Site, caplog: pytest.LogCaptureFixture, header: Any, wait: str) -> None:
    caplog.set_level(logging.DEBUG, logger="facedata.download.transfer")
    date = header if isinstance(header, str) else email.utils.formatdate(time.time() + header, usegmt=True)
    site.add("/a.bin", DATA, status=[429, 200], headers={"Retry-After": date})
    stop = StopRequest()

    def stop_the_pause(done: int, total: int) -> None:
        stop.count = int("trying again" in caplog.text)

    with suppress(InterruptedJobError):
        site.fetch(stop=stop, observer=stop_the_pause)
    (message,) = re.findall("a.bin: the server answers 429 too many requests; trying again in (.*) s", caplog.text)
    assert re.fullmatch(wait, message)


@pytest.mark.parametrize(("ranges", "requests"), [(True, 30), (False, 4)])
def test_a_connection_cut_again_and_again_is_given_up_without_progress(site: Site, ranges: bool, requests: int) -> None:
    served = site.add("/a.bin", DATA, cut_at=10_000, ranges=ranges)
    with nullcontext() if ranges else pytest.raises(TransferError, match="only from its beginning"):
        site.fetch(check=DATA, retries=3)
    assert served.requests == requests


WHOLE = {"ranges": False}
LIES = ["bytes 7-299999/300000", "bytes 0-299999", "nonsense", "bytes 5-2/300000"]


@pytest.mark.parametrize(
    ("served", "options", "message"),
    [
        ({"length": 300_100, **WHOLE}, {}, "bytes before its end"),
        ({"length": 300_100, **WHOLE}, {"size": 300_000}, "has 300,100 bytes, not the 300,000"),
        ({"length": 1000, **WHOLE}, {"check": DATA}, "wrong checksum"),
        ({"length": 1000, **WHOLE}, {"size": 300_000}, "has 1,000 bytes, not the 300,000"),
        (WHOLE, {"size": 7}, "has 300,000 bytes, not the 7 that were published"),
        ({"chunked": True, **WHOLE}, {"size": 1000}, "more than the 1,000 bytes"),
        ({"chunked": True, **WHOLE}, {"size": 300_001}, "ends after 300,000 of 300,001 bytes"),
        *(({"headers": {"Content-Range": lie}}, {}, "but the whole file was requested") for lie in LIES),
        ({"headers": {"Content-Type": "multipart/byteranges; boundary=x"}}, {}, "sends an invalid Content-Range"),
        ({"rate": 100}, {"timeout": 0.5, "least_speed": 10_000}, "bytes arrived in"),
        ({"silent": True}, {"timeout": 0.3}, "does not answer in time"),
        ({"data": b"", "length": None, **WHOLE}, {}, "sends nothing"),  # the headers may have been cut
        ({"status": 416, "headers": {"Content-Type": "text/plain"}}, {}, "answers 416"),
    ],
)
def test_a_wrong_answer_is_given_up(site: Site, served: Any, options: Any, message: str) -> None:
    site.add("/a.bin", **{"data": DATA, **served})
    begin = time.monotonic()
    with pytest.raises((TransferError, ChecksumError), match=message):
        site.fetch(retries=1, **options)
    assert time.monotonic() - begin < 6
    assert not Path("a.bin").exists()


@pytest.mark.parametrize(
    ("range_", "options", "ranges"),
    [
        ("bytes 0-9/*", {}, ["bytes=0-", None]),
        ("bytes 0-9/*", {"size": 300_000}, ["bytes=0-", "bytes=10-"]),
        ("bytes 0-99999/300000", {}, ["bytes=0-", "bytes=100000-"]),
    ],
)
def test_a_range_is_not_taken_for_the_whole_file(site: Site, range_: str, options: Any, ranges: list[Any]) -> None:
    served = site.add("/a.bin", DATA)

    def lie_once(_: object) -> None:
        served.headers = {"Content-Range": range_} if served.requests == 1 else {}

    served.on_request = lie_once
    assert site.fetch(**options).path.read_bytes() == DATA
    assert [asked.headers["Range"] for asked in served.asked] == ranges


def test_redirects(site: Site) -> None:
    redirects = {"/old": "new?x=1", "/a": "/b", "/b": "/a", "/local": "file:///etc/passwd", "/invalid": "http://[bad"}
    for path, location in (redirects | {f"/{number}": f"/{number + 1}" for number in range(20)}).items():
        site.add(path, location=location)
    site.add("/new?x=1", DATA)
    fetched = site.fetch("/old", check=DATA)
    assert (fetched.final_url, fetched.link.address) == (site.url("/new"), site.url("/old"))
    for path, message in {
        "/a": f"redirects in a circle: .*{site.url('/a')}.*{site.url('/b')}",
        "/0": "redirects more than 10 times",
        "/local": "neither http nor https",
        "/invalid": "redirects to an invalid URL",
    }.items():
        with pytest.raises(TransferError, match=message):
            site.fetch(path, name="b.bin")


def test_the_proxy_of_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", site.url(""))
    site.add("http://nowhere.example/a.bin", DATA)
    site.fetch("http://nowhere.example/a.bin", check=DATA)
    monkeypatch.setenv("http_proxy", "http:///me:secret")
    with pytest.raises(TransferError, match="the proxy that the environment names") as error:
        site.fetch("http://nowhere.example/a.bin", name="b.bin", retries=0)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "cut_at", "again"),
    [
        ({}, 0, 0),
        ({}, 999, 999),  # less than the head that is looked at is not kept
        ({}, 299_999, 0),
        ({"ranges": False}, 999, 999),
        ({"chunked": True, "ranges": False}, 100_000, 100_000),
        ({"length": None, "ranges": False}, 100_000, 100_000),
    ],
)
def test_a_connection_that_is_cut(site: Site, options: dict[str, Any], cut_at: int, again: int) -> None:
    served = site.add("/a.bin", DATA, cut_at=[cut_at, None], **options)
    assert site.fetch(check=DATA).path.read_bytes() == DATA
    assert served.bytes_served == len(DATA) + again


PAGE = b"<!DOCTYPE html>\n<html><head><title>Quota \x1b[31m exceeded &amp; more</title></head></html>"
HTML, GZIP = {"Content-Type": "text/html; charset=utf-8"}, {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("data", "headers"),
    [(PAGE, HTML), (PAGE, {}), (gzip.compress(PAGE), {**HTML, **GZIP})],
    ids=["html", "binary", "gzip"],
)
def test_a_web_page_instead_of_the_file(site: Site, data: bytes, headers: dict[str, str]) -> None:
    served = site.add("/a.tar.gz", data, headers=headers)
    with pytest.raises(WebPageError, match=r'a web page instead of the file, "Quota \[31m exceeded & more"'):
        site.fetch("/a.tar.gz", name="a.tar.gz", check=DATA)
    assert os.listdir() == []
    assert served.requests == 1


TAR_GZ = gzip.compress(tar_bytes([("member", DATA)]))


@pytest.mark.parametrize(
    ("name", "data", "headers"),
    [
        ("a.html", PAGE, HTML),
        ("a.bin", bytes(2000) + DATA, HTML),
        ("a.bin", DATA, GZIP),
        ("a.tar.gz", TAR_GZ, {"Content-Encoding": "x-gzip"}),  # it can even be resumed
    ],
    ids=["a page", "not a page", "not compressed", "compressed before"],
)
def test_a_file_wrongly_called_a_page_or_compressed(site: Site, name: str, data: bytes, headers: Any) -> None:
    served = site.add("/a", data, headers=headers, cut_at=[100_000, None])
    site.fetch("/a", name=name, check=data)
    assert served.bytes_served == len(data) * (1 if len(data) > 4096 else served.requests)


@pytest.mark.parametrize(
    ("name", "data", "encoding"),
    [("a.tar", TAR_GZ, "gzip"), ("a.tar.gz", gzip.compress(TAR_GZ), "gzip"), ("a.bin", DATA, "br")],
    ids=["compressed", "compressed again", "unknown"],
)
def test_a_file_that_the_server_compresses_is_refused(site: Site, name: str, data: bytes, encoding: str) -> None:
    site.add("/a", data, headers={"Content-Encoding": encoding})
    with pytest.raises(TransferError, match=f"in the encoding '{encoding}', although it was asked for"):
        site.fetch("/a", name=name)
    assert os.listdir() == []


def test_a_rest_in_an_encoding_is_refused(site: Site) -> None:
    served = site.add("/a.bin", DATA, cut_at=[100_000, None])
    served.on_request = lambda _: served.headers.update(GZIP if served.requests > 1 else {})
    with pytest.raises(TransferError, match="sends the rest of the file in the encoding 'gzip'"):
        site.fetch()


@pytest.fixture
def secure(tls: ssl.SSLContext) -> Iterator[Server]:
    with Server(tls) as server:
        yield server


def test_https(secure: Server, site: Site, request: pytest.FixtureRequest) -> None:
    served = secure.add("/a.bin", DATA, cut_at=[100_000, None])
    with pytest.raises(TransferError, match="its certificate is not trusted"):
        site.fetch(secure.url("/a.bin"))
    request.getfixturevalue("trusted")
    assert site.fetch(secure.url("/a.bin"), check=DATA).path.read_bytes() == DATA
    assert served.bytes_served == len(DATA)


def test_a_redirect_from_http_to_https_is_followed_but_not_back(secure: Server, site: Site, trusted: None) -> None:
    secure.add("/a.bin", DATA)
    site.add("/a.bin", location=secure.url("/a.bin"))
    assert site.fetch(check=DATA).final_url == secure.url("/a.bin")
    plain = site.add("/plain", DATA)
    secure.add("/back", location=site.url("/plain"))
    site.add("/there", location=secure.url("/back"))
    for url in (secure.url("/back"), site.url("/there")):
        with pytest.raises(TransferError, match="redirects from https to http"):
            site.fetch(url, name="b.bin")
    assert plain.requests == 0
