"""A file is downloaded and checked, and only then gets its name."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from facedata.download.checksums import Digest
from facedata.download.transfer import Fetched, FileRequest, Link, TransferOptions, fetch_files
from facedata.errors import ChecksumError, InterruptedJobError, OptionError, TransferError
from facedata.jobs.signals import StopRequest

DATA = os.urandom(300_000)


def test_a_file_is_downloaded_with_its_date_and_nothing_else_is_left(
    server: Server, fetch: Any, tmp_path: Path
) -> None:
    served = server.add("/a.bin", DATA)
    fetched, path, url = fetch(server.url("/a.bin")), tmp_path / "a.bin", server.url("/a.bin")
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.stat().st_mtime == 1714557600.0
    digest, date = Digest("sha256", sha256(DATA).hexdigest()), "Wed, 01 May 2024 10:00:00 GMT"
    assert fetched == Fetched(path, len(DATA), digest, Link("http", url), url, '"first"', date, len(DATA))
    assert served.requests == 1
    assert served.asked[0].range == "bytes=0-"
    assert served.asked[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("options", [{}, {"ranges": False}, {"length": None, "ranges": False}, {"chunked": True}])
@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_any_size_from_any_kind_of_server(
    server: Server, fetch: Any, caplog: pytest.LogCaptureFixture, size: int, options: dict[str, Any]
) -> None:
    server.add("/a.bin", DATA[:size], **options)
    assert fetch(server.url("/a.bin"), check=DATA[:size]).path.read_bytes() == DATA[:size]
    assert caplog.text == ""
    if size:
        fetch(server.url("/a.bin"), name="b.bin")
        assert ("may be cut short" in caplog.text) == ("length" in options)


def test_several_files_at_once_each_reported_when_complete(server: Server, tmp_path: Path) -> None:
    requests, at_once = [], [0]
    for number in range(7):
        served = server.add(f"/{number}", DATA[number:], rate=3_000_000)
        served.on_request = lambda _: at_once.append(len(list((tmp_path / "sub").glob("*.part"))))
        requests.append(FileRequest(tmp_path / "sub" / str(number), (Link("http", server.url(f"/{number}")),)))
    reported: list[Fetched] = []
    seen: list[tuple[int, int]] = []
    fetched = fetch_files(
        requests,
        TransferOptions(connections=3),
        observer=lambda done, total: seen.append((done, total)),
        on_fetched=reported.append,
    )
    assert [each.path.name for each in fetched] == list("0123456")
    assert sorted(reported, key=lambda each: each.path) == fetched
    assert seen[-1] == (sum(len(DATA) - n for n in range(7)), sum(len(DATA) - n for n in range(7)))
    assert max(at_once) <= 3
    for number in range(7):
        assert (tmp_path / "sub" / str(number)).read_bytes() == DATA[number:]


def test_files_that_were_complete_before_a_stop_are_reported(server: Server, tmp_path: Path) -> None:
    server.add("/quick", DATA)
    server.add("/slow", DATA, silent=True)
    requests = [FileRequest(tmp_path / name, (Link("http", server.url(f"/{name}")),)) for name in ("quick", "slow")]
    stop, reported = StopRequest(), list[Fetched]()

    def stop_at_the_first(done: int, total: int) -> None:
        if (tmp_path / "quick").exists():
            stop.count = 1

    begin = time.monotonic()
    with pytest.raises(InterruptedJobError):
        fetch_files(requests, observer=stop_at_the_first, on_fetched=reported.append, stop=stop)
    assert time.monotonic() - begin < 20  # not the minute that it may wait for a server, also on a busy machine
    assert [each.path.name for each in reported] == ["quick"]


def test_a_file_that_fails_does_not_stop_the_others(server: Server, tmp_path: Path) -> None:
    server.add("/good", DATA)
    names = ("bad", "good", "worse")
    requests = [FileRequest(tmp_path / name, (Link("http", server.url(f"/{name}")),)) for name in names]
    reported: list[Fetched] = []
    with pytest.raises(TransferError, match=r"^2 of 3 files could not be downloaded:\n") as caught:
        fetch_files(requests, on_fetched=reported.append)
    assert all(f"{tmp_path / name}: cannot be downloaded" in str(caught.value) for name in ("bad", "worse"))
    assert [each.path.name for each in reported] == ["good"]
    assert os.listdir(tmp_path) == ["good"]


def test_links_are_tried_in_turn_and_each_failure_is_reported_with_what_to_do(
    server: Server, fetch: Any, tmp_path: Path
) -> None:
    answers = {"/missing": "404 not found", "/gone": "410 gone", "/forbidden": "403 forbidden", "/login": "401 login"}
    for path, answer in list(answers.items())[1:]:
        server.add(path, DATA, status=int(answer[:3]))
    links = [server.url(path) for path in answers]
    with pytest.raises(TransferError) as caught:
        fetch(*links)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.bin'}: cannot be downloaded: ")
    for link, answer in zip(links, answers.values(), strict=True):
        assert f"{link}: the server answers {answer}" in message
    assert "in a browser" in message
    assert "--from-dir" in message
    assert os.listdir(tmp_path) == []
    server.add("/a.bin", DATA)
    assert fetch(*links, server.url("/a.bin")).link == Link("http", server.url("/a.bin"))
    assert [server.served[path].requests for path in ("/gone", "/forbidden", "/login")] == [2, 2, 2]


def test_a_wrong_checksum_once_then_right(
    server: Server, fetch: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = b"x" * len(DATA)
    served = server.add("/a.bin", wrong)
    served.on_request = lambda _: setattr(served, "data", wrong if served.requests == 1 else DATA)
    fetched = fetch(server.url("/a.bin"), check=DATA)
    aside = tmp_path / f"a.bin.wrong-{md5(wrong).hexdigest()[:8]}"
    assert aside.read_bytes() == wrong
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert sorted(os.listdir(tmp_path)) == ["a.bin", aside.name]
    assert fetched.fetched_bytes == 2 * len(DATA)
    assert f"expected md5 {md5(DATA).hexdigest()}, found md5 {md5(wrong).hexdigest()}" in caplog.text
    assert aside.name in caplog.text


def test_a_checksum_wrong_everywhere_is_an_error_that_names_all(server: Server, fetch: Any, tmp_path: Path) -> None:
    for number in range(4):
        server.add(f"/{number}", f"wrong {number}".encode())
    links = [server.url(f"/{number}") for number in range(4)]
    with pytest.raises(ChecksumError) as caught:
        fetch(*links, check=DATA)
    digests = [md5(data).hexdigest() for data in (DATA, *(f"wrong {number}".encode() for number in range(4)))]
    assert all(text in str(caught.value) for text in [*links, *digests])
    assert len(os.listdir(tmp_path)) == 2  # no more than two are kept aside
    assert not (tmp_path / "a.bin").exists()
    server.add("/a.bin", DATA)
    assert fetch(*links, server.url("/a.bin"), check=DATA).link.address == server.url("/a.bin")
    assert server.served["/0"].requests == 4


@pytest.mark.parametrize("published", [True, False])
def test_a_file_known_to_be_another_is_named_and_not_requested_again(
    server: Server, fetch: Any, published: bool
) -> None:
    old = server.add("/a.bin", b"old release")
    algorithm = md5 if published else sha256
    known = {algorithm(b"old release").hexdigest(): "the first release, which holds undecodable images"}
    with pytest.raises(ChecksumError, match="which is the first release, which holds undecodable images"):
        fetch(server.url("/a.bin"), check=DATA if published else None, known=known)
    assert old.requests == 1


def test_an_existing_file_is_replaced_only_on_request_and_by_the_right_one(
    server: Server, fetch: Any, tmp_path: Path
) -> None:
    server.add("/a.bin", DATA)
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(ChecksumError):
        fetch(server.url("/a.bin"), check=b"other", overwrite=True)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    fetch(server.url("/a.bin"), check=DATA, overwrite=True)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    request = FileRequest(tmp_path / "a", (Link("http", "http://127.0.0.1/a"),))
    with pytest.raises(OptionError):
        fetch_files([request, request])
    with pytest.raises(OptionError):
        fetch_files([request], TransferOptions(connections=0))
    assert fetch_files([]) == []


def test_an_invalid_url_is_reported(fetch: Any) -> None:
    addresses = ["nonsense", "http://", "http://[bad", "ftp://example.org/a", "http://a b/"]
    with pytest.raises(TransferError) as caught:
        fetch(*addresses)
    assert str(caught.value).count("is not a URL that can be downloaded") == len(addresses)


def test_a_refused_connection_is_given_up_soon(fetch: Any) -> None:
    with Server() as gone:
        url = gone.url("/a.bin")
    with pytest.raises(TransferError, match="the connection is refused \\(after 4 attempts\\)"):
        fetch(url)


def test_a_password_in_a_url_is_not_shown(server: Server, fetch: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="facedata")
    server.add("/a.bin", DATA)
    url = server.url("/a.bin").replace("http://", "http://me:secret@")
    assert "secret" not in fetch(url).final_url
    with pytest.raises(ChecksumError) as caught:
        fetch(url, name="b.bin", check=b"other")
    assert "secret" not in str(caught.value) + caplog.text


def test_the_package_is_cheap_to_import() -> None:
    heavy = "('requests', 'urllib3', 'gdown')"
    code = f"import sys, facedata.download.transfer; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
