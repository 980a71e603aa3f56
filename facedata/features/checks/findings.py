"""What a check found: something wrong, or something to know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

__all__ = ["Finding", "Noted", "Observer", "Watch", "counted", "unwatched"]

_FIRST = 5

Observer = Callable[[int, int], None]
"""Called with the bytes done, and those in all."""

Watch = Callable[[str], AbstractContextManager[Observer | None]]
"""Given what is being done, something to enter that gives an observer."""


@dataclass(frozen=True)
class Finding:
    """Something that a check came upon.

    Attributes
    ----------
    path : str
        The file.
    check : str
        A word or two for the kind, for scripts: ``"size"``, ``"zero rows"``.
    message : str
        What was expected and what was found.
    advice : str
        What to do.
    wrong : bool
        Whether the set is not what it should be; else it is only to be known.
    """

    path: str
    check: str
    message: str
    advice: str
    wrong: bool = True

    def line(self) -> str:
        """As it is told."""
        return f"{self.path}: {'WRONG' if self.wrong else 'note'}: {self.message}; {self.advice}"


@dataclass
class Noted:
    """Rows of one kind: how many, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, rows: list[int], count: int | None = None) -> None:
        """Note rows, in order; `count` of them, where only the first are given."""
        self.count += len(rows) if count is None else count
        self.first += rows[: _FIRST - len(self.first)]

    def __str__(self) -> str:
        rows = ", ".join(f"{row:,}" for row in self.first)
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"{'row' if self.count == 1 else 'rows'} {rows}{more}"


def unwatched(_: str) -> AbstractContextManager[Observer | None]:
    """Nobody looks on."""
    return nullcontext()


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """``1 row``, ``584,013 rows``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
