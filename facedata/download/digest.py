"""Checksums as values: an algorithm and its result."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from facedata.errors import OptionError

__all__ = ["ALGORITHMS", "Digest", "new_hasher"]

ALGORITHMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
"""The algorithms that files are checked with, and the number of hexadecimal digits of each."""


@dataclass(frozen=True)
class Digest:
    """The checksum of a file.

    Attributes
    ----------
    algorithm : str
        A key of `ALGORITHMS`.
    value : str
        Hexadecimal digits, in lower case.

    Raises
    ------
    OptionError
        If the algorithm is not known, or the value does not have its number of digits.
    """

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise OptionError(f"'{self.algorithm}' is not one of the checksums {', '.join(ALGORITHMS)}")
        if not re.fullmatch(f"[0-9a-f]{{{ALGORITHMS[self.algorithm]}}}", self.value):
            raise OptionError(
                f"'{self.value}' is not a checksum of {self.algorithm}: "
                f"expected {ALGORITHMS[self.algorithm]} digits of 0-9 and a-f"
            )

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value}"


def new_hasher(algorithm: str) -> Any:
    """A `hashlib` object; it finds damage, not forgery, so that OpenSSL builds for FIPS allow MD5 too."""
    return hashlib.new(algorithm, usedforsecurity=False)
