"""Fixtures for downloads: servers, and downloading one file from them without long waits."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import trustme
from http_server import Server

from facedata.download.checksums import Digest
from facedata.download.transfer import Fetched, FileRequest, Link, TransferOptions, fetch_files

GOOGLE = ("drive.google.com", "drive.usercontent.google.com")
MICROSOFT = ("api-badgerp.svc.ms", "my.microsoftpersonalcontent.com", "download.example.com", "lab-my.sharepoint.com")


class Site(Server):
    """A server of files that are downloaded into the current folder."""

    def fetch(self, *given: str | Link, name: str = "a.bin", check: bytes | None = None, **further: Any) -> Fetched:
        """Download a file from links, URLs or paths of this server; `check` is the right data."""

        about: dict[str, Any] = {key: further.pop(key) for key in ("size", "known") if key in further}
        if check is not None:
            about["digest"] = Digest("md5", md5(check).hexdigest())
        stop, observer = further.pop("stop", None), further.pop("observer", None)
        links = [Link("http", urljoin(self.url(""), each)) if isinstance(each, str) else each for each in given]
        request = FileRequest(Path(name), tuple(links) or (Link("http", self.url("/a.bin")),), **about)
        settings = TransferOptions(**{"first_wait": 0.01, "timeout": 10.0, "connections": 1, **further})
        return fetch_files([request], settings, stop=stop, observer=observer)[0]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    with Site() as site:
        yield site


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs the certificates of the test servers."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", *GOOGLE, *MICROSOFT).configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make requests trust that authority, and no other."""
    bundle = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))


@pytest.fixture
def internet(tls: ssl.SSLContext, trusted: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A proxy that receives everything sent to Google and Microsoft, and answers it."""
    with Server(tls, is_proxy=True) as server:
        monkeypatch.setenv("HTTPS_PROXY", server.url(""))
        monkeypatch.setenv("HOME", "/nonexistent")  # no cookies of the user
        for name in ("https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server
