"""A file is downloaded and checked, and only then gets its name."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest
from download.transfer.conftest import Site
from http_server import Server

from facedata.download.checksums import Digest
from facedata.download.transfer import Fetched, FileRequest, Link, TransferOptions, fetch_files
from facedata.errors import ChecksumError, InterruptedJobError, OptionError, TransferError
from facedata.jobs.signals import StopRequest

DATA = os.urandom(300_000)
FILE = Path("a.bin")


def requests(site: Site, folder: Path, *names: str) -> list[FileRequest]:
    return [FileRequest(folder / name, (Link("http", site.url(f"/{name}")),)) for name in names]


def test_a_file_is_downloaded_with_its_date_and_nothing_else_is_left(site: Site) -> None:
    served, url = site.add("/a.bin", DATA), site.url("/a.bin")
    digest, date = Digest("sha256", sha256(DATA).hexdigest()), "Wed, 01 May 2024 10:00:00 GMT"
    assert site.fetch() == Fetched(FILE, len(DATA), digest, Link("http", url), url, '"first"', date, len(DATA))
    assert FILE.read_bytes() == DATA
    assert os.listdir() == ["a.bin"]
    assert FILE.stat().st_mtime == 1714557600.0
    (asked,) = served.asked
    assert (asked.headers["Range"], asked.headers["Accept-Encoding"]) == ("bytes=0-", "identity")


@pytest.mark.parametrize("options", [{}, {"ranges": False}, {"length": None, "ranges": False}, {"chunked": True}])
@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_any_size_from_any_server(site: Site, caplog: pytest.LogCaptureFixture, size: int, options: Any) -> None:
    site.add("/a.bin", DATA[:size], **options)
    assert site.fetch(check=DATA[:size]).path.read_bytes() == DATA[:size]
    assert caplog.text == ""
    if size:
        site.fetch(name="b.bin")
        assert ("may be cut short" in caplog.text) == ("length" in options)


def test_several_files_at_once_each_reported_when_complete(site: Site, tmp_path: Path) -> None:
    at_once, reported, seen = [0], list[Fetched](), list[tuple[int, int]]()
    contents = {str(number): DATA[number:] for number in range(7)}
    for name, data in contents.items():
        served = site.add(f"/{name}", data, rate=3_000_000)
        served.on_request = lambda _: at_once.append(len(list((tmp_path / "sub").glob("*.part"))))
    fetched = fetch_files(
        requests(site, tmp_path / "sub", *contents),
        TransferOptions(connections=3),
        observer=lambda *both: seen.append(both),
        on_fetched=reported.append,
    )
    assert {each.path.name: each.path.read_bytes() for each in fetched} == contents
    assert sorted(reported, key=lambda each: each.path) == fetched
    assert seen[-1] == (sum(map(len, contents.values())),) * 2
    assert max(at_once) <= 3


def test_files_that_were_complete_before_a_stop_are_reported(site: Site, tmp_path: Path) -> None:
    site.add("/quick", DATA)
    site.add("/slow", DATA, silent=True)
    stop, reported = StopRequest(), list[Fetched]()

    def stop_at_the_first(done: int, total: int) -> None:
        stop.count = int((tmp_path / "quick").exists())

    begin, wanted = time.monotonic(), requests(site, tmp_path, "quick", "slow")
    with pytest.raises(InterruptedJobError):
        fetch_files(wanted, observer=stop_at_the_first, on_fetched=reported.append, stop=stop)
    assert time.monotonic() - begin < 20  # not the minute that it may wait for a server, also on a busy machine
    assert [each.path.name for each in reported] == ["quick"]


def test_a_file_that_fails_does_not_stop_the_others(site: Site, tmp_path: Path) -> None:
    site.add("/good", DATA)
    reported: list[Fetched] = []
    with pytest.raises(TransferError, match=r"^2 of 3 files could not be downloaded:\n") as caught:
        fetch_files(requests(site, tmp_path, "bad", "good", "worse"), on_fetched=reported.append)
    assert all(f"{tmp_path / name}: cannot be downloaded" in str(caught.value) for name in ("bad", "worse"))
    assert [each.path.name for each in reported] == os.listdir(tmp_path) == ["good"]


def test_links_are_tried_in_turn_and_each_failure_is_reported_with_what_to_do(site: Site) -> None:
    answers = {"/missing": "404 not found", "/gone": "410 gone", "/forbidden": "403 forbidden", "/login": "401 login"}
    refusing = [site.add(path, DATA, status=int(answer[:3])) for path, answer in answers.items()]
    with pytest.raises(TransferError) as caught:
        site.fetch(*answers)
    message = str(caught.value)
    assert message.startswith("a.bin: cannot be downloaded: ")
    said = [f"{site.url(path)}: the server answers {answer}" for path, answer in answers.items()]
    for words in (*said, "in a browser", "--from-dir"):
        assert words in message
    assert os.listdir() == []
    site.add("/a.bin", DATA)
    assert site.fetch(*answers, "/a.bin").link == Link("http", site.url("/a.bin"))
    assert [served.requests for served in refusing] == [2, 2, 2, 2]


def test_a_wrong_checksum_once_then_right(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    wrong = b"x" * len(DATA)
    served = site.add("/a.bin", wrong)
    served.on_request = lambda _: setattr(served, "data", wrong if served.requests == 1 else DATA)
    fetched = site.fetch(check=DATA)
    aside = Path(f"a.bin.wrong-{md5(wrong).hexdigest()[:8]}")
    assert (aside.read_bytes(), FILE.read_bytes()) == (wrong, DATA)
    assert sorted(os.listdir()) == ["a.bin", aside.name]
    assert fetched.fetched_bytes == 2 * len(DATA)
    assert f"expected md5 {md5(DATA).hexdigest()}, found md5 {md5(wrong).hexdigest()}" in caplog.text
    assert aside.name in caplog.text


def test_a_checksum_wrong_everywhere_is_an_error_that_names_all(site: Site) -> None:
    wrong = {f"/{number}": f"wrong {number}".encode() for number in range(4)}
    for path, data in wrong.items():
        site.add(path, data)
    with pytest.raises(ChecksumError) as caught:
        site.fetch(*wrong, check=DATA)
    digests = [md5(data).hexdigest() for data in (DATA, *wrong.values())]
    assert all(text in str(caught.value) for text in [*map(site.url, wrong), *digests])
    assert "in a browser" not in str(caught.value)  # which would get the same wrong files
    assert "get the file from another source, and give its folder with --from-dir" in str(caught.value)
    assert len(os.listdir()) == 2  # no more than two are kept aside
    assert not FILE.exists()
    site.add("/a.bin", DATA)
    assert site.fetch(*wrong, "/a.bin", check=DATA).link.address == site.url("/a.bin")
    assert site.served["/0"].requests == 4


@pytest.mark.parametrize("check", [DATA, None])
def test_a_file_known_to_be_another_is_named_at_once(site: Site, check: bytes | None) -> None:
    old = site.add("/a.bin", b"old release")
    known = {(md5 if check else sha256)(old.data).hexdigest(): "the first release, which holds undecodable images"}
    with pytest.raises(ChecksumError, match="which is the first release, which holds undecodable images"):
        site.fetch(check=check, known=known)
    assert old.requests == 1


def test_an_existing_file_is_replaced_only_on_request_and_by_the_right_one(site: Site) -> None:
    site.add("/a.bin", DATA)
    FILE.write_bytes(b"mine")
    with pytest.raises(ChecksumError):
        site.fetch(check=b"other", overwrite=True)
    assert FILE.read_bytes() == b"mine"
    assert site.fetch(check=DATA, overwrite=True).path.read_bytes() == DATA


def test_wrong_use_is_refused(site: Site, tmp_path: Path) -> None:
    for files, options in ((["a", "a"], TransferOptions()), (["a"], TransferOptions(connections=0))):
        with pytest.raises(OptionError):
            fetch_files(requests(site, tmp_path, *files), options)
    assert fetch_files([]) == []


def test_an_invalid_url_is_reported(site: Site) -> None:
    addresses = ["nonsense", "http://", "http://[bad", "ftp://example.org/a", "http://a b/"]
    with pytest.raises(TransferError) as caught:
        site.fetch(*(Link("http", address) for address in addresses))
    assert str(caught.value).count("is not a URL that can be downloaded") == len(addresses)


def test_a_refused_connection_is_given_up_soon(site: Site) -> None:
    with Server() as gone:
        url = gone.url("/a.bin")
    with pytest.raises(TransferError, match="the connection is refused \\(after 4 attempts\\)"):
        site.fetch(url)


@pytest.mark.parametrize(("answers", "reason"), [(True, "Name or service not known"), (False, "no answer in 1 s")])
def test_without_a_name_service_there_is_one_error_soon(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool, reason: str
) -> None:
    def look_up(*_: object) -> None:
        if not answers:
            time.sleep(60)
        raise socket.gaierror(socket.EAI_NONAME, reason)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    links = [Link("http", "https://mirror.invalid/a"), Link("google-drive", "16WD4orcF9dqjNPLzST2U3maDh2cpzxAY")]
    asked = [FileRequest(tmp_path / name, tuple(links)) for name in "abcdefg"]
    begin = time.monotonic()
    with pytest.raises(
        TransferError, match=f"^cannot resolve mirror.invalid, drive.google.com \\({reason}\\)"
    ) as caught:
        fetch_files(asked, TransferOptions(timeout=60.0 if answers else 1.0))
    assert time.monotonic() - begin < 15
    assert "drive.google.com/file/d/16WD4" in str(caught.value)
    assert os.listdir() == []


def test_a_password_in_a_url_is_not_shown(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="facedata")
    site.add("/a.bin", DATA)
    url = site.url("/a.bin").replace("http://", "http://me:secret@")
    assert "secret" not in site.fetch(url).final_url
    with pytest.raises(ChecksumError) as caught:
        site.fetch(url, name="b.bin", check=b"other")
    assert "secret" not in str(caught.value) + caplog.text


def test_the_package_is_cheap_to_import() -> None:
    heavy = "('requests', 'urllib3', 'gdown')"
    code = f"import sys, facedata.download.transfer; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
