"""Going on: across runs, after kill -9, and only with a half of the same file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from facedata.errors import TransferError

DATA = os.urandom(1_000_000)
CUT = {"cut_at": [400_000, None, None, None]}


@pytest.fixture
def half(server: Server, fetch: Any, tmp_path: Path) -> Callable[..., Any]:
    """What a run that failed after 400,000 bytes leaves; returns what is served."""

    def leave(path: str = "/a.bin", check: bytes | None = None, **options: Any) -> Any:
        served = server.add(path, DATA, **{**CUT, **options})
        with pytest.raises(TransferError, match="the half is kept"):
            fetch(server.url(path), check=check, retries=0)
        assert (tmp_path / "a.bin.part").stat().st_size == 400_000
        server.wait_until_idle()
        served.bytes_served = 0
        return served

    return leave


def test_a_second_run_fetches_only_the_rest(server: Server, fetch: Any, half: Any, tmp_path: Path) -> None:
    served = half()
    assert sorted(os.listdir(tmp_path)) == ["a.bin.part", "a.bin.part.json"]
    fetched = fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == fetched.fetched_bytes == 600_000
    assert served.asked[-1].range == "bytes=400000-999999"
    assert served.asked[-1].if_range == '"first"'
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_the_date_decides(server: Server, fetch: Any, half: Any, etag: str | None) -> None:
    served = half(etag=etag)
    fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == 600_000
    assert served.asked[-1].if_range == "Wed, 01 May 2024 10:00:00 GMT"


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({}, {"etag": '"second"'}, 'its ETag was "first", and is "second"'),
        ({"etag": None}, {"last_modified": "Wed, 08 May 2024 10:00:00 GMT"}, "08 May 2024"),
        ({}, {"data": DATA[::-1] + b"more", "etag": '"second"'}, "has changed"),
        ({}, {"ranges": False}, "only from its beginning"),
        ({}, {"data": b"short", "etag": '"first"'}, "has no byte 400,000 any more"),
    ],
)
def test_a_file_that_changed_is_not_glued_to_the_old_half(
    server: Server,
    fetch: Any,
    half: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    before: dict[str, Any],
    now: dict[str, Any],
    told: str,
) -> None:
    served = half(**before)
    for name, value in now.items():
        setattr(served, name, value)
    fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == served.data
    assert told in caplog.text
    assert "starting over" in caplog.text


def test_a_file_that_changed_behind_a_server_that_ignores_if_range(
    server: Server, fetch: Any, half: Any, tmp_path: Path
) -> None:
    served = half(last_modified=None)
    served.etag, served.data = '"second"', DATA[::-1]
    served.on_request = lambda asked: setattr(served, "etag", asked.if_range or '"second"')
    served.headers["ETag"] = '"second"'  # the rest of another file, sent as if nothing were
    fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin").read_bytes() == DATA[::-1]


def test_without_any_validator_a_half_counts_only_with_a_checksum(server: Server, fetch: Any, half: Any) -> None:
    served = half(check=DATA, etag=None, last_modified=None)
    fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == 600_000


def test_without_validator_and_checksum_it_starts_over(
    server: Server, fetch: Any, half: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served = half(etag=None, last_modified=None)
    fetch(server.url("/a.bin"))
    assert served.bytes_served == len(DATA)
    assert "starting over" in caplog.text


def test_another_link_goes_on_with_the_half_where_a_checksum_will_decide(server: Server, fetch: Any, half: Any) -> None:
    half(check=DATA)
    mirror = server.add("/mirror", DATA, etag='"other"', last_modified=None)
    fetched = fetch(server.url("/mirror"), check=DATA)
    assert (mirror.bytes_served, fetched.etag) == (600_000, '"other"')


def test_another_link_starts_over_where_none_will(server: Server, fetch: Any, half: Any) -> None:
    half()
    mirror = server.add("/mirror", DATA)
    fetch(server.url("/mirror"))
    assert mirror.bytes_served == len(DATA)


def test_a_rest_that_was_not_asked_for_is_no_data(server: Server, fetch: Any, half: Any, tmp_path: Path) -> None:
    served = half()
    served.content_range = "bytes 0-999999/1000000"
    with pytest.raises(TransferError, match="where those from 400,000 on were asked for"):
        fetch(server.url("/a.bin"))
    assert (tmp_path / "a.bin.part").stat().st_size == 400_000


def test_a_half_that_was_damaged_is_found_and_fetched_again(
    server: Server, fetch: Any, half: Any, tmp_path: Path
) -> None:
    half(check=DATA)
    with open(tmp_path / "a.bin.part", "r+b") as file:
        file.write(b"damage")
    fetch(server.url("/a.bin"), check=DATA)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_half_without_its_record_is_not_believed(server: Server, fetch: Any, half: Any, tmp_path: Path) -> None:
    for record in (None, "{", "[]", '{"version": 1, "total": -5}', '{"version": 2}', "[" * 100_000):
        served = half(check=DATA)
        if record is None:
            (tmp_path / "a.bin.part.json").unlink()
        else:
            (tmp_path / "a.bin.part.json").write_text(record)
        fetch(server.url("/a.bin"), check=DATA)
        assert served.bytes_served == len(DATA)
        (tmp_path / "a.bin").unlink()


def test_after_a_power_cut_only_what_was_forced_to_the_disk_counts(
    server: Server, fetch: Any, half: Any, tmp_path: Path
) -> None:
    served = half(check=DATA)
    record = tmp_path / "a.bin.part.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "another", "synced": [[0, 100_000]]}))
    fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == 900_000


def test_a_whole_file_that_was_not_renamed_needs_no_server(
    server: Server, fetch: Any, half: Any, tmp_path: Path
) -> None:
    served = half(check=DATA)
    (tmp_path / "a.bin.part").write_bytes(DATA)
    fetched = fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == fetched.fetched_bytes == 0
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_half_with_holes_is_filled(server: Server, fetch: Any, half: Any, tmp_path: Path) -> None:
    served = half(check=DATA)
    record = tmp_path / "a.bin.part.json"
    ranges = [[100_000, 200_000], [300_000, 400_000]]
    record.write_text(json.dumps({**json.loads(record.read_text()), "ordered": False, "written": ranges}))
    fetch(server.url("/a.bin"), check=DATA)
    assert served.bytes_served == 800_000
    assert [one.range for one in served.asked[1:]] == ["bytes=0-99999", "bytes=200000-299999", "bytes=400000-999999"]


SCRIPT = """
import sys, logging
from pathlib import Path
from facedata.download.digest import Digest
from facedata.download.links import Link
from facedata.download.transfer import FileRequest, TransferOptions, fetch_files
from facedata.jobs.signals import stop_on_signals
from facedata.errors import FacedataError
import facedata.download.transfer.ranges as ranges
ranges.SMALLEST = 1 << 18
url, path, digest, connections = sys.argv[1:]
logging.basicConfig(level=logging.INFO)
request = FileRequest(Path(path), (Link("http", url),), Digest("md5", digest))
with stop_on_signals() as stop:
    try:
        fetch_files([request], TransferOptions(connections=int(connections)), stop=stop)
    except FacedataError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(75)
