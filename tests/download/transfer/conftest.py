"""Fixtures for downloads: a server, and downloading one file from it without long waits."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import trustme
from http_server import Server, Tunnel

from facedata.download.checksums import Digest
from facedata.download.transfer import Fetched, FileRequest, Link, TransferOptions, fetch_files

Fetch = Callable[..., Fetched]
HOSTS = (
    "drive.google.com",
    "drive.usercontent.google.com",
    "api-badgerp.svc.ms",
    "my.microsoftpersonalcontent.com",
    "download.example.com",
    "lab-my.sharepoint.com",
)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    """Download a file: URLs, then parts of its request (``check`` takes its MD5 from bytes), then transfer options."""

    def fetch_one(*urls: str, name: str = "a.bin", check: bytes | None = None, **further: Any) -> Fetched:
        keys = {"digest", "size", "known"}
        about = {key: value for key, value in further.items() if key in keys}
        options = {key: value for key, value in further.items() if key not in keys}
        if check is not None:
            about["digest"] = Digest("md5", md5(check).hexdigest())
        stop, observer = options.pop("stop", None), options.pop("observer", None)
        links = tuple(url if isinstance(url, Link) else Link("http", url) for url in urls)
        request = FileRequest(tmp_path / name, links, **about)
        settings = TransferOptions(**{"first_wait": 0.01, "timeout": 10.0, "connections": 1, **options})
        return fetch_files([request], settings, stop=stop, observer=observer)[0]

    return fetch_one


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs the certificates of the test servers."""
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make requests trust that authority, and no other."""
    bundle = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))


@pytest.fixture
def internet(authority: trustme.CA, trusted: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that receives everything sent to Google and Microsoft, through a proxy."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*HOSTS).configure_cert(context)
    with Server(tls=context) as server, Tunnel(server) as tunnel:
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        monkeypatch.setenv("HOME", "/nonexistent")  # no cookies of the user
        for name in ("https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server
