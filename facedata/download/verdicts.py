"""What is known of a file, what it turns out to be, and the verdict."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from facedata.download.digest import Digest
from facedata.errors import InputNotFoundError
from facedata.files import kind_name

if TYPE_CHECKING:
    from facedata.download.structure import Structure

__all__ = ["Expectation", "How", "Result", "Verdict", "Verification"]

Verdict = Literal["OK", "FAILED", "MISSING", "EXTRA"]
How = Literal["checksum", "structure", "size", "presence"]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is known of a file.

    Attributes
    ----------
    path : str
        Relative to the root, ``/`` between names.
    digest : Digest, optional
    size : int, optional
        In bytes.
    structure : Structure, optional
        What is checked where there is no digest.
    known : mapping of str to str
        Digests in hexadecimal that the file may also have, and what it is then.
    optional : bool
        It need not be there.
    """

    path: str
    digest: Digest | None = None
    size: int | None = None
    structure: Structure | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an expectation, or a file that nobody expected.

    Attributes
    ----------
    path : str
        As the expectation has it.
    verdict : {'OK', 'FAILED', 'MISSING', 'EXTRA'}
    how : {'checksum', 'structure', 'size', 'presence'}
        By what it was checked.
    detail : str
        What a person should know besides; may be empty.
    found_at : str, optional
        Where it lies, relative to the root, if that is another place than `path`.
    from_cache : bool
        Whether it was not read again, as it has not changed since.
    """

    path: str
    verdict: Verdict
    how: How
    detail: str = ""
    found_at: str | None = None
    from_cache: bool = False


@dataclass(slots=True)
class Verification:
    """The sum of all results.

    Attributes
    ----------
    verdicts : Counter
        How many results there are of each verdict.
    hows : Counter
        By what those that are OK were checked.
    from_cache : int
        How many were not read again.
    bytes_read : int
    seconds : float
    results : list of Result
        All of them, unless they were given to somebody one by one.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    hows: Counter[str] = field(default_factory=Counter)
    from_cache: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing failed and nothing is missing."""
        return not (self.verdicts["FAILED"] or self.verdicts["MISSING"])

    def add(self, result: Result) -> None:
        """Count a result."""
        self.verdicts[result.verdict] += 1
        self.from_cache += result.from_cache
        if result.verdict == "OK":
            self.hows[result.how] += 1


def failed(expectation: Expectation, detail: str) -> Result:
    return Result(expectation.path, "FAILED", "presence", detail)


def reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def glance(expectation: Expectation, status: os.stat_result) -> Result | None:
    """What can be said without opening the file, if that settles it."""
    if not stat.S_ISREG(status.st_mode):
        return failed(expectation, f"is {kind_name(status.st_mode)}, not a file")
    if expectation.size is not None and expectation.size != status.st_size:
        detail = f"expected {expectation.size:,} bytes, found {status.st_size:,}"
        return Result(expectation.path, "FAILED", "size", detail)
    if expectation.digest is not None or expectation.structure is not None:
        return None
    if expectation.size is not None:
        return Result(expectation.path, "OK", "size", f"no checksum published; its size is right: {status.st_size:,}")
    return Result(expectation.path, "OK", "presence", "present; nothing published to check it against")


def judge_structure(expectation: Expectation, path: str) -> Result:
    assert expectation.structure is not None
    try:
        finding = expectation.structure.check(path)
    except InputNotFoundError as error:
        if not os.path.exists(path):
            raise
        return Result(expectation.path, "FAILED", "structure", f"cannot be checked: {error}")
    verdict: Verdict = "OK" if finding.good else "FAILED"
    return Result(expectation.path, verdict, "structure", finding.text)


def judge(expectation: Expectation, digest: Digest, steady: bool = True) -> Result:
    assert expectation.digest is not None
    if digest == expectation.digest:
        return Result(expectation.path, "OK", "checksum")
    detail = f"expected {expectation.digest}, found {digest.value}"
    if digest.value in expectation.known:
        detail += f": it is {expectation.known[digest.value]}"
    if not steady:
        detail += "; it changed while it was read"
    return Result(expectation.path, "FAILED", "checksum", detail)
