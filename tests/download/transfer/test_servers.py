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
import trustme
from archive_support import tar_bytes
from http_server import Server

from facedata.errors import ChecksumError, InterruptedJobError, TransferError, WebPageError
from facedata.jobs.signals import StopRequest

DATA = os.urandom(300_000)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails_is_asked_again(server: Server, fetch: Any, status: int) -> None:
    served = server.add("/a.bin", DATA, status=[status, status, 200, status])
    fetch(server.url("/a.bin"), check=DATA)
    assert served.requests == 3
    with pytest.raises(TransferError, match=f"answers {status} .*\\(after 4 attempts\\)"):
        fetch(server.url("/a.bin"), name="b.bin", retries=3)
    assert served.requests == 7


@pytest.mark.parametrize(
    ("header", "wait"),
    [("100", "100"), ("9" * 400, "3600"), (100, "9[0-9]|100"), (9e6, "3600"), (-60, "0"), ("-5", "0"), ("soon", "0")],
)
def test_the_server_may_ask_for_a_pause_of_at_most_an_hour(
    server: Server, fetch: Any, caplog: pytest.LogCaptureFixture, header: str | float, wait: str
) -> None:
    caplog.set_level(logging.DEBUG, logger="facedata.download.transfer")
    date = header if isinstance(header, str) else email.utils.formatdate(time.time() + header, usegmt=True)
    server.add("/a.bin", DATA, status=[429, 200], headers={"Retry-After": date})
    stop = StopRequest()

    def stop_the_pause(done: int, total: int) -> None:
        stop.count = int("trying again" in caplog.text)

    with suppress(InterruptedJobError):
        fetch(server.url("/a.bin"), stop=stop, observer=stop_the_pause)
    (message,) = re.findall("a.bin: the server answers 429 too many requests; trying again in (.*) s", caplog.text)
    assert re.fullmatch(wait, message)


@pytest.mark.parametrize(("ranges", "requests"), [(True, 30), (False, 4)])
def test_a_connection_that_is_cut_again_and_again_is_given_up_unless_it_makes_progress(
    server: Server, fetch: Any, ranges: bool, requests: int
) -> None:
    served = server.add("/a.bin", DATA, cut_at=10_000, ranges=ranges)
    with nullcontext() if ranges else pytest.raises(TransferError, match="only from its beginning"):
        fetch(server.url("/a.bin"), check=DATA, retries=3)
    assert served.requests == requests


@pytest.mark.parametrize(
    ("options", "about", "message"),
    [
        ({"length": 300_100}, {}, "bytes before its end"),
        ({"length": 300_100}, {"size": 300_000}, "has 300,100 bytes, not the 300,000"),
        ({"length": 1000}, {"check": DATA}, "wrong checksum"),
        ({"length": 1000}, {"size": 300_000}, "has 1,000 bytes, not the 300,000"),
        ({}, {"size": 7}, "has 300,000 bytes, not the 7 that were published"),
        ({"chunked": True}, {"size": 1000}, "more than the 1,000 bytes"),
        ({"chunked": True}, {"size": 300_001}, "ends after 300,000 of 300,001 bytes"),
    ],
)
def test_another_length_than_was_announced_or_published(
    server: Server, fetch: Any, tmp_path: Path, options: dict[str, Any], about: dict[str, Any], message: str
) -> None:
    server.add("/a.bin", DATA, ranges=False, **options)
    with pytest.raises((TransferError, ChecksumError), match=message):
        fetch(server.url("/a.bin"), retries=1, **about)
    assert not (tmp_path / "a.bin").exists()


def test_redirects(server: Server, fetch: Any) -> None:
    server.add("/old", location="new?x=1")
    server.add("/new?x=1", DATA)
    fetched = fetch(server.url("/old"), check=DATA)
    assert (fetched.final_url, fetched.link.address) == (server.url("/new"), server.url("/old"))
    server.add("/a", location="/b")
    server.add("/b", location="/a")
    server.add("/local", location="file:///etc/passwd")
    server.add("/invalid", location="http://[bad")
    for number in range(20):
        server.add(f"/{number}", location=f"/{number + 1}")
    for path, message in {
        "/a": f"redirects in a circle: .*{server.url('/a')}.*{server.url('/b')}",
        "/0": "redirects more than 10 times",
        "/local": "neither http nor https",
        "/invalid": "redirects to an invalid URL",
    }.items():
        with pytest.raises(TransferError, match=message):
            fetch(server.url(path), name="b.bin")


def test_the_proxy_of_the_environment(server: Server, fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url(""))
    server.add("http://nowhere.example/a.bin", DATA)
    fetch("http://nowhere.example/a.bin", check=DATA)
    monkeypatch.setenv("http_proxy", "http:///me:secret")
    with pytest.raises(TransferError, match="the proxy that the environment names") as error:
        fetch("http://nowhere.example/a.bin", name="b.bin", retries=0)
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
def test_a_connection_that_is_cut(server: Server, fetch: Any, options: dict[str, Any], cut_at: int, again: int) -> None:
    served = server.add("/a.bin", DATA, cut_at=[cut_at, None], **options)
    assert fetch(server.url("/a.bin"), check=DATA).path.read_bytes() == DATA
    assert served.bytes_served == len(DATA) + again


