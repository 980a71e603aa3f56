"""Several ranges of one file at once, where that is worth it and the server takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from http_server import Server
from hypothesis import given
from hypothesis import strategies as st

from facedata.download.links import Link
from facedata.download.transfer import FileRequest, TransferOptions, fetch_files, ranges
from facedata.download.transfer.ranges import Ranges, Segments

BIG = os.urandom(8_000_000)
RATE = 2_000_000


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "SMALLEST", 1 << 18)


def test_a_large_file_is_fetched_in_several_ranges(server: Server, fetch: Any, tmp_path: Path) -> None:
    served = server.add("/a.bin", BIG, rate=RATE)
    fetch(server.url("/a.bin"), check=BIG, connections=4)
    assert (tmp_path / "a.bin").read_bytes() == BIG
    assert os.listdir(tmp_path) == ["a.bin"]
    assert served.most_at_once == 4
    assert all(one.if_range == '"first"' for one in served.asked[1:])


def test_a_small_file_is_fetched_over_one_connection(server: Server, fetch: Any) -> None:
    served = server.add("/a.bin", BIG[:500_000], rate=RATE)
    fetch(server.url("/a.bin"), connections=4)
    assert served.requests == 1


def test_several_files_share_the_connections(server: Server, tmp_path: Path) -> None:
    requests = []
    for number in range(3):
        server.add(f"/{number}", BIG, rate=8_000_000)
        requests.append(FileRequest(tmp_path / str(number), (Link("http", server.url(f"/{number}")),)))
    seen = 0

    def look(_: object) -> None:
        nonlocal seen
        seen = max(seen, sum(served.at_once for served in server.served.values()))

    for served in server.served.values():
        served.on_request = look
    fetch_files(requests, TransferOptions(connections=3))
    assert seen <= 3
    for number in range(3):
        assert (tmp_path / str(number)).read_bytes() == BIG


def test_a_server_that_takes_one_connection_only(server: Server, fetch: Any, tmp_path: Path) -> None:
    served = server.add("/a.bin", BIG, rate=3_000_000, together=1, headers={"Retry-After": "60"})
    fetch(server.url("/a.bin"), check=BIG, connections=4)
    assert served.bytes_served < 1.2 * len(BIG)
    assert served.requests < 8


def test_connections_that_are_cut_now_and_then(server: Server, fetch: Any, tmp_path: Path) -> None:
    server.add("/a.bin", BIG, rate=RATE, cut_at=[3_000_000, 700_000, 500_000, 900_000, None])
    fetch(server.url("/a.bin"), check=BIG, connections=3)
    assert (tmp_path / "a.bin").read_bytes() == BIG


def test_a_file_that_changes_while_it_is_fetched_is_not_mixed(server: Server, fetch: Any, tmp_path: Path) -> None:
    new = BIG[::-1]
    served = server.add("/a.bin", BIG, rate=RATE, cut_at=[2_000_000, None])

    def change(_: object) -> None:
        if served.requests == 2:
            served.data, served.etag, served.rate = new, '"second"', None

    served.on_request = change
    fetch(server.url("/a.bin"), connections=3)
    assert (tmp_path / "a.bin").read_bytes() in (BIG, new)


def test_a_second_connection_that_gets_another_range_is_no_data(server: Server, fetch: Any, tmp_path: Path) -> None:
    served = server.add("/a.bin", BIG, rate=3_000_000)

    def lie(asked: Any) -> None:
        served.content_range = "bytes 5-7999999/8000000" if served.requests == 2 else None

    served.on_request = lie
    fetch(server.url("/a.bin"), connections=2, check=BIG)
    assert (tmp_path / "a.bin").read_bytes() == BIG


pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


@given(pairs, st.integers(0, 70))
def test_ranges_are_the_set_of_their_bytes(added: list[tuple[int, int]], total: int) -> None:
    there = Ranges(added)
    expected = {byte for first, end in added for byte in range(first, end)}
    assert {byte for first, end in there.pairs() for byte in range(first, end)} == expected
    assert there.count == len(expected)
    assert there.front == next(byte for byte in range(100) if byte not in expected)
    missing = [byte for first, end in there.missing(total) for byte in range(first, end)]
    assert missing == [byte for byte in range(total) if byte not in expected]
    assert all(before[1] < after[0] for before, after in zip(there.pairs(), there.pairs()[1:], strict=False))


@given(st.integers(1, 1 << 24), st.lists(st.tuples(st.booleans(), st.integers(1, 1 << 20)), max_size=40))
def test_segments_give_out_every_byte_once(total: int, steps: list[tuple[bool, int]]) -> None:
    segments, there, owned = Segments([(0, total)]), Ranges(), []
    for take, size in steps:
        if take and (segment := segments.take()) is not None:
            owned.append(segment)
        elif owned:
            position, kept = segments.advance(owned[-1], size)
            assert not any(first < position + kept and position < end for first, end in there.pairs()) or kept == 0
            there.add(position, position + kept)
    for segment in owned:
        segments.give_back(segment)
    while (rest := segments.take()) is not None:
        position, kept = segments.advance(rest, total)
        there.add(position, position + kept)
    assert there.pairs() == [(0, total)]
    assert segments.finished
