"""The errors of one link: which are transient, which are final, and how long to wait before a retry."""

from __future__ import annotations

import email.utils
import random
import time

__all__ = [
    "CancelledError",
    "LinkError",
    "RestartError",
    "RetryPolicy",
    "TransientError",
    "WrongChecksumError",
    "retry_after",
]

_LONGEST_WAIT = 60.0
_LONGEST_RETRY_AFTER = 3600.0


class LinkError(Exception):
    """A link does not give the file, and a retry would not help; `is_page` if it gives a web page instead."""

    def __init__(self, reason: str, *, is_page: bool = False) -> None:
        super().__init__(reason)
        self.is_page = is_page


class WrongChecksumError(LinkError):
    """A link gave a complete file with another checksum; `is_known` if that file is known to be something else."""

    def __init__(self, reason: str, *, is_known: bool = False) -> None:
        super().__init__(reason)
        self.is_known = is_known


class TransientError(Exception):
    """An error that may be gone at the next attempt.

    Parameters
    ----------
    reason : str
    after : float, optional
        Seconds that the server asks to wait.
    retries : int, optional
        The most retries, if success is less likely than usual.
    """

    def __init__(self, reason: str, *, after: float | None = None, retries: int | None = None) -> None:
        super().__init__(reason)
        self.after, self.retries = after, retries


class RestartError(Exception):
    """The partial file cannot be resumed: it does not belong to the file that the server has now."""


class CancelledError(Exception):
    """The whole download is to stop."""


class RetryPolicy:
    """Counts the failures in a row of one link.

    Parameters
    ----------
    retries : int
        Failures in a row that are followed by another attempt.
    first_wait : float
        Seconds.
    """

    def __init__(self, retries: int, first_wait: float) -> None:
        self._retries, self._first_wait = retries, first_wait
        self._failures, self._furthest = 0, 0

    def progressed(self, position: int) -> None:
        """Count from 0 again if `position`, in bytes, is further than ever before."""
        if position > self._furthest:
            self._furthest, self._failures = position, 0

    def wait_after(self, error: TransientError) -> float:
        """Seconds to wait after `error` before the next attempt.

        Raises
        ------
        LinkError
            If there were enough attempts.
        """
        retries = self._retries if error.retries is None else min(self._retries, error.retries)
        if self._failures >= retries:
            attempts = f" (after {self._failures + 1} attempts)" if self._failures else ""
            raise LinkError(f"{error}{attempts}") from error
        self._failures += 1
        wait: float = min(self._first_wait * 2.0 ** (self._failures - 1), _LONGEST_WAIT) * random.uniform(0.5, 1)
        return wait if error.after is None else min(max(error.after, wait), _LONGEST_RETRY_AFTER)


def retry_after(value: str | None) -> float | None:
    """The seconds of a ``Retry-After`` header, which holds a number or a date; None if it is missing or invalid."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