@pytest.mark.parametrize("lie", ["bytes 7-299999/300000", "bytes 0-299999", "nonsense", "bytes 5-2/300000"])
def test_a_content_range_that_was_not_requested_is_refused(server: Server, fetch: Any, lie: str) -> None:
    server.add("/a.bin", DATA, content_range=lie)
    with pytest.raises(TransferError, match="but the whole file was requested"):
        fetch(server.url("/a.bin"))


@pytest.mark.parametrize(
    ("served", "options", "message"),
    [
        ({"rate": 100}, {"timeout": 0.5, "least_speed": 10_000}, "bytes arrived in"),
        ({"silent": True}, {"timeout": 0.3}, "does not answer in time"),
        ({"data": b"", "length": None, "ranges": False}, {}, "sends nothing"),  # the headers may have been cut
        ({"status": 416, "headers": {"Content-Type": "text/plain"}}, {}, "answers 416"),
    ],
)
def test_a_slow_silent_or_empty_answer_is_given_up(
    server: Server, fetch: Any, tmp_path: Path, served: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    server.add("/a.bin", **{"data": DATA, **served})
    begin = time.monotonic()
    with pytest.raises(TransferError, match=message):
        fetch(server.url("/a.bin"), retries=1, **options)
    assert time.monotonic() - begin < 6
    assert not (tmp_path / "a.bin").exists()


PAGE = b"<!DOCTYPE html>\n<html><head><title>Quota \x1b[31m exceeded &amp; more</title></head></html>"
HTML, GZIP = {"Content-Type": "text/html; charset=utf-8"}, {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("data", "headers"),
    [(PAGE, HTML), (PAGE, {}), (gzip.compress(PAGE), {**HTML, **GZIP})],
    ids=["html", "binary", "gzip"],
)
def test_a_web_page_instead_of_the_file(
    server: Server, fetch: Any, tmp_path: Path, data: bytes, headers: dict[str, str]
) -> None:
    served = server.add("/a.tar.gz", data, headers=headers)
    with pytest.raises(WebPageError, match=r'a web page instead of the file, "Quota \[31m exceeded & more"'):
        fetch(server.url("/a.tar.gz"), name="a.tar.gz", check=DATA)
    assert os.listdir(tmp_path) == []
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
def test_a_file_that_is_wrongly_called_a_page_or_compressed(
    server: Server, fetch: Any, name: str, data: bytes, headers: dict[str, str]
) -> None:
    served = server.add("/a", data, headers=headers, cut_at=[100_000, None])
    fetch(server.url("/a"), name=name, check=data)
    assert served.bytes_served == len(data) * (1 if len(data) > 4096 else served.requests)


@pytest.mark.parametrize(
    ("name", "data", "encoding"),
    [("a.tar", TAR_GZ, "gzip"), ("a.tar.gz", gzip.compress(TAR_GZ), "gzip"), ("a.bin", DATA, "br")],
    ids=["compressed", "compressed again", "unknown"],
)
def test_a_file_that_the_server_compresses_on_its_way_is_refused(
    server: Server, fetch: Any, tmp_path: Path, name: str, data: bytes, encoding: str
) -> None:
    server.add("/a", data, headers={"Content-Encoding": encoding})
    with pytest.raises(TransferError, match=f"in the encoding '{encoding}', although it was asked for"):
        fetch(server.url("/a"), name=name)
    assert os.listdir(tmp_path) == []


def test_a_rest_in_an_encoding_is_refused(server: Server, fetch: Any) -> None:
    served = server.add("/a.bin", DATA, cut_at=[100_000, None])
    served.on_request = lambda _: served.headers.update(GZIP if served.requests > 1 else {})
    with pytest.raises(TransferError, match="sends the rest of the file in the encoding 'gzip'"):
        fetch(server.url("/a.bin"))


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Server(tls=context) as server:
        yield server


def test_https(secure: Server, fetch: Any, request: pytest.FixtureRequest) -> None:
    served = secure.add("/a.bin", DATA, cut_at=[100_000, None])
    with pytest.raises(TransferError, match="its certificate is not trusted"):
        fetch(secure.url("/a.bin"))
    request.getfixturevalue("trusted")
    assert fetch(secure.url("/a.bin"), check=DATA).path.read_bytes() == DATA
    assert served.bytes_served == len(DATA)


def test_a_redirect_from_http_to_https_is_followed_but_not_back(
    secure: Server, server: Server, fetch: Any, trusted: None
) -> None:
    secure.add("/a.bin", DATA)
    server.add("/a.bin", location=secure.url("/a.bin"))
    assert fetch(server.url("/a.bin"), check=DATA).final_url == secure.url("/a.bin")
    plain = server.add("/plain", DATA)
    secure.add("/back", location=server.url("/plain"))
    server.add("/there", location=secure.url("/back"))
    for url in (secure.url("/back"), server.url("/there")):
        with pytest.raises(TransferError, match="redirects from https to http"):
            fetch(url, name="b.bin")
    assert plain.requests == 0