"""


def start(url: str, path: Path, data: bytes, connections: int) -> subprocess.Popen[str]:
    from hashlib import md5

    arguments = [url, str(path), md5(data).hexdigest(), str(connections)]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


BIG = os.urandom(24_000_000)


@pytest.mark.parametrize("connections", [1, 3])
def test_kill_9_in_the_middle_loses_next_to_nothing(server: Server, tmp_path: Path, connections: int) -> None:
    served = server.add("/a.bin", BIG, rate=4_000_000)
    process = start(server.url("/a.bin"), tmp_path / "a.bin", BIG, connections)
    wait_for(lambda: served.bytes_served > 9_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert served.most_at_once == connections
    server.wait_until_idle()
    served.rate = None
    process = start(server.url("/a.bin"), tmp_path / "a.bin", BIG, connections)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert (tmp_path / "a.bin").read_bytes() == BIG
    assert os.listdir(tmp_path) == ["a.bin"]
    # what was on its way is lost: up to some MB in the buffers of each connection, and a quarter of a second of records
    in_buffers = 1_000_000 if connections == 1 else 6_000_000
    assert served.bytes_served - len(BIG) < in_buffers


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_a_second_and_the_same_call_goes_on(
    server: Server, tmp_path: Path, signal_number: int
) -> None:
    served = server.add("/a.bin", DATA, rate=500_000)
    process = start(server.url("/a.bin"), tmp_path / "a.bin", DATA, 2)
    wait_for(lambda: served.bytes_served > 300_000)
    begin = time.monotonic()
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - begin < 5  # and not the minute that it may wait for a server
    assert process.returncode == 75
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    there = (tmp_path / "a.bin.part").stat().st_size
    assert there > 200_000
    server.wait_until_idle()
    served.rate, served.bytes_served = None, 0
    assert start(server.url("/a.bin"), tmp_path / "a.bin", DATA, 1).communicate(timeout=20)[1] == ""
    assert served.bytes_served == len(DATA) - there


def test_a_signal_also_ends_it_when_the_server_hangs(server: Server, tmp_path: Path) -> None:
    served = server.add("/a.bin", DATA, silent=True)
    process = start(server.url("/a.bin"), tmp_path / "a.bin", DATA, 1)
    wait_for(lambda: served.requests == 1)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert time.monotonic() - begin < 5  # and not the minute that it may wait for a server
    assert process.returncode == 75
    assert os.listdir(tmp_path) == []
