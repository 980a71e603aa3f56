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


def test_a_second_run_requests_only_the_rest(server: Server, fetch: Any, partial: Any, tmp_path: Path) -> None:
    served = partial()
    assert sorted(os.listdir(tmp_path)) == ["a.bin.part", "a.bin.part.json"]
    fetched = fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == fetched.fetched_bytes == 600_000
    assert served.asked[-1].range == "bytes=400000-"
    assert served.asked[-1].if_range == '"first"'
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_the_date_decides(server: Server, fetch: Any, partial: Any, etag: str | None) -> None:
    served = partial(etag=etag)
    fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == 600_000
    assert served.asked[-1].if_range == "Wed, 01 May 2024 10:00:00 GMT"


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
    served = partial()
    served.content_range = "bytes 0-999999/1000000"
    with pytest.raises(TransferError, match="but those from 400,000 on were requested"):
        fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin.part").stat().st_size == 400_000


def test_a_damaged_partial_file_is_detected_and_downloaded_again(
    server: Server, fetch: Any, partial: Any, tmp_path: Path
) -> None:
    partial(check=DATA)
    with open(tmp_path / "a.bin.part", "r+b") as file:
        file.write(b"damage")
    fetch(server.url("/a.bin"), check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA


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


def test_a_complete_file_that_was_not_renamed_needs_no_server(
    server: Server, fetch: Any, partial: Any, tmp_path: Path
) -> None:
    served = partial(check=DATA)
    (tmp_path / "a.bin.part").write_bytes(DATA)
    fetched = fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == fetched.fetched_bytes == 0
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


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_9_in_the_middle_loses_next_to_nothing(server: Server, tmp_path: Path) -> None:
    data = os.urandom(4_000_000)
    served = server.add("/a.bin", data, rate=4_000_000)
    process = start(server.url("/a.bin"), tmp_path / "a.bin", data)
    wait_for(lambda: served.bytes_served > 2_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.wait_until_idle()
    served.rate = None
    process = start(server.url("/a.bin"), tmp_path / "a.bin", data)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert (tmp_path / "a.bin").read_bytes() == data
    assert os.listdir(tmp_path) == ["a.bin"]
    assert served.bytes_served - len(data) < 1_000_000  # what was in the buffers of the connection


def test_a_signal_ends_the_download_and_the_same_call_resumes(server: Server, tmp_path: Path) -> None:
    served = server.add("/a.bin", DATA, rate=1_000_000)
    process = start(server.url("/a.bin"), tmp_path / "a.bin", DATA)
    wait_for(lambda: served.bytes_served > 300_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "run the same command again to resume" in errors
    assert "Traceback" not in errors
    there = (tmp_path / "a.bin.part").stat().st_size
    assert there > 200_000
    server.wait_until_idle()
    served.rate, served.bytes_served = None, 0
    assert start(server.url("/a.bin"), tmp_path / "a.bin", DATA).communicate(timeout=30)[1] == ""
    assert served.bytes_served == len(DATA) - there


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
