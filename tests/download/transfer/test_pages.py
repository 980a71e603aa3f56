"""Telling web pages from files, and headers from nonsense."""

from __future__ import annotations

import email.utils
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.download.transfer import web_page_title
from facedata.download.transfer.pages import page_instead_of_file, shown_url
from facedata.download.transfer.retry import LinkError, PassingError, Patience, retry_after
from facedata.download.transfer.state import State, boot_id, read_state, write_state


@pytest.mark.parametrize(
    ("head", "title"),
    [
        (b"<!DOCTYPE html><html><head><title>Quota</title>", "Quota"),
        (b"\xef\xbb\xbf \r\n<!-- x -->\n<HTML lang='de'><TITLE class=x>\n  A &lt; B \n</TITLE>", "A < B"),
        (b"<?xml version='1.0'?><!doctype   HTML PUBLIC '-//W3C//DTD'><html>", ""),
        (b"<html><title>cut off in the mid", "cut off in the mid"),
        (b"<html><title>\x1b[2J\x07bell</title>", "[2J bell"),
        (b"<html><title>" + b"long " * 100 + b"</title>", "long " * 23 + "lo..."),
        (b"<head><meta charset=utf-8><title>\xc3\xbc</title>", "ü"),
    ],
)
def test_a_web_page_is_known_by_its_beginning(head: bytes, title: str) -> None:
    assert web_page_title(head) == title


@pytest.mark.parametrize(
    "head", [b"", b"\x1f\x8b\x08", b"PK\x03\x04<html>", b"text <html>", b"<htmlish>", b"<table>", b"<svg>"]
)
def test_anything_else_is_no_web_page(head: bytes) -> None:
    assert web_page_title(head) is None


@given(st.binary(max_size=200) | st.text("<>!-/tile hm?x", max_size=60).map(str.encode))
def test_no_beginning_is_too_odd(head: bytes) -> None:
    title = web_page_title(head)
    assert title is None or title.isprintable()


def test_hostile_beginnings_take_no_time() -> None:
    begin = time.monotonic()
    for head in (b"<html>" + b"<title" * 200_000, b"<!--" * 200_000, b" " * 1_000_000, b"<!-- --> " * 100_000):
        web_page_title(head)
    assert time.monotonic() - begin < 20


def test_a_text_that_the_server_calls_a_page_is_one() -> None:
    assert page_instead_of_file("a.zip", "text/html; charset=utf-8", b"please log in") == ""
    assert page_instead_of_file("a.zip", "text/plain", b"please log in") is None
    assert page_instead_of_file("index.html", "text/html", b"<html>") is None


def test_a_url_is_shown_without_what_is_secret_or_harmful() -> None:
    assert shown_url("https://me:secret@example.org:8/a?b") == "https://example.org:8/a?b"
    assert "\x1b" not in shown_url("https://example.org/\x1b[2J")
    assert shown_url("http://[bad") == "http://[bad"


def test_retry_after_in_every_form() -> None:
    assert retry_after("120") == 120
    soon = retry_after(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert soon is not None
    assert 55 < soon <= 61
    assert retry_after(email.utils.formatdate(time.time() - 60, usegmt=True)) == 0
    assert [retry_after(value) for value in (None, "", "soon", "-5", "9" * 400)] == [None] * 4 + [999_999_999.0]


def test_waits_double_and_end_and_begin_anew_with_progress() -> None:
    patience = Patience(retries=3, first_wait=10)
    waits = [patience.wait_after(PassingError("x")) for _ in range(3)]
    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (5, 10, 20), strict=True))
    with pytest.raises(LinkError, match="x \\(after 4 tries\\)"):
        patience.wait_after(PassingError("x"))
    patience.progressed(100)
    assert patience.wait_after(PassingError("x")) <= 10
    patience.wait_after(PassingError("x"))
    patience.progressed(100)  # no further than before
    assert patience.wait_after(PassingError("x")) > 10


def test_a_server_may_ask_for_an_hour_and_no_more() -> None:
    assert Patience(3, 1).wait_after(PassingError("x", after=7200)) == 3600


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)))
def test_no_record_is_too_odd(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "record.json"
    for key in ("written", "synced", "total", "etag", "version", "ordered"):
        path.write_text(json.dumps({"version": 1, "boot": boot_id(), key: value}))
        state = read_state(path, 100)
        assert state is None or all(0 <= first < end <= 100 for first, end in state.written)


def test_a_record_says_what_survives(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    state = State("link", '"e"', None, 90, True, None, False, [(0, 50), (60, 95)], [(0, 10)], boot_id())
    write_state(path, state, sync=True)
    read = read_state(path, 100)
    assert read is not None
    assert read.written == [(0, 50), (60, 90)]
    write_state(path, State("link", boot="before", total=90, written=[(0, 50)], synced=[(0, 10)]), sync=False)
    read = read_state(path, 100)
    assert read is not None
    assert read.written == [(0, 10)]
