"""Trouble with a link: what passes, what does not, and how long to wait for it."""

from __future__ import annotations

import email.utils
import random
import threading
import time

__all__ = [
    "CancelledError",
    "LinkError",
    "PassingError",
    "Patience",
    "StartOverError",
    "WrongChecksumError",
    "retry_after",
]

_LONGEST_WAIT = 60.0
_LONGEST_OBEYED = 3600.0


class LinkError(Exception):
    """A link that does not give the file; asking again would not help.

    Parameters
    ----------
    reason : str
    page : bool
        Whether it gave a web page instead.
    """

    def __init__(self, reason: str, *, page: bool = False) -> None:
        super().__init__(reason)
        self.page = page


class WrongChecksumError(LinkError):
    """A link that gave a whole file, but another one.

    Parameters
    ----------
    reason : str
    known : bool
        Whether it is known what the file is, so that asking again would give the same.
    """

    def __init__(self, reason: str, *, known: bool = False) -> None:
        super().__init__(reason)
        self.known = known


class PassingError(Exception):
    """Trouble that may be over soon.

    Parameters
    ----------
    reason : str
    after : float, optional
        Seconds that the server asked to wait.
    tries : int, optional
        How often to try at most, where it is less likely to pass.
    """

    def __init__(self, reason: str, *, after: float | None = None, tries: int | None = None) -> None:
        super().__init__(reason)
        self.after, self.tries = after, tries


class StartOverError(Exception):
    """The half that is there does not belong to what the server has now."""


class CancelledError(Exception):
    """Somebody wants everything to stop."""


class Patience:
    """How often a link is asked again, and after how long.

    Parameters
    ----------
    retries : int
        Tries after the first that may bring nothing, in a row.
    first_wait : float
        Seconds.
    """

    def __init__(self, retries: int, first_wait: float) -> None:
        self.retries, self.failures = retries, 0
        self._first_wait, self._furthest = first_wait, 0

    def progressed(self, reached: int) -> None:
        """So many bytes are there; where they were never that many, count from the beginning again."""
        if reached > self._furthest:
            self._furthest, self.failures = reached, 0

    def wait_after(self, trouble: PassingError) -> float:
        """Seconds to wait before the next try.

        Raises
        ------
        LinkError
            Where there were enough tries.
        """
        tries = self.retries if trouble.tries is None else min(self.retries, trouble.tries)
        if self.failures >= tries:
            again = f" (after {self.failures + 1} tries)" if self.failures else ""
            raise LinkError(f"{trouble}{again}") from trouble
        self.failures += 1
        wait: float = min(self._first_wait * 2.0 ** (self.failures - 1), _LONGEST_WAIT) * random.uniform(0.5, 1)
        return wait if trouble.after is None else min(max(trouble.after, wait), _LONGEST_OBEYED)


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def pause(seconds: float, cancel: threading.Event) -> None:
    """Wait, unless cancelled. Raises `CancelledError`."""
    if cancel.wait(seconds):
        raise CancelledError
