"""Certificates, and never from https to http."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from http_server import Server

from facedata.errors import TransferError

DATA = os.urandom(300_000)


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Server(tls=context) as server:
        yield server


def test_a_file_over_https_cut_in_between(secure: Server, fetch: Any, trusted: None, tmp_path: Path) -> None:
    served = secure.add("/a.bin", DATA, cut_at=[100_000, None])
    fetch(secure.url("/a.bin"), check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert served.bytes_served == len(DATA)


def test_a_certificate_that_is_not_trusted(secure: Server, fetch: Any) -> None:
    secure.add("/a.bin", DATA)
    with pytest.raises(TransferError, match="its certificate is not trusted"):
        fetch(secure.url("/a.bin"))


def test_a_redirect_from_https_to_http_is_refused(secure: Server, server: Server, fetch: Any, trusted: None) -> None:
    plain = server.add("/a.bin", DATA)
    secure.add("/a.bin", location=server.url("/a.bin"))
    with pytest.raises(TransferError, match="redirects from https to http"):
        fetch(secure.url("/a.bin"))
    assert plain.requests == 0


def test_a_redirect_from_http_to_https_is_followed_but_not_back(
    secure: Server, server: Server, fetch: Any, trusted: None
) -> None:
    secure.add("/a.bin", DATA)
    server.add("/a.bin", location=secure.url("/a.bin"))
    assert fetch(server.url("/a.bin"), check=DATA).final_url == secure.url("/a.bin")
    secure.add("/back", location=server.url("/plain"))
    server.add("/there", location=secure.url("/back"))
    with pytest.raises(TransferError, match="redirects from https to http"):
        fetch(server.url("/there"), name="b.bin")
