from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.text import natural_key, natural_sort, page_instead_of_file, shown_url, web_page_title


def test_numbers_count_as_numbers() -> None:
    assert natural_sort(["id_10", "id_2", "id_1", "a", "id_02", "B"]) == ["B", "a", "id_1", "id_02", "id_2", "id_10"]
    assert natural_sort(["x10y2", "x9y10", "x10y10"]) == ["x9y10", "x10y2", "x10y10"]
    assert natural_sort(["12_10.jpg", "12_9.jpg", "12_100.jpg"]) == ["12_9.jpg", "12_10.jpg", "12_100.jpg"]


NAMES = st.lists(st.text("01239_ab.", max_size=6) | st.from_regex(r"7_(0|[1-9]\d{0,3})\.jpg", fullmatch=True))


@given(NAMES)
def test_the_quick_way_gives_the_same_order(names: list[str]) -> None:
    assert natural_sort(names) == sorted(names, key=natural_key)


@given(st.lists(st.integers(0, 10**12), min_size=2, unique=True), st.sampled_from(["id_{}", "3_{}.jpg", "{}"]))
def test_names_that_differ_in_a_number_are_in_its_order(numbers: list[int], pattern: str) -> None:
    names = [pattern.format(number) for number in sorted(numbers)]
    assert natural_sort(pattern.format(number) for number in numbers) == names


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
        *((head, None) for head in (b"", b"\x1f\x8b\x08", b"PK\x03\x04<html>", b"text <html>", b"<htmlish>", b"<svg>")),
    ],
)
def test_a_web_page_is_recognised_by_its_beginning(head: bytes, title: str | None) -> None:
    assert web_page_title(head) == title


@given(st.binary(max_size=200) | st.text("<>!-/tile hm?x", max_size=60).map(str.encode))
def test_any_beginning_is_handled(head: bytes) -> None:
    title = web_page_title(head)
    assert title is None or title.isprintable()


def test_hostile_beginnings_are_quick() -> None:
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
