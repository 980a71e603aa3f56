"""How long to wait before a retry, and when to give up."""

from __future__ import annotations

import email.utils
import time

import pytest

from facedata.download.transfer.retry import LinkError, RetryPolicy, TransientError, retry_after


def test_retry_after_in_every_form() -> None:
    assert retry_after("120") == 120
    soon = retry_after(email.utils.formatdate(time.time() + 60, usegmt=True))
    assert soon is not None
    assert 55 < soon <= 61
    assert retry_after(email.utils.formatdate(time.time() - 60, usegmt=True)) == 0
    assert [retry_after(value) for value in (None, "", "soon", "-5", "9" * 400)] == [None] * 4 + [999_999_999.0]


def test_waits_double_and_end_and_start_again_after_progress() -> None:
    policy = RetryPolicy(retries=3, first_wait=10)
    waits = [policy.wait_after(TransientError("x")) for _ in range(3)]
    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (5, 10, 20), strict=True))
    with pytest.raises(LinkError, match="x \\(after 4 attempts\\)"):
        policy.wait_after(TransientError("x"))
    policy.progressed(100)
    assert policy.wait_after(TransientError("x")) <= 10
    policy.wait_after(TransientError("x"))
    policy.progressed(100)  # no further than before
    assert policy.wait_after(TransientError("x")) > 10


def test_a_server_may_ask_for_an_hour_and_no_more() -> None:
    assert RetryPolicy(3, 1).wait_after(TransientError("x", after=7200)) == 3600
