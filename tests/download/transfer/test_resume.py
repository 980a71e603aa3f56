"""Resuming across runs, only with a partial file of the same file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from download.transfer.conftest import Site
from http_server import Served

from facedata.errors import TransferError

DATA = os.urandom(1_000_000)
PARTIAL = Path("a.bin.part")


@pytest.fixture
def partial(site: Site) -> Callable[..., Served]:
    """Leave the partial file of a run that failed after 400,000 bytes; returns what is served."""

    def leave(check: bytes | None = None, **options: Any) -> Served:
        served = site.add("/a.bin", DATA, cut_at=[400_000, None], **options)
        with pytest.raises(TransferError, match="the connection broke"):
            site.fetch(check=check, retries=0)
        assert PARTIAL.stat().st_size == 400_000
        site.wait_until_idle()
        served.bytes_served = 0
        return served

    return leave


@pytest.mark.parametrize("etag", ['"first"', None, 'W/"weak"'])
def test_a_second_run_requests_only_the_rest(site: Site, partial: Any, etag: str | None) -> None:
    served = partial(etag=etag)
    assert sorted(os.listdir()) == ["a.bin.part", "a.bin.part.json"]
    fetched = site.fetch(check=DATA)
    assert served.bytes_served == fetched.fetched_bytes == 600_000
    asked = served.asked[-1].headers
    assert asked["Range"] == "bytes=400000-"
    assert asked["If-Range"] == (etag if etag == '"first"' else served.last_modified)
    assert os.listdir() == ["a.bin"]


@pytest.mark.parametrize("etag", ['W/"weak"', None])
@pytest.mark.parametrize("check", [DATA, None])
def test_a_weak_validator_proves_nothing(site: Site, partial: Any, etag: str | None, check: bytes | None) -> None:
    served = partial(check=check, etag=etag, last_modified=formatdate(time.time() + 60, usegmt=True))
    assert site.fetch(check=check).path.read_bytes() == DATA
    assert served.bytes_served == (600_000 if check else len(DATA))
    assert served.asked[-1].headers["If-Range"] is None


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
    site: Site, partial: Any, caplog: pytest.LogCaptureFixture, before: Any, now: dict[str, Any], message: str
) -> None:
    served = partial(**before)
    for name, value in now.items():
        setattr(served, name, value)
    assert site.fetch().path.read_bytes() == served.data
    assert message in caplog.text
    assert "starting over" in caplog.text


@pytest.mark.parametrize("check", [DATA, None])
@pytest.mark.parametrize("path", ["/a.bin", "/mirror"])
def test_a_checksum_decides_without_a_validator(site: Site, partial: Any, check: bytes | None, path: str) -> None:
    served = partial(check=check, **({} if path == "/mirror" else {"etag": None, "last_modified": None}))
    if path == "/mirror":
        served = site.add("/mirror", DATA, etag='"other"', last_modified=None)
    fetched = site.fetch(path, check=check)
    assert (served.bytes_served, fetched.etag) == (600_000 if check else len(DATA), served.etag)


def test_a_rest_that_was_not_requested_is_refused(site: Site, partial: Any) -> None:
    partial().headers["Content-Range"] = "bytes 0-999999/1000000"
    with pytest.raises(TransferError, match="but those from 400,000 on were requested"):
        site.fetch()
    assert PARTIAL.stat().st_size == 400_000


@pytest.mark.parametrize(
    ("etag", "check", "message"),
    [
        ("", None, "does not say whether the rest belongs to the same version"),
        ('"second"', None, 'its ETag was "first", and is "second"'),
        ("", DATA, ""),
    ],
)
def test_a_rest_that_is_sent_in_spite_of_if_range_is_joined_only_if_a_checksum_decides(
    site: Site, partial: Any, caplog: pytest.LogCaptureFixture, etag: str, check: bytes | None, message: str
) -> None:
    served = partial()
    served.data, served.last_modified, served.headers["ETag"] = check or DATA[::-1], None, etag
    served.on_request = lambda asked: setattr(served, "etag", asked.headers["If-Range"])
    assert site.fetch(check=check).path.read_bytes() == served.data
    assert (served.bytes_served == 600_000) == (not message)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("there", "fetched"),
    [(DATA, 0), (b"damage" + DATA[6:], len(DATA)), (b"damage" + DATA[6:400_000], 600_000 + len(DATA))],
    ids=["complete", "damaged", "damaged and incomplete"],
)
def test_a_partial_file_that_is_complete_or_damaged(site: Site, partial: Any, there: bytes, fetched: int) -> None:
    served = partial(check=DATA)
    PARTIAL.write_bytes(there)
    result = site.fetch(check=DATA)
    assert served.bytes_served == result.fetched_bytes == fetched
    assert result.path.read_bytes() == DATA
