"""Servers that fail, lie, are slow, hang, or send something else."""

from __future__ import annotations

import email.utils
import gzip
import io
import logging
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from facedata.errors import ChecksumError, TransferError, WebPageError

DATA = os.urandom(300_000)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_fails_at_first(server: Server, fetch: Any, tmp_path: Path, status: int) -> None:
    served = server.add("/a.bin", DATA, status=[status, status, 200])
    fetch(server.url("/a.bin"), check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert served.requests == 3


def test_a_server_that_keeps_failing_is_given_up(server: Server, fetch: Any, tmp_path: Path) -> None:
    served = server.add("/a.bin", DATA, status=500)
    with pytest.raises(TransferError, match="500 Internal Server Error \\(after 4 attempts\\)"):
        fetch(server.url("/a.bin"), retries=3)
    assert served.requests == 4
    assert os.listdir(tmp_path) == []


def test_retry_after_in_seconds_is_obeyed_and_reported(
    server: Server, fetch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="facedata")
    server.add("/a.bin", DATA, status=[429, 200], headers={"Retry-After": "1"})
    begin = time.monotonic()
    fetch(server.url("/a.bin"), check=DATA)
    assert time.monotonic() - begin >= 1
    assert "a.bin: the server answers 429 too many requests; trying again in 1 s" in caplog.text


def test_retry_after_a_date_is_obeyed(server: Server, fetch: Any) -> None:
    served = server.add("/a.bin", DATA, status=[503, 200])
    served.headers["Retry-After"] = email.utils.formatdate(time.time() + 2, usegmt=True)
    begin = time.monotonic()
    fetch(server.url("/a.bin"), check=DATA)
    assert time.monotonic() - begin >= 0.5


@pytest.mark.parametrize("cut_at", [0, 1, 999, 299_999])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut(server: Server, fetch: Any, tmp_path: Path, cut_at: int, ranges: bool) -> None:
    served = server.add("/a.bin", DATA, cut_at=[cut_at, None], ranges=ranges)
    fetch(server.url("/a.bin"), check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    again = 0 if ranges and cut_at >= 4096 else cut_at  # less than the head that is looked at is not kept
    assert served.bytes_served == len(DATA) + again


def test_a_connection_that_is_cut_again_and_again_but_makes_progress(server: Server, fetch: Any) -> None:
    served = server.add("/a.bin", DATA, cut_at=10_000)
    fetch(server.url("/a.bin"), check=DATA, retries=2)
    assert served.requests == 30
    assert served.bytes_served == len(DATA)


def test_a_connection_that_is_always_cut_at_the_same_place_is_given_up(server: Server, fetch: Any) -> None:
    served = server.add("/a.bin", DATA, cut_at=10_000, ranges=False)
    with pytest.raises(TransferError, match="only from its beginning"):
        fetch(server.url("/a.bin"), retries=3)
    assert served.requests == 4


@pytest.mark.parametrize("published", [True, False])
def test_a_content_length_that_is_too_long(server: Server, fetch: Any, tmp_path: Path, published: bool) -> None:
    server.add("/a.bin", DATA, length=300_100, ranges=False)
    with pytest.raises(TransferError):
        fetch(server.url("/a.bin"), size=len(DATA) if published else None, retries=1)
    assert not (tmp_path / "a.bin").exists()


def test_a_content_length_that_is_too_short(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", DATA, length=1000, ranges=False)
    with pytest.raises(ChecksumError):
        fetch(server.url("/a.bin"), check=DATA)
    with pytest.raises(TransferError, match="has 1,000 bytes, not the 300,000"):
        fetch(server.url("/a.bin"), size=len(DATA))


@pytest.mark.parametrize("options", [{"chunked": True}, {"length": None}])
def test_a_body_of_unknown_length_that_is_cut(
    server: Server, fetch: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    server.add("/a.bin", DATA, cut_at=[100_000, None], **options)
    fetch(server.url("/a.bin"), size=len(DATA))
    assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize("lie", ["bytes 7-299999/300000", "bytes 0-299999", "nonsense", "bytes 5-2/300000"])
def test_a_content_range_that_was_not_requested_is_refused(server: Server, fetch: Any, lie: str) -> None:
    server.add("/a.bin", DATA, content_range=lie)
    with pytest.raises(TransferError, match="but the whole file was requested"):
        fetch(server.url("/a.bin"))


def test_a_slow_body_is_given_up(server: Server, fetch: Any) -> None:
    server.add("/a.bin", DATA, rate=100)
    begin = time.monotonic()
    with pytest.raises(TransferError, match="bytes arrived in"):
        fetch(server.url("/a.bin"), timeout=0.5, retries=1, least_speed=10_000)
    assert time.monotonic() - begin < 6


def test_a_server_that_never_answers(server: Server, fetch: Any) -> None:
    server.add("/a.bin", DATA, silent=True)
    with pytest.raises(TransferError, match="does not answer in time"):
        fetch(server.url("/a.bin"), timeout=0.3, retries=1)


def test_headers_that_arrive_byte_by_byte_are_given_up(server: Server, fetch: Any) -> None:
    server.add("/a.bin", DATA, slow_head=True)
    with pytest.raises(TransferError, match="bytes arrived in"):
        fetch(server.url("/a.bin"), timeout=0.2, retries=0)


def test_cut_headers_are_not_an_empty_file(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", length=None, ranges=False)
    with pytest.raises(TransferError, match="sends nothing"):
        fetch(server.url("/a.bin"), retries=1)
    assert os.listdir(tmp_path) == []


def test_a_proxy_of_the_environment_is_used(server: Server, fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url(""))
    server.add("http://nowhere.example/a.bin", DATA)
    fetch("http://nowhere.example/a.bin", check=DATA)


def test_a_redirect_is_followed(server: Server, fetch: Any) -> None:
    server.add("/old", location="new?x=1")
    server.add("/new?x=1", DATA)
    fetched = fetch(server.url("/old"), check=DATA)
    assert fetched.final_url == server.url("/new")
    assert fetched.link.address == server.url("/old")


def test_redirects_in_a_circle_are_named(server: Server, fetch: Any) -> None:
    server.add("/a", location="/b")
    server.add("/b", location="/a")
    with pytest.raises(TransferError, match=f"redirects in a circle: .*{server.url('/a')}.*{server.url('/b')}"):
        fetch(server.url("/a"))
    assert server.served["/a"].requests < 10


def test_redirects_without_end_are_given_up(server: Server, fetch: Any) -> None:
    for number in range(20):
        server.add(f"/{number}", location=f"/{number + 1}")
    with pytest.raises(TransferError, match="redirects more than 10 times"):
        fetch(server.url("/0"))


def test_a_redirect_to_a_local_file_is_refused(server: Server, fetch: Any) -> None:
    server.add("/a", location="file:///etc/passwd")
    with pytest.raises(TransferError, match="neither http nor https"):
        fetch(server.url("/a"))


PAGE = b"<!DOCTYPE html>\n<html><head><title>Quota \x1b[31m exceeded &amp; more</title></head></html>"


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_instead_of_the_file(server: Server, fetch: Any, tmp_path: Path, content_type: str) -> None:
    served = server.add("/a.bin", PAGE, headers={"Content-Type": content_type})
    with pytest.raises(WebPageError, match=r'a web page instead of the file, "Quota \[31m exceeded & more"'):
        fetch(server.url("/a.bin"), check=DATA)
    assert os.listdir(tmp_path) == []
    assert served.requests == 1


def test_a_web_page_compressed_on_its_way(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.tar.gz", gzip.compress(PAGE), headers={"Content-Type": "text/html", "Content-Encoding": "gzip"})
    with pytest.raises(WebPageError, match="Quota"):
        fetch(server.url("/a.tar.gz"), name="a.tar.gz")
    assert os.listdir(tmp_path) == []


def test_a_web_page_that_was_requested(server: Server, fetch: Any) -> None:
    server.add("/a.html", PAGE, headers={"Content-Type": "text/html"})
    fetch(server.url("/a.html"), name="a.html", check=PAGE)


def test_a_file_that_the_server_calls_a_web_page(server: Server, fetch: Any) -> None:
    data = bytes(2000) + DATA
    server.add("/a.bin", data, headers={"Content-Type": "text/html"})
    fetch(server.url("/a.bin"), check=data)


def tar_of(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("member")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


TAR = tar_of(DATA)
TAR_GZ = gzip.compress(TAR)
GZIP = {"Content-Encoding": "gzip"}


def test_an_archive_that_the_server_calls_an_encoding_is_kept_as_it_is(server: Server, fetch: Any) -> None:
    served = server.add("/a.tar.gz", TAR_GZ, headers={"Content-Encoding": "x-gzip"}, cut_at=[100_000, None])
    fetch(server.url("/a.tar.gz"), name="a.tar.gz", check=TAR_GZ)
    assert served.bytes_served == len(TAR_GZ)  # it could even be resumed


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


def test_a_body_that_is_wrongly_called_compressed(server: Server, fetch: Any) -> None:
    server.add("/a.bin", DATA, headers=GZIP)
    fetch(server.url("/a.bin"), check=DATA)


def test_a_body_that_is_longer_than_the_published_size(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", DATA, chunked=True, ranges=False)
    with pytest.raises(TransferError, match="more than the 1,000 bytes"):
        fetch(server.url("/a.bin"), size=1000)
    assert not (tmp_path / "a.bin").exists()


def test_a_refused_range_is_not_an_empty_file(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", DATA, status=416, headers={"Content-Type": "text/plain"})
    with pytest.raises(TransferError, match="answers 416"):
        fetch(server.url("/a.bin"), retries=0)
    assert os.listdir(tmp_path) == []


def test_a_proxy_without_a_valid_address_is_reported(
    server: Server, fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http:///me:secret")
    with pytest.raises(TransferError, match="the proxy that the environment names") as error:
        fetch("http://nowhere.example/a.bin", retries=0)
    assert "secret" not in str(error.value)
