"""Noticing a connection that is too slow to be waited for."""

from __future__ import annotations

from facedata.download.transfer.retry import PassingError

__all__ = ["SpeedWatch"]


class SpeedWatch:
    """Takes the speed over one window after the other.

    Parameters
    ----------
    least : int
        Bytes a second.
    window : float
        Seconds, of those spent waiting for the server.
    """

    def __init__(self, least: int, window: float) -> None:
        self._least, self.window = least, window
        self._bytes, self._seconds = 0, 0.0

    def count(self, size: int, seconds: float) -> None:
        """Note that waiting for `size` bytes took `seconds`. Raises `PassingError` where that was too slow."""
        self._bytes += size
        self._seconds += seconds
        if self._seconds >= self.window:
            if self._bytes < self._least * self._seconds:
                raise PassingError(f"only {self._bytes:,} bytes came in {self._seconds:.0f} s")
            self._bytes, self._seconds = 0, 0.0
