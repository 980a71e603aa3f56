"""Resuming: across runs, after kill -9, and only with a partial file of the same file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from facedata.errors import TransferError

DATA = os.urandom(1_000_000)
CUT = {"cut_at": [400_000, None, None, None]}


@pytest.fixture
def partial(server: Server, fetch: Any, tmp_path: Path) -> Callable[..., Any]:
    """Leave the partial file of a run that failed after 400,000 bytes; returns what is served."""

    def leave(path: str = "/a.bin", check: bytes | None = None, **options: Any) -> Any:
        served = server.add(path, DATA, **{**CUT, **options})
        with pytest.raises(TransferError, match="the connection broke"):
            fetch(server.url(path), check=check, retries=0)
        assert (tmp_path / "a.bin.part").stat().st_size == 400_000
        server.wait_until_idle()
        served.bytes_served = 0
        return served

    return leave


@pytest.mark.parametrize("etag", ['"first"', None, 'W/"weak"'])
def test_a_second_run_requests_only_the_rest(
    server: Server, fetch: Any, partial: Any, tmp_path: Path, etag: str | None
) -> None:
    served = partial(etag=etag)
    assert sorted(os.listdir(tmp_path)) == ["a.bin.part", "a.bin.part.json"]
    fetched = fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == fetched.fetched_bytes == 600_000
    assert served.asked[-1].range == "bytes=400000-"
    assert served.asked[-1].if_range == (etag if etag == '"first"' else served.last_modified)
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, {"etag": '"second"'}, 'its ETag was "first", and is "second"'),
        ({"etag": None}, {"last_modified": "Wed, 08 May 2024 10:00:00 GMT"}, "08 May 2024"),
        ({}, {"data": DATA[::-1] + b"more", "etag": '"second"'}, "has changed"),
        ({}, {"ranges": False}, "only from its beginning"),
        ({}, {"data": b"short", "etag": '"first"'}, "has no byte 400,000 any more"),
    ],
)
def test_a_file_that_changed_is_not_joined_to_the_old_partial(
    server: Server,
    fetch: Any,
    partial: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    before: dict[str, Any],
    now: dict[str, Any],
    message: str,
) -> None:
    served = partial(**before)
    for name, value in now.items():
        setattr(served, name, value)
    fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == served.data
    assert message in caplog.text
    assert "starting over" in caplog.text


@pytest.mark.parametrize("check", [DATA, None])
@pytest.mark.parametrize("path", ["/a.bin", "/mirror"])
def test_without_a_validator_or_from_another_link_it_is_resumed_if_a_checksum_decides(
    server: Server, fetch: Any, partial: Any, check: bytes | None, path: str
) -> None:
    served = partial(check=check, **({} if path == "/mirror" else {"etag": None, "last_modified": None}))
    if path == "/mirror":
        served = server.add("/mirror", DATA, etag='"other"', last_modified=None)
    fetched = fetch(server.url(path), check=check)
    assert (served.bytes_served, fetched.etag) == (600_000 if check else len(DATA), served.etag)


def test_a_rest_that_was_not_requested_is_refused(server: Server, fetch: Any, partial: Any, tmp_path: Path) -> None:
    partial().content_range = "bytes 0-999999/1000000"
    with pytest.raises(TransferError, match="but those from 400,000 on were requested"):
        fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin.part").stat().st_size == 400_000


@pytest.mark.parametrize(
    ("etag", "check", "message"),
    [
        ("", None, "does not say whether the rest belongs to the same version"),
        ('"second"', None, 'its ETag was "first", and is "second"'),
        ("", DATA, None),
    ],
)
def test_a_rest_that_is_sent_in_spite_of_if_range_is_joined_only_if_a_checksum_decides(
    server: Server,
    fetch: Any,
    partial: Any,
    caplog: pytest.LogCaptureFixture,
    etag: str,
    check: bytes | None,
    message: str | None,
) -> None:
    served = partial()
    served.data = check or DATA[::-1]
    served.last_modified = None
    served.headers["ETag"] = etag
    served.on_request = lambda asked: setattr(served, "etag", asked.if_range)
    fetched = fetch(server.url("/a.bin"), check=check)
    assert fetched.path.read_bytes() == served.data
    assert (served.bytes_served == 600_000) == (message is None)
    assert (message or "") in caplog.text


@pytest.mark.parametrize(
    ("there", "fetched"),
    [(DATA, 0), (b"damage" + DATA[6:], len(DATA)), (b"damage" + DATA[6:400_000], 600_000 + len(DATA))],
    ids=["complete", "damaged", "damaged and incomplete"],
)
def test_a_partial_file_that_is_complete_or_damaged(
    server: Server, fetch: Any, partial: Any, tmp_path: Path, there: bytes, fetched: int
) -> None:
    served = partial(check=DATA)
    (tmp_path / "a.bin.part").write_bytes(there)
    result = fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == result.fetched_bytes == fetched
    assert (tmp_path / "a.bin").read_bytes() == DATA


SCRIPT = """
import sys, logging
from pathlib import Path
from facedata.download.checksums import Digest
from facedata.download.transfer import FileRequest, Link, fetch_files
from facedata.jobs.signals import stop_on_signals
from facedata.errors import FacedataError
url, path, digest = sys.argv[1:]
logging.basicConfig(level=logging.INFO)
request = FileRequest(Path(path), (Link("http", url),), Digest("md5", digest))
with stop_on_signals() as stop:
    try:
        fetch_files([request], stop=stop)
    except FacedataError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(75)
"""


def start(url: str, path: Path, data: bytes) -> subprocess.Popen[str]:
    arguments = [url, str(path), md5(data).hexdigest()]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_or_interrupted_is_resumed(server: Server, tmp_path: Path, number: int) -> None:
    data = os.urandom(3_000_000)
    served = server.add("/a.bin", data, rate=4_000_000)
    process = start(server.url("/a.bin"), tmp_path / "a.bin", data)
    served.wait_for(1_500_000)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (75 if number == signal.SIGINT else -number)
    assert ("run the same command again to resume" in errors) == (number == signal.SIGINT)
    assert "Traceback" not in errors
    there = (tmp_path / "a.bin.part").stat().st_size
    assert there > 500_000  # the rest was in the buffers of the connection
    server.wait_until_idle()
    served.rate, served.bytes_served = None, 0
    process = start(server.url("/a.bin"), tmp_path / "a.bin", data)
    assert (process.communicate(timeout=30)[1], process.returncode) == ("", 0)
    assert (tmp_path / "a.bin").read_bytes() == data
    assert os.listdir(tmp_path) == ["a.bin"]
    assert served.bytes_served == len(data) - there


def test_a_signal_ends_the_download_if_the_server_hangs(tmp_path: Path) -> None:
    """In the middle of the TLS handshake, nothing can end the thread that waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start(f"https://127.0.0.1:{listener.getsockname()[1]}/a.bin", tmp_path / "a.bin", DATA)
        listener.settimeout(60)
        with listener.accept()[0] as connection:
            connection.recv(1)
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=50)
    assert time.monotonic() - begin < 40  # not the minute that it may wait for a server, also on a busy machine
    assert process.returncode == 75
