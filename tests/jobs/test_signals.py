from __future__ import annotations

import signal
from contextlib import suppress

from facedata.jobs.signals import interrupt, stop_on_signals


def test_signals_are_counted_instead_of_being_died_of() -> None:
    with stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop
        assert not stop.at_once
        signal.raise_signal(signal.SIGINT)
        assert stop.at_once
    assert stop.signal_name == "SIGINT"


def test_a_signal_whose_exception_was_lost_stops_the_job_that_begins_after_it() -> None:
    with suppress(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
    with stop_on_signals() as stop:
        assert (stop.count, stop.signal_name) == (1, "SIGINT")
    with stop_on_signals() as stop:
        assert not stop
