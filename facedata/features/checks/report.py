"""What the checks of a feature set report: findings, and figures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.features.feature_set import Floats

__all__ = [
    "Classes",
    "Duplicates",
    "Finding",
    "NeighbourFile",
    "Norms",
    "NotedRows",
    "Observer",
    "SetReport",
    "Share",
    "Similarity",
    "Watch",
    "unwatched",
]

_ROWS_SHOWN = 5

Integers = NDArray[np.int64]
Observer = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""
Watch = Callable[[str], AbstractContextManager[Observer | None]]
"""Called with the name of a step; returns a context manager that gives an observer of its progress."""


def unwatched(_: str) -> AbstractContextManager[Observer | None]:
    """A `Watch` that observes nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Finding:
    """Something that a check found in a file: what was expected, what was found, and what to do."""

    path: str
    check: str
    """A word or two for the kind, for scripts: ``"size"``, ``"zero rows"``."""
    message: str
    advice: str
    wrong: bool = True
    """Whether it is an error; else it is a note."""

    def line(self) -> str:
        """The finding as one line of text."""
        return f"{self.path}: {'WRONG' if self.wrong else 'note'}: {self.message}; {self.advice}"


@dataclass
class NotedRows:
    """Rows of one kind: how many, and the numbers of the first."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, rows: Integers) -> None:
        """Note rows, in order."""
        self.count += len(rows)
        self.first += rows[: _ROWS_SHOWN - len(self.first)].tolist()

    def __str__(self) -> str:
        rows = ", ".join(f"{row:,}" for row in self.first)
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"{'row' if self.count == 1 else 'rows'} {rows}{more}"


@dataclass(frozen=True)
class Norms:
    """The norms of the rows that are finite and not zero; `unit` is the share whose norm is 1 within 0.001."""

    smallest: float
    mean: float
    largest: float
    unit: float


@dataclass(frozen=True)
class Duplicates:
    """Rows that have the same bytes as an earlier one, and groups of such rows."""

    rows: int = 0
    groups: int = 0
    other_labels: int = 0
    """Groups whose rows have different labels."""
    examples: list[list[int]] = field(default_factory=list)
    """The first rows of some groups."""


@dataclass(frozen=True)
class Classes:
    """How rows are spread over classes: their sizes, those of one row, and rows without a class."""

    classes: int
    unlabelled: int
    smallest: int
    median: float
    largest: int
    singletons: int


@dataclass(frozen=True)
class Share:
    """The share of nearest neighbours with the label of their row; the row itself does not count, nor does -1."""

    all: float
    nearest: float
    """The share among the nearest neighbour of each row."""
    possible: float
    """The largest value that `all` can have with classes of these sizes."""
    neighbours: int
    """Neighbours of each row."""
    rows: int
    source: str
    """A file of neighbours, or ``"exact neighbours of N rows"``."""


@dataclass(frozen=True)
class NeighbourFile:
    """The content of a file of neighbours; `k` counts the row itself."""

    path: str
    layout: str = ""
    """``"learn-to-cluster"``, ``"cdp"``, ``"gcn"`` or ``"npy"``; empty if it is none of them."""
    rows: int = 0
    k: int = 0
    dtype: str = ""
    same_label: Share | None = None
    """None without labels, and if something is wrong with the file."""


@dataclass(frozen=True)
class Similarity:
    """The cosines of some pairs: their mean, and their 5th and 95th percentiles."""

    pairs: int
    mean: float
    low: float
    high: float


def _no_floats() -> Floats:
    return np.empty(0, np.float32)


@dataclass
class SetReport:
    """All that the checks found out about a set."""

    name: str
    path: str
    """The matrix."""
    rows: int | None = None
    dimensions: int | None = None
    """None, as `rows`, if the matrix does not have a whole number of rows."""
    norms: Norms | None = None
    not_finite: int = 0
    zero: int = 0
    duplicates: Duplicates | None = None
    classes: Classes | None = None
    keys: bool = False
    """Whether there is a file of keys."""
    neighbours: list[NeighbourFile] = field(default_factory=list)
    same_label: Share | None = None
    """The quality of the features: from the first file of neighbours that has it, else from a sample."""
    same: Similarity | None = None
    other: Similarity | None = None
    """Of pairs with different labels; `same`, of pairs with the same label."""
    findings: list[Finding] = field(default_factory=list)

    # what a plot shows, each of shape (M,): the norms of the rows that are finite and not zero, and cosines of pairs
    row_norms: Floats = field(default_factory=_no_floats)
    class_sizes: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    same_cosines: Floats = field(default_factory=_no_floats)
    other_cosines: Floats = field(default_factory=_no_floats)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong; notes do not count."""
        return not any(finding.wrong for finding in self.findings)

    def facts(self) -> dict[str, Any]:
        """All figures and findings, as JSON values."""
        facts = {name: value for name, value in asdict(self).items() if not isinstance(value, np.ndarray)}
        return {"good": self.good, **facts}
