from __future__ import annotations

import logging

import pytest

from facedata.commands import progress
from facedata.commands.progress import human_bytes, human_seconds, show_progress
from facedata.jobs.engine import Progress


def test_times_and_sizes_are_said_as_a_person_would() -> None:
    times = {0.04: "0.0 s", 9.94: "9.9 s", 42: "42 s", 185: "3 min 05 s", 7800: "2 h 10 min"}
    assert {seconds: human_seconds(seconds) for seconds in times} == times
    sizes = {0: "0 bytes", 999: "999 bytes", 4400: "4.4 kB", 128_300_000_000: "128.3 GB", 2e12: "2.0 TB"}
    assert {size: human_bytes(size) for size in sizes} == sizes


def test_off_a_terminal_there_is_a_log_line_now_and_then_and_nothing_if_quiet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    logging.getLogger("facedata").propagate = True
    with caplog.at_level(logging.INFO, "facedata"), show_progress("images", quiet=False) as observer:
        assert observer is not None
        observer(Progress(total=17_000_000, before=0, done=8_500_000, bytes=10**10, failures=3, seconds=100))
    assert caplog.messages == ["8,500,000 of 17,000,000 images (50.0 %), 85,000/s, 100 MB/s, 1 min 40 s left, 3 failed"]
    with show_progress("images", quiet=True) as observer:
        assert observer is None
